// Counts how often the ring code loads each byte that the guest can change: a byte loaded twice is
// a check that can be made on one value and a use that sees another (XSA-155). The compiler decides
// how often that is, so this is built at several levels, and every load in it calls a hook that
// counts, and that afterwards flips the byte under the code's hands.
//
//   F="-fsanitize-coverage=edge,trace-pc-guard,trace-loads -Inative"
//   S="native/blkif/ring.cc native/blkif/request.cc test/fuzz/double_fetch_test.cc"
//   for O in 0 2 3; do clang++-16 -std=c++20 -O$O -g $F $S -o double_fetch && ./double_fetch; done
//
// Exit status 0: no byte of a slot was loaded twice, no index more often than its protocol allows,
// what was decided is what the first load saw, and a decoder that is bad on purpose was caught.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "blkif/request.h"
#include "blkif/ring.h"

using namespace vbd;
using namespace vbd::blkif;

// The test's own code must not count, and the code under test must not be inlined into it: it would
// not count either.
#define UNTRACED __attribute__((no_sanitize("coverage"), noinline))
#define TRACED __attribute__((noinline))

namespace {

constexpr size_t kRingBytes = kPageSize * 2;
alignas(kPageSize) uint8_t ring_memory[kRingBytes];
alignas(8) uint8_t loads_of[kRingBytes];
bool tracing = false;
bool flipping = false;
size_t pending_at = 0;  // bytes of the last load: flipped when the next one begins
size_t pending_bytes = 0;
unsigned long traced_loads = 0;
unsigned long failures = 0;

UNTRACED void flip_pending() {
    for (size_t i = 0; i < pending_bytes; ++i) ring_memory[pending_at + i] ^= 0xff;
    pending_bytes = 0;
}

UNTRACED void hit(const void* address, size_t bytes) {
    if (!tracing) return;
    if (flipping) flip_pending();
    const auto at = reinterpret_cast<uintptr_t>(address);
    const auto begin = reinterpret_cast<uintptr_t>(ring_memory);
    if (at + bytes <= begin || at >= begin + kRingBytes) return;
    ++traced_loads;
    for (size_t i = 0; i < bytes; ++i) ++loads_of[at - begin + i];
    // Only slots: the indices are loaded by rule more than once, in different steps.
    if (at - begin >= kRingHeaderBytes) {
        pending_at = at - begin;
        pending_bytes = bytes;
    }
}

UNTRACED void start(bool flip) {
    for (uint8_t& count : loads_of) count = 0;
    traced_loads = 0;
    pending_bytes = 0;
    flipping = flip;
    tracing = true;
}

UNTRACED void stop() {
    tracing = false;
    if (flipping) flip_pending();
    flipping = false;
}

UNTRACED unsigned long loaded_twice() {
    unsigned long bytes = 0;
    for (size_t at = kRingHeaderBytes; at < kRingBytes; ++at) bytes += loads_of[at] > 1;
    return bytes;
}

UNTRACED void expect(bool condition, const char* what) {
    if (condition) return;
    if (failures++ < 10) std::printf("FAILED: %s\n", what);
}

UNTRACED void store(size_t offset, uint32_t value) {
    for (size_t i = 0; i < 4; ++i) ring_memory[offset + i] = uint8_t(value >> (8 * i));
}

UNTRACED uint8_t* slot_at(Protocol protocol, uint32_t index) {
    return ring_memory + kRingHeaderBytes + size_t{index} * slot_bytes(protocol);
}

UNTRACED void fill_slot(uint8_t* slot, std::mt19937& random) {
    for (size_t at = 0; at < 108; ++at) slot[at] = uint8_t(random());
    slot[0] = uint8_t(random() % 8);
    if (slot[0] != 6) slot[1] = uint8_t(random() % 13);
}

UNTRACED bool same(const Request& a, const Request& b) {
    return a.id == b.id && a.wire_operation == b.wire_operation && a.operation == b.operation &&
           a.indirect == b.indirect && a.secure == b.secure && a.nr_segments == b.nr_segments &&
           a.sector == b.sector && a.nr_sectors == b.nr_sectors;
}

constexpr uint32_t kSlots = 64;  // of a ring of two pages

/// One pass over a full ring; inlines all of the ring's hot path.
TRACED bool take_all(BackRing& ring, RawSlot* taken) {
    bool ok = ring.begin_pass();
    for (uint32_t i = 0; i < kSlots; ++i) ok &= ring.next(taken[i]);
    RawSlot none;
    return ok && !ring.next(none);
}

TRACED void respond(BackRing& ring, const Request& request, Reject reject) {
    ring.respond(request.id, request.wire_operation, status_of(reject));
}

TRACED bool push(BackRing& ring) {
    return ring.push();
}

/// A ring full of random requests, each taken while the guest changes every byte behind the load.
UNTRACED void check_ring(Protocol protocol, bool flip, std::mt19937& random) {
    static RawSlot snapshots[kSlots], taken[kSlots];
    for (size_t at = 0; at < kRingBytes; ++at) ring_memory[at] = 0;
    Result<BackRing> attached = BackRing::attach(ring_memory, 2, protocol);
    expect(bool(attached), "attach");
    BackRing ring = attached.value();
    for (uint32_t i = 0; i < kSlots; ++i) {
        fill_slot(slot_at(protocol, i), random);
        for (size_t at = 0; at < slot_bytes(protocol); ++at) {
            snapshots[i].bytes[at] = slot_at(protocol, i)[at];
        }
    }
    store(kRingReqProd, kSlots);

    start(flip);
    const bool ok = take_all(ring, taken);
    stop();
    expect(ok, "all requests are taken");
    expect(traced_loads >= kSlots, "loads are traced");
    expect(loaded_twice() == 0, "no byte of a slot is loaded twice");
    for (size_t i = 0; i < 4; ++i) {
        expect(loads_of[kRingReqProd + i] == 1, "req_prod is loaded once per pass");
        expect(loads_of[kRingReqEvent + i] == 0, "req_event is never loaded");
        expect(loads_of[kRingRspProd + i] == 0, "rsp_prod is never loaded");
        expect(loads_of[kRingRspEvent + i] == 0, "rsp_event is not loaded while consuming");
    }

    Limits limits;
    limits.capacity_sectors = ~0ULL;
    limits.max_indirect_segments = 65535;
    limits.discard = true;
    start(false);
    for (uint32_t i = 0; i < kSlots; ++i) {
        Request before, after;
        const Reject expected = parse(protocol, snapshots[i], limits, before);
        const Reject got = parse(protocol, taken[i], limits, after);
        expect(expected == got && same(before, after), "the first load decides");
        respond(ring, after, got);
    }
    const bool notify = push(ring);
    const bool work = ring.final_check();
    stop();
    expect(!notify && !work, "nothing left");
    for (size_t at = kRingHeaderBytes; at < kRingBytes; ++at) {
        expect(loads_of[at] == 0, "parsing and answering load no slot");
    }
    for (size_t i = 0; i < 4; ++i) {
        expect(loads_of[kRingReqProd + i] == 2, "final check looks before and after arming");
        expect(loads_of[kRingReqEvent + i] == 0, "req_event is never read back");
        expect(loads_of[kRingRspProd + i] == 0, "rsp_prod is never read back");
        expect(loads_of[kRingRspEvent + i] == 1, "rsp_event is loaded once per push");
    }
}

/// A decoder that checks a count in shared memory and then reads it again. Volatile, so that no
/// optimisation repairs it.
TRACED uint32_t bad_decoder(const uint8_t* slot) {
    const volatile uint8_t* shared = slot;
    if (shared[1] > kMaxSegments) return 0;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < shared[1]; ++i) sum += shared[24 + i * 8 + 4];
    return sum;
}

