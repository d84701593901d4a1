#include "base/histogram.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>
#include <thread>
#include <vector>

#include "base/clock.h"

using vbd::Histogram;

TEST_CASE("histogram: buckets are those of the formula, and tile all values without a gap") {
    for (uint64_t value = 0; value < 16; ++value) CHECK(Histogram::index_of(value) == value);
    CHECK(Histogram::index_of(16) == 16);
    CHECK(Histogram::index_of(31) == 31);
    CHECK(Histogram::index_of(32) == 32);
    CHECK(Histogram::index_of(33) == 32);
    CHECK(Histogram::index_of(1000) == (9 - 3) * 16 + ((1000 >> 5) & 15));
    CHECK(Histogram::index_of(Histogram::kMaxValue) == Histogram::kBuckets - 1);
    CHECK(Histogram::index_of(Histogram::kMaxValue - 1) == Histogram::kBuckets - 2);
    CHECK(Histogram::index_of(~0ULL) == Histogram::kBuckets - 1);

    CHECK(Histogram::lower_bound(0) == 0);
    for (uint32_t i = 0; i + 1 < Histogram::kBuckets; ++i) {
        const uint64_t lower = Histogram::lower_bound(i);
        const uint64_t upper = Histogram::upper_bound(i);
        CAPTURE(i);
        REQUIRE(lower <= upper);
        REQUIRE(Histogram::index_of(lower) == i);
        REQUIRE(Histogram::index_of(upper) == i);
        REQUIRE(Histogram::lower_bound(i + 1) == upper + 1);
        REQUIRE((upper - lower) * 16 <= lower);  // never wider than a sixteenth
    }
    CHECK(Histogram::lower_bound(Histogram::kBuckets - 1) == Histogram::kMaxValue);
    CHECK(Histogram::upper_bound(Histogram::kBuckets - 1) == ~0ULL);
}

TEST_CASE("histogram: an empty one says nothing") {
    const Histogram empty;
    CHECK(empty.count() == 0);
    CHECK(empty.sum() == 0);
    CHECK(empty.min() == 0);
    CHECK(empty.max() == 0);
    CHECK(empty.used_buckets() == 0);
    CHECK(empty.percentile(50) == 0);
}

TEST_CASE("histogram: counts, sums and percentiles against sorted values") {
    std::mt19937_64 random(11);
    std::vector<uint64_t> values;
    Histogram histogram;
    uint64_t sum = 0;
    for (int i = 0; i < 20000; ++i) {
        const uint64_t value = random() >> (24 + random() % 40);
        values.push_back(value);
        sum += value;
        histogram.record(value);
    }
    std::sort(values.begin(), values.end());
    CHECK(histogram.count() == values.size());
    CHECK(histogram.sum() == sum);
    CHECK(histogram.min() == values.front());
    CHECK(histogram.max() == values.back());
    for (const double percent : {0.0, 0.1, 1.0, 25.0, 50.0, 90.0, 99.0, 99.9, 100.0}) {
        const double rank = std::ceil(percent / 100 * double(values.size()));
        const uint64_t exact = values[size_t(std::max(rank, 1.0)) - 1];
        CAPTURE(percent);
        CHECK(histogram.percentile(percent) >= exact);
        CHECK(histogram.percentile(percent) <= exact + exact / 16);
    }
    CHECK(histogram.percentile(100) == values.back());
    CHECK(histogram.percentile(1000) == values.back());
}

TEST_CASE("histogram: a percentile's rank is rounded up") {
    Histogram histogram;
    for (const uint64_t value : {1, 2, 3}) histogram.record(value);
    CHECK(histogram.percentile(33) == 1);
    CHECK(histogram.percentile(34) == 2);
    CHECK(histogram.percentile(50) == 2);
    CHECK(histogram.percentile(67) == 3);
}

TEST_CASE("histogram: many at once are as many one by one; merge adds; copies are apart") {
    Histogram one_by_one;
    Histogram at_once;
    for (int i = 0; i < 7; ++i) one_by_one.record(1000);
    at_once.record(1000, 7);
    at_once.record(5, 0);  // nothing
    CHECK(one_by_one.count() == at_once.count());
    CHECK(one_by_one.sum() == at_once.sum());
    CHECK(at_once.min() == 1000);

    Histogram other;
    other.record(3);
    other.record(1ULL << 50);  // beyond the last bucket: counted there, with its true size
    Histogram merged = at_once;
    merged.merge(other);
    CHECK(merged.count() == 9);
    CHECK(merged.sum() == 7000 + 3 + (1ULL << 50));
    CHECK(merged.min() == 3);
    CHECK(merged.max() == 1ULL << 50);
    CHECK(merged.bucket(Histogram::kBuckets - 1) == 1);
    CHECK(merged.used_buckets() == Histogram::kBuckets);
    CHECK(merged.percentile(100) == 1ULL << 50);
    CHECK(at_once.count() == 7);
    merged.merge(Histogram());
    CHECK(merged.min() == 3);
    merged.reset();
    CHECK(merged.count() == 0);
    CHECK(merged.min() == 0);
}

TEST_CASE("histogram: others may read while one writes") {
    Histogram histogram;
    std::atomic<bool> done{false};
    uint64_t last = 0;
    bool backwards = false;
    std::thread reader([&] {
        do {
            const Histogram snapshot = histogram;
            backwards |= snapshot.count() < last;
            last = snapshot.count();
        } while (!done.load());
    });
    for (uint64_t i = 0; i < 200000; ++i) histogram.record(i);
    done.store(true);
    reader.join();
    CHECK_FALSE(backwards);
    CHECK(histogram.count() == 200000);
    CHECK(last <= 200000);
}

TEST_CASE("clock: both clocks advance") {
    const uint64_t wall = vbd::monotonic_ns();
    const uint64_t cpu = vbd::thread_cpu_ns();
    while (vbd::thread_cpu_ns() - cpu < 1'000'000) {
    }
    // This thread cannot have used more time than there was, but for the clocks' grain.
    CHECK(vbd::monotonic_ns() - wall >= 900'000);
}
