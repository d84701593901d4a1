// Reading ahead: what it is for, and what it must not do. That nothing is ever stale is in freshness_test.cc.
#include "stages/read_ahead.h"
#include "stages_fixture.h"

using namespace disk_test;
using namespace stages_test;

namespace {

double counter(Device& device, std::string_view wanted) {
    double found = -1;
    device.report([&](const char* name, double value) {
        if (name == wanted) found = value;
    });
    return found;
}

struct Filled {
    TempFile file{8 * kMiB};
    Filled() { file.fill(8 * kMiB); }
    DiskSpec spec() { return leaf({.path = file.path()}); }
};

}  // namespace

TEST_CASE("read-ahead: who reads in a row finds most of it there") {
    Filled filled;
    Disk disk(open(over(ReadAheadOptions{}, filled.spec())));
    Pages page(16384);
    for (uint64_t at = 0; at < 8 * kMiB; at += page.size()) {
        REQUIRE(disk.read(at, page) == 0);
        REQUIRE(page.has_pattern(at));
        disk.settle();
    }
    CHECK(counter(disk.device(), "hitBytes") == 8 * kMiB - 2 * 16384);
    CHECK(counter(disk.device(), "readAheadBytes") == 8 * kMiB - 2 * 16384);
    CHECK(counter(disk.device(), "wastedBytes") == 0);
}

TEST_CASE("read-ahead: of several readers, over the borders of what was read, without waiting") {
    Filled filled;
    Disk disk(open(over(ReadAheadOptions{.memory_bytes = kMiB, .window_bytes = kMiB / 2},
                        over(DelayOptions{.delay_ns = {200'000}}, filled.spec()))));
    Pages page(24 * 1024 + 512);
    for (uint64_t at = 0; at + page.size() < 2 * kMiB; at += page.size()) {
        for (const uint64_t begin : {0ull, 3 * kMiB, 5 * kMiB}) {
            REQUIRE(disk.read(begin + at, page) == 0);
            REQUIRE(page.has_pattern(begin + at));
        }
    }
    CHECK(counter(disk.device(), "hitBytes") > 3 * kMiB);
    disk.queue().hurry();
    disk.settle();
    CHECK(counter(disk.device(), "readAheadBytes") <= counter(disk.device(), "hitBytes") + kMiB);
}

TEST_CASE("read-ahead: reads that are not in a row pass") {
    Filled filled;
    Disk disk(open(over(ReadAheadOptions{}, filled.spec())));
    Pages page(4096);
    std::mt19937 random(1);
    for (int i = 0; i < 300; i++) {
        const uint64_t at = random() % 1024 * 8192;
        REQUIRE(disk.read(at, page) == 0);
        REQUIRE(page.has_pattern(at));
    }
    CHECK(counter(disk.device(), "readAheadBytes") < 8 * kMiB / 16);
    Filled another;
    Disk off(open(over(ReadAheadOptions{}, another.spec())));
    REQUIRE(off.device().tune("windowBytes", 0));
    for (uint64_t at = 0; at < kMiB; at += 4096) REQUIRE(off.read(at, page) == 0);
    CHECK(counter(off.device(), "readAheadBytes") == 0);
    CHECK_FALSE(off.device().tune("windowBytes", 4096));
    REQUIRE(off.device().tune("windowBytes", 256 * 1024));
}

TEST_CASE("read-ahead: an error that nobody asked for is nobody's") {
    Filled filled;
    Disk disk(open(over(ReadAheadOptions{},
                        over(FaultOptions{.begin_bytes = kMiB, .end_bytes = kMiB + 4096},
                             filled.spec()))));
    Pages page(16384);
    for (uint64_t at = 0; at < 2 * kMiB; at += page.size()) {
        CHECK(disk.read(at, page) == (at == kMiB ? EIO : 0));
        if (at != kMiB) REQUIRE(page.has_pattern(at));
        if (at % (128 * 1024) == 0) disk.settle();
    }
}

TEST_CASE("read-ahead: writes and discards are seen at once") {
    Filled filled;
    Disk disk(open(over(ReadAheadOptions{}, filled.spec())));
    Pages page(16384), other(16384);
    std::memset(other.data(), 1, other.size());
    for (uint64_t at = 0; at < 4 * 16384; at += page.size()) REQUIRE(disk.read(at, page) == 0);
    disk.settle();
    CHECK(disk.write(4 * 16384, other) == 0);
    CHECK(disk.read(4 * 16384, page) == 0);
    CHECK(page.all(1));
    for (uint64_t at = kMiB; at < kMiB + 4 * 16384; at += page.size()) {
        REQUIRE(disk.read(at, page) == 0);
    }
    disk.settle();
    CHECK(disk.discard(kMiB, kMiB) == 0);
    CHECK(disk.read(kMiB + 4 * 16384, page) == 0);
    CHECK(page.all(0));
    CHECK(counter(disk.device(), "wastedBytes") > 0);
}

TEST_CASE("read-ahead: what it is told has to make sense") {
    Filled filled;
    CHECK_FALSE(try_open(over(ReadAheadOptions{.memory_bytes = 4096}, filled.spec())));
    CHECK_FALSE(try_open(over(ReadAheadOptions{.memory_bytes = 1 << 30}, filled.spec())));
    CHECK_FALSE(try_open(over(ReadAheadOptions{.window_bytes = 4096}, filled.spec())));
    CHECK_FALSE(try_open(over(ReadAheadOptions{.window_bytes = 5 * kMiB}, filled.spec())));
}
