// Reactor: the loop.
#include "engine/reactor.h"

#include <algorithm>
#include <condition_variable>

#include "base/clock.h"

namespace vbd::engine {

namespace {

constexpr uint32_t kPoolCapacityPages =
    1u << 20;  // 4 GiB of address space; the in-flight budgets bound the memory
constexpr uint64_t kTickNs = 100'000'000;  // blkback's LRU_INTERVAL
constexpr uint64_t kEventCheckNs =
    50'000;  // a busy reactor looks for events of sleeping rings this often
constexpr uint64_t kQuietRingNs =
    50'000;  // a ring this quiet is no longer polled while others are busy
constexpr uint64_t kEagerSpinNs = 2'000;
constexpr uint64_t kPreemptedNs = 200'000;  // a spin this slow lost its processor
constexpr uint64_t kNoSpinNs = 10'000'000;
constexpr uint64_t kShutdownNs = 2'000'000'000;
constexpr int kEventsPerWait = 64;
constexpr uint64_t kForever = UINT64_MAX;

inline void cpu_relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Result<std::unique_ptr<Reactor>> Reactor::start(const Options& options) {
    auto reactor = std::unique_ptr<Reactor>(new Reactor);
    reactor->name_ = options.name.substr(0, 15);
    reactor->poll_us_ = options.poll_us;
    reactor->max_buffer_pages_ = options.max_buffer_pages;
    if (!reactor->mailbox_.ok())
        return system_error(ErrorKind::kNoMemory, errno, "creating an eventfd");

    // io_uring wants to be made by the thread that uses it, so the thread does all of its own
    // setting up.
    std::mutex mutex;
    std::condition_variable ready;
    bool done = false;
    Status status;
    Status started = reactor->thread_.start(reactor->name_, [&, self = reactor.get()] {
        self->run([&](Status outcome) {
            std::lock_guard lock(mutex);
            status = std::move(outcome);
            done = true;
            ready.notify_one();
        });
    });
    if (!started) return started.error();
    std::unique_lock lock(mutex);
    ready.wait(lock, [&] { return done; });
    if (!status) return status.error();
    return reactor;
}

Reactor::~Reactor() {
    stop();
    mailbox_.clear();
}

void Reactor::stop() {
    stop_.store(true);
    mailbox_.wake();
    if (thread_.joinable()) thread_.join();
}

void Reactor::stop_all(std::span<Reactor* const> reactors) {
    for (Reactor* reactor : reactors) reactor->stop();
    for (Reactor* reactor : reactors) reactor->mailbox_.clear();
}

Status Reactor::set_up() {
    epoll_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
    if (!epoll_) return system_error(ErrorKind::kNoMemory, errno, "creating an epoll instance");
    auto pool = memory::PagePool::create(kPoolCapacityPages, max_buffer_pages_);
    if (!pool) return pool.error();
    pool_ = std::move(pool).value();
    auto scratch = memory::TransferScratch::create();
    if (!scratch) return scratch.error();
    scratch_ = std::move(scratch).value();
    auto io = block::IoContext::create(pool_->arena());
    if (!io) return io.error();
    io_ = std::move(io).value();
    pool_->on_give_back(
        [io = io_.get()](void* begin, size_t length) { io->forget_buffers(begin, length); });
    if (!watch(mailbox_.wake_fd(), nullptr) || !watch(io_->wake_fd(), io_.get())) {
        return system_error(ErrorKind::kNoMemory, errno, "watching a descriptor");
    }
    return {};
}

bool Reactor::watch(int fd, void* tag) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = tag;
    return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

void Reactor::run(std::function<void(Status)> started) {
    Status status = set_up();
    bool ok = static_cast<bool>(status);
    started(std::move(status));
    started = nullptr;  // what it captured is gone as soon as the starter wakes
    if (!ok) return;
    window_ns_[kGuest] = window_ns_[kDevice] = uint64_t{poll_us_} * 1000;
    loop();
    shut_down();
}

void Reactor::loop() {
    while (!stop_.load(std::memory_order_relaxed)) {
        heartbeat_.store(heartbeat_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
        uint64_t now_ns = monotonic_ns();
        const uint32_t at_devices = io_->in_flight();
        if (turn(now_ns)) {
            awaited_ = io_->in_flight() > at_devices ? kDevice : kGuest;
            last_work_ns_ = last_spin_ns_ = now_ns;
            if (now_ns - last_event_check_ns_ >= kEventCheckNs) {
                last_event_check_ns_ = now_ns;
                arm_quiet_rings(now_ns);
                wait_for_events(0);
            }
        } else {
            idle(now_ns);
        }
    }
}

bool Reactor::turn(uint64_t now_ns) {
    bool worked = false;
    if (mailbox_.has_mail()) {
        mailbox_.deliver();
        unarm_kicked();
        worked = true;
    }
    bool completions = io_->poll() > 0;
    worked |= completions;
    if (now_ns >= next_tick_ns_) run_timers(now_ns);  // before the passes of those that it wakes
    const bool alone = busy_rings_ <= 1;
    busy_rings_ = 0;
    for (Member& member : members_) {
        Queue& queue = *member.queue;
        if (queue.armed()) {
            if (!completions || !queue.has_completions()) continue;
            queue.wake();
        }
        if (!queue.pass(now_ns, alone)) continue;
        worked = true;
        busy_rings_++;
    }
    io_->submit();
    if (closing_count_ > 0) remove_drained();
    return worked;
}

void Reactor::idle(uint64_t now_ns) {
    if (now_ns - last_spin_ns_ > kPreemptedNs) no_spin_until_ns_ = now_ns + kNoSpinNs;
    last_spin_ns_ = now_ns;
    if (now_ns - last_work_ns_ < window_ns_[awaited_] && now_ns >= no_spin_until_ns_) {
        // A guest that spins, too, is back within this time, and a pause is as long as a cache line's
        // way from it.
        if (now_ns - last_work_ns_ > kEagerSpinNs) cpu_relax();
        return;
    }
    if (!arm_all(now_ns)) return;
    if (!io_->arm()) {
        // The rings are armed: only their events tell of new requests, however often this happens.
        wait_for_events(0);
        return;
    }
    bool events = wait_for_events(timeout_ns(now_ns));
    uint64_t woken_ns = monotonic_ns();
    last_spin_ns_ = last_event_check_ns_ = woken_ns;
    if (!events) return;  // a timer: nothing says that work is near
    adapt_window(woken_ns - now_ns);
    last_work_ns_ = woken_ns;
}

bool Reactor::arm(Queue& queue, uint64_t now_ns) {
    const bool quiet = queue.arm(now_ns);
    // It may have put off an unmask: the timers run when that is due, not only at the next tick.
    next_tick_ns_ = std::min(next_tick_ns_, queue.unmask_due_ns());
    return quiet;
}

// False: a guest slipped a request in; do not sleep.
bool Reactor::arm_all(uint64_t now_ns) {
    bool all = true;
    for (Member& member : members_) {
        if (!member.queue->armed() && !arm(*member.queue, now_ns)) all = false;
    }
    return all && !mailbox_.has_mail();
}

void Reactor::arm_quiet_rings(uint64_t now_ns) {
    uint64_t quiet_ns = std::max(kQuietRingNs, window_ns_[kGuest]);
    for (Member& member : members_) {
        Queue& queue = *member.queue;
        if (!queue.armed() && now_ns - queue.last_work_ns() >= quiet_ns) arm(queue, now_ns);
    }
}

bool Reactor::wait_for_events(uint64_t timeout_ns) {
    epoll_event events[kEventsPerWait];
    int count = wait(events, timeout_ns);
    bool io_quiet = count >= 0 && count < kEventsPerWait;
    for (int i = 0; i < count; i++) {
        void* tag = events[i].data.ptr;
        if (tag == io_.get()) {
            io_quiet = false;
        } else if (tag) {
            static_cast<Queue*>(tag)->on_event();
        }
    }
    io_->wake_was_quiet(io_quiet);
    return count > 0;
}

/// epoll_wait in nanoseconds where the kernel has that (5.11), else in milliseconds, rounded up.
int Reactor::wait(epoll_event* events, uint64_t timeout_ns) {
    if (timeout_ns == 0 || timeout_ns == kForever) {
        return ::epoll_wait(epoll_.get(), events, kEventsPerWait, timeout_ns == 0 ? 0 : -1);
    }
    if (precise_wait_) {
        const timespec timeout{static_cast<time_t>(timeout_ns / 1'000'000'000),
                               static_cast<long>(timeout_ns % 1'000'000'000)};
        int count = ::epoll_pwait2(epoll_.get(), events, kEventsPerWait, &timeout, nullptr);
        if (count >= 0 || errno == EINTR) return count;
        precise_wait_ = false;
    }
    const uint64_t rounded_ms = (timeout_ns + 999'999) / 1'000'000;
    return ::epoll_wait(epoll_.get(), events, kEventsPerWait,
                        static_cast<int>(std::min<uint64_t>(rounded_ms, 1'000'000)));
}

uint64_t Reactor::timeout_ns(uint64_t now_ns) const {
    uint64_t due_ns = io_->next_due_ns();
    for (const Member& member : members_) {
        due_ns = std::min(due_ns, member.queue->unmask_due_ns());
        if (member.queue->wants_ticks()) due_ns = std::min(due_ns, next_tick_ns_);
    }
    if (pool_->warm() > max_buffer_pages_) due_ns = std::min(due_ns, next_tick_ns_);
    if (due_ns == UINT64_MAX) return kForever;
    return due_ns <= now_ns ? 0 : due_ns - now_ns;
}

void Reactor::run_timers(uint64_t now_ns) {
    uint64_t soonest_ns = now_ns + kTickNs;
    bool tick = now_ns >= tick_due_ns_;
    if (tick) tick_due_ns_ = now_ns + kTickNs;
    for (Member& member : members_) {
        Queue& queue = *member.queue;
        if (queue.unmask_due_ns() <= now_ns) queue.end_unmask_delay();
        if (tick) queue.tick(now_ns);
        soonest_ns = std::min(soonest_ns, queue.unmask_due_ns());
    }
    if (tick) {
        pool_->set_max_free(max_buffer_pages_.load(std::memory_order_relaxed));
        pool_->shrink();
        pool_in_use_.store(pool_->in_use(), std::memory_order_relaxed);
        pool_free_.store(pool_->warm(), std::memory_order_relaxed);
    }
    next_tick_ns_ = std::min(soonest_ns, tick_due_ns_);
}

void Reactor::adapt_window(uint64_t slept_ns) {
    uint64_t longest_ns = uint64_t{poll_us_.load(std::memory_order_relaxed)} * 1000;
    uint64_t& window_ns = window_ns_[awaited_];
    if (slept_ns <= longest_ns * 2) {
        window_ns = std::min(longest_ns, std::max<uint64_t>(window_ns * 2, 5'000));
    } else {
        window_ns = std::min(longest_ns, window_ns - window_ns / 4);
    }
}

void Reactor::unarm_kicked() {
    for (Member& member : members_) {
        if (member.queue->slot().kicked.exchange(false)) member.queue->wake();
    }
}

Status Reactor::watch(Queue& queue) {
    if (watch(queue.event_fd(), &queue)) return {};
    return system_error(ErrorKind::kXen, errno, "watching an event channel");
}

void Reactor::unwatch(Queue& queue) {
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, queue.event_fd(), nullptr);
}

void Reactor::adopt(std::unique_ptr<Queue> queue) {
    queue->start();
    members_.push_back({std::move(queue), nullptr});
}

void Reactor::close(Queue* queue, std::function<void()> on_closed) {
    for (Member& member : members_) {
        if (member.queue.get() != queue) continue;
        queue->begin_close();
        queue->wake();
        member.on_closed = std::move(on_closed);
        closing_count_++;
        return;
    }
    on_closed();
}

void Reactor::remove_drained() {
    for (size_t i = 0; i < members_.size();) {
        Member& member = members_[i];
        if (!member.on_closed || !member.queue->drained()) {
            i++;
            continue;
        }
        std::function<void()> on_closed = std::move(member.on_closed);
        unwatch(*member.queue);
        members_.erase(members_.begin() + static_cast<ptrdiff_t>(i));
        closing_count_--;
        forget_ring();
        on_closed();
    }
}

void Reactor::close_members() {
    for (Member& member : members_) {
        if (member.on_closed) continue;
        member.queue->begin_close();
        member.on_closed = [] {};
        closing_count_++;
    }
}

// The last turns: drain what is left, but do not wait for ever for a disk that hangs.
void Reactor::shut_down() {
    uint64_t deadline_ns = monotonic_ns() + kShutdownNs;
    close_members();
    while (!members_.empty() && monotonic_ns() < deadline_ns) {
        for (Member& member : members_) member.queue->wake();
        if (!turn(monotonic_ns())) wait_for_events(1'000'000);
        close_members();  // mail may have brought another one
    }
    if (members_.empty() && io_->in_flight() == 0) {
        pool_->on_give_back(nullptr);
        io_.reset();
        return;
    }
    // The kernel may still write into these pages.
    for (Member& member : members_) (void)member.queue.release();
    (void)io_.release();
    (void)pool_.release();
    (void)scratch_.release();
}

}  // namespace vbd::engine
