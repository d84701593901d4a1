#include "block/sync_queue.h"

#include <optional>

namespace vbd::block {

SyncQueue::SyncQueue(IoContext& context, FileBacking& backing, Worker& worker)
    : context_(context), backing_(backing), worker_(worker), inline_reads_(!backing.direct()) {}

void SyncQueue::submit(std::span<Io* const> batch) {
    IoList blocking;
    for (Io* io : batch) {
        io->queue = this;
        io->done = 0;
        if (backing_.in_memory()) {
            resume(io);
        } else if (io->op == IoOp::kRead && inline_reads_.try_read(backing_.fd(), *io)) {
            complete(io, 0);
        } else {
            context_.note_started();
            blocking.push(io);
        }
    }
    if (!blocking.empty()) worker_.push(context_, blocking.take_all());
}

void SyncQueue::resume(Io* io) {
    const std::optional<int32_t> error = run_step(backing_, *io, kMemoryDiscardStepBytes);
    if (error) {
        complete(io, *error);
    } else {
        context_.yield(io);
    }
}

}  // namespace vbd::block
