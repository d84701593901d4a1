#include "base/crc32c.h"

#include <array>
#include <cstring>

namespace vbd {

namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

constexpr std::array<uint32_t, 256> make_table() {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) value = (value >> 1) ^ (value & 1 ? kPolynomial : 0);
        table[i] = value;
    }
    return table;
}

constexpr std::array<uint32_t, 256> kTable = make_table();

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t crc32c_sse(const uint8_t* data, size_t bytes,
                                                      uint32_t crc) {
    uint64_t wide = crc;
    for (; bytes >= 8; bytes -= 8, data += 8) {
        uint64_t word;
        std::memcpy(&word, data, 8);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    crc = static_cast<uint32_t>(wide);
    for (; bytes > 0; bytes--) crc = __builtin_ia32_crc32qi(crc, *data++);
    return crc;
}
#endif

}  // namespace

uint32_t crc32c_portable(const void* data, size_t bytes, uint32_t before) {
    const auto* from = static_cast<const uint8_t*>(data);
    uint32_t crc = ~before;
    for (size_t i = 0; i < bytes; i++) crc = (crc >> 8) ^ kTable[(crc ^ from[i]) & 0xff];
    return ~crc;
}

uint32_t crc32c(const void* data, size_t bytes, uint32_t before) {
#if defined(__x86_64__)
    static const bool has_sse = __builtin_cpu_supports("sse4.2");
    if (has_sse) return ~crc32c_sse(static_cast<const uint8_t*>(data), bytes, ~before);
#endif
    return crc32c_portable(data, bytes, before);
}

}  // namespace vbd
