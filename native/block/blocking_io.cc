#include "block/blocking_io.h"

#include <poll.h>

#include <algorithm>
#include <cstdlib>

#include "base/clock.h"
#include "base/units.h"

namespace vbd::block {

namespace {
constexpr uint32_t kRingEntries = 8;
constexpr uint64_t kForeverNs = 3'600'000'000'000;
}  // namespace

Result<std::unique_ptr<BlockingIo>> BlockingIo::open(Device& device) {
    auto io = std::unique_ptr<BlockingIo>(new BlockingIo);
    auto context = IoContext::create({}, kRingEntries);
    if (!context) return context.error();
    io->context_ = std::move(context).value();
    auto queue = device.open_queue(*io->context_);
    if (!queue) return queue.error();
    io->queue_ = std::move(queue).value();
    return io;
}

BlockingIo::~BlockingIo() {
    if (queue_) settle();
}

int32_t BlockingIo::read(uint64_t offset, void* memory, uint64_t length) {
    iovec part{memory, length};
    Io io{.op = IoOp::kRead, .iov_count = 1, .iov = &part, .offset = offset, .length = length};
    return run(io);
}

int32_t BlockingIo::write(uint64_t offset, const void* memory, uint64_t length) {
    iovec part{const_cast<void*>(memory), length};
    Io io{.op = IoOp::kWrite, .iov_count = 1, .iov = &part, .offset = offset, .length = length};
    return run(io);
}

int32_t BlockingIo::flush() {
    Io io{.op = IoOp::kFlush};
    return run(io);
}

int32_t BlockingIo::discard(uint64_t offset, uint64_t length) {
    Io io{.op = IoOp::kDiscard, .offset = offset, .length = length};
    return run(io);
}

int32_t BlockingIo::run(Io& io) {
    Io* one = &io;
    queue_->submit({&one, 1});
    while (!queue_->reap()) wait();
    return io.error;
}

void BlockingIo::settle() {
    queue_->hurry();
    while (!queue_->idle() || context_->in_flight() > 0) {
        wait();
        queue_->reap();
    }
}

void BlockingIo::wait() {
    context_->submit();
    if (context_->poll() > 0 || queue_->has_completions() || !context_->arm()) return;
    const uint64_t now_ns = monotonic_ns();
    const uint64_t due_ns = std::min(context_->next_due_ns(), now_ns + kForeverNs);
    const uint64_t wait_ns = due_ns > now_ns ? due_ns - now_ns : 0;
    const timespec timeout{static_cast<time_t>(wait_ns / 1'000'000'000),
                           static_cast<long>(wait_ns % 1'000'000'000)};
    pollfd wake{context_->wake_fd(), POLLIN, 0};
    ::ppoll(&wake, 1, &timeout, nullptr);
    context_->poll();
}

PageBuffer::PageBuffer(size_t bytes)
    : data_(static_cast<uint8_t*>(
          std::aligned_alloc(kPageSize, (bytes + kPageSize - 1) / kPageSize * kPageSize))),
      bytes_(bytes) {
    VBD_CHECK(data_);
}

PageBuffer::~PageBuffer() {
    std::free(data_);
}

}  // namespace vbd::block
