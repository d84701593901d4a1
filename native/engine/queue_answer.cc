// Queue: what becomes of a request that is done or refused: its next step at the device, its answer,
// its place in the statistics.
#include <cstring>

#include "engine/queue.h"

namespace vbd::engine {

using blkif::Operation;
using blkif::Reject;
using memory::InFlight;
using memory::Stage;

namespace {

bool changes_disk(Operation operation) {
    return operation != Operation::kRead && operation != Operation::kFlush;
}

}  // namespace

// The device is done with one step of a request: the next step, or the end.
void Queue::advance(InFlight* item) {
    const block::Io& io = item->io;
    // One that was under way beside a flush that failed says nothing about what that one has lost.
    if (io.op == block::IoOp::kFlush && (io.error != 0 || flush_failed())) [[unlikely]]
        return hold_flush(item);
    if (io.error != 0) [[unlikely]] {
        counters_.disk_errors.add();
        bool is_discard = io.op == block::IoOp::kDiscard || io.op == block::IoOp::kSecureDiscard;
        (is_discard && io.error == EOPNOTSUPP ? item->unsupported : item->failed) = true;
        return done_.push(item);
    }
    if (item->stage == Stage::kPreFlush && item->request.nr_segments > 0) {
        item->stage = Stage::kData;
        return issue(item);
    }
    if (item->stage == Stage::kData && item->request.operation == Operation::kWriteBarrier) {
        item->stage = Stage::kPostFlush;
        return issue(item);
    }
    done_.push(item);
}

// A guest that sees a failed flush takes it for a success and never flushes again (Linux blkfront),
// so it sees nothing. The pages still go back.
void Queue::hold_flush(InFlight* item) {
    if (item->io.error != 0) counters_.disk_errors.add();
    item->held = true;
    item->failed = true;
    // Done again, it might succeed.
    if (journal_) journal_.spoil();
    done_.push(item);
    if (shared_->flush_failed.exchange(true)) return;
    shared_->on_event({Event::Type::kFlushFailed, options_.index,
                       std::string("a flush failed (") + std::strerror(item->io.error) +
                           "); writes fail and flushes wait from now on"});
}

void Queue::refuse_after_failed_flush(InFlight* item) {
    if (changes_disk(item->request.operation) &&
        item->request.operation != Operation::kWriteBarrier) {
        counters_.disk_errors.add();
        item->failed = true;
        at_device_++;
        answer(item, item->started_ns);
    }
    // A flush or a barrier stays unanswered, its ring entry with it.
}

void Queue::refuse(InFlight* item, Reject reject) {
    counters_.rejected[static_cast<size_t>(reject)].add();
    const int16_t status = blkif::status_of(reject);
    respond(item, status);
    trace(item, status, item->started_ns);
    in_flight_bytes_ -= item->budget_bytes;
    table_.give_back(item);
}

void Queue::respond(InFlight* item, int16_t status) {
    if (journal_) journal_.answer(item->journal_entry, ring_.next_response());
    ring_.respond(item->request.id, item->request.wire_operation, status);
}

void Queue::answer(InFlight* item, uint64_t now_ns) {
    at_device_--;
    in_flight_bytes_ -= item->budget_bytes;
    if (item == barrier_) [[unlikely]]
        release_barrier();
    if (item->held) [[unlikely]]
        return;
    int16_t status = blkif::kResponseOkay;
    if (item->failed) [[unlikely]] {
        status = blkif::kResponseError;
    } else if (item->unsupported) [[unlikely]] {
        status = blkif::kResponseUnsupported;
    }
    respond(item, status);
    account(item, status, now_ns);
    trace(item, status, now_ns);
    table_.give_back(item);
}

void Queue::account(const InFlight* item, int16_t status, uint64_t now_ns) {
    const blkif::Request& request = item->request;
    OperationCounters* operation = &counters_.write;
    if (request.operation == Operation::kRead) {
        operation = &counters_.read;
    } else if (request.operation == Operation::kFlush) {
        operation = &counters_.flush;
    } else if (request.operation == Operation::kDiscard) {
        operation = &counters_.discard;
    }
    if (status != blkif::kResponseOkay) {
        operation->errors.add();
        return;
    }
    operation->requests.add();
    operation->sectors.add(request.nr_sectors);
    operation->latency_ns.record(now_ns - item->started_ns);
    if (request.nr_segments > 0) counters_.segments_per_request.record(request.nr_segments);
}

void Queue::trace(const InFlight* item, int16_t status, uint64_t now_ns) {
    if (!trace_.on()) [[likely]]
        return;
    const blkif::Request& request = item->request;
    trace_.record({.started_ns = item->started_ns,
                   .latency_ns = now_ns - item->started_ns,
                   .sector = request.sector,
                   .nr_sectors = request.nr_sectors,
                   .nr_segments = request.nr_segments,
                   .status = status,
                   .operation = request.wire_operation});
}

void Queue::publish() {
    if (!ring_.has_unpublished()) return;
    const bool wanted = ring_.push();
    if (journal_) journal_.published();
    if (wanted) {
        channel_->notify();
        counters_.notifications_sent.add();
    } else {
        counters_.notifications_saved.add();
    }
}

}  // namespace vbd::engine
