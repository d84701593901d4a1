#include "guest/load.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <string>
#include <utility>

#include "base/clock.h"

namespace vbd::guest {

namespace {

using blkif::Operation;

constexpr uint32_t kTagBits = 16;
constexpr uint32_t kSpinsPerClock = 64;    // empty polls between two looks at the clock
constexpr uint64_t kLongestSleepMs = 100;  // so that stop() is seen soon
constexpr uint64_t kNsPerMs = 1'000'000;
constexpr blkif::Segment whole_page(GrantRef ref) {
    return blkif::Segment{ref, 0, kSectorsPerPage - 1, 0};
}

Error invalid(std::string message) {
    return Error{ErrorKind::kInvalidArgument, 0, std::move(message)};
}

/// A hint to the processor that this is a spin.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

/// Pins the calling thread, and undoes it.
class Pin {
  public:
    explicit Pin(int cpu) {
        if (cpu < 0) return;
        if (cpu >= CPU_SETSIZE) {
            error_ = EINVAL;
            return;
        }
        error_ = pthread_getaffinity_np(pthread_self(), sizeof before_, &before_);
        if (error_ != 0) return;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        error_ = pthread_setaffinity_np(pthread_self(), sizeof one, &one);
        pinned_ = error_ == 0;
    }
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;
    ~Pin() {
        if (pinned_) pthread_setaffinity_np(pthread_self(), sizeof before_, &before_);
    }
    int error() const { return error_; }

