#include "block/pattern_device.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>

namespace vbd::block {

namespace {

/// Words of the pattern are made here first; on the stack of submit().
constexpr size_t kPieceBytes = 512;

class PatternQueue final : public DeviceQueue {
  public:
    PatternQueue(bool zero, uint64_t seed) : zero_(zero), seed_(seed) {}

    void submit(std::span<Io* const> batch) override {
        for (Io* io : batch) complete(io, run(*io));
    }

  private:
    int32_t run(const Io& io) const {
        switch (io.op) {
            case IoOp::kRead:
                return each_piece(io, [](void* guest, const uint8_t* ours, size_t bytes) {
                    std::memcpy(guest, ours, bytes);
                    return true;
                });
            case IoOp::kWrite:
                return each_piece(io, [](void* guest, const uint8_t* ours, size_t bytes) {
                    return std::memcmp(guest, ours, bytes) == 0;
                });
            case IoOp::kFlush:
            case IoOp::kDiscard:
                return 0;
            case IoOp::kSecureDiscard:
                break;
        }
        return EOPNOTSUPP;
    }

    template <typename Act>
    int32_t each_piece(const Io& io, Act act) const {
        alignas(8) uint8_t piece[kPieceBytes] = {};
        uint64_t at = io.offset;
        for (const iovec& part : std::span(io.iov, io.iov_count)) {
            auto* memory = static_cast<uint8_t*>(part.iov_base);
            for (size_t done = 0; done < part.iov_len;) {
                // Parts are whole sectors in sum only: a piece may begin within a word.
                const size_t lead = at % 8;
                const size_t bytes = std::min(part.iov_len - done, kPieceBytes - lead);
                if (!zero_) fill(piece, at - lead, (lead + bytes + 7) / 8);
                if (!act(memory + done, piece + lead, bytes)) return EIO;
                done += bytes;
                at += bytes;
            }
        }
        return 0;
    }

    void fill(uint8_t* piece, uint64_t offset, size_t words) const {
        for (size_t i = 0; i < words; i++) {
            const uint64_t word = PatternDevice::word_at(seed_, offset + i * 8);
            std::memcpy(piece + i * 8, &word, 8);
        }
    }

    const bool zero_;
    const uint64_t seed_;
};

}  // namespace

Result<std::unique_ptr<PatternDevice>> PatternDevice::sized(uint64_t size_bytes,
                                                            uint32_t sector_size) {
    if (Status s = check_disk_size(size_bytes, sector_size); !s) return s.error();
    auto device = std::unique_ptr<PatternDevice>(new PatternDevice);
    Geometry& geometry = device->geometry_;
    geometry.size_bytes = size_bytes;
    geometry.sector_size = geometry.physical_sector_size = sector_size;
    device->size_bytes_.store(size_bytes, std::memory_order_release);
    return device;
}

Result<std::unique_ptr<Device>> PatternDevice::create(uint64_t size_bytes, uint32_t sector_size,
                                                      uint64_t seed) {
    auto device = sized(size_bytes, sector_size);
    if (!device) return device.error();
    device.value()->seed_ = seed;
    device.value()->geometry_.description = "pattern(" + std::to_string(size_bytes) +
                                            " bytes, seed " + std::to_string(seed) + ")";
    return std::unique_ptr<Device>(std::move(device).value());
}

Result<std::unique_ptr<Device>> PatternDevice::create_zero(uint64_t size_bytes,
                                                           uint32_t sector_size) {
    auto device = sized(size_bytes, sector_size);
    if (!device) return device.error();
    device.value()->zero_ = true;
    Geometry& geometry = device.value()->geometry_;
    geometry.can_discard = true;  // what reads as zeroes may be taken for discarded
    geometry.discard_granularity = sector_size;
    geometry.description = "zero(" + std::to_string(size_bytes) + " bytes)";
    return std::unique_ptr<Device>(std::move(device).value());
}

Result<std::unique_ptr<DeviceQueue>> PatternDevice::open_queue(IoContext&) {
    return std::unique_ptr<DeviceQueue>(new PatternQueue(zero_, seed_));
}

Status PatternDevice::resize(uint64_t size_bytes) {
    if (Status s = check_disk_size(size_bytes, geometry_.sector_size); !s) return s;
    geometry_.size_bytes = size_bytes;
    size_bytes_.store(size_bytes, std::memory_order_release);
    return {};
}

}  // namespace vbd::block
