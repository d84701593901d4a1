// Histogram: counts of values in log-linear buckets, 16 per power of two, so that a bucket is never
// wider than 1/16 of its values. For nanoseconds up to 2^40 (18 minutes), and for any other count.
//
//   v < 16    bucket v
//   else      e = floor(log2 v), bucket (e-3)*16 + ((v >> (e-4)) & 15)
//
// One thread writes; others may read at any time without a lock. They see each number whole, though
// not all of one moment.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

namespace vbd {

class Histogram {
  public:
    static constexpr uint64_t kMaxValue = uint64_t{1} << 40;  // greater values count as this one
    static constexpr uint32_t kSubBuckets = 16;
    static constexpr uint32_t kBuckets = (40 - 3) * kSubBuckets + 1;

    Histogram() = default;
    Histogram(const Histogram& other) { merge(other); }
    Histogram& operator=(const Histogram& other) {
        if (this != &other) {
            reset();
            merge(other);
        }
        return *this;
    }

    /// The bucket that counts `value`.
    static constexpr uint32_t index_of(uint64_t value) {
        value = std::min(value, kMaxValue);
        if (value < kSubBuckets) return static_cast<uint32_t>(value);
        const uint32_t exponent = static_cast<uint32_t>(std::bit_width(value)) - 1;
        return (exponent - 3) * kSubBuckets +
               static_cast<uint32_t>((value >> (exponent - 4)) & (kSubBuckets - 1));
    }

    /// Smallest value of a bucket.
    static constexpr uint64_t lower_bound(uint32_t index) {
        if (index < kSubBuckets) return index;
        const uint32_t exponent = index / kSubBuckets + 3;
        return (uint64_t{kSubBuckets} + index % kSubBuckets) << (exponent - 4);
    }

    /// Greatest value of a bucket; the last one has no end.
    static constexpr uint64_t upper_bound(uint32_t index) {
        if (index + 1 >= kBuckets) return std::numeric_limits<uint64_t>::max();
        return lower_bound(index + 1) - 1;
    }

    void record(uint64_t value) { record(value, 1); }

    /// Records `value` `times` times.
    void record(uint64_t value, uint64_t times) {
        if (times == 0) return;
        add(buckets_[index_of(value)], times);
        add(sum_, value * times);
        if (value < load(min_)) store(min_, value);
        if (value > load(max_)) store(max_, value);
    }

    /// Adds what `other` counted.
    void merge(const Histogram& other) {
        for (uint32_t i = 0; i < kBuckets; ++i) {
            if (const uint64_t times = other.bucket(i)) add(buckets_[i], times);
        }
        add(sum_, load(other.sum_));
        store(min_, std::min(load(min_), load(other.min_)));
        store(max_, std::max(load(max_), load(other.max_)));
    }

    void reset() {
        for (uint64_t& bucket : buckets_) store(bucket, 0);
        store(sum_, 0);
        store(min_, kNoMin);
        store(max_, 0);
    }

    uint64_t bucket(uint32_t index) const { return load(buckets_[index]); }

    /// Values recorded.
    uint64_t count() const {
        uint64_t total = 0;
        for (const uint64_t& bucket : buckets_) total += load(bucket);
        return total;
    }

    /// Of the values as they were recorded, modulo 2^64.
    uint64_t sum() const { return load(sum_); }

    /// 0 where nothing was recorded.
    uint64_t min() const {
        const uint64_t value = load(min_);
        return value == kNoMin ? 0 : value;
    }
    uint64_t max() const { return load(max_); }

    /// Buckets up to the last one that is not empty.
    uint32_t used_buckets() const {
        uint32_t used = kBuckets;
        while (used > 0 && bucket(used - 1) == 0) --used;
        return used;
    }

    /// The value that `percent` (0..100) of the values do not exceed, at most 1/16 too high; 0
    /// where nothing was recorded.
    uint64_t percentile(double percent) const {
        const uint64_t total = count();
        if (total == 0) return 0;
        const double share = std::clamp(percent, 0.0, 100.0) / 100.0 * static_cast<double>(total);
        uint64_t rank = static_cast<uint64_t>(share);
        if (static_cast<double>(rank) < share) ++rank;
        rank = std::clamp<uint64_t>(rank, 1, total);
        for (uint32_t i = 0; i < kBuckets; ++i) {
            const uint64_t here = bucket(i);
            if (here >= rank) return std::clamp(upper_bound(i), min(), std::max(min(), max()));
            rank -= here;
        }
        return max();
    }

  private:
    static constexpr uint64_t kNoMin = std::numeric_limits<uint64_t>::max();

    // Plain moves on every machine: there is one writer, so nothing needs to be locked.
    static uint64_t load(const uint64_t& from) { return __atomic_load_n(&from, __ATOMIC_RELAXED); }
    static void store(uint64_t& to, uint64_t value) {
        __atomic_store_n(&to, value, __ATOMIC_RELAXED);
    }
    static void add(uint64_t& to, uint64_t value) { store(to, load(to) + value); }

    uint64_t buckets_[kBuckets] = {};
    uint64_t sum_ = 0;
    uint64_t min_ = kNoMin;
    uint64_t max_ = 0;
};

}  // namespace vbd
