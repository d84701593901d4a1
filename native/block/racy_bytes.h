// Copying to and from memory that several queues share without a lock. Two guests (or two requests
// of one) that touch the same sectors at once get a mixture of bytes, as on a real disk; that is
// theirs to avoid. It is no business of our locks, and the copies below tell so to ThreadSanitizer,
// which cannot know.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_THREAD__)
#define VBD_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define VBD_THREAD_SANITIZER 1
#endif
#endif

namespace vbd::block {

#ifdef VBD_THREAD_SANITIZER
// memcpy itself is watched wherever it is called from, so byte by byte, and volatile so that it is
// not made a memcpy again.
__attribute__((noinline, no_sanitize("thread"))) inline void racy_copy(void* to, const void* from,
                                                                       size_t bytes) {
    auto* out = static_cast<volatile uint8_t*>(to);
    auto* in = static_cast<const volatile uint8_t*>(from);
    for (size_t i = 0; i < bytes; i++) out[i] = in[i];
}
__attribute__((noinline, no_sanitize("thread"))) inline void racy_zero(void* to, size_t bytes) {
    auto* out = static_cast<volatile uint8_t*>(to);
    for (size_t i = 0; i < bytes; i++) out[i] = 0;
}
#else
inline void racy_copy(void* to, const void* from, size_t bytes) {
    std::memcpy(to, from, bytes);
}
inline void racy_zero(void* to, size_t bytes) {
    std::memset(to, 0, bytes);
}
#endif

}  // namespace vbd::block
