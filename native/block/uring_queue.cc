#include "block/uring_queue.h"

#include <fcntl.h>
#include <linux/fs.h>

#include <algorithm>
#include <cerrno>

namespace vbd::block {

UringQueue::UringQueue(IoContext& context, Uring& uring, FileBacking& backing, Worker& worker,
                       Fd fd)
    : context_(context),
      uring_(uring),
      backing_(backing),
      worker_(worker),
      fd_(std::move(fd)),
      inline_reads_(!backing.direct()) {}

void UringQueue::submit(std::span<Io* const> batch) {
    for (Io* io : batch) {
        io->queue = this;
        io->done = 0;
        io->scratch = 0;  // tries of the present step
        begin(io);
    }
    start_sync();
}

void UringQueue::begin(Io* io) {
    if (io->op == IoOp::kRead) {
        if (inline_reads_.try_read(fd_.get(), *io)) return complete(io, 0);
    } else if (backing_.sync_failed()) {
        return complete(io, EIO);
    }
    switch (io->op) {
        case IoOp::kRead:
        case IoOp::kWrite:
            context_.note_started();
            uring_.start(io);
            break;
        case IoOp::kFlush:
            context_.note_started();
            want_sync(io);
            break;
        case IoOp::kDiscard:
        case IoOp::kSecureDiscard:
            begin_discard(io);
            break;
    }
}

void UringQueue::begin_discard(Io* io) {
    const bool possible = io->op == IoOp::kDiscard || backing_.geometry().can_secure_discard;
    if (!possible) return complete(io, EOPNOTSUPP);
    if (io->length == 0) return complete(io, 0);
    if (!backing_.is_block_device()) {
        context_.note_started();
        uring_.start(io);
        return;
    }
    if (const int error = worker_.start()) return complete(io, error);
    context_.note_started();
    io->next = nullptr;
    worker_.push(context_, io);
}

void UringQueue::prepare(Io* io, io_uring_sqe* sqe) {
    if (io == syncing_) {
        io_uring_prep_fsync(sqe, fd_.get(), IORING_FSYNC_DATASYNC);
        // The range is enough for a write that syncs for nobody else.
        if (io->op == IoOp::kWrite && sync_group_.empty()) {
            sqe->off = io->offset;
            sqe->len = static_cast<uint32_t>(io->length);
        }
        return;
    }
    if (io->op == IoOp::kRead || io->op == IoOp::kWrite) return prepare_transfer(io, sqe);
    io_uring_prep_fallocate(sqe, fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                            static_cast<off_t>(io->offset + io->done),
                            static_cast<off_t>(next_discard(*io, kDiscardStepBytes)));
}

void UringQueue::prepare_transfer(Io* io, io_uring_sqe* sqe) {
    const bool read = io->op == IoOp::kRead;
    const uint64_t offset = io->offset + io->done;
    if (io->iov_count == 1) {
        void* memory = io->iov->iov_base;
        const auto length = static_cast<uint32_t>(io->iov->iov_len);
        const int buffer = uring_.buffer_index(*io->iov);
        if (buffer >= 0) {
            read ? io_uring_prep_read_fixed(sqe, fd_.get(), memory, length, offset, buffer)
                 : io_uring_prep_write_fixed(sqe, fd_.get(), memory, length, offset, buffer);
        } else {
            read ? io_uring_prep_read(sqe, fd_.get(), memory, length, offset)
                 : io_uring_prep_write(sqe, fd_.get(), memory, length, offset);
        }
    } else {
        const uint32_t count = std::min(io->iov_count, kMaxVectors);
        read ? io_uring_prep_readv(sqe, fd_.get(), io->iov, count, offset)
             : io_uring_prep_writev(sqe, fd_.get(), io->iov, count, offset);
    }
    if (!read && durable(*io) && backing_.direct()) sqe->rw_flags = RWF_DSYNC;
}

void UringQueue::on_result(Io* io, int32_t result) {
    if (io == syncing_) return finish_sync(result);
    if (result < 0) return fail_step(io, -result);
    io->scratch = 0;
    if (io->op == IoOp::kRead || io->op == IoOp::kWrite) {
        return moved(io, static_cast<uint64_t>(result));
    }
    io->done += next_discard(*io, kDiscardStepBytes);
    if (io->done < io->length) return uring_.start(io);
    finish(io, 0);
}

void UringQueue::moved(Io* io, uint64_t bytes) {
    switch (advance(*io, bytes, backing_.granule())) {
        case Progress::kPartial:
            return uring_.start(io);
        case Progress::kStuck:
            return finish(io, EIO);
        case Progress::kComplete:
            break;
    }
    if (io->op == IoOp::kRead || !durable(*io) || backing_.direct()) return finish(io, 0);
    // Not RWF_DSYNC here: its failure would not tell a full disk from writes that are lost.
    want_sync(io);
    start_sync();
}

void UringQueue::fail_step(Io* io, int32_t error) {
    // EFAULT: the buffer was unregistered between queueing and submission, which forget_buffers()
    // can only mostly prevent.
    const bool again = is_transient(error) || error == EFAULT;
    if (again && io->scratch++ < kMaxRetries) return uring_.start(io);
    if (error == EIO && io->op == IoOp::kWrite && durable(*io) && backing_.direct()) {
        backing_.note_sync_failure();
    }
    finish(io, error);
}

void UringQueue::start_sync() {
    if (syncing_ || sync_waiting_.empty()) return;
    syncing_ = sync_waiting_.pop();
    while (!sync_waiting_.empty()) sync_group_.push(sync_waiting_.pop());
    syncing_->scratch = 0;
    uring_.start(syncing_);
}

void UringQueue::finish_sync(int32_t result) {
    if (result < 0 && is_transient(-result) && syncing_->scratch++ < kMaxRetries) {
        return uring_.start(syncing_);
    }
    // Another queue's failure is this one's too: what it lost may be what is flushed here.
    int32_t error = result < 0 ? -result : backing_.sync_failed() ? EIO : 0;
    if (error) backing_.note_sync_failure();
    finish(syncing_, error);
    syncing_ = nullptr;
    while (!sync_group_.empty()) finish(sync_group_.pop(), error);
    if (error) {
        while (!sync_waiting_.empty()) finish(sync_waiting_.pop(), EIO);
    }
    start_sync();
}

void UringQueue::finish(Io* io, int32_t error) {
    context_.note_finished();
    complete(io, error);
}

}  // namespace vbd::block
