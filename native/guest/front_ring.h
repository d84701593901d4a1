// FrontRing: the frontend's end of one shared blkif ring: what a guest's block driver does. For the
// load generator and for tests; the backend's end is blkif/ring.h. Used by one thread; does not own
// the shared pages.
//
//   rsp_cons ≤ rsp_prod_seen ≤ req_prod_published ≤ req_prod_private ≤ rsp_cons + nr_ents
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>

#include "base/prefetch.h"
#include "base/result.h"
#include "blkif/shared.h"
#include "blkif/wire.h"

namespace vbd::guest {

using blkif::Layout32;
using blkif::Layout64;

/// One response, as it came.
struct FrontResponse {
    uint64_t id = 0;
    uint8_t operation = 0;
    int16_t status = 0;
};

class FrontRing {
  public:
    FrontRing() = default;  // not attached

    /// Makes an empty ring (SHARED_RING_INIT): producers at `start` (0 for real frontends; tests
    /// like other starts), events one after it.
    static void initialise(void* memory, uint32_t start = 0);

    /// Attaches to a ring without requests in flight, where its producers stand. Errors:
    /// kInvalidArgument for a bad page count or alignment; kRing when requests are unanswered.
    static Result<FrontRing> attach(void* memory, uint32_t pages, blkif::Protocol protocol);

    uint32_t entries() const { return entries_; }

    /// Requests written and not yet answered.
    uint32_t in_flight() const { return req_prod_private_ - rsp_cons_; }
    uint32_t free_slots() const { return entries_ - in_flight(); }

    /// Write one request into the next slot; it takes push() to publish it. There must be a free
    /// slot.
    void write_data(blkif::Operation operation, uint64_t id, uint64_t sector,
                    std::span<const blkif::Segment> segments);
    void write_indirect(blkif::Operation inner, uint64_t id, uint64_t sector, uint16_t nr_segments,
                        std::span<const GrantRef> refs);
    void write_discard(uint64_t id, uint64_t sector, uint64_t nr_sectors, bool secure);

    /// Publishes the requests written since the last push. True: the backend wants a notification.
    bool push();

    /// Loads the backend's producer index. False: it claims more responses than there are requests.
    bool begin_pass();

    /// Takes the next response that begin_pass() saw. False: none left.
    bool next(FrontResponse& response);

    /// Asks for a notification of the next response, then looks once more. True: there is one, do
    /// not sleep.
    bool final_check();

  private:
    uint8_t* slot_at(uint32_t index) const {
        return memory_ + blkif::kRingHeaderBytes + size_t{index & (entries_ - 1)} * stride_;
    }
    uint8_t* take_slot() {
        VBD_CHECK(free_slots() != 0);
        return slot_at(req_prod_private_++);
    }
    bool is_64() const { return stride_ == Layout64::kSize; }

