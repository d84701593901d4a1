// What it costs to wake a reactor, in system calls: this program's own epoll_wait, epoll_pwait2 and
// eventfd_read stand in for libc's, and count. Not under sanitizers, which want to see these calls.
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "base/clock.h"
#include "support/engine_rig.h"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

using namespace vbd;
using namespace vbd::test;

namespace {

std::atomic<uint64_t> epoll_waits{0};
std::atomic<uint64_t> eventfd_reads{0};

bool on_reactor() {
    char name[16] = "";
    pthread_getname_np(pthread_self(), name, sizeof name);
    return std::strncmp(name, "test-", 5) == 0;  // as EngineRig calls them
}

}  // namespace

extern "C" int epoll_wait(int epoll, epoll_event* events, int count, int timeout_ms) {
    // FakeXen's event channels ask an epoll instance of their own, for one event.
    if (on_reactor() && count > 1) epoll_waits++;
    return epoll_pwait(epoll, events, count, timeout_ms, nullptr);
}

extern "C" int epoll_pwait2(int epoll, epoll_event* events, int count, const timespec* timeout,
                            const sigset_t* mask) {
    if (on_reactor() && count > 1) epoll_waits++;
    return static_cast<int>(
        ::syscall(SYS_epoll_pwait2, epoll, events, count, timeout, mask, _NSIG / 8));
}

extern "C" int eventfd_read(int fd, eventfd_t* value) {
    if (on_reactor()) eventfd_reads++;
    return ::read(fd, value, sizeof *value) == sizeof *value ? 0 : -1;
}

TEST_CASE(
    "engine: a request that wakes a reactor costs one wait, and no read of a quiet descriptor") {
    RigOptions options;
    options.poll_us = 0;
    EngineRig rig(memory_disk(1 << 20), options);
    REQUIRE(rig.connect());
    REQUIRE(rig.transact(Operation::kRead, 0, {rig.segment(0)}) == 0);
    const uint64_t waits_before = epoll_waits, reads_before = eventfd_reads;
    constexpr uint64_t kRequests = 200;
    for (uint64_t i = 0; i < kRequests; i++) {
        // A guest that thinks for longer than a busy reactor goes without looking at events.
        const uint64_t until_ns = monotonic_ns() + 100'000;
        while (monotonic_ns() < until_ns) {
        }
        REQUIRE(rig.transact(Operation::kRead, i % 32 * 8, {rig.segment(0)}) == 0);
    }
    const uint64_t waits = epoll_waits - waits_before;
    CHECK(waits >= kRequests / 2);  // it did sleep, and these calls are counted
    // A few more: ticks of persistent grants, a guest that was faster than the reactor's sleep.
    CHECK(waits <= kRequests + kRequests / 4);
    CHECK(eventfd_reads - reads_before <= 2);
}

#endif
