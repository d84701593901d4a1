// Queue: opening, the pass, and sleeping. Answering is in queue_answer.cc, the barrier protocol in
// queue_barrier.cc.
#include "engine/queue.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "engine/mailbox.h"

namespace vbd::engine {

using blkif::Operation;
using blkif::Reject;
using memory::InFlight;
using memory::Outcome;
using memory::Stage;

namespace {

// One pass takes at most this many requests: enough to spread every per-batch cost, few enough that
// the first answer of a long ring does not wait for hundreds of copies.
constexpr uint32_t kBatchRequests = 64;
// Of a ring that nobody shares the reactor with, where pages stay mapped and there is no grant call
// to spread: half of a one-page ring. The guest's processor fills it again while we work on the
// other half.
constexpr uint32_t kBatchAlone = 16;
constexpr uint64_t kSpuriousDelayUnitNs = 1'000'000;
constexpr uint64_t kSpuriousDelayMaxNs = 1'000'000'000;
constexpr uint64_t kStarvedRetryNs = 1'000'000;

// 0, 1, 2, 4 ... 1000 ms: what an event that brought nothing costs its sender.
uint64_t spurious_delay_ns(uint32_t in_row) {
    if (in_row <= 1) return 0;
    uint32_t doublings = std::min(in_row - 2, 20u);
    return std::min(kSpuriousDelayUnitNs << doublings, kSpuriousDelayMaxNs);
}

}  // namespace

Queue::Queue(const Options& options, std::shared_ptr<VbdShared> shared)
    : options_(options),
      shared_(std::move(shared)),
      counters_(*shared_->counters[options.index]),
      trace_(*shared_->traces[options.index]) {}

Result<std::unique_ptr<Queue>> Queue::open(const Options& options,
                                           std::shared_ptr<VbdShared> shared, xen::Xen& xen,
                                           const ReactorServices& services) {
    auto queue = std::unique_ptr<Queue>(new Queue(options, std::move(shared)));
    queue->services_ = services;
    queue->several_rings_ = queue->shared_->slots.size() > 1;

    auto grants = xen.open_grant_table();
    if (!grants) return grants.error();
    queue->grants_ =
        std::make_unique<GuestCallTable>(std::move(grants).value(), *services.guest_call);
    auto mapped = queue->grants_->map(options.domain, options.ring_refs, xen::Access::kReadWrite);
    if (!mapped) return mapped.error();
    queue->ring_address_ = mapped.value();

    auto ring = blkif::BackRing::attach(
        queue->ring_address_, static_cast<uint32_t>(options.ring_refs.size()), options.protocol);
    if (!ring) return ring.error();
    queue->ring_ = std::move(ring).value();
    if (Status journal = queue->open_journal(); !journal) return journal.error();
    uint32_t entries = queue->ring_.entries();

    auto table =
        memory::InFlightTable::create(entries, queue->shared_->features.max_indirect_segments);
    if (!table) return table.error();
    queue->table_ = std::move(table).value();
    queue->batch_.reserve(kBatchRequests + 1);
    queue->issued_.reserve(std::max(entries, kBatchRequests + 1));

    memory::Transfer::Options transfer_options;
    transfer_options.strategy = options.strategy;
    transfer_options.domain = options.domain;
    transfer_options.entries = entries;
    transfer_options.max_persistent_grants = queue->shared_->tunables.max_persistent_grants;
    transfer_options.reads_fill_buffers = queue->shared_->device->geometry().fills_reads;
    auto transfer = memory::Transfer::create(transfer_options, *queue->grants_, *services.pool,
                                             *services.scratch, queue->counters_.transfer);
    if (!transfer) return transfer.error();
    queue->transfer_ = std::move(transfer).value();

    auto device = queue->shared_->device->open_queue(*services.io);
    if (!device) return device.error();
    queue->device_ = std::move(device).value();
    queue->device_->identify(queue->shared_->name);

    // Last: from here on the guest can send us events.
    auto channel = xen.bind_interdomain(options.domain, options.remote_port);
    if (!channel) return channel.error();
    queue->channel_ = std::move(channel).value();
    return queue;
}

// What a dead process had taken is taken over with its journal.
Status Queue::open_journal() {
    const std::string& path = options_.journal;
    const std::string& rings = options_.journal_rings;
    if (options_.take_over == TakeOver::kJournaled && !path.empty()) {
        auto found = Journal::recover(path, rings, ring_.entries(), ring_.next_response());
        if (found) {
            journal_ = std::move(found).value();
            resumed_ = journal_.unanswered();
            std::ranges::reverse(resumed_);
            return ring_.resume(static_cast<uint32_t>(resumed_.size()));
        }
    }
    const TakeOver take_over = options_.take_over;
    if ((take_over == TakeOver::kIdle || take_over == TakeOver::kJournaled) &&
        ring_.has_requests()) {
        return Error{ErrorKind::kRing, 0,
                     "requests are under way on ring " + std::to_string(options_.index)};
    }
    if (path.empty()) return {};
    // Without one a crash costs more, and that is all: a guest is not refused for it.
    if (auto made = Journal::create(path, rings, ring_.entries())) {
        journal_ = std::move(made).value();
    }
    return {};
}

// Port first, then the guest's pages, then the ring. Nothing is at the device.
Queue::~Queue() {
    channel_.reset();
    if (transfer_) transfer_->close();
    device_.reset();
    if (started_) {
        shared_->unanswered += ring_.in_flight() + (corrupt_ ? 1 : 0);
        if (journal_) journal_.remove();
    }
    if (ring_address_) {
        (void)!!grants_->unmap(ring_address_, static_cast<uint32_t>(options_.ring_refs.size()));
    }
    counters_.in_flight.set(0);
}

void Queue::start() {
    started_ = true;
    // Whoever served the ring before may have died between publishing its last responses and
    // saying so; a notification too many does no harm.
    if (options_.take_over != TakeOver::kNone) channel_->notify();
}

blkif::Limits Queue::limits() const {
    const block::Geometry& geometry = shared_->device->geometry();
    const Features& features = shared_->features;
    blkif::Limits limits;
    limits.capacity_sectors = shared_->device->size_bytes() / kSectorSize;
    limits.sector_size = geometry.sector_size;
    limits.max_indirect_segments = features.max_indirect_segments;
    limits.read_only = geometry.read_only || features.read_only;
    limits.flush = features.flush;
    limits.barrier = features.barrier;
    limits.discard = features.discard;
    limits.secure_discard = features.secure_discard;
    return limits;
}

bool Queue::pass(uint64_t now_ns, bool alone) {
    const bool halves = alone && options_.strategy == memory::Strategy::kPersistent;
    batch_limit_ = halves ? kBatchAlone : kBatchRequests;
    bool worked = reap(now_ns);
    // The guest goes on with these while its next requests are being started.
    if (worked) publish();
    if (started_) {
        worked |= consume(now_ns);
        if (barrier_) [[unlikely]]
            worked |= run_barrier(now_ns);
    }
    // Memory, cached reads: answered in the same pass, and it took them some time.
    if (device_->has_completions()) worked |= reap(monotonic_ns());
    publish();
    if (busy_ && at_device_ == 0) set_busy(false);
    if (worked) {
        last_work_ns_ = now_ns;
        work_since_event_ = true;
        spurious_in_row_ = 0;
        counters_.in_flight.set(ring_.in_flight());
    }
    return worked;
}

bool Queue::reap(uint64_t now_ns) {
    bool worked = false;
    while (block::Io* io = device_->reap()) {
        worked = true;
        while (io) {
            block::Io* next = io->next;
            advance(static_cast<InFlight*>(io->tag));
            io = next;
        }
        submit_issued();
    }
    if (done_.empty()) return worked;
    memory::InFlightList ready;
    transfer_->finish(done_, ready);
    while (InFlight* item = ready.pop()) answer(item, now_ns);
    return true;
}

bool Queue::consume(uint64_t now_ns) {
    pass_pages_ = 0;
    starved_ = false;
    if (stalled_) {
        if (flush_failed() && stalled_->request.operation != Operation::kRead) [[unlikely]] {
            refuse_after_failed_flush(std::exchange(stalled_, nullptr));
            return true;
        }
        if (!may_consume() || !admit(stalled_)) return false;
    } else {
        if ((closing_ && !resuming()) || barrier_ || corrupt_) return false;
        if (!ring_.begin_pass()) [[unlikely]] {
            corrupt_ = true;
            shared_->on_event(
                {Event::Type::kRingCorrupt, options_.index,
                 "the frontend's request producer is further ahead than the ring is long"});
            return true;
        }
        if ((ring_.available() == 0 && resumed_.empty()) || !may_consume()) return false;
    }
    blkif::Limits now_limits = limits();
    batch_.clear();
    if (stalled_) {
        batch_.push_back(stalled_);
        stalled_ = nullptr;
    }
    if ((!closing_ || resuming()) && !corrupt_) {
        uint32_t taken = take_requests(now_limits, now_ns);
        if (taken > 0) counters_.ring_utilisation.record(taken);
    }
    start_batch(static_cast<uint32_t>(batch_.size()), now_limits, now_ns);
    return true;
}

// Consumes slots into batch_; refuses on the spot what parse() rejects. Returns how many slots it
// took.
uint32_t Queue::take_requests(const blkif::Limits& limits, uint64_t now_ns) {
    uint32_t taken = 0;
    uint32_t segments = 0;
    uint32_t entry = 0;
    blkif::RawSlot slot;
    while (batch_.size() < batch_limit_ && taken < batch_limit_ &&
           segments < memory::TransferScratch::kBatchSegments && take_slot(slot, entry)) {
        taken++;
        InFlight* item = table_.take();
        VBD_CHECK(item);  // one per ring entry, and the ring never delivers more
        Reject reject = blkif::parse(options_.protocol, slot, limits, item->request);
        item->started_ns = now_ns;
        item->journal_entry = entry;
        item->budget_bytes = 0;
        item->failed = item->unsupported = item->held = false;
        item->stage = Stage::kData;
        if (reject != Reject::kNone) [[unlikely]] {
            refuse(item, reject);
            continue;
        }
        table_.attach_arrays(item);
        Operation operation = item->request.operation;
        if (operation == Operation::kFlush || operation == Operation::kWriteBarrier)
            item->stage = Stage::kPreFlush;
        if (operation != Operation::kRead && flush_failed()) [[unlikely]] {
            refuse_after_failed_flush(item);
            continue;
        }
        if (operation == Operation::kWriteBarrier) [[unlikely]] {
            barrier_ = item;  // nothing after it is taken until it is done
            break;
        }
        if (!admit(item)) [[unlikely]] {
            stalled_ = item;
            counters_.out_of_requests.add();
            break;
        }
        segments += item->request.nr_segments;
        batch_.push_back(item);
    }
    return taken;
}

// The next request: first of those that a dead process had taken. A queue that closes takes no
// others.
bool Queue::take_slot(blkif::RawSlot& slot, uint32_t& journal_entry) {
    if (!resumed_.empty()) [[unlikely]] {
        journal_entry = resumed_.back();
        resumed_.pop_back();
        slot = journal_.slot(journal_entry);
        return true;
    }
    if (closing_) return false;
    const uint32_t sequence = ring_.next_request();
    if (!ring_.next(slot)) return false;
    if (journal_) journal_entry = journal_.take(slot, sequence);
    return true;
}

// Charges a request to the in-flight budget. A request that is alone always fits, however large.
bool Queue::admit(InFlight* item) {
    uint64_t pages = item->request.nr_segments;
    uint64_t bytes = pages * kPageSize;
    uint64_t budget = shared_->tunables.max_in_flight_bytes.load(std::memory_order_relaxed);
    if (in_flight_bytes_ + bytes > budget && in_flight_bytes_ > 0) return false;
    const memory::PagePool& pool = *services_.pool;
    starved_ = pass_pages_ + pages > pool.available();
    if (starved_) [[unlikely]]
        return false;
    pass_pages_ += pages;
    item->budget_bytes = bytes;
    in_flight_bytes_ += bytes;
    return true;
}

void Queue::start_batch(uint32_t count, const blkif::Limits& limits, uint64_t now_ns) {
    if (count == 0) return;
    transfer_->prepare({batch_.data(), count}, limits, static_cast<uint32_t>(now_ns / 1'000'000));
    for (uint32_t i = 0; i < count; i++) {
        InFlight* item = batch_[i];
        if (item->outcome == Outcome::kReady) [[likely]] {
            at_device_++;
            issue(item);
        } else if (item->outcome == Outcome::kRejected) {
            refuse(item, item->reject);
        } else {
            at_device_++;
            answer(item, now_ns);
        }
    }
    submit_issued();
}

void Queue::issue(InFlight* item) {
    block::Io& io = item->io;
    const blkif::Request& request = item->request;
    io.tag = item;
    io.fua = false;
    io.offset = request.sector * kSectorSize;
    io.length = request.nr_sectors * kSectorSize;
    io.iov = item->iov;
    io.iov_count = item->iov_count;
    if (item->stage != Stage::kData) {
        io.op = block::IoOp::kFlush;
    } else if (request.operation == Operation::kRead) {
        io.op = block::IoOp::kRead;
    } else if (request.operation == Operation::kDiscard) {
        io.op = request.secure ? block::IoOp::kSecureDiscard : block::IoOp::kDiscard;
    } else {
        io.op = block::IoOp::kWrite;
        io.fua =
            !shared_->features.flush;  // a guest without flushes has no other way to durability
    }
    issued_.push_back(&io);
}

void Queue::submit_issued() {
    if (issued_.empty()) return;
    device_->submit({issued_.data(), issued_.size()});
    issued_.clear();
}

void Queue::on_event() {
    if (!channel_->take_pending()) return;
    counters_.events.add();
    event_taken_ = true;
    work_since_event_ = false;
    wake();
}

bool Queue::arm(uint64_t now_ns) {
    unmask_due_ns_ = UINT64_MAX;
    armed_ = true;
    // What a dead process had taken has no event to wait for.
    if (started_ && resuming() && !stalled_ && !barrier_ && !gate_closed()) return armed_ = false;
    // Pages that another ring gives back wake nobody.
    if (starved_) [[unlikely]]
        unmask_due_ns_ = now_ns + kStarvedRetryNs;
    // Where the guest cannot give us work now, a completion or a kick wakes us, not an event.
    if (!started_ || closing_ || corrupt_ || stalled_ || barrier_ || gate_closed()) return true;
    if (event_taken_) {
        if (!work_since_event_) {
            counters_.spurious_events.add();
            spurious_in_row_++;
        }
        uint64_t delay_ns = work_since_event_ ? 0 : spurious_delay_ns(spurious_in_row_);
        if (delay_ns > 0) {
            unmask_due_ns_ = now_ns + delay_ns;
        } else {
            event_taken_ = false;
            channel_->unmask();
        }
    }
    armed_ = !ring_.final_check();
    return armed_;
}

void Queue::end_unmask_delay() {
    unmask_due_ns_ = UINT64_MAX;
    wake();
    if (!event_taken_) return;
    event_taken_ = false;
    channel_->unmask();
}

void Queue::tick(uint64_t now_ns) {
    transfer_->set_max_persistent_grants(
        shared_->tunables.max_persistent_grants.load(std::memory_order_relaxed));
    transfer_->purge(static_cast<uint32_t>(now_ns / 1'000'000),
                     shared_->tunables.persistent_idle_ms.load(std::memory_order_relaxed));
}

}  // namespace vbd::engine
