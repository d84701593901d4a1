// Hints to the processor's caches. Nothing is read or written by them: what is there when it is
// loaded is what will be seen.
#pragma once

namespace vbd {

/// Asks for a cache line that will be read.
inline void prefetch_to_read(const void* at) {
    __builtin_prefetch(at, 0);
}

/// Asks for a cache line that will be written, so that its other owners are told now. Lines that are
/// asked for together travel together.
inline void prefetch_to_write(const void* at) {
#if defined(__x86_64__)
    // Not __builtin_prefetch: compilers write a plain one for the oldest of these processors.
    asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(at)));
#else
    __builtin_prefetch(at, 1);
#endif
}

}  // namespace vbd
