// OverlayWriter: see overlay.h.
#include "stages/overlay.h"

namespace vbd::stages {

using block::Io;

OverlayWriter::~OverlayWriter() {
    (void)stop();
}

Status OverlayWriter::start(bool writable) {
    Status running = thread_.start("vbd-overlay", [this, writable] { main(writable); });
    if (!running) return running;
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return outcome_.has_value(); });
    Status outcome = std::move(*outcome_);
    outcome_.reset();
    started_ = static_cast<bool>(outcome);
    if (!started_) {
        lock.unlock();
        thread_.join();
    }
    return outcome;
}

void OverlayWriter::push(block::IoContext& context, Io* io) {
    {
        const std::lock_guard lock(mutex_);
        io->scratch = reinterpret_cast<uintptr_t>(&context);
        flushes_.push(io);
    }
    changed_.notify_all();
}

Status OverlayWriter::run(std::function<Status()> act) {
    std::unique_lock lock(mutex_);
    if (!started_) return Error{ErrorKind::kInvalidArgument, 0, "the overlay is closed"};
    act_ = std::move(act);
    changed_.notify_all();
    changed_.wait(lock, [this] { return outcome_.has_value(); });
    Status outcome = std::move(*outcome_);
    outcome_.reset();
    return outcome;
}

Status OverlayWriter::stop() {
    std::unique_lock lock(mutex_);
    if (!started_) return {};
    started_ = false;
    stopping_ = true;
    changed_.notify_all();
    lock.unlock();
    thread_.join();
    return std::move(*outcome_);
}

void OverlayWriter::main(bool writable) {
    Status attached = file_.attach(writable);
    const bool ok = static_cast<bool>(attached);
    std::unique_lock lock(mutex_);
    outcome_ = std::move(attached);
    changed_.notify_all();
    if (!ok) return;
    serve(lock);
    lock.unlock();
    Status left = file_.detach();
    lock.lock();
    outcome_ = std::move(left);
}

void OverlayWriter::serve(std::unique_lock<std::mutex>& lock) {
    for (;;) {
        changed_.wait(lock, [this] { return stopping_ || act_ || !flushes_.empty(); });
        if (act_) {
            auto act = std::move(act_);
            act_ = nullptr;
            lock.unlock();
            Status outcome = act();
            lock.lock();
            outcome_ = std::move(outcome);
            changed_.notify_all();
        }
        // One commit for all that wait now.
        Io* io = flushes_.take_all();
        if (io) {
            lock.unlock();
            const int32_t error = file_.commit();
            while (io) {
                Io* next = io->next;
                io->error = error;
                reinterpret_cast<block::IoContext*>(io->scratch)->complete_from_thread(io);
                io = next;
            }
            lock.lock();
        }
        if (stopping_ && flushes_.empty()) return;
    }
}

}  // namespace vbd::stages
