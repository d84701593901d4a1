// The security boundary: bytes in, a Request that is safe to execute or a Reject out. Every check
// is unconditional code, in the order: operation known, offered, segment count, allowed on this
// disk, segment bounds, alignment, range.
#include "blkif/request.h"

namespace vbd::blkif {

namespace {

/// Sectors per unit of alignment, minus one: 0 for 512-byte sectors.
uint32_t alignment_mask(const Limits& limits) {
    return limits.sector_size / kSectorSize - 1;
}

/// Compares in sectors, by subtraction alone: neither an addition nor a multiplication that could
/// wrap.
Reject check_range(uint64_t sector, uint64_t nr_sectors, const Limits& limits) {
    if ((sector & alignment_mask(limits)) != 0) return Reject::kAlignment;
    if (sector > limits.capacity_sectors || nr_sectors > limits.capacity_sectors - sector) {
        return Reject::kRange;
    }
    return Reject::kNone;
}

/// Checks `count` segments, each taken once from `take(i)`, and the range they make. The loop only
/// gathers what is looked at behind it: guests that send good requests do not pay for the bad ones.
template <typename Take>
inline Reject check_each(uint32_t count, Take take, const Limits& limits, Request& request) {
    uint32_t any_first = 0;  // bits that any first sector has
    uint32_t any_last = 0;
    uint32_t all_last = ~0U;      // bits that every last sector has
    int32_t order = 0;            // negative when one ends before it starts
    uint32_t nr_sectors = count;  // at most 4096 × 8, when all are in bounds
    for (uint32_t i = 0; i < count; ++i) {
        const Segment segment = take(i);
        const int32_t distance = segment.last_sector - segment.first_sector;
        any_first |= segment.first_sector;
        any_last |= segment.last_sector;
        all_last &= segment.last_sector;
        order |= distance;
        nr_sectors += static_cast<uint32_t>(distance);
    }
    // All are below 8, a power of two, exactly when the bits of all are.
    if (order < 0 || any_last >= kSectorsPerPage) [[unlikely]]
        return Reject::kSegmentBounds;
    const uint32_t mask = alignment_mask(limits);
    // A last sector is aligned when the one behind it is: when it ends in ones.
    if ((any_first & mask) != 0 || (all_last & mask) != mask) [[unlikely]] {
        return Reject::kAlignment;
    }
    const Reject reject = check_range(request.sector, nr_sectors, limits);
    if (reject == Reject::kNone) [[likely]]
        request.nr_sectors = nr_sectors;
    return reject;
}

/// READ, WRITE, WRITE_BARRIER and FLUSH: one layout. The last two may come without segments; then
/// they name no place on the disk, and the sector is not looked at (Linux sends an empty flush with
/// sector 2^64-1).
template <typename L>
inline Reject parse_data(const uint8_t* bytes, Operation operation, uint32_t count,
                         const Limits& limits, Request& request) {
    const bool flush = operation == Operation::kFlush;
    if (flush || operation == Operation::kWriteBarrier) [[unlikely]] {
        if (!(flush ? limits.flush : limits.barrier)) return Reject::kNotAdvertised;
    } else if (count == 0) {
        return Reject::kSegmentCount;
    }
    if (count > kMaxSegments) return Reject::kSegmentCount;
    const bool changes_nothing = operation == Operation::kRead || (flush && count == 0);
    if (limits.read_only && !changes_nothing) return Reject::kReadOnly;

    request.operation = operation;
    request.nr_segments = static_cast<uint16_t>(count);
    if (count == 0) return Reject::kNone;
    request.sector = load_private<uint64_t>(bytes + L::kSector);
    const auto take = [&](uint32_t i) {
        const auto segment = load_private<Segment>(bytes + L::kSegments + i * sizeof(Segment));
        request.segments[i] = segment;
        return segment;
    };
    return check_each(count, take, limits, request);
}

template <typename L>
[[gnu::noinline]] Reject parse_discard(const uint8_t* bytes, const Limits& limits,
                                       Request& request) {
    if (!limits.discard) return Reject::kNotAdvertised;
    if (limits.read_only) return Reject::kReadOnly;
    const auto nr_sectors = load_private<uint64_t>(bytes + L::kDiscardNrSectors);
    if (nr_sectors == 0) return Reject::kDiscardEmpty;
    if ((nr_sectors & alignment_mask(limits)) != 0) return Reject::kAlignment;

    request.operation = Operation::kDiscard;
    request.sector = load_private<uint64_t>(bytes + L::kSector);
    const Reject reject = check_range(request.sector, nr_sectors, limits);
    if (reject != Reject::kNone) return reject;
    request.nr_sectors = nr_sectors;
    // A secure erase that was not offered is a plain discard (blkif.h: the flag is then ignored).
    request.secure = limits.secure_discard && (bytes[L::kDiscardFlag] & kDiscardSecure) != 0;
    return Reject::kNone;
}

/// What can be said before the descriptors are fetched; the rest is check_segments()'s.
template <typename L>
[[gnu::noinline]] Reject parse_indirect(const uint8_t* bytes, const Limits& limits,
                                        Request& request) {
    request.wire_operation = bytes[L::kIndirectOperation];
    if (limits.max_indirect_segments == 0) return Reject::kNotAdvertised;
    const auto inner = static_cast<Operation>(bytes[L::kIndirectOperation]);
    if (inner != Operation::kRead && inner != Operation::kWrite) return Reject::kIndirectOperation;
    const auto count = load_private<uint16_t>(bytes + L::kIndirectNrSegments);
    // Against the protocol's own limit too, whatever was configured: arrays are that long.
    if (count == 0 || count > limits.max_indirect_segments || count > kMaxIndirectSegments) {
        return Reject::kSegmentCount;
    }
    if (limits.read_only && inner != Operation::kRead) return Reject::kReadOnly;

    request.operation = inner;
    request.indirect = true;
    request.nr_segments = count;
    request.sector = load_private<uint64_t>(bytes + L::kSector);
    std::memcpy(request.indirect_refs, bytes + L::kIndirectRefs, sizeof request.indirect_refs);
    // Each segment has a sector at least: what is out of range by that alone is not worth fetching
    // descriptors for.
    return check_range(request.sector, count, limits);
}

/// Noinline like its rare branches: each then saves no more registers than it needs, which is a
/// good part of what parsing a small request costs.
template <typename L>
[[gnu::noinline]] Reject parse_slot(const uint8_t* bytes, const Limits& limits, Request& request) {
    const auto head = load_private<uint32_t>(bytes);
    const auto wire_operation = static_cast<uint8_t>(head);
    const auto second = static_cast<uint8_t>(head >> 8);
    static_assert(L::kOperation == 0 && L::kNrSegments == 1);
    request.id = load_private<uint64_t>(bytes + L::kId);
    request.wire_operation = wire_operation;
    request.operation = Operation::kRead;
    request.indirect = false;
    request.secure = false;
    request.nr_segments = 0;
    request.sector = 0;
    request.nr_sectors = 0;
    const auto operation = static_cast<Operation>(wire_operation);
    if (operation <= Operation::kFlush) [[likely]] {
        return parse_data<L>(bytes, operation, second, limits, request);
    }
    if (operation == Operation::kIndirect) return parse_indirect<L>(bytes, limits, request);
    if (operation == Operation::kDiscard) return parse_discard<L>(bytes, limits, request);
    return Reject::kUnknownOperation;
}

}  // namespace

Reject parse(Protocol protocol, const RawSlot& slot, const Limits& limits, Request& request) {
    switch (protocol) {
        case Protocol::kX86_32:
            return parse_slot<Layout<Protocol::kX86_32>>(slot.bytes, limits, request);
        case Protocol::kX86_64:
            return parse_slot<Layout<Protocol::kX86_64>>(slot.bytes, limits, request);
        case Protocol::kNative:
            break;
    }
    return parse_slot<Layout<Protocol::kNative>>(slot.bytes, limits, request);
}

Reject check_segments(std::span<const Segment> segments, const Limits& limits, Request& request) {
    request.nr_sectors = 0;
    if (segments.empty() || segments.size() != request.nr_segments) return Reject::kSegmentCount;
    const auto take = [&](uint32_t i) { return segments[i]; };
    return check_each(request.nr_segments, take, limits, request);
}

int16_t status_of(Reject reject) {
    switch (reject) {
        case Reject::kNone:
            return kResponseOkay;
        case Reject::kUnknownOperation:
        case Reject::kNotAdvertised:
            return kResponseUnsupported;
        case Reject::kSegmentCount:
        case Reject::kIndirectOperation:
        case Reject::kSegmentBounds:
        case Reject::kAlignment:
        case Reject::kRange:
        case Reject::kReadOnly:
        case Reject::kDiscardEmpty:
            break;
    }
    return kResponseError;
}

const char* name_of(Reject reject) {
    switch (reject) {
        case Reject::kNone:
            return "none";
        case Reject::kUnknownOperation:
            return "unknown-operation";
        case Reject::kNotAdvertised:
            return "not-advertised";
        case Reject::kSegmentCount:
            return "segment-count";
        case Reject::kIndirectOperation:
            return "indirect-operation";
        case Reject::kSegmentBounds:
            return "segment-bounds";
        case Reject::kAlignment:
            return "alignment";
        case Reject::kRange:
            return "range";
        case Reject::kReadOnly:
            return "read-only";
        case Reject::kDiscardEmpty:
            return "discard-empty";
    }
    return "unknown";
}

}  // namespace vbd::blkif
