// Request: what a guest asked for, after every check. parse() and check_segments() are the security
// boundary: pure, total over all bytes, no I/O, no allocation, and they read private memory only
// (XSA-155, XSA-513).
//
//   RawSlot, a private copy of a ring slot        ──parse()───────────► Request | Reject
//   private copies of an indirect's descriptors   ──check_segments()──► nr_sectors | Reject
#pragma once

#include <cstdint>
#include <span>

#include "base/units.h"
#include "blkif/wire.h"

namespace vbd::blkif {

/// Why a request is answered without being executed.
enum class Reject : uint8_t {
    kNone,
    kUnknownOperation,   // not in {0,1,2,3,5,6}
    kNotAdvertised,      // an operation this connection was not offered
    kSegmentCount,       // none where one is needed, more than 11, more than advertised
    kIndirectOperation,  // indirect_op is neither READ nor WRITE
    kSegmentBounds,      // first > last, or last > 7
    kAlignment,          // not a multiple of the disk's sector size
    kRange,              // beyond the end of the disk
    kReadOnly,
    kDiscardEmpty,  // nr_sectors == 0
};
inline constexpr uint32_t kRejectKinds = 10;

/// BLKIF_RSP_EOPNOTSUPP for what is not supported, BLKIF_RSP_ERROR for the rest; kNone is OKAY.
int16_t status_of(Reject reject);

/// A short name for statistics: "segment-bounds".
const char* name_of(Reject reject);

/// What one connection offers and the disk allows; sampled by the queue once per pass.
struct Limits {
    uint64_t capacity_sectors = 0;       // 512-byte units
    uint32_t sector_size = 512;          // bytes; a power of two, 512..4096
    uint32_t max_indirect_segments = 0;  // advertised; 0: INDIRECT was not offered
    bool read_only = false;
    bool flush = true;
    bool barrier = true;
    bool discard = false;
    bool secure_discard = false;
};

struct Request {
    uint64_t id = 0;             // eight opaque bytes of the guest's
    uint8_t wire_operation = 0;  // what the response echoes: for INDIRECT the inner operation
    Operation operation =
        Operation::kRead;      // kRead, kWrite, kWriteBarrier, kFlush or kDiscard; never kIndirect
    bool indirect = false;     // the segments are in the guest pages named by indirect_refs
    bool secure = false;       // DISCARD: erase securely (only if offered)
    uint16_t nr_segments = 0;  // ≤ 11, or ≤ Limits::max_indirect_segments
    uint64_t sector = 0;       // 512-byte units
    uint64_t nr_sectors = 0;   // 512-byte units; of an indirect request only after check_segments()
    GrantRef indirect_refs[kMaxIndirectPages] = {};
    Segment segments[kMaxSegments] = {};  // of a direct request

    uint32_t indirect_pages() const {
        return (nr_segments + kSegmentsPerIndirectPage - 1) / kSegmentsPerIndirectPage;
    }
};

/// Decodes and checks one slot. id and wire_operation are valid whatever is returned, so that every
/// consumed request can be answered. A direct request that passes is fully checked; an indirect one
/// still needs check_segments().
Reject parse(Protocol protocol, const RawSlot& slot, const Limits& limits, Request& request);

/// Checks the segments of `request` (first ≤ last ≤ 7, alignment, range) and
/// sets nr_sectors.
Reject check_segments(std::span<const Segment> segments, const Limits& limits, Request& request);

}  // namespace vbd::blkif