  private:
    cpu_set_t before_{};
    int error_ = 0;
    bool pinned_ = false;
};

/// True when `count` pages from `first` lie in memory. Counts are far below 2^32 each, so nothing
/// wraps in 64 bits.
bool pages_fit(uint64_t first, uint64_t count, size_t memory_bytes) {
    return first + count <= memory_bytes / kPageSize;
}

}  // namespace

Load::Load(EventSource& events, const LoadOptions& options)
    : events_(events),
      options_(options),
      request_sectors_(uint64_t{options.segments} * kSectorsPerPage),
      random_(options.seed) {
    if (options.indirect) {
        indirect_pages_ = (options.segments + blkif::kSegmentsPerIndirectPage - 1) /
                          blkif::kSegmentsPerIndirectPage;
    }
}

Result<std::unique_ptr<Load>> Load::create(void* memory, size_t memory_bytes, EventSource& events,
                                           const LoadOptions& options) {
    std::unique_ptr<Load> load(new Load(events, options));
    if (Status status = load->check_options(); !status) return status.error();
    load->positions_ = options.disk_sectors / load->request_sectors_;
    load->queues_.reserve(options.queues.size());
    for (const LoadQueue& where : options.queues) {
        const bool own = where.memory == nullptr;
        Status status = load->add_queue(static_cast<uint8_t*>(own ? memory : where.memory),
                                        own ? memory_bytes : where.memory_bytes, where);
        if (!status) return status.error();
    }
    return load;
}

Status Load::check_options() const {
    const uint32_t most = options_.indirect ? blkif::kMaxIndirectSegments : blkif::kMaxSegments;
    if (options_.queues.empty()) return invalid("a load needs a queue");
    for (const LoadQueue& queue : options_.queues) {
        if (queue.events != nullptr && !options_.poll) {
            return invalid("a load on several guests must poll");
        }
    }
    if (options_.segments == 0 || options_.segments > most) {
        return invalid(std::to_string(options_.segments) + " segments per request: 1 to " +
                       std::to_string(most) + " are possible");
    }
    if (options_.disk_sectors < request_sectors_) {
        return invalid("a disk of " + std::to_string(options_.disk_sectors) +
                       " sectors is shorter than one request of " +
                       std::to_string(request_sectors_));
    }
    return {};
}

Status Load::add_queue(uint8_t* memory, size_t memory_bytes, const LoadQueue& where) {
    if (where.ring_offset % kPageSize != 0 || where.ring_pages > blkif::kMaxRingPages ||
        !pages_fit(where.ring_offset / kPageSize, where.ring_pages, memory_bytes)) {
        return invalid("the ring at byte " + std::to_string(where.ring_offset) +
                       " does not lie in the guest's memory");
    }
    Result<FrontRing> ring =
        FrontRing::attach(memory + where.ring_offset, where.ring_pages, options_.protocol);
    if (!ring) return ring.error();
    const uint32_t depth = options_.depth;
    if (depth == 0 || depth > ring.value().entries()) {
        return invalid("depth " + std::to_string(depth) + ": the ring holds 1 to " +
                       std::to_string(ring.value().entries()) + " requests");
    }
    if (!pages_fit(where.first_page, uint64_t{depth} * options_.segments, memory_bytes) ||
        !pages_fit(where.first_indirect_page, uint64_t{depth} * indirect_pages_, memory_bytes)) {
        return invalid("the load's pages do not lie in the guest's memory");
    }

    Queue queue;
    queue.ring = ring.value();
    queue.events = where.events != nullptr ? where.events : &events_;
    queue.port = where.port;
    // Sequential queues start apart, so that they do not read the same.
    queue.position = positions_ / options_.queues.size() * queues_.size();
    queue.outstanding.resize(depth);
    queue.nr_free = depth;
    for (uint32_t tag = depth; tag-- > 0;) queue.free_tags.push_back(static_cast<uint16_t>(tag));
    if (options_.indirect) {
        prepare_indirect(memory, where, queue);
    } else {
        prepare_direct(where, queue);
    }
    queues_.push_back(std::move(queue));
    return {};
}

void Load::prepare_direct(const LoadQueue& where, Queue& queue) const {
    const uint32_t count = options_.depth * options_.segments;
    queue.segments.reserve(count);
    for (uint32_t i = 0; i < count; ++i) queue.segments.push_back(whole_page(where.first_ref + i));
}

/// A tag's descriptors never change, so they are written once: the descriptor pages of one tag lie
/// behind each other.
void Load::prepare_indirect(uint8_t* memory, const LoadQueue& where, Queue& queue) const {
    GrantRef ref = where.first_ref;
    for (uint32_t tag = 0; tag < options_.depth; ++tag) {
        const uint32_t page = tag * indirect_pages_;
        for (uint32_t i = 0; i < indirect_pages_; ++i) {
            queue.indirect_refs.push_back(where.first_indirect_ref + page + i);
        }
        uint8_t* to = memory + (size_t{where.first_indirect_page} + page) * kPageSize;
        for (uint32_t i = 0; i < options_.segments; ++i) {
            blkif::shared::store_u64(to, std::bit_cast<uint64_t>(whole_page(ref++)));
            to += sizeof(blkif::Segment);
        }
    }
}

Result<LoadResult> Load::run() {
    const Pin pin(options_.cpu);
    if (pin.error() != 0) {
        return system_error(ErrorKind::kInvalidArgument, pin.error(),
                            "pinning the load to processor " + std::to_string(options_.cpu));
    }
    const uint64_t cpu_before_ns = thread_cpu_ns();
    const uint64_t start_ns = monotonic_ns();
    batch_ns_ = start_ns;
    deadline_ns_ = start_ns + options_.duration_ms * kNsPerMs;
    submitting_ = true;
    if (Status status = loop(); !status) return status.error();
    result_.elapsed_ns = monotonic_ns() - start_ns;
    result_.cpu_ns = thread_cpu_ns() - cpu_before_ns;
    for (const Queue& queue : queues_) result_.queue_requests.push_back(queue.answered);
    return result_;
}

Status Load::loop() {
    for (Queue& queue : queues_) submit(queue);
    while (submitting_ || in_flight() != 0) {
        if (stopped_.load(std::memory_order_relaxed)) {
            return Error{ErrorKind::kUnsupported, ECANCELED, "the load was stopped"};
        }
        bool answers = false;
        for (Queue& queue : queues_) {
            const Step step_result = step(queue);
            if (step_result == Step::kBroken) {
                return Error{ErrorKind::kRing, 0,
                             "the backend answered what was not asked, on port " +
                                 std::to_string(queue.port)};
            }
            answers |= step_result == Step::kAnswers;
        }
        Status status = answers ? check_time(batch_ns_) : rest();
        if (!status) return status;
    }
    return {};
}

Load::Step Load::step(Queue& queue) {
    if (!queue.ring.begin_pass()) return Step::kBroken;
    FrontResponse response;
    if (!queue.ring.next(response)) return Step::kNothing;
    batch_ns_ = monotonic_ns();
    do {
        if (!accept(queue, response)) return Step::kBroken;
    } while (queue.ring.next(response));
    record_latencies();
    if (submitting_) submit(queue);
    return Step::kAnswers;
}

bool Load::accept(Queue& queue, const FrontResponse& response) {
    const uint32_t tag = response.id & ((1U << kTagBits) - 1);
    if (tag >= queue.outstanding.size()) return false;
    Outstanding& asked = queue.outstanding[tag];
    if (asked.id == 0 || asked.id != response.id || asked.operation != response.operation) {
        return false;
    }
    asked.id = 0;
    queue.free_tags[queue.nr_free++] = static_cast<uint16_t>(tag);
    ++result_.requests;
    ++queue.answered;
    result_.errors += response.status != blkif::kResponseOkay;

    const uint64_t latency_ns = batch_ns_ - asked.start_ns;
    if (latency_ns != latency_ns_) record_latencies();
    latency_ns_ = latency_ns;
    ++latency_count_;
    return true;
}

void Load::record_latencies() {
    result_.latency_ns.record(latency_ns_, latency_count_);
    latency_count_ = 0;
}

void Load::submit(Queue& queue) {
    const bool random_place = options_.pattern == LoadPattern::kRandom;
    Operation operation =
        options_.operation == LoadOperation::kWrite ? Operation::kWrite : Operation::kRead;
    while (queue.nr_free != 0) {
        const uint32_t tag = queue.free_tags[--queue.nr_free];
        uint64_t position = queue.position;
        if (random_place) {
            // Scales a random number down without a division.
            position = static_cast<uint64_t>(
                (static_cast<unsigned __int128>(next_random()) * positions_) >> 64);
        } else {
            queue.position = position + 1 == positions_ ? 0 : position + 1;
        }
        if (options_.operation == LoadOperation::kMixed) {
            operation = (next_random() >> 63) != 0 ? Operation::kWrite : Operation::kRead;
        }
        const uint64_t id = ++queue.sequence << kTagBits | tag;
        const uint64_t sector = position * request_sectors_;
        queue.outstanding[tag] = {id, batch_ns_, static_cast<uint8_t>(operation)};
        if (indirect_pages_ != 0) {
            queue.ring.write_indirect(
                operation, id, sector, static_cast<uint16_t>(options_.segments),
                {queue.indirect_refs.data() + size_t{tag} * indirect_pages_, indirect_pages_});
        } else {
            queue.ring.write_data(
                operation, id, sector,
                {queue.segments.data() + size_t{tag} * options_.segments, options_.segments});
        }
    }
    if (queue.ring.push()) {
        ++result_.notifications;
        queue.events->notify(queue.port);
    }
}

/// Nothing was answered: spins a little, or sleeps.
Status Load::rest() {
    if (options_.poll) {
        relax();
        return ++idle_spins_ % kSpinsPerClock == 0 ? check_time(monotonic_ns()) : Status{};
    }
    if (arm_all()) return {};
    const uint64_t now_ns = monotonic_ns();
    const uint64_t left_ms =
        deadline_ns_ > now_ns ? (deadline_ns_ - now_ns + kNsPerMs - 1) / kNsPerMs : 0;
    const auto timeout_ms = static_cast<uint32_t>(std::min(left_ms, kLongestSleepMs));
    if (events_.wait(timeout_ms) == EventSource::Wake::kClosed) {
        return Error{ErrorKind::kXen, 0, "the guest's event channels were closed"};
    }
    return check_time(monotonic_ns());
}

/// From submitting to draining at the first deadline; a failure at the second.
Status Load::check_time(uint64_t now_ns) {
    if (now_ns < deadline_ns_) return {};
    if (submitting_) {
        submitting_ = false;
        deadline_ns_ = now_ns + options_.drain_timeout_ms * kNsPerMs;
        return {};
    }
    if (in_flight() == 0) return {};
    return Error{ErrorKind::kRing, ETIMEDOUT,
                 std::to_string(in_flight()) + " requests were not answered in " +
                     std::to_string(options_.drain_timeout_ms) + " ms"};
}

/// Asks for an event on every queue. True: an answer came meanwhile.
bool Load::arm_all() {
    bool answers = false;
    for (Queue& queue : queues_) answers |= queue.ring.final_check();
    return answers;
}

/// SplitMix64.
uint64_t Load::next_random() {
    uint64_t value = random_ += 0x9e3779b97f4a7c15;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
}

uint64_t Load::in_flight() const {
    uint64_t total = 0;
    for (const Queue& queue : queues_) total += queue.ring.in_flight();
    return total;
}

}  // namespace vbd::guest
