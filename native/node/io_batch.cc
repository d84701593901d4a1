#include "node/io_batch.h"

#include <poll.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "base/clock.h"

namespace vbd::node {
namespace {

constexpr uint64_t kDrainNs = 2'000'000'000;

Error nonsense(const char* what) {
    return Error{ErrorKind::kInvalidArgument, 0, std::string("an I/O operation has a wrong ") + what};
}

/// A whole number of 0..2^53, or nothing.
bool whole(double number, uint64_t& value) {
    if (!(number >= 0 && number <= 9007199254740992.0) || number != std::floor(number)) return false;
    value = static_cast<uint64_t>(number);
    return true;
}

void close(BatchFile& file) {
    file.queue.reset();
    file.backing = nullptr;
    file.device.reset();
}

}  // namespace

Result<std::unique_ptr<IoBatch>> IoBatch::create(const Regions& regions, iovec arena) {
    auto context = block::IoContext::create(arena);
    if (!context) return context.error();
    std::unique_ptr<IoBatch> batch(new IoBatch(regions));
    batch->context_ = std::move(context).value();
    return batch;
}

Status IoBatch::need_uring() {
    if (context_->uring() != nullptr) return {};
    return Error{ErrorKind::kUnsupported, 0, context_->status()};
}

uint32_t IoBatch::add(std::shared_ptr<BatchFile> file) {
    const auto free = std::find(files_.begin(), files_.end(), nullptr);
    const auto number = static_cast<uint32_t>(free - files_.begin());
    if (free == files_.end()) {
        files_.push_back(std::move(file));
    } else {
        *free = std::move(file);
    }
    return number;
}

void IoBatch::remove(uint32_t file) {
    if (file >= files_.size() || !files_[file] || files_[file]->in_flight > 0) return;
    close(*files_[file]);
    files_[file].reset();
}

IoBatch::Slot* IoBatch::take() {
    if (free_ == nullptr) {
        slots_.push_back(std::make_unique<Slot>());
        return slots_.back().get();
    }
    Slot* slot = free_;
    free_ = slot->next_free;
    return slot;
}

void IoBatch::give_back(Slot* slot) {
    slot->next_free = free_;
    free_ = slot;
}

/// Checks one operation and takes its vectors off the front of `vectors`.
Result<IoBatch::Slot*> IoBatch::prepare(std::span<const double> operation,
                                        std::span<const double>& vectors) {
    uint64_t file = 0, op = 0, tag = 0, offset = 0, length = 0, count = 0;
    if (!whole(operation[0], file) || file >= files_.size() || !files_[file]) {
        return nonsense("file");
    }
    if (!whole(operation[1], op) || op > 5) return nonsense("kind");
    if (!whole(operation[2], tag) || tag > INT32_MAX) return nonsense("tag");
    const uint64_t size = files_[file]->device->size_bytes();
    if (!whole(operation[3], offset) || !whole(operation[4], length) || offset > size ||
        length > size - offset) {
        return nonsense("place");
    }
    if (!whole(operation[5], count) || count * kVectorNumbers > vectors.size()) {
        return nonsense("number of vectors");
    }
    Slot* slot = take();
    slot->iov.clear();
    uint64_t total = 0;
    for (uint64_t i = 0; i < count; ++i) {
        uint64_t region = 0, start = 0, bytes = 0;
        uint8_t* memory = nullptr;
        const double* vector = vectors.data() + i * kVectorNumbers;
        if (whole(vector[0], region) && whole(vector[1], start) && whole(vector[2], bytes)) {
            memory = regions_.resolve(static_cast<uint32_t>(std::min<uint64_t>(region, UINT32_MAX)),
                                      start, bytes);
        }
        if (memory == nullptr) {
            give_back(slot);
            return nonsense("vector");
        }
        slot->iov.push_back({memory, bytes});
        total += bytes;
    }
    vectors = vectors.subspan(count * kVectorNumbers);
    block::Io& io = slot->io;
    io = block::Io{};
    // The last kind is a write that is on stable storage before it completes.
    io.fua = op == 5;
    io.op = io.fua ? block::IoOp::kWrite : static_cast<block::IoOp>(op);
    const bool transfers = io.op == block::IoOp::kRead || io.op == block::IoOp::kWrite;
    if (transfers != (count > 0) || (transfers && total != length)) {
        give_back(slot);
        return nonsense("length");
    }
    io.offset = offset;
    io.length = length;
    io.iov = slot->iov.data();
    io.iov_count = static_cast<uint32_t>(count);
    io.tag = slot;
    slot->tag = static_cast<int32_t>(tag);
    slot->file = files_[file].get();
    return slot;
}

Result<uint32_t> IoBatch::turn(std::span<const double> operations, std::span<const double> vectors,
                               std::span<int32_t> results) {
    batch_.clear();
    std::optional<Error> error;
    for (size_t i = 0; i + kOperationNumbers <= operations.size() && !error; i += kOperationNumbers) {
        auto slot = prepare(operations.subspan(i, kOperationNumbers), vectors);
        if (!slot) {
            error = slot.error();
            continue;
        }
        batch_.push_back(slot.value());
        BatchFile& file = *slot.value()->file;
        if (file.queue) continue;
        auto queue = file.device->open_queue(*context_);
        if (queue) {
            file.queue = std::move(queue).value();
        } else {
            error = queue.error();
        }
    }
    if (error) {
        for (Slot* slot : batch_) give_back(slot);
        return *error;
    }
    for (size_t first = 0; first < batch_.size();) {
        BatchFile& file = *batch_[first]->file;
        run_.clear();
        for (; first < batch_.size() && batch_[first]->file == &file; ++first) {
            run_.push_back(&batch_[first]->io);
        }
        file.in_flight += static_cast<uint32_t>(run_.size());
        file.queue->submit(run_);
    }
    context_->submit();
    context_->poll();

    uint32_t told = 0;
    const size_t room = results.size() / kResultNumbers;
    for (size_t i = 0; i <= files_.size() && told < room;) {
        if (finished_ == nullptr) {
            if (i == files_.size()) break;
            const auto& file = files_[i++];
            if (file && file->queue) finished_ = file->queue->reap();
            continue;
        }
        block::Io* io = finished_;
        finished_ = io->next;
        auto* slot = static_cast<Slot*>(io->tag);
        results[told * kResultNumbers] = slot->tag;
        results[told * kResultNumbers + 1] = io->error;
        told++;
        slot->file->in_flight--;
        give_back(slot);
    }
    return told;
}

bool IoBatch::has_completions() const {
    if (finished_ != nullptr) return true;
    return std::any_of(files_.begin(), files_.end(), [](const auto& file) {
        return file && file->queue && file->queue->has_completions();
    });
}

bool IoBatch::shut() {
    const uint64_t deadline_ns = monotonic_ns() + kDrainNs;
    while (context_->in_flight() > 0 && monotonic_ns() < deadline_ns) {
        context_->submit();
        if (context_->poll() > 0 || !context_->arm()) continue;
        pollfd wait{context_->wake_fd(), POLLIN, 0};
        (void)::poll(&wait, 1, 10);
    }
    if (context_->in_flight() > 0) return false;
    for (const auto& file : files_) {
        if (file) close(*file);
    }
    return true;
}

}  // namespace vbd::node
