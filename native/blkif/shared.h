// Access to memory that an untrusted peer writes at the same time. Both ends of a ring go through
// these few functions and nothing else touches a ring: each is exactly one access that the compiler
// can neither repeat, split, merge nor leave out (XSA-155, XSA-478). No memcpy, no struct
// assignment, no reference to shared memory anywhere.
//
// Slots are plain accesses ordered by the indices; indices are atomic.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vbd::blkif::shared {

using U32 [[gnu::may_alias]] = uint32_t;
using U64 [[gnu::may_alias]] = uint64_t;

/// One load of a slot's word. `from` is aligned to the word.
inline uint32_t load_u32(const uint8_t* from) {
    return *reinterpret_cast<const volatile U32*>(from);
}
inline uint64_t load_u64(const uint8_t* from) {
    return *reinterpret_cast<const volatile U64*>(from);
}

/// One store of a slot's word. `to` is aligned to the word.
inline void store_u32(uint8_t* to, uint32_t value) {
    *reinterpret_cast<volatile U32*>(to) = value;
}
inline void store_u64(uint8_t* to, uint64_t value) {
    *reinterpret_cast<volatile U64*>(to) = value;
}

/// Loads an index of the peer's; what the peer wrote before it is visible afterwards.
inline uint32_t load_index(const uint8_t* from) {
    return __atomic_load_n(reinterpret_cast<const U32*>(from), __ATOMIC_ACQUIRE);
}

/// Publishes an index, or an event threshold, of ours: what we wrote before is visible to whoever
/// sees it, and a load_index_after_publish() that follows cannot move before it. The pair is the
/// full barrier that ring.h demands between the two, as one xchg instead of a store and a fence
/// (and it is something that a thread sanitizer understands).
inline void publish_index(uint8_t* to, uint32_t value) {
    __atomic_store_n(reinterpret_cast<U32*>(to), value, __ATOMIC_SEQ_CST);
}
inline uint32_t load_index_after_publish(const uint8_t* from) {
    return __atomic_load_n(reinterpret_cast<const U32*>(from), __ATOMIC_SEQ_CST);
}

}  // namespace vbd::blkif::shared
