// The two clocks that latencies and CPU costs are measured with. Both in nanoseconds from an
// arbitrary start.
#pragma once

#include <time.h>

#include <cstdint>

namespace vbd {

namespace detail {
inline uint64_t clock_ns(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);  // cannot fail for the two clocks below
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}
}  // namespace detail

/// Time that never goes back, comparable between threads and processes of one boot.
inline uint64_t monotonic_ns() {
    return detail::clock_ns(CLOCK_MONOTONIC);
}

/// CPU time that the calling thread has used.
inline uint64_t thread_cpu_ns() {
    return detail::clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

}  // namespace vbd
