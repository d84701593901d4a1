// What a guest's compiler makes of blkif.h: the request structs in C, with the alignment rules of
// each ABI. Written apart from blkif/wire.h, so that tests of the decoder do not check it against
// itself.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "blkif/wire.h"

namespace vbd::test {

using blkif::Protocol;
using blkif::RawSlot;
using blkif::Segment;

#define VBD_GUEST_STRUCTS     \
    struct Data {             \
        uint8_t operation;    \
        uint8_t nr_segments;  \
        uint16_t handle;      \
        uint64_t id;          \
        uint64_t sector;      \
        struct {              \
            uint32_t ref;     \
            uint8_t first;    \
            uint8_t last;     \
        } seg[11];            \
    };                        \
    struct Discard {          \
        uint8_t operation;    \
        uint8_t flag;         \
        uint16_t handle;      \
        uint64_t id;          \
        uint64_t sector;      \
        uint64_t nr_sectors;  \
    };                        \
    struct Indirect {         \
        uint8_t operation;    \
        uint8_t inner;        \
        uint16_t nr_segments; \
        uint64_t id;          \
        uint64_t sector;      \
        uint16_t handle;      \
        uint16_t padding;     \
        uint32_t refs[8];     \
    };                        \
    struct Response {         \
        uint64_t id;          \
        uint8_t operation;    \
        int16_t status;       \
    }

struct Abi64 {
    VBD_GUEST_STRUCTS;
};
#pragma pack(push, 4)
struct Abi32 {
    VBD_GUEST_STRUCTS;
};
#pragma pack(pop)
#undef VBD_GUEST_STRUCTS

/// One request as a guest means it, whatever its layout.
struct Wish {
    uint8_t operation = 0;
    uint8_t second = 0;        // discard: flag; indirect: inner operation; else not used
    uint32_t nr_segments = 0;  // as written on the wire, 8 or 16 bits
    uint64_t id = 0;
    uint64_t sector = 0;
    uint64_t nr_sectors = 0;  // discard only
    std::vector<Segment> segments;
    std::vector<uint32_t> refs;
};

template <typename Abi>
RawSlot encode_as(const Wish& wish) {
    RawSlot slot;
    std::memset(slot.bytes, 0xa5, sizeof slot.bytes);  // a guest leaves old bytes behind
    if (wish.operation == 5) {
        typename Abi::Discard discard{};
        discard.operation = wish.operation;
        discard.flag = wish.second;
        discard.id = wish.id;
        discard.sector = wish.sector;
        discard.nr_sectors = wish.nr_sectors;
        std::memcpy(slot.bytes, &discard, sizeof discard);
    } else if (wish.operation == 6) {
        typename Abi::Indirect indirect{};
        indirect.operation = wish.operation;
        indirect.inner = wish.second;
        indirect.nr_segments = static_cast<uint16_t>(wish.nr_segments);
        indirect.id = wish.id;
        indirect.sector = wish.sector;
        for (size_t i = 0; i < wish.refs.size() && i < 8; ++i) indirect.refs[i] = wish.refs[i];
        std::memcpy(slot.bytes, &indirect, sizeof indirect);
    } else {
        typename Abi::Data data{};
        data.operation = wish.operation;
        data.nr_segments = static_cast<uint8_t>(wish.nr_segments);
        data.id = wish.id;
        data.sector = wish.sector;
        for (size_t i = 0; i < wish.segments.size() && i < 11; ++i) {
            data.seg[i].ref = wish.segments[i].ref;
            data.seg[i].first = wish.segments[i].first_sector;
            data.seg[i].last = wish.segments[i].last_sector;
        }
        std::memcpy(slot.bytes, &data, sizeof data);
    }
    return slot;
}

inline RawSlot encode(Protocol protocol, const Wish& wish) {
    if (protocol == Protocol::kX86_32) return encode_as<Abi32>(wish);
    return encode_as<Abi64>(wish);
}

inline constexpr Protocol kProtocols[] = {Protocol::kNative, Protocol::kX86_32, Protocol::kX86_64};

/// The golden vectors, and what they mean: handle 51712, id 0x1122334455667788, sector 0x1000.
inline constexpr uint64_t kGoldenId = 0x1122334455667788;
inline constexpr uint8_t kGoldenRead64[] = {
    0x00, 0x02, 0x00, 0xca, 0x00, 0x00, 0x00, 0x00, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33,
    0x22, 0x11, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x01, 0x00, 0x00,
    0x00, 0x07, 0x00, 0x00, 0x02, 0x01, 0x00, 0x00, 0x02, 0x03, 0x00, 0x00};
inline constexpr uint8_t kGoldenRead32[] = {0x00, 0x02, 0x00, 0xca, 0x88, 0x77, 0x66, 0x55, 0x44,
                                            0x33, 0x22, 0x11, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00,
                                            0x00, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00, 0x07, 0x00,
                                            0x00, 0x02, 0x01, 0x00, 0x00, 0x02, 0x03, 0x00, 0x00};
inline constexpr uint8_t kGoldenDiscard64[] = {
    0x05, 0x01, 0x00, 0xca, 0x00, 0x00, 0x00, 0x00, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
    0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00};
inline constexpr uint8_t kGoldenDiscard32[] = {
    0x05, 0x01, 0x00, 0xca, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00, 0x10,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00};
inline constexpr uint8_t kGoldenIndirect64[64] = {
    0x06, 0x01, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
    0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xca, 0x00, 0x00, 0x01, 0x02, 0x00, 0x00};
inline constexpr uint8_t kGoldenIndirect32[64] = {
    0x06, 0x01, 0x20, 0x00, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00, 0x10,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xca, 0x00, 0x00, 0x01, 0x02, 0x00, 0x00};

}  // namespace vbd::test
