// Benchmark: one thing that vbdkit-bench can measure, and the words that describe it. Lives on the
// main thread; owns whatever it set up, which is never part of a sample.
//
//   main    words of the command line ─► Arguments ─► make ─► Benchmark
//   stdin   a line with milliseconds ─► run() ─► Sample ─► a line of JSON on stdout
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/histogram.h"
#include "base/result.h"

namespace vbd::bench {

struct Sample {
    uint64_t operations = 0;
    uint64_t errors = 0;
    uint64_t elapsed_ns = 0;
    uint64_t cpu_ns = 0;   // of the measuring thread
    Histogram latency_ns;  // empty where single operations are too short to be timed
};

class Benchmark {
  public:
    virtual ~Benchmark() = default;

    /// Measures for about this long. The sample is empty when it is called.
    virtual Status run(uint64_t duration_ns, Sample& sample) = 0;
};

/// `name=value` words. What is not asked for is a mistake of the caller: see unused().
class Arguments {
  public:
    /// Errors: kInvalidArgument for a word without `=`.
    static Result<Arguments> parse(int count, char** words);

    uint64_t number(const std::string& name, uint64_t fallback);
    std::string text(const std::string& name, const std::string& fallback);

    /// The names that nobody asked for, or that were no numbers; empty when all is well.
    std::string unused() const;

  private:
    std::map<std::string, std::string> values_;
    std::map<std::string, bool> bad_;  // true: not a number
};

using Made = Result<std::unique_ptr<Benchmark>>;

Made make_memory_copy(Arguments& arguments);
Made make_ping_pong(Arguments& arguments);
Made make_ring_loop(Arguments& arguments);
Made make_file_reads(Arguments& arguments);
Made make_uring_reads(Arguments& arguments);
Made make_parse(Arguments& arguments);
Made make_lookup(Arguments& arguments);
Made make_page_pool(Arguments& arguments);
Made make_script_channel(Arguments& arguments);
Made make_vhost_user(Arguments& arguments);

/// Keeps the calling thread on one processor; -1 leaves it alone. Errors: kInvalidArgument.
Status pin_to(int cpu);

/// SplitMix64: good enough to defeat caches and prefetchers, and the same on every run.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next() {
        uint64_t value = state_ += 0x9e3779b97f4a7c15;
        value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
        value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
        return value ^ (value >> 31);
    }
    /// 0..bound-1, without a division.
    uint64_t below(uint64_t bound) {
        return static_cast<uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
    }

  private:
    uint64_t state_;
};

/// A hint to the processor that this is a spin.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

/// Keeps the compiler from leaving out what computed `value`.
template <typename T>
inline void keep(const T& value) {
    asm volatile("" : : "r,m"(value) : "memory");
}

/// Calls `batch()`, which does `size` operations, until the time is up.
template <typename Batch>
void repeat(uint64_t duration_ns, uint64_t size, Sample& sample, Batch batch) {
    const uint64_t cpu_before_ns = thread_cpu_ns();
    const uint64_t start_ns = monotonic_ns();
    uint64_t now_ns = start_ns;
    do {
        batch();
        sample.operations += size;
        now_ns = monotonic_ns();
    } while (now_ns - start_ns < duration_ns);
    sample.elapsed_ns = now_ns - start_ns;
    sample.cpu_ns = thread_cpu_ns() - cpu_before_ns;
}

/// The same one at a time, each with its latency. `once()` says whether it went well.
template <typename Once>
void repeat_timed(uint64_t duration_ns, Sample& sample, Once once) {
    uint64_t last_ns = monotonic_ns();
    repeat(duration_ns, 1, sample, [&] {
        sample.errors += once() ? 0 : 1;
        const uint64_t now_ns = monotonic_ns();
        sample.latency_ns.record(now_ns - last_ns);
        last_ns = now_ns;
    });
}

}  // namespace vbd::bench
