#include "block/io_context.h"

#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <algorithm>

#include "base/clock.h"
#include "block/uring.h"

namespace vbd::block {

Result<std::unique_ptr<IoContext>> IoContext::create(iovec arena, uint32_t ring_entries) {
    if (ring_entries == 0 || ring_entries > 32768) {
        return Error{ErrorKind::kInvalidArgument, 0, "an io_uring has 1 to 32768 entries"};
    }
    std::unique_ptr<IoContext> context(new IoContext);
    context->wake_fd_ = Fd(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (!context->wake_fd_) {
        return system_error(ErrorKind::kBacking, errno, "creating a wake-up descriptor");
    }
    context->arena_ = arena;
    context->ring_entries_ = ring_entries;
    sigset_t file_size_limit;
    sigemptyset(&file_size_limit);
    sigaddset(&file_size_limit, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &file_size_limit, nullptr);
    return context;
}

IoContext::~IoContext() {
    // The kernel or a thread would write to freed memory.
    VBD_CHECK(in_flight_ == 0);
}

Uring* IoContext::uring() {
    if (!uring_tried_) {
        uring_tried_ = true;
        Result<std::unique_ptr<Uring>> made = Uring::create(arena_, ring_entries_, wake_fd_.get());
        if (made) {
            uring_ = std::move(made).value();
        } else {
            uring_reason_ = made.error().message;
        }
    }
    return uring_.get();
}

std::string IoContext::status() const {
    if (uring_) return uring_->status();
    return uring_tried_ ? uring_reason_ : "io_uring is not needed so far";
}

void IoContext::forget_buffers(const void* begin, size_t length) {
    if (uring_) uring_->forget_buffers(begin, length);
}

void IoContext::submit() {
    if (uring_) uring_->submit();
}

uint32_t IoContext::poll() {
    if (armed_) disarm();
    if (in_flight_ == 0 && next_due_ns_ == Timer::kNever) return 0;
    finished_ = 0;
    if (uring_) uring_->poll();
    if (remote_ready_.load(std::memory_order_acquire)) take_remote();
    if (!yielded_.empty()) resume_yielded();
    if (next_due_ns_ != Timer::kNever) run_timers();
    return finished_;
}

void IoContext::run_timers() {
    const uint64_t now_ns = monotonic_ns();
    if (now_ns < next_due_ns_) return;
    // Before the calls: they may set timers anew.
    next_due_ns_ = Timer::kNever;
    for (Timer* timer = timers_; timer; timer = timer->next_) {
        if (timer->due_ns_ <= now_ns) {
            timer->due_ns_ = Timer::kNever;
            finished_++;
            timer->owner_.on_timer(now_ns);
        }
        next_due_ns_ = std::min(next_due_ns_, timer->due_ns_);
    }
}

Timer::Timer(IoContext& context, DeviceQueue& owner) : context_(context), owner_(owner) {
    next_ = context_.timers_;
    if (next_) next_->link_ = &next_;
    link_ = &context_.timers_;
    *link_ = this;
}

Timer::~Timer() {
    *link_ = next_;
    if (next_) next_->link_ = link_;
}

void Timer::set(uint64_t due_ns) {
    due_ns_ = due_ns;
    context_.next_due_ns_ = std::min(context_.next_due_ns_, due_ns);
}

bool IoContext::arm() {
    {
        std::lock_guard lock(mutex_);
        armed_ = true;
    }
    const bool uring_quiet = !uring_ || uring_->arm();
    // A thread that brings something from here on sees armed_.
    return uring_quiet && yielded_.empty() && !remote_ready_.load(std::memory_order_acquire);
}

void IoContext::disarm() {
    {
        std::lock_guard lock(mutex_);
        armed_ = false;
    }
    if (uring_) uring_->disarm();
    if (wake_was_quiet_) {
        // What came since is still there, and ends the next sleep at once.
        wake_was_quiet_ = false;
        return;
    }
    eventfd_t ignored;
    eventfd_read(wake_fd_.get(), &ignored);
}

void IoContext::complete_from_thread(Io* io) {
    // All of it under the lock: once poll() has seen the last Io, the context may go, and this
    // thread with it is done.
    std::lock_guard lock(mutex_);
    remote_.push(io);
    tell_remote();
}

void IoContext::resume_from_thread(IoList& ios) {
    if (ios.empty()) return;
    std::lock_guard lock(mutex_);
    remote_resumed_.splice(ios);
    tell_remote();
}

void IoContext::tell_remote() {
    if (!remote_ready_.exchange(true, std::memory_order_acq_rel) && armed_) {
        eventfd_write(wake_fd_.get(), 1);
    }
}

void IoContext::yield(Io* io) {
    note_started();
    yielded_.push(io);
}

void IoContext::take_remote() {
    Io* io = nullptr;
    Io* resumed = nullptr;
    {
        std::lock_guard lock(mutex_);
        remote_ready_.store(false, std::memory_order_release);
        io = remote_.take_all();
        resumed = remote_resumed_.take_all();
    }
    while (io) {
        Io* next = io->next;
        note_finished();
        io->queue->complete(io, io->error);
        io = next;
    }
    resume_remote(resumed);
}

// Each run of one queue's at a time.
void IoContext::resume_remote(Io* list) {
    while (list) {
        Io* last = list;
        note_finished();
        while (last->next && last->next->queue == list->queue) {
            last = last->next;
            note_finished();
        }
        Io* rest = last->next;
        last->next = nullptr;
        list->queue->resume_list(list);
        list = rest;
    }
}

void IoContext::resume_yielded() {
    Io* io = yielded_.take_all();
    while (io) {
        Io* next = io->next;
        DeviceQueue& queue = *io->queue;
        in_flight_--;
        queue.resume(io);
        // What goes on from poll() to poll() is not finished.
        if (queue.has_completions()) finished_++;
        io = next;
    }
}

}  // namespace vbd::block
