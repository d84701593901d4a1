// The load generator against small backends of the tests' own: good ones, slow ones, and ones that
// break the protocol.
#include "guest/load.h"

#include <doctest/doctest.h>
#include <sched.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "blkif/request.h"
#include "blkif/ring.h"

using namespace vbd;
using namespace vbd::guest;
using blkif::BackRing;
using blkif::Protocol;
using blkif::Request;

namespace {

constexpr GrantRef kFirstRef = 100;
constexpr GrantRef kFirstIndirectRef = 50'000;

/// A guest's memory with one ring per queue, and the backend's end of each. Page 0 is left free;
/// grant reference r names page r of the data, so that what a request points at can be looked up.
class Guest {
  public:
    Guest(uint32_t queues, uint32_t ring_pages, Protocol protocol, uint32_t depth,
          uint32_t segments, bool indirect)
        : protocol_(protocol) {
        const uint32_t descriptor_pages = indirect ? depth * ((segments + 511) / 512) : 0;
        const uint32_t data_pages = depth * segments;
        uint32_t page = 1;
        for (uint32_t i = 0; i < queues; ++i) {
            LoadQueue queue;
            queue.ring_offset = size_t{page} * kPageSize;
            queue.ring_pages = ring_pages;
            queue.port = 10 + i;
            page += ring_pages;
            queue.first_page = page;
            queue.first_ref = kFirstRef + page;
            page += data_pages;
            queue.first_indirect_page = page;
            queue.first_indirect_ref = kFirstIndirectRef + page;
            page += descriptor_pages;
            options.queues.push_back(queue);
        }
        bytes_ = size_t{page} * kPageSize;
        memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(kPageSize, bytes_)));
        std::memset(memory_.get(), 0, bytes_);
        for (const LoadQueue& queue : options.queues) {
            FrontRing::initialise(memory_.get() + queue.ring_offset, 0xfffffff0);
            Result<BackRing> ring =
                BackRing::attach(memory_.get() + queue.ring_offset, ring_pages, protocol);
            REQUIRE(ring);
            rings.push_back(ring.value());
        }
        options.protocol = protocol;
        options.depth = depth;
        options.segments = segments;
        options.indirect = indirect;
        options.disk_sectors = 1 << 20;
        options.duration_ms = 20;
        limits.capacity_sectors = options.disk_sectors;
        limits.max_indirect_segments = 4096;
    }

    /// Answers everything on all rings. True: a notification is due. `answer` is told what came.
    using Answer = std::function<int16_t(const Request&)>;
    bool serve(const Answer& answer) {
        blkif::RawSlot slot;
        bool notify = false;
        for (BackRing& ring : rings) {
            REQUIRE(ring.begin_pass());
            Request request;
            while (ring.next(slot)) {
                const blkif::Reject reject = parse(protocol_, slot, limits, request);
                int16_t status = status_of(reject);
                if (reject == blkif::Reject::kNone && request.indirect) fetch(request);
                if (status == 0 && answer) status = answer(request);
                ring.respond(request.id, request.wire_operation, status);
                ++served;
            }
            notify |= ring.push();
        }
        return notify;
    }

    /// Follows an indirect request's descriptors through the guest's memory, as grants would.
    void fetch(Request& request) {
        std::vector<blkif::Segment> segments(request.nr_segments);
        for (uint32_t i = 0; i < request.nr_segments; ++i) {
            const uint32_t page = request.indirect_refs[i / 512] - kFirstIndirectRef;
            REQUIRE(page < bytes_ / kPageSize);
            std::memcpy(&segments[i], memory_.get() + size_t{page} * kPageSize + i % 512 * 8, 8);
        }
        REQUIRE(check_segments(segments, limits, request) == blkif::Reject::kNone);
        last_segments = segments;
    }

    Result<LoadResult> run(EventSource& events) {
        Result<std::unique_ptr<Load>> load = Load::create(memory_.get(), bytes_, events, options);
        if (!load) return load.error();
        return load.value()->run();
    }

    bool drained() {
        for (size_t i = 0; i < rings.size(); ++i) {
            uint8_t* ring = memory_.get() + options.queues[i].ring_offset;
            if (std::memcmp(ring, ring + 8, 4) != 0) return false;
        }
        return true;
    }
    uint8_t* memory() { return memory_.get(); }
    size_t bytes() const { return bytes_; }

    LoadOptions options;
    blkif::Limits limits;
    std::vector<BackRing> rings;
    std::vector<blkif::Segment> last_segments;
    uint64_t served = 0;

  private:
    struct Free {
        void operator()(uint8_t* memory) const { std::free(memory); }
    };
    Protocol protocol_;
    std::unique_ptr<uint8_t, Free> memory_;
    size_t bytes_ = 0;
};

