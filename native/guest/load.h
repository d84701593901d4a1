// Load: the load generator. Keeps `depth` requests in flight on each of a guest's queues for a
// given time and measures how long each takes, on the thread that calls run(). It works in the
// guest's memory on rings that are initialised and connected, and leaves them drained, where a
// frontend can go on.
//
//   per queue       take responses ─► check, record ─► write new requests ─► push, notify once
//   nothing came    spin (poll), or arm rsp_event on every queue, look once more, and sleep
//
// It must never be what limits a measurement: no allocation in the loop, one clock reading per
// batch, requests prepared ahead.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/histogram.h"
#include "base/result.h"
#include "blkif/wire.h"
#include "guest/front_ring.h"

namespace vbd::guest {

/// The guest's event channels, as far as a load needs them.
class EventSource {
  public:
    enum class Wake : uint8_t { kEvent, kTimeout, kClosed };

    virtual ~EventSource() = default;

    /// Sends an event through one of the guest's ports.
    virtual void notify(Port port) = 0;

    /// Sleeps until an event came in on any of the load's ports since the last wait, and unmasks
    /// it; `timeout_ms` at most. kClosed: no event will ever come again.
    virtual Wake wait(uint32_t timeout_ms) = 0;
};

enum class LoadOperation : uint8_t { kRead, kWrite, kMixed };  // mixed: half of each, at random
enum class LoadPattern : uint8_t { kRandom, kSequential };

/// One queue: where its ring lies, and the pages granted for it. References and page numbers rise
/// together by one.
struct LoadQueue {
    size_t ring_offset = 0;  // bytes in guest memory; the ring's pages are contiguous
    uint32_t ring_pages = 1;
    Port port = 0;
    GrantRef first_ref = 0;  // of depth × segments data pages
    uint32_t first_page = 0;
    GrantRef first_indirect_ref = 0;  // of depth × ceil(segments / 512) descriptor pages
    uint32_t first_indirect_page = 0;

    // A queue of another guest: its memory and its event channels; null: the load's. They must
    // outlive the load. Only for loads that poll, because sleeping is for one guest's events.
    void* memory = nullptr;
    size_t memory_bytes = 0;
    EventSource* events = nullptr;
};

struct LoadOptions {
    std::vector<LoadQueue> queues;
    blkif::Protocol protocol = blkif::Protocol::kX86_64;
    LoadOperation operation = LoadOperation::kRead;
    LoadPattern pattern = LoadPattern::kRandom;
    uint32_t depth = 32;    // requests in flight per queue, 1..entries of the ring
    uint32_t segments = 1;  // 4 KiB each, 1..11, with indirect 1..4096
    bool indirect = false;
    uint64_t disk_sectors = 0;  // 512-byte units; at least one request long
    uint64_t duration_ms = 1000;
    bool poll = false;  // spin for responses instead of sleeping for events
    uint64_t seed = 1;
    int cpu = -1;  // pin the calling thread to this processor while it runs; -1: not
    uint32_t drain_timeout_ms = 10'000;  // what a backend has for the last answers
};

struct LoadResult {
    uint64_t requests = 0;    // answered
    uint64_t errors = 0;      // answered with a status other than OKAY
    uint64_t elapsed_ns = 0;  // first request to last answer
    uint64_t cpu_ns = 0;      // of the calling thread
    uint64_t notifications = 0;
    std::vector<uint64_t> queue_requests;  // of `requests`, by queue
    Histogram latency_ns;  // a batch's requests start when it is made and end when it is taken
};

class Load {
  public:
    /// `memory` is all of the guest's memory; it and `events` must outlive the load. Writes the
    /// descriptor pages of indirect requests. Errors: kInvalidArgument for options out of range or
    /// pages outside of memory; kRing for a ring with requests in flight.
    static Result<std::unique_ptr<Load>> create(void* memory, size_t memory_bytes,
                                                EventSource& events, const LoadOptions& options);

    /// Runs for duration_ms, then waits for the last answers. Once per Load. Errors: kRing when the
    /// backend breaks the protocol (an answer to no request, or with another operation; more
    /// answers than requests) or leaves requests unanswered for drain_timeout_ms; kXen when the
    /// event source closes; kInvalidArgument when the processor cannot be had; kUnsupported after
    /// stop(). After an error requests may still be in flight.
    Result<LoadResult> run();

    /// Makes run() return soon, without waiting for answers. From any thread.
    void stop() { stopped_.store(true, std::memory_order_relaxed); }

  private:
    /// What one request in flight must be answered with. Its index, the tag, is the low bits of its
    /// id.
    struct Outstanding {
        uint64_t id = 0;  // 0: none
        uint64_t start_ns = 0;
        uint8_t operation = 0;
    };

    struct Queue {
        FrontRing ring;
        EventSource* events = nullptr;
        Port port = 0;
        uint64_t answered = 0;
        uint64_t sequence =
            0;  // makes ids unique: a late or doubled answer is told from a right one
        uint64_t position = 0;  // of the next sequential request, in requests from the disk's start
        uint32_t nr_free = 0;   // entries of free_tags that count
        std::vector<uint16_t> free_tags;
        std::vector<Outstanding> outstanding;  // by tag
        std::vector<blkif::Segment> segments;  // of a direct request: tag * segments and on
        std::vector<GrantRef> indirect_refs;   // of an indirect one: tag * indirect_pages_ and on
    };

    enum class Step : uint8_t { kNothing, kAnswers, kBroken };

    Load(EventSource& events, const LoadOptions& options);

    Status check_options() const;
    Status add_queue(uint8_t* memory, size_t memory_bytes, const LoadQueue& where);
    void prepare_direct(const LoadQueue& where, Queue& queue) const;
    void prepare_indirect(uint8_t* memory, const LoadQueue& where, Queue& queue) const;

    Status loop();
    Step step(Queue& queue);
    bool accept(Queue& queue, const FrontResponse& response);
    void submit(Queue& queue);
    void record_latencies();
    Status rest();
    Status check_time(uint64_t now_ns);
    bool arm_all();
    uint64_t next_random();
    uint64_t in_flight() const;

    EventSource& events_;
    const LoadOptions options_;
    std::vector<Queue> queues_;
    uint32_t indirect_pages_ = 0;   // per request; 0: direct requests
    uint64_t request_sectors_ = 0;  // length of each request
    uint64_t positions_ = 0;        // places on the disk where a request can lie, end to end

    uint64_t random_ = 0;
    uint64_t batch_ns_ = 0;       // the clock when the current batch was taken
    uint64_t latency_ns_ = 0;     // requests of one batch mostly take equally long,
    uint64_t latency_count_ = 0;  // so equal latencies in a row are recorded at once
    uint64_t deadline_ns_ = 0;    // of submitting, then of draining
    bool submitting_ = false;
    uint32_t idle_spins_ = 0;
    LoadResult result_;
    std::atomic<bool> stopped_{false};
};

}  // namespace vbd::guest
