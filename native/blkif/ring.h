// BackRing: the backend's end of one shared blkif ring of 1, 2, 4, 8 or 16 pages. Private indices,
// each shared byte loaded at most once, all index arithmetic modulo 2^32
// (xen/include/public/io/ring.h). Used by one thread; it does not own the shared pages, which must
// stay mapped while it lives.
//
//   header   req_prod req_event rsp_prod rsp_event   4 × u32, then 48 bytes we never touch
//   entries  [nr_ents] × 112 (x86_64, native) or 108 (x86_32) bytes; a response goes to the start
//
//   rsp_prod_published ≤ rsp_prod_private ≤ req_cons ≤ req_prod_seen ≤ rsp_prod_private + nr_ents
//        └─ written, not pushed ─┘ └─ in flight ─┘ └─ available ─┘
//
//   begin_pass();  while (next(slot)) ... respond() ...;  if (push()) notify;  idle: final_check()
//
// Polling is not calling final_check(): as long as req_event lies behind, no events are sent.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/prefetch.h"
#include "base/result.h"
#include "blkif/shared.h"
#include "blkif/wire.h"

namespace vbd::blkif {

class BackRing {
  public:
    BackRing() = default;  // not attached: nothing but attach() and the plain getters may be called

    /// Attaches to a ring that the frontend initialised, at its rsp_prod, so that a ring which an
    /// earlier backend drained is taken over where it was. Errors: kRing when req_prod is further
    /// ahead than the ring is long; kInvalidArgument for a page count that is not a power of two
    /// in 1..16, or memory that is not 8-byte aligned.
    static Result<BackRing> attach(void* memory, uint32_t pages, Protocol protocol);

    uint32_t entries() const { return entries_; }

    /// For a ring that was just attached: the earlier backend had taken `count` requests that have no
    /// response; they are consumed, and will be answered. Error: kRing when there are not that many.
    Status resume(uint32_t count);

    /// Where the next response goes, and the next request comes from: they count from the ring's
    /// beginning, modulo 2^32.
    uint32_t next_response() const { return rsp_prod_private_; }
    uint32_t next_request() const { return req_cons_; }

    /// Whether the frontend has produced requests that no response answers, as the shared indices
    /// have it now. For a ring that was just attached.
    bool has_requests() const;

    /// Loads the producer index: the one load of a pass. False: the producer overflowed, now
    /// or earlier, and the ring is stopped for good: no request is delivered any more, but
    /// those in flight can still be answered. An index that moved backwards is an overflow too: it
    /// would make old slots look like requests.
    bool begin_pass();

    /// Copies the next slot that begin_pass() saw into private memory and consumes it: the bytes
    /// that its request uses, each loaded once, the others of `slot` are left alone. False: none
    /// left, or no response slot free for it.
    bool next(RawSlot& slot);

    /// Slots that begin_pass() saw and next() would still deliver.
    uint32_t available() const {
        return std::min(req_prod_seen_ - req_cons_, entries_ - in_flight());
    }

    /// Asks the frontend for a notification of its next request, then looks once more
    /// (RING_FINAL_CHECK_FOR_REQUESTS). True: there is work, do not sleep. Also true for a ring
    /// that turned out corrupt: the next begin_pass() says so. False for a ring that is stopped
    /// already: it never has work again.
    bool final_check();

    /// Writes one response into the private producer's slot: id, operation, status, and zeroes over
    /// the padding. Each consumed request is answered exactly once; one answer more is a
    /// programmer's mistake.
    void respond(uint64_t id, uint8_t operation, int16_t status);

    bool has_unpublished() const { return rsp_prod_private_ != rsp_prod_published_; }

    /// Publishes all responses written since the last push. True: the frontend wants a
    /// notification.
    bool push();

    /// Requests consumed and not yet answered, 0..entries().
    uint32_t in_flight() const { return req_cons_ - rsp_prod_private_; }
    bool stopped() const { return stopped_; }

  private:
    uint8_t* slot_at(uint32_t index) const {
        return shared_ + kRingHeaderBytes + size_t{index & (entries_ - 1)} * stride_;
    }
    void prefetch_slots(uint32_t begin, uint32_t count) const;
    void stop();

