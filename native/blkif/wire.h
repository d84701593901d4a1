// The blkif wire format: operation numbers, statuses and the layouts of the three ABIs, byte for
// byte (xen/include/public/io/blkif.h, ring.h). Constants and pure functions only.
//
//   offset            0          1                2         id        id+8    id+16
//   read/write/...    operation  nr_segments      handle    id  u64   sector  segments[11]
//   discard           operation  flag             handle    id  u64   sector  nr_sectors u64
//   indirect          operation  indirect_op      nr_segs   id  u64   sector  handle, pad, refs[8]
//   response          id u64 at 0, operation u8 at 8, status s16 at 10
//
// The ABIs differ in one thing: how a compiler aligns a u64 in a struct. x86_64 (and arm64) puts
// `id` at 8, i386 at 4. Everything is little endian, and so is every machine this is built for.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/units.h"

namespace vbd::blkif {

static_assert(std::endian::native == std::endian::little, "the wire format is little endian");

enum class Operation : uint8_t {
    kRead = 0,
    kWrite = 1,
    kWriteBarrier = 2,
    kFlush = 3,
    kReserved = 4,
    kDiscard = 5,
    kIndirect = 6,
};

inline constexpr int16_t kResponseOkay = 0;
inline constexpr int16_t kResponseError = -1;
inline constexpr int16_t kResponseUnsupported = -2;

inline constexpr uint32_t kMaxSegments = 11;
inline constexpr uint32_t kMaxIndirectPages = 8;
inline constexpr uint32_t kSegmentsPerIndirectPage = 512;
inline constexpr uint32_t kMaxIndirectSegments = kMaxIndirectPages * kSegmentsPerIndirectPage;
inline constexpr uint32_t kMaxRingPages = 16;
inline constexpr uint32_t kMaxSlotBytes = 112;
inline constexpr uint8_t kDiscardSecure =
    1;  // BLKIF_DISCARD_SECURE, a bit of a discard's flag byte

/// The guest's layout. kNative is this machine's own; on x86_64 and arm64 it equals kX86_64.
enum class Protocol : uint8_t { kNative, kX86_32, kX86_64 };

struct Segment {
    GrantRef ref;
    uint8_t first_sector;  // in the page, inclusive
    uint8_t last_sector;   // in the page, inclusive
    uint16_t padding;
};
static_assert(sizeof(Segment) == 8);
static_assert(offsetof(Segment, ref) == 0);
static_assert(offsetof(Segment, first_sector) == 4);
static_assert(offsetof(Segment, last_sector) == 5);
static_assert(kSegmentsPerIndirectPage * sizeof(Segment) == kPageSize);

/// A private copy of one ring slot: of the bytes that its request uses. The rest is what was there
/// before.
struct RawSlot {
    alignas(8) uint8_t bytes[kMaxSlotBytes] = {};
};

/// Reads a field of private memory, at any alignment. Never for shared memory: that is shared.h's.
template <typename T>
inline T load_private(const uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

namespace detail {
struct NaturalU64 {
    uint8_t before;
    uint64_t value;
};
}  // namespace detail

/// The alignment that the guest's compiler gives a u64 member: all that tells the ABIs apart.
constexpr size_t u64_alignment(Protocol protocol) {
    switch (protocol) {
        case Protocol::kX86_32:
            return 4;
        case Protocol::kX86_64:
            return 8;
        case Protocol::kNative:
            break;
    }
    return offsetof(detail::NaturalU64, value);
}

/// Byte offsets in a ring slot of one ABI.
template <Protocol P>
struct Layout {
    static constexpr size_t kAlignment = u64_alignment(P);

    static constexpr size_t kOperation = 0;
    static constexpr size_t kNrSegments = 1;
    static constexpr size_t kHandle = 2;
    static constexpr size_t kId = 4 + (kAlignment - 4);
    static constexpr size_t kSector = kId + 8;
    static constexpr size_t kSegments = kSector + 8;
    static constexpr size_t kSize = kSegments + kMaxSegments * sizeof(Segment);

    static constexpr size_t kDiscardFlag = 1;
    static constexpr size_t kDiscardNrSectors = kSector + 8;
    static constexpr size_t kDiscardSize = kDiscardNrSectors + 8;

    static constexpr size_t kIndirectOperation = 1;
    static constexpr size_t kIndirectNrSegments = 2;
    static constexpr size_t kIndirectHandle = kSector + 8;
    static constexpr size_t kIndirectRefs = kIndirectHandle + 4;
    static constexpr size_t kIndirectEnd = kIndirectRefs + kMaxIndirectPages * sizeof(GrantRef);

    static constexpr size_t kResponseId = 0;
    static constexpr size_t kResponseOperation = 8;
    static constexpr size_t kResponseStatus = 10;
    static constexpr size_t kResponseSize = (12 + kAlignment - 1) / kAlignment * kAlignment;
};

/// True when every offset of the ABI is the given one, in the order of the tables in blkif.h.
template <Protocol P>
constexpr bool has_offsets(size_t id, size_t sector, size_t body, size_t refs, size_t indirect_end,
                           size_t size, size_t response_size) {
    using L = Layout<P>;
    return L::kOperation == 0 && L::kNrSegments == 1 && L::kHandle == 2 && L::kId == id &&
           L::kSector == sector && L::kSegments == body && L::kSize == size &&
           L::kDiscardFlag == 1 && L::kDiscardNrSectors == body && L::kDiscardSize == body + 8 &&
           L::kIndirectOperation == 1 && L::kIndirectNrSegments == 2 &&
           L::kIndirectHandle == body && L::kIndirectRefs == refs &&
           L::kIndirectEnd == indirect_end && L::kResponseId == 0 && L::kResponseOperation == 8 &&
           L::kResponseStatus == 10 && L::kResponseSize == response_size;
}
static_assert(has_offsets<Protocol::kX86_64>(8, 16, 24, 28, 60, 112, 16));
static_assert(has_offsets<Protocol::kX86_32>(4, 12, 20, 24, 56, 108, 12));
static_assert(u64_alignment(Protocol::kNative) == 4 ||
              has_offsets<Protocol::kNative>(8, 16, 24, 28, 60, 112, 16));
static_assert(u64_alignment(Protocol::kNative) == 8 ||
              has_offsets<Protocol::kNative>(4, 12, 20, 24, 56, 108, 12));
static_assert(Layout<Protocol::kNative>::kSize <= kMaxSlotBytes);

/// The two that differ, for code that branches on a ring's stride.
using Layout64 = Layout<Protocol::kX86_64>;
using Layout32 = Layout<Protocol::kX86_32>;

/// Byte offsets in the ring's header (ring.h, struct sring).
inline constexpr size_t kRingReqProd = 0;    // the frontend's
inline constexpr size_t kRingReqEvent = 4;   // the backend's
inline constexpr size_t kRingRspProd = 8;    // the backend's
inline constexpr size_t kRingRspEvent = 12;  // the frontend's
inline constexpr size_t kRingHeaderBytes = 64;

/// Distance of two ring slots, in bytes.
constexpr uint32_t slot_bytes(Protocol protocol) {
    return u64_alignment(protocol) == 4 ? Layout32::kSize : Layout64::kSize;
}

/// Slots of a ring of `pages` pages: what fits, rounded down to a power of two (__RING_SIZE).
constexpr uint32_t entries(uint32_t pages, Protocol protocol) {
    if (pages == 0) return 0;
    const uint64_t bytes = uint64_t{pages} * kPageSize - kRingHeaderBytes;
    return static_cast<uint32_t>(std::bit_floor(bytes / slot_bytes(protocol)));
}
static_assert(entries(1, Protocol::kX86_64) == 32 && entries(1, Protocol::kX86_32) == 32);
static_assert(entries(16, Protocol::kX86_64) == 512 && entries(16, Protocol::kX86_32) == 512);

}  // namespace vbd::blkif