UNTRACED void check_detector() {
    uint8_t* slot = slot_at(Protocol::kX86_64, 0);
    for (size_t at = 0; at < 112; ++at) slot[at] = 0;
    slot[1] = 2;
    start(false);
    bad_decoder(slot);
    stop();
    expect(loaded_twice() == 1, "a bad decoder is caught");
    start(true);
    bad_decoder(slot);
    stop();
    expect(slot[1] != 2, "and the byte changed under it");
}

}  // namespace

extern "C" {
UNTRACED void __sanitizer_cov_load1(uint8_t* at) {
    hit(at, 1);
}
UNTRACED void __sanitizer_cov_load2(uint16_t* at) {
    hit(at, 2);
}
UNTRACED void __sanitizer_cov_load4(uint32_t* at) {
    hit(at, 4);
}
UNTRACED void __sanitizer_cov_load8(uint64_t* at) {
    hit(at, 8);
}
UNTRACED void __sanitizer_cov_load16(void* at) {
    hit(at, 16);
}
UNTRACED void __sanitizer_cov_trace_pc_guard(uint32_t*) {}
UNTRACED void __sanitizer_cov_trace_pc_guard_init(uint32_t*, uint32_t*) {}
}

int main() {
    std::mt19937 random(155);
    check_detector();
    for (int round = 0; round < 200; ++round) {
        for (const Protocol protocol : {Protocol::kNative, Protocol::kX86_32, Protocol::kX86_64}) {
            check_ring(protocol, round % 2 == 0, random);
        }
    }
    if (failures != 0) {
        std::printf("%lu failures\n", failures);
        return 1;
    }
    std::printf("no byte was loaded twice, and the bad decoder was caught\n");
    return 0;
}
