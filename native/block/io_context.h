// IoContext: what the devices of one reactor share, so that a pass over many disks costs one system
// call: one io_uring (created when the first file device needs it), and a wake-up descriptor for
// completions that other threads bring. Made, used and destroyed on its reactor's thread;
// complete_from_thread() alone is for any thread. Hides liburing.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "block/device.h"

namespace vbd::block {

class Uring;  // uring.h: the only user of liburing

/// What makes IoContext::poll() call DeviceQueue::on_timer() at a time. A member of that queue, which
/// it enters into its context for as long as both live; a reactor's thread alone uses it.
class Timer {
  public:
    static constexpr uint64_t kNever = UINT64_MAX;

    Timer(IoContext& context, DeviceQueue& owner);
    ~Timer();
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

    /// Due once, at `due_ns` of the monotonic clock or soon after; instead of what was set before.
    void set(uint64_t due_ns);
    void cancel() { due_ns_ = kNever; }
    uint64_t due_ns() const { return due_ns_; }

  private:
    friend class IoContext;

    IoContext& context_;
    DeviceQueue& owner_;
    uint64_t due_ns_ = kNever;
    Timer* next_ = nullptr;
    Timer** link_ = nullptr;  // what points to this one
};

class IoContext {
  public:
    static constexpr uint32_t kRingEntries = 1024;

    /// `arena`: the reactor's page pool, whose chunks may be registered with io_uring; may be
    /// empty. `ring_entries`: submission entries of the io_uring, 1..32768; more Ios than that may
    /// be in flight. Blocks SIGXFSZ for this thread: a write beyond RLIMIT_FSIZE has to be EFBIG,
    /// not the end of the process.
    static Result<std::unique_ptr<IoContext>> create(iovec arena,
                                                     uint32_t ring_entries = kRingEntries);
    ~IoContext();  // only when nothing is in flight

    /// The shared io_uring, made on first use; null where the kernel has or allows none, and then
    /// status() says why.
    Uring* uring();

    /// For operators: which io_uring this is and how many buffers are registered with it, or why
    /// there is none.
    std::string status() const;

    /// Must be called before memory of the arena is given back or remapped (munmap, MADV_DONTNEED,
    /// mremap): a registered buffer holds the old pages, and reads would go on filling those.
    /// Nothing may be in flight there.
    void forget_buffers(const void* begin, size_t length);

    /// Hands everything queued since the last call to the kernel. Once per pass.
    void submit();

    /// Moves finished Ios to their DeviceQueues, from io_uring and from other threads, and calls the
    /// timers that are due. Returns how many of both. Costs no system call when there is nothing to
    /// find.
    uint32_t poll();

    /// When poll() has to be called for a timer at the latest; Timer::kNever: none is set.
    uint64_t next_due_ns() const { return next_due_ns_; }

    /// Ios that the kernel or another thread still has, or that wait for their next step.
    uint32_t in_flight() const { return in_flight_; }

    /// Before sleeping on wake_fd(): asks for wake-ups. False: do not sleep, poll() has something
    /// to do. The next poll() asks for no more of them, so that completions cost nothing extra
    /// while the reactor is awake.
    bool arm();

    /// Readable when poll() would find something that it did not when arm() was called.
    int wake_fd() const { return wake_fd_.get(); }

    /// Whoever slept saw that wake_fd() is not readable: the next poll() need not read it, which
    /// saves a system call where most wake-ups have other reasons.
    void wake_was_quiet(bool quiet) { wake_was_quiet_ = quiet; }

    /// From any thread: returns an Io that another thread finished (Io::error set) to this reactor,
    /// where poll() counts it as finished and completes it.
    void complete_from_thread(Io* io);

    /// From any thread: hands Ios on which their queues have more to do (DeviceQueue::resume_list)
    /// back to this reactor. poll() counts them as finished first; a queue that goes on with one
    /// counts it as started again. Empties the list.
    void resume_from_thread(IoList& ios);

    /// Puts an Io off until the next poll(), which calls DeviceQueue::resume() for it: how work
    /// that would hold up the reactor is cut into steps. Counts as in flight meanwhile.
    void yield(Io* io);

    /// A device's own bookkeeping, once each per Io that is not complete when submit() returns;
    /// poll() does the second for what complete_from_thread() and yield() bring back.
    void note_started() { in_flight_++; }
    void note_finished() {
        in_flight_--;
        finished_++;
    }

  private:
    IoContext() = default;
    void disarm();
    void take_remote();
    void tell_remote();
    void resume_remote(Io* list);
    void resume_yielded();
    void run_timers();
    friend class Timer;

    uint32_t in_flight_ = 0;
    uint32_t finished_ = 0;  // since the last poll() began
    Timer* timers_ = nullptr;
    uint64_t next_due_ns_ = Timer::kNever;  // of all timers_, or earlier
    uint32_t ring_entries_ = kRingEntries;
    Fd wake_fd_;
    std::unique_ptr<Uring> uring_;
    bool uring_tried_ = false;
    std::string uring_reason_;  // why uring_ is null
    iovec arena_{};
    IoList yielded_;
    std::mutex mutex_;  // guards the two below, and armed_ against other threads
    IoList remote_;
    IoList remote_resumed_;
    bool wake_was_quiet_ = false;
    bool armed_ = false;                     // somebody may sleep: completions write to wake_fd_
    std::atomic<bool> remote_ready_{false};  // they are not both empty
};

}  // namespace vbd::block
