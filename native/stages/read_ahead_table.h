// ReadAheadTable: what was read ahead of a disk's readers, in a fixed number of segments. Any queue finds
// what any other has read ahead.
//
//   free ─► loading ─► ready ─► free      read to its end, spoiled, or too old
//              └─► spoiled ─► free        something was written there meanwhile: nobody reads it
//
// A change of the disk (a write, a discard) spoils what overlaps it when it begins, and nothing is read
// ahead near it until it has ended: what a segment holds was read when nobody was changing it, and nobody
// has since.
//
// Threads: any. A mutex, which nobody takes while there are no segments in use.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "base/reserved.h"
#include "block/device.h"

namespace vbd::stages {

class ReadAheadTable {
  public:
    static constexpr uint64_t kSegmentBytes = 128 * 1024;

    struct Segment {
        enum class State : uint8_t { kFree, kLoading, kReady };
        State state = State::kFree;
        bool spoiled = false;
        uint32_t pins = 0;  // readers that copy from it
        uint64_t offset = 0;
        uint64_t length = 0;
        uint64_t read_bytes = 0;
        uint64_t loaded_ns = 0;
        const void* owner = nullptr;  // whose queue loads it
        void* held = nullptr;         // the owner's: who waits for it
        uint8_t* buffer = nullptr;
        block::Io io;
        iovec part;
    };

    /// Errors: kNoMemory.
    static Result<std::unique_ptr<ReadAheadTable>> create(uint64_t bytes);

    enum class Found { kNothing, kReady, kLoading };
    /// What there is of `offset`. kReady: `segment` has it, until unpin(). kLoading: `owner` is reading it.
    /// kNothing: none of [offset, until).
    Found look(uint64_t offset, const void* owner, Segment*& segment, uint64_t& until);
    void unpin(Segment& segment, uint64_t offset, uint64_t bytes);

    /// A segment to read [offset, offset + length) into; null where there is none, or something is being
    /// changed there. What others have of it already is left out: `offset` and `length` say what remains,
    /// a length of 0 that there is nothing.
    Segment* begin_load(uint64_t& offset, uint64_t& length, const void* owner, uint64_t now_ns);
    /// Pinned for as many readers as have waited for it; without one of them it is just there. False:
    /// nobody may use it, and it is gone.
    bool end_load(Segment& segment, uint64_t now_ns, uint32_t readers);

    void begin_change(uint64_t begin, uint64_t end);
    void end_change(uint64_t begin, uint64_t end);
    /// Forgets what it has of [begin, end).
    void spoil(uint64_t begin, uint64_t end);

    bool empty() const { return in_use_.load() == 0; }
    bool contains(const block::Io* io) const;
    uint64_t capacity_bytes() const { return count_ * kSegmentBytes; }

    std::atomic<uint64_t> read_ahead_bytes{0};
    std::atomic<uint64_t> hit_bytes{0};
    std::atomic<uint64_t> wasted_bytes{0};  // read ahead, and never asked for

  private:
    static constexpr uint64_t kRegionBytes = 1 << 20;
    static constexpr uint64_t kRegions = 1024;

    ReadAheadTable() = default;
    bool changing(uint64_t begin, uint64_t end) const;
    void count_changes(uint64_t begin, uint64_t end, uint32_t by);
    void release(Segment& segment);

    size_t count_ = 0;
    std::unique_ptr<Segment[]> segments_;
    ReservedArray<uint8_t> memory_;
    std::atomic<uint32_t> in_use_{0};
    std::mutex mutex_;  // guards the segments, but for what their owner has
    // Changes under way, by where they are; several places share a counter.
    std::array<std::atomic<uint32_t>, kRegions> changes_{};
};

}  // namespace vbd::stages