    uint8_t* memory_ = nullptr;
    uint32_t entries_ = 0;
    uint32_t stride_ = 0;
    uint32_t req_prod_private_ = 0;
    uint32_t req_prod_published_ = 0;
    uint32_t rsp_cons_ = 0;
    uint32_t rsp_prod_seen_ = 0;
};

namespace detail {

inline uint32_t first_word(uint8_t operation, uint8_t second, uint16_t third) {
    return operation | uint32_t{second} << 8 | uint32_t{third} << 16;
}

/// Stores a u64 field where its ABI puts it: whole where it is aligned, else in halves.
template <typename L>
inline void store_field(uint8_t* to, uint64_t value) {
    if constexpr (L::kAlignment == 8) {
        blkif::shared::store_u64(to, value);
    } else {
        blkif::shared::store_u32(to, static_cast<uint32_t>(value));
        blkif::shared::store_u32(to + 4, static_cast<uint32_t>(value >> 32));
    }
}

template <typename L>
inline void write_head(uint8_t* to, uint32_t first, uint64_t id, uint64_t sector) {
    blkif::shared::store_u32(to, first);
    store_field<L>(to + L::kId, id);
    store_field<L>(to + L::kSector, sector);
}

template <typename L>
inline void write_data(uint8_t* to, blkif::Operation operation, uint64_t id, uint64_t sector,
                       std::span<const blkif::Segment> segments) {
    const auto count = static_cast<uint8_t>(segments.size());
    write_head<L>(to, first_word(static_cast<uint8_t>(operation), count, 0), id, sector);
    to += L::kSegments;
    for (const blkif::Segment& segment : segments) {
        store_field<L>(to, std::bit_cast<uint64_t>(segment));
        to += sizeof segment;
    }
}

template <typename L>
inline void write_indirect(uint8_t* to, blkif::Operation inner, uint64_t id, uint64_t sector,
                           uint16_t nr_segments, std::span<const GrantRef> refs) {
    const auto operation = static_cast<uint8_t>(blkif::Operation::kIndirect);
    write_head<L>(to, first_word(operation, static_cast<uint8_t>(inner), nr_segments), id, sector);
    blkif::shared::store_u32(to + L::kIndirectHandle, 0);
    to += L::kIndirectRefs;
    for (const GrantRef ref : refs) {
        blkif::shared::store_u32(to, ref);
        to += sizeof ref;
    }
}

}  // namespace detail

inline void FrontRing::initialise(void* memory, uint32_t start) {
    auto* header = static_cast<uint8_t*>(memory);
    for (size_t at = 0; at < blkif::kRingHeaderBytes; at += 4)
        blkif::shared::store_u32(header + at, 0);
    blkif::shared::publish_index(header + blkif::kRingReqProd, start);
    blkif::shared::publish_index(header + blkif::kRingRspProd, start);
    blkif::shared::publish_index(header + blkif::kRingReqEvent, start + 1);
    blkif::shared::publish_index(header + blkif::kRingRspEvent, start + 1);
}

inline Result<FrontRing> FrontRing::attach(void* memory, uint32_t pages, blkif::Protocol protocol) {
    if (!std::has_single_bit(pages) || pages > blkif::kMaxRingPages) {
        return Error{
            ErrorKind::kInvalidArgument, 0,
            "a ring of " + std::to_string(pages) + " pages: 1, 2, 4, 8 or 16 are possible"};
    }
    if (memory == nullptr || reinterpret_cast<uintptr_t>(memory) % 8 != 0) {
        return Error{ErrorKind::kInvalidArgument, 0, "the ring's memory is not 8-byte aligned"};
    }
    FrontRing ring;
    ring.memory_ = static_cast<uint8_t*>(memory);
    ring.entries_ = blkif::entries(pages, protocol);
    ring.stride_ = blkif::slot_bytes(protocol);
    const uint32_t req_prod = blkif::shared::load_index(ring.memory_ + blkif::kRingReqProd);
    const uint32_t rsp_prod = blkif::shared::load_index(ring.memory_ + blkif::kRingRspProd);
    if (req_prod != rsp_prod) {
        return Error{ErrorKind::kRing, 0,
                     std::to_string(req_prod - rsp_prod) + " requests on the ring are unanswered"};
    }
    ring.req_prod_private_ = ring.req_prod_published_ = req_prod;
    ring.rsp_cons_ = ring.rsp_prod_seen_ = rsp_prod;
    return ring;
}

inline void FrontRing::write_data(blkif::Operation operation, uint64_t id, uint64_t sector,
                                  std::span<const blkif::Segment> segments) {
    VBD_CHECK(segments.size() <= blkif::kMaxSegments);
    uint8_t* to = take_slot();
    if (is_64()) {
        detail::write_data<Layout64>(to, operation, id, sector, segments);
    } else {
        detail::write_data<Layout32>(to, operation, id, sector, segments);
    }
}

inline void FrontRing::write_indirect(blkif::Operation inner, uint64_t id, uint64_t sector,
                                      uint16_t nr_segments, std::span<const GrantRef> refs) {
    VBD_CHECK(refs.size() <= blkif::kMaxIndirectPages);
    uint8_t* to = take_slot();
    if (is_64()) {
        detail::write_indirect<Layout64>(to, inner, id, sector, nr_segments, refs);
    } else {
        detail::write_indirect<Layout32>(to, inner, id, sector, nr_segments, refs);
    }
}

inline void FrontRing::write_discard(uint64_t id, uint64_t sector, uint64_t nr_sectors,
                                     bool secure) {
    const auto operation = static_cast<uint8_t>(blkif::Operation::kDiscard);
    const uint32_t first =
        detail::first_word(operation, secure ? blkif::kDiscardSecure : uint8_t{0}, 0);
    uint8_t* to = take_slot();
    if (is_64()) {
        detail::write_head<Layout64>(to, first, id, sector);
        detail::store_field<Layout64>(to + Layout64::kDiscardNrSectors, nr_sectors);
    } else {
        detail::write_head<Layout32>(to, first, id, sector);
        detail::store_field<Layout32>(to + Layout32::kDiscardNrSectors, nr_sectors);
    }
}

inline bool FrontRing::push() {
    const uint32_t published = req_prod_private_ - req_prod_published_;
    if (published == 0) return false;
    req_prod_published_ = req_prod_private_;
    blkif::shared::publish_index(memory_ + blkif::kRingReqProd, req_prod_published_);
    const uint32_t req_event =
        blkif::shared::load_index_after_publish(memory_ + blkif::kRingReqEvent);
    return req_prod_published_ - req_event < published;
}

inline bool FrontRing::begin_pass() {
    const uint32_t rsp_prod = blkif::shared::load_index(memory_ + blkif::kRingRspProd);
    if (rsp_prod - rsp_cons_ > req_prod_published_ - rsp_cons_) return false;
    // A request will be written where the response is.
    const uint32_t count = std::min(rsp_prod - rsp_prod_seen_, entries_);
    for (uint32_t i = 0; i < count; ++i) prefetch_to_write(slot_at(rsp_prod_seen_ + i));
    rsp_prod_seen_ = rsp_prod;
    return true;
}

inline bool FrontRing::next(FrontResponse& response) {
    if (rsp_cons_ == rsp_prod_seen_) return false;
    const uint8_t* from = slot_at(rsp_cons_);
    uint32_t outcome;
    if (is_64()) {
        response.id = blkif::shared::load_u64(from);
        outcome = static_cast<uint32_t>(blkif::shared::load_u64(from + 8));
    } else {
        const uint64_t low = blkif::shared::load_u32(from);
        response.id = low | uint64_t{blkif::shared::load_u32(from + 4)} << 32;
        outcome = blkif::shared::load_u32(from + 8);
    }
    response.operation = static_cast<uint8_t>(outcome);
    response.status = static_cast<int16_t>(outcome >> 16);
    ++rsp_cons_;
    return true;
}

inline bool FrontRing::final_check() {
    if (rsp_prod_seen_ != rsp_cons_) return true;
    blkif::shared::publish_index(memory_ + blkif::kRingRspEvent, rsp_cons_ + 1);
    return blkif::shared::load_index_after_publish(memory_ + blkif::kRingRspProd) != rsp_cons_;
}

}  // namespace vbd::guest
