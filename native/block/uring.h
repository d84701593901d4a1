// Uring: the io_uring of one reactor. Queues one submission entry per step of an Io, hands all of
// them to the kernel in one call, and gives each step's result back to the queue that the Io
// belongs to. The only file that includes liburing.
//
//   start(io) ──► prepare() fills an entry ──► submit() ──► kernel ──► poll() ──► on_result() ──►
//   done, or start(io) again
//        └─ backlog, while the ring is full ─┘
//
// Thread: its reactor's only (IORING_SETUP_SINGLE_ISSUER). Owned by IoContext.
#pragma once

#include <liburing.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "block/device.h"

namespace vbd::block {

/// A DeviceQueue that works through a Uring.
class UringClient : public DeviceQueue {
  public:
    /// Fills the entry for the next step of `io`, all but its user data. Can come later than
    /// start(): the ring may be full.
    virtual void prepare(Io* io, io_uring_sqe* sqe) = 0;

    /// A step's result: the kernel's, so a count or 0, or a negative errno.
    virtual void on_result(Io* io, int32_t result) = 0;
};

class Uring {
  public:
    /// Registered buffers are this large, so that memory is pinned as it comes into use.
    static constexpr size_t kChunkBytes = 1 << 20;

    /// `wake_fd`: the eventfd that arm() makes completions write to. An eventfd, since with
    /// deferred completions the kernel (6.3 and later) wakes nobody who polls the ring's own
    /// descriptor. Errors: kUnsupported, with the reason for operators.
    static Result<std::unique_ptr<Uring>> create(iovec arena, uint32_t entries, int wake_fd);

    /// Whether create() would work in this process.
    static Status probe();

    ~Uring();
    Uring(const Uring&) = delete;
    Uring& operator=(const Uring&) = delete;

    /// Queues the next step of `io`, whose queue is a UringClient. Never fails and never waits.
    void start(Io* io);

    /// One system call for all that start() queued; none when nothing is. What the kernel does not
    /// take now (no memory, no room for completions) poll() and submit() offer again.
    void submit();

    /// The kernel would not take everything now (out of memory or out of completion space); poll()
    /// and submit() retry.
    bool stalled() const { return stalled_; }

    /// Gives out results, and submits what they started. Enters the kernel only when it has
    /// something for us.
    void poll();

    /// From now on completions write to the wake_fd. False: poll() has something to do already.
    bool arm();
    void disarm() { io_uring_cq_eventfd_toggle(&ring_, false); }

    /// The index of the registered buffer that holds all of `memory`, or -1. Registers its chunk
    /// when it is new.
    int buffer_index(const iovec& memory);

    /// IoContext::forget_buffers.
    void forget_buffers(const void* begin, size_t length);

    std::string status() const;

  private:
    Uring() = default;
    bool set_up(uint32_t entries, int& error);
    void prepare_buffers(iovec arena);
    bool register_chunk(size_t chunk);
    io_uring_sqe* next_sqe();
    void prepare(Io* io, io_uring_sqe* sqe);
    bool flush();

    io_uring ring_{};
    bool open_ = false;
    bool stalled_ = false;
    uint32_t setup_flags_ = 0;
    uint32_t steps_ = 0;  // entries prepared whose result has not come
    IoList backlog_;      // Ios that wait for a free entry

    iovec arena_{};
    std::vector<bool> registered_;  // by chunk of the arena; empty: no registered buffers
    size_t registered_count_ = 0;
    bool may_register_ = false;
    std::string buffers_reason_;  // why may_register_ is false
};

}  // namespace vbd::block