/// Runs the backend while the guest sleeps: one thread, nothing left to chance.
class Turns : public EventSource {
  public:
    explicit Turns(std::function<Wake()> turn) : turn_(std::move(turn)) {}
    void notify(Port port) override { ports.insert(port); }
    Wake wait(uint32_t) override {
        ++waits;
        return turn_();
    }
    std::set<Port> ports;
    uint64_t waits = 0;

  private:
    std::function<Wake()> turn_;
};

/// A pending event and a sleeper.
class Doorbell {
  public:
    void ring() {
        const std::lock_guard<std::mutex> lock(mutex_);
        rung_ = true;
        condition_.notify_one();
    }
    bool wait(uint32_t timeout_ms) {
        std::unique_lock<std::mutex> lock(mutex_);
        const bool came =
            condition_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return rung_; });
        rung_ = false;
        return came;
    }

  private:
    std::mutex mutex_;
    std::condition_variable condition_;
    bool rung_ = false;
};

/// Of a guest that sleeps while a thread of its own is the backend.
class SleepingGuest : public EventSource {
  public:
    SleepingGuest(Doorbell& own, Doorbell& backends) : own_(own), backends_(backends) {}
    void notify(Port) override {
        ++notifications;
        backends_.ring();
    }
    Wake wait(uint32_t) override {
        ++slept;
        // Longer than asked for: an event that gets lost shows.
        if (own_.wait(10'000)) return Wake::kEvent;
        ++timeouts;
        return Wake::kTimeout;
    }
    uint64_t notifications = 0;
    uint64_t slept = 0;
    uint64_t timeouts = 0;

  private:
    Doorbell& own_;
    Doorbell& backends_;
};

/// Of a guest that polls: never to be waited on.
class Silent : public EventSource {
  public:
    void notify(Port) override {}
    Wake wait(uint32_t) override {
        waited = true;
        return Wake::kTimeout;
    }
    bool waited = false;
};

}  // namespace

TEST_CASE("load: every kind of request arrives whole, is answered and counted") {
    struct Row {
        Protocol protocol;
        uint32_t queues, pages, depth, segments;
        bool indirect;
        LoadOperation operation;
        LoadPattern pattern;
    };
    const Row rows[] = {
        {Protocol::kX86_64, 1, 1, 32, 1, false, LoadOperation::kRead, LoadPattern::kRandom},
        {Protocol::kX86_32, 2, 2, 64, 11, false, LoadOperation::kWrite, LoadPattern::kSequential},
        {Protocol::kNative, 4, 1, 7, 3, false, LoadOperation::kMixed, LoadPattern::kRandom},
        {Protocol::kX86_64, 2, 1, 5, 32, true, LoadOperation::kMixed, LoadPattern::kSequential},
        {Protocol::kX86_32, 1, 4, 2, 1000, true, LoadOperation::kRead, LoadPattern::kRandom},
        {Protocol::kX86_64, 1, 1, 1, 4096, true, LoadOperation::kWrite, LoadPattern::kRandom},
    };
    for (const Row& row : rows) {
        CAPTURE(row.segments);
        Guest guest(row.queues, row.pages, row.protocol, row.depth, row.segments, row.indirect);
        guest.options.operation = row.operation;
        guest.options.pattern = row.pattern;
        uint64_t reads = 0, writes = 0, wrong = 0;
        std::set<uint64_t> sectors;
        Turns events([&] {
            guest.serve([&](const Request& request) -> int16_t {
                reads += request.operation == blkif::Operation::kRead;
                writes += request.operation == blkif::Operation::kWrite;
                wrong += request.indirect != row.indirect;
                wrong += request.nr_segments != row.segments;
                wrong += request.nr_sectors != row.segments * 8;
                wrong += request.sector % (row.segments * 8) != 0;
                // All segments of one request are one run of references, of its own.
                const blkif::Segment* segments =
                    row.indirect ? guest.last_segments.data() : request.segments;
                for (uint32_t i = 0; i < row.segments; ++i) {
                    wrong += segments[i].ref != segments[0].ref + i;
                }
                sectors.insert(request.sector);
                return 0;
            });
            return EventSource::Wake::kEvent;
        });
        Result<LoadResult> result = guest.run(events);
        REQUIRE(result);
        const LoadResult& load = result.value();
        CHECK(wrong == 0);
        CHECK(load.requests == guest.served);
        CHECK(load.requests >= row.queues * row.depth);
        CHECK(load.errors == 0);
        CHECK(load.latency_ns.count() == load.requests);
        CHECK(load.elapsed_ns >= 20'000'000);
        CHECK(load.cpu_ns > 0);
        CHECK(load.notifications >= row.queues);  // each ring's first request
        CHECK(events.ports.size() == row.queues);
        CHECK(guest.drained());
        CHECK((reads > 0) == (row.operation != LoadOperation::kWrite));
        CHECK((writes > 0) == (row.operation != LoadOperation::kRead));
        CHECK((sectors.size() > 1 || load.requests == 1));
    }
}

TEST_CASE("load: sequential queues share the disk and go around") {
    Guest guest(2, 1, Protocol::kX86_64, 1, 1, false);
    guest.options.pattern = LoadPattern::kSequential;
    guest.options.disk_sectors = guest.limits.capacity_sectors = 8 * 10 + 7;
    guest.options.duration_ms = 60'000;
    std::vector<uint64_t> sectors;
    Turns events([&] {
        guest.serve([&](const Request& request) -> int16_t {
            sectors.push_back(request.sector / 8);
            return 0;
        });
        return sectors.size() < 24 ? EventSource::Wake::kEvent : EventSource::Wake::kClosed;
    });
    CHECK_FALSE(guest.run(events));  // ended by the test
    REQUIRE(sectors.size() == 24);
    for (size_t i = 0; i < 24; ++i) {
        CHECK(sectors[i] == (i % 2 * 5 + i / 2) % 10);  // one queue from 0, one from 5
    }
}

TEST_CASE("load: the same seed makes the same requests") {
    std::vector<uint64_t> first;
    for (const uint64_t seed : {7U, 7U, 8U}) {
        Guest guest(1, 1, Protocol::kX86_64, 8, 1, false);
        guest.options.operation = LoadOperation::kMixed;
        guest.options.seed = seed;
        guest.options.duration_ms = 60'000;
        std::vector<uint64_t> seen;
        Turns events([&] {
            guest.serve([&](const Request& request) -> int16_t {
                seen.push_back(request.sector * 2 + request.wire_operation);
                return 0;
            });
            return seen.size() < 64 ? EventSource::Wake::kEvent : EventSource::Wake::kClosed;
        });
        CHECK_FALSE(guest.run(events));  // ended by the test
        REQUIRE(seen.size() == 64);
        if (first.empty()) first = seen;
        CHECK((seen == first) == (seed == 7));
    }
}

TEST_CASE("load: failed requests are counted, not mistaken") {
    Guest guest(1, 1, Protocol::kX86_64, 4, 1, false);
    uint64_t failed = 0;
    Turns events([&] {
        guest.serve([&](const Request& request) -> int16_t {
            const bool fail = request.sector % 16 == 0;
            failed += fail;
            return fail ? int16_t{-1} : int16_t{0};
        });
        return EventSource::Wake::kEvent;
    });
    Result<LoadResult> result = guest.run(events);
    REQUIRE(result);
    CHECK(failed > 0);
    CHECK(result.value().errors == failed);
    CHECK(result.value().requests > failed);
}

TEST_CASE("load: a polling guest never waits for an event") {
    Guest guest(2, 1, Protocol::kX86_64, 32, 1, false);
    guest.options.poll = true;
    Silent events;
    std::atomic<bool> done{false};
    std::thread backend([&] {
        while (!done.load()) guest.serve({});
    });
    Result<LoadResult> result = guest.run(events);
    done.store(true);
    backend.join();
    REQUIRE(result);
    CHECK_FALSE(events.waited);
    CHECK(result.value().errors == 0);
    CHECK(result.value().requests == guest.served);
    CHECK(guest.drained());
}

TEST_CASE("load: one load polls the queues of several guests, each in its own memory") {
    Guest first(1, 1, Protocol::kX86_64, 32, 1, false);
    Guest second(2, 1, Protocol::kX86_64, 32, 1, false);
    first.options.poll = true;
    Turns doorbell([] { return EventSource::Wake::kClosed; });
    for (LoadQueue queue : second.options.queues) {
        queue.port += 100;
        queue.memory = second.memory();
        queue.memory_bytes = second.bytes();
        queue.events = &doorbell;
        first.options.queues.push_back(queue);
    }
    Silent events;
    std::atomic<bool> done{false};
    std::thread backend([&] {
        while (!done.load()) {
            first.serve({});
            second.serve({});
        }
    });
    Result<LoadResult> result = first.run(events);
    done.store(true);
    backend.join();
    REQUIRE(result);
    CHECK(result.value().requests == first.served + second.served);
    REQUIRE(result.value().queue_requests.size() == 3);
    CHECK(result.value().queue_requests[0] == first.served);
    CHECK(result.value().queue_requests[1] + result.value().queue_requests[2] == second.served);
    CHECK(result.value().queue_requests[2] > 0);
    for (const Port port : doorbell.ports) CHECK(port >= 100);
    CHECK_FALSE(doorbell.ports.empty());
    CHECK(second.drained());

    first.options.poll = false;  // it could sleep for its own guest's events only
    result = first.run(events);
    REQUIRE_FALSE(result);
    CHECK(result.error().kind == ErrorKind::kInvalidArgument);
}

TEST_CASE("load: a sleeping guest and its backend wake each other, and lose no event") {
    Guest guest(2, 1, Protocol::kX86_64, 3, 1, false);
    Doorbell to_backend;
    Doorbell to_guest;
    SleepingGuest events(to_guest, to_backend);
    std::atomic<bool> done{false};
    std::thread backend([&] {
        while (!done.load()) {
            if (guest.serve({})) to_guest.ring();
            bool work = false;
            for (BackRing& ring : guest.rings) work |= ring.final_check();
            if (!work) to_backend.wait(1000);
        }
    });
    Result<LoadResult> result = guest.run(events);
    done.store(true);
    to_backend.ring();
    backend.join();
    REQUIRE(result);
    CHECK(result.value().requests == guest.served);
    CHECK(result.value().notifications == events.notifications);
    CHECK(events.slept > 0);
    CHECK(events.timeouts == 0);
    CHECK(guest.drained());
}

TEST_CASE("load: a pinned load runs on its processor, and the thread is let go afterwards") {
    cpu_set_t before;
    REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
    int cpu = CPU_SETSIZE - 1;
    while (!CPU_ISSET(cpu, &before)) --cpu;
    Guest guest(1, 1, Protocol::kX86_64, 4, 1, false);
    guest.options.cpu = cpu;
    int elsewhere = 0;
    Turns events([&] {
        elsewhere += sched_getcpu() != cpu;
        guest.serve({});
        return EventSource::Wake::kEvent;
    });
    CHECK(guest.run(events));
    CHECK(elsewhere == 0);
    cpu_set_t after;
    REQUIRE(sched_getaffinity(0, sizeof after, &after) == 0);
    CHECK(CPU_EQUAL(&before, &after));
}

TEST_CASE("load: answers to what was not asked end it") {
    // Each backend gets the requests of tags 0 and 1 of 4, and answers in a way of its own.
    using Wrong = std::function<void(BackRing&, const Request&, const Request&)>;
    const auto echo = [](BackRing& ring, const Request& request, uint64_t id) {
        ring.respond(id, request.wire_operation, 0);
    };
    const Wrong wrongs[] = {
        [&](BackRing& ring, const Request&, const Request& b) { echo(ring, b, b.id + 1); },
        [&](BackRing& ring, const Request&, const Request& b) { echo(ring, b, b.id + 3); },
        [&](BackRing& ring, const Request&, const Request& b) { echo(ring, b, b.id ^ 1 << 20); },
        [&](BackRing& ring, const Request&, const Request& b) { echo(ring, b, 0); },
        [&](BackRing& ring, const Request&, const Request& b) { echo(ring, b, ~0ULL); },
        [&](BackRing& ring, const Request&, const Request& b) { ring.respond(b.id, 6, 0); },
        [&](BackRing& ring, const Request&, const Request& b) {
            echo(ring, b, b.id);  // twice
            echo(ring, b, b.id);
        },
        [&](BackRing& ring, const Request& a, const Request&) {
            echo(ring, a, a.id);
            echo(ring, a, 0);  // the mark of a tag that is free
        },
    };
    for (const Wrong& wrong : wrongs) {
        Guest guest(1, 1, Protocol::kX86_64, 4, 1, false);
        Turns events([&] {
            blkif::RawSlot slot;
            Request first, second;
            REQUIRE(guest.rings[0].begin_pass());
            REQUIRE(guest.rings[0].next(slot));
            parse(Protocol::kX86_64, slot, guest.limits, first);
            REQUIRE(guest.rings[0].next(slot));
            parse(Protocol::kX86_64, slot, guest.limits, second);
            wrong(guest.rings[0], first, second);
            guest.rings[0].push();
            return EventSource::Wake::kEvent;
        });
        const Result<LoadResult> result = guest.run(events);
        REQUIRE_FALSE(result);
        CHECK(result.error().kind == ErrorKind::kRing);
        CHECK(events.waits == 1);  // at once
    }
    // More answers than requests.
    Guest guest(1, 1, Protocol::kX86_64, 4, 1, false);
    Turns events([&] {
        uint8_t* rsp_prod = guest.memory() + guest.options.queues[0].ring_offset + 8;
        blkif::shared::publish_index(rsp_prod, 0xfffffff0 + 5);
        return EventSource::Wake::kEvent;
    });
    const Result<LoadResult> result = guest.run(events);
    REQUIRE_FALSE(result);
    CHECK(result.error().kind == ErrorKind::kRing);
}

TEST_CASE("load: a backend that never answers is given up") {
    for (const bool poll : {false, true}) {
        Guest guest(1, 1, Protocol::kX86_32, 4, 1, false);
        guest.options.poll = poll;
        guest.options.drain_timeout_ms = 30;
        Turns events([&] { return EventSource::Wake::kTimeout; });
        const Result<LoadResult> result = guest.run(events);
        REQUIRE_FALSE(result);
        CHECK(result.error().kind == ErrorKind::kRing);
        CHECK(result.error().errno_code == ETIMEDOUT);
        CHECK(result.error().message.find("4 requests") == 0);
    }
}

TEST_CASE("load: it ends when the guest's event channels close, and when it is stopped") {
    Guest guest(1, 1, Protocol::kX86_64, 4, 1, false);
    guest.options.duration_ms = 60'000;
    Turns closed([&] { return EventSource::Wake::kClosed; });
    const Result<LoadResult> result = guest.run(closed);
    REQUIRE_FALSE(result);
    CHECK(result.error().kind == ErrorKind::kXen);

    Guest other(1, 1, Protocol::kX86_64, 4, 1, false);
    other.options.duration_ms = 60'000;
    other.options.poll = true;
    Silent events;
    auto load = Load::create(other.memory(), other.bytes(), events, other.options);
    REQUIRE(load);
    std::thread stopper([&] { load.value()->stop(); });
    const Result<LoadResult> stopped = load.value()->run();
    stopper.join();
    REQUIRE_FALSE(stopped);
    CHECK(stopped.error().errno_code == ECANCELED);
}

TEST_CASE("load: options that cannot be are refused") {
    Silent events;
    using Change = std::function<void(LoadOptions&)>;
    const Change changes[] = {
        [](LoadOptions& o) { o.queues.clear(); },
        [](LoadOptions& o) { o.depth = 0; },
        [](LoadOptions& o) { o.depth = 33; },
        [](LoadOptions& o) { o.segments = 0; },
        [](LoadOptions& o) { o.segments = 12; },
        [](LoadOptions& o) { o.segments = 2; },     // more data pages than there are
        [](LoadOptions& o) { o.indirect = true; },  // no descriptor pages
        [](LoadOptions& o) { o.indirect = true, o.segments = 4097; },
        [](LoadOptions& o) { o.disk_sectors = 7; },
        [](LoadOptions& o) { o.queues[0].ring_pages = 3; },
        [](LoadOptions& o) { o.queues[0].ring_pages = 32; },
        [](LoadOptions& o) { o.queues[0].ring_offset += 8; },
        [](LoadOptions& o) { o.queues[0].ring_offset = size_t{1} << 40; },
        [](LoadOptions& o) { o.queues[0].first_page = 0xffffffff; },
        [](LoadOptions& o) { o.cpu = 1 << 20; },
    };
    for (const Change& change : changes) {
        Guest guest(1, 1, Protocol::kX86_64, 32, 1, false);
        change(guest.options);
        const Result<LoadResult> result = guest.run(events);
        REQUIRE_FALSE(result);
        CHECK(result.error().kind == ErrorKind::kInvalidArgument);
    }
    Guest busy(1, 1, Protocol::kX86_64, 1, 1, false);
    busy.memory()[busy.options.queues[0].ring_offset] += 1;  // a request that nobody answered
    const Result<LoadResult> result = busy.run(events);
    REQUIRE_FALSE(result);
    CHECK(result.error().kind == ErrorKind::kRing);
}
