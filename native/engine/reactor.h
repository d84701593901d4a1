// Reactor: one thread that serves many rings. It owns their queues, the io_uring and the page pool
// they share, and sleeps in one place for events, completions, timers and mail alike.
//
//   busy      pass over every ring that is not armed; nothing is asked of the guests (req_event
//   stays behind) spinning  no work for less than the poll window: the same, with a pause
//   instruction asleep    every ring armed (events unmasked, req_event moved), then epoll_wait
//
// The window adapts between 0 and pollUs: it grows when sleeps turn out short, shrinks when they
// are long, and is given up for a while when the scheduler took the processor away from the spin.
// There are two, for what is waited for: a guest that was just answered mostly has its next requests
// ready sooner than it takes to fall asleep and be woken, a device that was just given requests needs
// its time, and whoever spins for that spends a processor on nothing.
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/thread.h"
#include "block/io_context.h"
#include "engine/mailbox.h"
#include "engine/queue.h"

namespace vbd::engine {

class Reactor {
  public:
    struct Options {
        std::string name;  // of the thread, at most 15 bytes
        uint32_t poll_us = 50;
        uint32_t max_buffer_pages = 1024;
    };

    /// Starts the thread. Errors: kNoMemory, and whatever the kernel refuses.
    static Result<std::unique_ptr<Reactor>> start(const Options& options);

    /// Stops it, if nobody has.
    ~Reactor();

    /// Closes every queue that is left and joins the thread. Waits for I/O at the devices for up to
    /// two seconds; what is still in flight then keeps its memory for ever.
    void stop();

    /// Stops reactors that write to each other, because they serve rings of one vbd: none may go
    /// before the last thread has ended. What they had not read goes with everything that it held,
    /// half made connections among it.
    static void stop_all(std::span<Reactor* const> reactors);

    Mailbox& mailbox() { return mailbox_; }

    // From any thread.
    void set_poll_us(uint32_t poll_us) { poll_us_.store(poll_us, std::memory_order_relaxed); }
    void set_max_buffer_pages(uint32_t pages) {
        max_buffer_pages_.store(pages, std::memory_order_relaxed);
    }
    /// How often it has turned. An idle one sleeps without a beat, until its mailbox is woken.
    uint64_t heartbeat() const { return heartbeat_.load(std::memory_order_relaxed); }
    /// Held up by a guest, for as long as the kernel sees fit: not hanging.
    bool in_guest_call() const { return guest_call_.inside(); }
    const std::string& name() const { return name_; }
    /// Rings that it has or was promised; whoever places a ring says so first, so that a crowd
    /// spreads.
    uint32_t ring_count() const { return ring_count_.load(std::memory_order_relaxed); }
    void expect_ring() { ring_count_.fetch_add(1, std::memory_order_relaxed); }
    void forget_ring() { ring_count_.fetch_sub(1, std::memory_order_relaxed); }
    uint32_t pool_pages_in_use() const { return pool_in_use_.load(std::memory_order_relaxed); }
    uint32_t pool_pages_free() const { return pool_free_.load(std::memory_order_relaxed); }

    // On the reactor's thread only (from a mailbox message).
    ReactorServices services() { return {io_.get(), pool_.get(), scratch_.get(), &guest_call_}; }
    /// Has a queue's events wake the reactor, before adopt(). Errors: kXen; then nothing has changed.
    Status watch(Queue& queue);
    /// The end of watch(), for a queue that is not adopted.
    void unwatch(Queue& queue);
    /// Takes a queue that is watched in, and starts it.
    void adopt(std::unique_ptr<Queue> queue);
    /// Drains and destroys a queue, then calls `on_closed`.
    void close(Queue* queue, std::function<void()> on_closed);

  private:
    struct Member {
        std::unique_ptr<Queue> queue;
        std::function<void()> on_closed;  // set: it is closing
    };

    /// What the last work leaves us to wait for.
    enum Awaited : uint8_t { kGuest, kDevice };

    Reactor() = default;
    Status set_up();
    void run(std::function<void(Status)> started);
    void loop();
    bool turn(uint64_t now_ns);
    void idle(uint64_t now_ns);
    bool arm(Queue& queue, uint64_t now_ns);
    bool arm_all(uint64_t now_ns);
    void arm_quiet_rings(uint64_t now_ns);
    bool wait_for_events(uint64_t timeout_ns);
    int wait(epoll_event* events, uint64_t timeout_ns);
    uint64_t timeout_ns(uint64_t now_ns) const;
    void run_timers(uint64_t now_ns);
    void unarm_kicked();
    void remove_drained();
    void adapt_window(uint64_t slept_ns);
    bool watch(int fd, void* tag);
    void close_members();
    void shut_down();

    Mailbox mailbox_;
    std::atomic<bool> stop_{false};
    std::atomic<uint32_t> poll_us_{50};
    std::atomic<uint32_t> max_buffer_pages_{1024};
    std::atomic<uint64_t> heartbeat_{0};
    GuestCall guest_call_;
    std::atomic<uint32_t> ring_count_{0};
    std::atomic<uint32_t> pool_in_use_{0};
    std::atomic<uint32_t> pool_free_{0};
    std::string name_;
    Thread thread_;

    // The thread's own.
    Fd epoll_;
    std::unique_ptr<memory::PagePool> pool_;
    std::unique_ptr<memory::TransferScratch> scratch_;
    std::unique_ptr<block::IoContext> io_;
    std::vector<Member> members_;
    uint32_t closing_count_ = 0;
    uint32_t busy_rings_ = 0;  // that had work in the last turn
    uint64_t last_work_ns_ = 0;
    uint64_t last_spin_ns_ = 0;
    uint64_t last_event_check_ns_ = 0;
    uint64_t next_tick_ns_ = 0;  // when run_timers() is due
    uint64_t tick_due_ns_ = 0;
    Awaited awaited_ = kGuest;
    uint64_t window_ns_[2] = {};  // by Awaited
    uint64_t no_spin_until_ns_ = 0;
    bool precise_wait_ = true;  // the kernel has epoll_pwait2
};

}  // namespace vbd::engine
