#include "block/worker.h"

#include <optional>

#include "block/file_io.h"

namespace vbd::block {

Worker::~Worker() {
    {
        std::lock_guard lock(mutex_);
        if (!thread_.joinable()) return;
        stopping_ = true;
    }
    changed_.notify_one();
    thread_.join();
}

int Worker::start() {
    std::lock_guard lock(mutex_);
    if (thread_.joinable()) return 0;
    // Above all not SIGXFSZ, which would end the program (see IoContext::create).
    const Status started = thread_.start("vbd-disk", [this] { run(); });
    return started ? 0 : started.error().errno_code;
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
