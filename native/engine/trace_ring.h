// TraceRing: one ring's answered requests on their way to whoever watches. Written by its reactor,
// read by the control thread, without a lock; when nobody reads fast enough records are dropped and
// counted, never waited for. One per ring index of a vbd, kept over its connections. Takes memory
// only once it has been switched on.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace vbd::engine {

struct TraceRecord {
    uint64_t started_ns = 0;  // monotonic: when it was taken from the ring
    uint64_t latency_ns = 0;  // from there to its answer
    uint64_t sector = 0;      // 512-byte units
    uint64_t nr_sectors = 0;
    uint16_t nr_segments = 0;
    int16_t status = 0;     // as the guest sees it: 0, -1 or -2
    uint8_t operation = 0;  // of the wire; for INDIRECT the inner one
};

class TraceRing {
  public:
    static constexpr uint32_t kRecords = 16'384;  // a power of two; 640 KiB

    bool on() const { return on_.load(std::memory_order_acquire); }

    /// Control thread.
    void set(bool on) {
        if (on && records_.empty()) records_.resize(kRecords);
        on_.store(on, std::memory_order_release);
    }

    /// The reactor, after on().
    void record(const TraceRecord& record) {
        const uint32_t head = head_.load(std::memory_order_relaxed);
        if (head - tail_.load(std::memory_order_acquire) == kRecords) [[unlikely]] {
            dropped_.store(dropped_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
            return;
        }
        records_[head % kRecords] = record;
        head_.store(head + 1, std::memory_order_release);
    }

    /// Control thread: the oldest record. False: there is none.
    bool take(TraceRecord& record) {
        const uint32_t tail = tail_.load(std::memory_order_relaxed);
        if (tail == head_.load(std::memory_order_acquire)) return false;
        record = records_[tail % kRecords];
        tail_.store(tail + 1, std::memory_order_release);
        return true;
    }

    /// Records lost since the beginning.
    uint64_t dropped() const { return dropped_.load(std::memory_order_relaxed); }

  private:
    std::atomic<bool> on_{false};
    std::atomic<uint32_t> head_{0};
    std::atomic<uint32_t> tail_{0};
    std::atomic<uint64_t> dropped_{0};
    std::vector<TraceRecord> records_;  // before on_ was ever set: empty
};

}  // namespace vbd::engine
