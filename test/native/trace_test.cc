// TraceRing: what goes in comes out in order, and what does not fit is counted.
#include <doctest/doctest.h>

#include <thread>

#include "engine/trace_ring.h"

namespace vbd::engine {

TEST_CASE("trace ring: off until switched on, and a full one drops the newest") {
    TraceRing ring;
    CHECK_FALSE(ring.on());
    ring.set(true);
    for (uint64_t i = 0; i < TraceRing::kRecords + 5; i++) ring.record({.sector = i});
    CHECK(ring.dropped() == 5);
    TraceRecord record;
    for (uint64_t i = 0; i < TraceRing::kRecords; i++) {
        REQUIRE(ring.take(record));
        REQUIRE(record.sector == i);
    }
    CHECK_FALSE(ring.take(record));
    ring.record({.sector = 77});
    REQUIRE(ring.take(record));
    CHECK(record.sector == 77);
    ring.set(false);
    CHECK_FALSE(ring.on());
}

TEST_CASE("trace ring: a reactor writes while control reads; nothing is lost unsaid or torn") {
    constexpr uint64_t kCount = 1'000'000;
    TraceRing ring;
    ring.set(true);
    std::thread writer([&ring] {
        for (uint64_t i = 0; i < kCount; i++) {
            ring.record({.started_ns = i, .latency_ns = ~i, .sector = 2 * i});
        }
    });
    uint64_t taken = 0;
    uint64_t next = 0;
    TraceRecord record;
    while (taken + ring.dropped() < kCount) {
        if (!ring.take(record)) continue;
        taken++;
        REQUIRE(record.started_ns >= next);
        REQUIRE(record.latency_ns == ~record.started_ns);
        REQUIRE(record.sector == 2 * record.started_ns);
        next = record.started_ns + 1;
    }
    writer.join();
    while (ring.take(record)) taken++;
    CHECK(taken + ring.dropped() == kCount);
    CHECK(taken > 0);
}

}  // namespace vbd::engine