    uint8_t* shared_ = nullptr;
    uint32_t entries_ = 0;
    uint32_t stride_ = 0;
    uint32_t req_cons_ = 0;
    uint32_t req_prod_seen_ = 0;
    uint32_t rsp_prod_private_ = 0;
    uint32_t rsp_prod_published_ = 0;
    bool stopped_ = false;
};

namespace detail {

/// How many bytes of a slot a request with these first two bytes can use: parse() looks at no
/// others. Not more than the ABI's slot, whatever the bytes.
template <typename L>
inline size_t used_bytes(uint8_t operation, uint8_t nr_segments) {
    if (operation <= static_cast<uint8_t>(Operation::kFlush)) [[likely]] {
        return L::kSegments + std::min<size_t>(nr_segments, kMaxSegments) * sizeof(Segment);
    }
    if (operation == static_cast<uint8_t>(Operation::kDiscard)) return L::kDiscardSize;
    if (operation == static_cast<uint8_t>(Operation::kIndirect)) return L::kIndirectEnd;
    return L::kSegments;
}

/// Loads the words [begin, end) of a shared slot once each. A word is as long as the ABI aligns: a
/// slot of 108 bytes leaves every second one at 4 bytes only.
template <typename L>
inline void copy_words(const uint8_t* from, RawSlot& slot, size_t begin, size_t end) {
    if constexpr (L::kAlignment == 8) {
        for (size_t at = begin; at < end; at += 8) {
            const uint64_t word = shared::load_u64(from + at);
            std::memcpy(slot.bytes + at, &word, sizeof word);
        }
    } else {
        for (size_t at = begin; at < end; at += 4) {
            const uint32_t word = shared::load_u32(from + at);
            std::memcpy(slot.bytes + at, &word, sizeof word);
        }
    }
}

/// Few bytes are used by most requests, and each cache line less is one that need not travel from
/// the guest's processor.
template <typename L>
inline void copy_slot(const uint8_t* from, RawSlot& slot) {
    copy_words<L>(from, slot, 0, L::kSegments);
    const size_t end = used_bytes<L>(slot.bytes[L::kOperation], slot.bytes[L::kNrSegments]);
    copy_words<L>(from, slot, L::kSegments, end);
}

}  // namespace detail

inline bool BackRing::begin_pass() {
    if (stopped_) [[unlikely]]
        return false;
    const uint32_t req_prod = shared::load_index(shared_ + kRingReqProd);
    if (req_prod - req_cons_ > entries_ - in_flight()) [[unlikely]] {
        stop();
        return false;
    }
    // A producer that moved back, within what is in flight, counts as a whole ring here.
    prefetch_slots(req_prod_seen_, std::min(req_prod - req_prod_seen_, entries_));
    req_prod_seen_ = req_prod;
    return true;
}

/// The slots were written by another processor, and will be by us: the response goes where the
/// request was. Asked for ahead they come side by side, else one after the other.
inline void BackRing::prefetch_slots(uint32_t begin, uint32_t count) const {
    constexpr size_t kOneSegment = Layout64::kSegments + sizeof(Segment);
    for (uint32_t i = 0; i < count; ++i) {
        const uint8_t* slot = slot_at(begin + i);
        prefetch_to_write(slot);
        prefetch_to_write(slot + kOneSegment - 1);  // in the next line for one slot in four
    }
}

inline bool BackRing::next(RawSlot& slot) {
    if (req_cons_ == req_prod_seen_ || in_flight() >= entries_) return false;
    const uint8_t* from = slot_at(req_cons_);
    if (stride_ == Layout64::kSize) {
        detail::copy_slot<Layout64>(from, slot);
    } else {
        detail::copy_slot<Layout32>(from, slot);
    }
    ++req_cons_;
    return true;
}

inline void BackRing::respond(uint64_t id, uint8_t operation, int16_t status) {
    VBD_CHECK(in_flight() != 0);
    uint8_t* to = slot_at(rsp_prod_private_);
    // Operation, a zero byte and the status make one word, so that no byte of the response is left
    // unwritten.
    const uint32_t outcome = operation | uint32_t{static_cast<uint16_t>(status)} << 16;
    if (stride_ == Layout64::kSize) {
        shared::store_u64(to, id);
        shared::store_u64(to + 8, outcome);
    } else {
        shared::store_u32(to, static_cast<uint32_t>(id));
        shared::store_u32(to + 4, static_cast<uint32_t>(id >> 32));
        shared::store_u32(to + 8, outcome);
    }
    ++rsp_prod_private_;
}

inline bool BackRing::push() {
    if (!has_unpublished()) return false;
    // What was published is remembered, not read back: the frontend could have changed it.
    const uint32_t published = rsp_prod_private_ - rsp_prod_published_;
    rsp_prod_published_ = rsp_prod_private_;
    shared::publish_index(shared_ + kRingRspProd, rsp_prod_published_);
    const uint32_t rsp_event = shared::load_index_after_publish(shared_ + kRingRspEvent);
    return rsp_prod_published_ - rsp_event < published;
}

}  // namespace vbd::blkif
