#include "block/worker.h"

#include <signal.h>

#include <optional>

#include "block/file_io.h"

namespace vbd::block {

Worker::~Worker() {
    {
        std::lock_guard lock(mutex_);
        if (!started_) return;
        stopping_ = true;
    }
    changed_.notify_one();
    pthread_join(thread_, nullptr);
}

int Worker::start() {
    std::lock_guard lock(mutex_);
    if (started_) return 0;
    // Signals are for the program's own threads. Above all SIGXFSZ, which would end it (see
    // IoContext::create).
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&thread_, nullptr, &Worker::thread_main, this);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    started_ = error == 0;
    if (started_) pthread_setname_np(thread_, "vbd-disk");
    return error;
}

void Worker::push(IoContext& context, Io* list) {
    {
        std::lock_guard lock(mutex_);
        while (list) {
            Io* next = list->next;
            list->scratch = reinterpret_cast<uintptr_t>(&context);
            work_.push(list);
            list = next;
        }
    }
    changed_.notify_one();
}

void* Worker::thread_main(void* self) {
    static_cast<Worker*>(self)->run();
    return nullptr;
}

void Worker::run() {
    std::unique_lock lock(mutex_);
    for (;;) {
        changed_.wait(lock, [this] { return stopping_ || !work_.empty(); });
        if (work_.empty()) return;
        Io* io = work_.pop();
        lock.unlock();
        const std::optional<int32_t> error = run_step(backing_, *io, kDiscardStepBytes);
        if (error) {
            io->error = *error;
            reinterpret_cast<IoContext*>(io->scratch)->complete_from_thread(io);
        }
        lock.lock();
        // Behind the others: a discard of a whole disk must not keep everybody waiting.
        if (!error) work_.push(io);
    }
}

}  // namespace vbd::block
