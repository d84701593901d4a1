// ScriptChannel: slots, the rings, deadlines.
#include "block/script_channel.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <new>
#include <utility>

#include "base/clock.h"
#include "block/script_memory.h"

namespace vbd::block {

namespace {

// A slot's submissions that the script has not taken: the abort of one request, the next, its abort.
constexpr uint32_t kSubmissionsPerSlot = 4;
constexpr uint64_t kLeastPeriodNs = 5'000'000;
constexpr uint64_t kMostPeriodNs = 500'000'000;
constexpr int32_t kLargestErrno = 4095;

}  // namespace

Result<std::shared_ptr<ScriptChannel>> ScriptChannel::create(
    const Options& options, std::function<void(const Overdue&)> on_overdue) {
    if (options.concurrency == 0 || options.concurrency > kScriptMaxSlots) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "a script has 1 to " + std::to_string(kScriptMaxSlots) + " requests at a time"};
    }
    if (options.deadline_ns == 0) {
        return Error{ErrorKind::kInvalidArgument, 0, "a script's deadline is not at once"};
    }
    auto channel = std::shared_ptr<ScriptChannel>(new ScriptChannel);
    const uint32_t slots = options.concurrency;
    channel->submission_entries_ = std::bit_ceil(slots * kSubmissionsPerSlot);
    channel->answer_entries_ = std::bit_ceil(slots);
    const ScriptLayout layout(sizeof(ScriptIndices), channel->submission_entries_,
                              channel->answer_entries_, slots);
    auto control = map_script_memory(layout.bytes, "mapping a script's rings");
    if (!control) return control.error();
    channel->control_ = control.value();
    auto pool = map_script_memory(size_t{slots} * kScriptSlotBytes, "reserving a script's memory");
    if (!pool) return pool.error();
    channel->pool_ = pool.value();

    auto* base = static_cast<uint8_t*>(channel->control_.iov_base);
    new (base) ScriptIndices;
    channel->submissions_ = reinterpret_cast<uint32_t*>(base + layout.submissions);
    channel->answers_ = reinterpret_cast<ScriptAnswer*>(base + layout.answers);
    channel->descriptors_ = reinterpret_cast<ScriptDescriptor*>(base + layout.descriptors);
    channel->deadline_ns_ = options.deadline_ns;
    channel->on_overdue_ = std::move(on_overdue);
    channel->slots_ = std::vector<Slot>(slots);
    channel->free_.reserve(slots);
    for (uint32_t i = slots; i > 0; i--) channel->free_.push_back(i - 1);
    channel->outbox_.reserve(kScriptMaxSlots);

    Status running = channel->watchdog_.start("vbd-script", [self = channel.get()] { self->watch(); });
    if (!running) return running.error();
    return channel;
}

ScriptChannel::~ScriptChannel() {
    if (watchdog_.joinable()) {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        watchdog_wakes_.notify_one();
        watchdog_.join();
    }
    if (control_.iov_base) ::munmap(control_.iov_base, control_.iov_len);
    if (pool_.iov_base) ::munmap(pool_.iov_base, pool_.iov_len);
}

// ---- the script's thread

bool ScriptChannel::attach(std::function<void()> bell) {
    const std::lock_guard lock(mutex_);
    if (attached_ || detached_) return false;
    attached_ = true;
    bell_ = std::move(bell);
    // What came before it.
    bell_();
    return true;
}

void ScriptChannel::kick() {
    const std::lock_guard lock(mutex_);
    if (detached_) return;
    const uint32_t end = indices().answered.value.load(std::memory_order_acquire);
    uint32_t at = indices().consumed.value.load(std::memory_order_relaxed);
    for (; at != end; at++) {
        const ScriptAnswer answer = answers_[at & (answer_entries_ - 1)];
        if (answer.slot >= slots_.size()) continue;
        Slot& slot = slots_[answer.slot];
        const State state = slot.state.load(std::memory_order_relaxed);
        if (state == State::kRunning) {
            slot.state.store(State::kAnswered, std::memory_order_relaxed);
            slot.error = answer.error <= kLargestErrno ? answer.error : EIO;
            at_script_--;
            put(slot.io);
        } else if (state == State::kAbandoned) {
            abandoned_--;
            give_back(answer.slot);
            if (Io* io = grant_next()) put(io);
        }
    }
    indices().consumed.value.store(at, std::memory_order_release);
    send();
}

void ScriptChannel::detach() {
    const std::lock_guard lock(mutex_);
    if (std::exchange(detached_, true)) return;
    bell_ = nullptr;
    for (Slot& slot : slots_) {
        const State state = slot.state.load(std::memory_order_relaxed);
        if (state == State::kRunning) fail(slot.io, EIO);
        if (state == State::kRunning || state == State::kAbandoned) {
            slot.state.store(State::kFree, std::memory_order_relaxed);
        }
    }
    at_script_ = abandoned_ = 0;
    while (Io* io = waiting_.pop()) fail(io, EIO);
    send();
}

std::string ScriptChannel::client_name(uint32_t client) {
    const std::lock_guard lock(mutex_);
    return client < clients_.size() ? clients_[client] : std::string();
}

// ---- reactors

uint32_t ScriptChannel::client(std::string_view name) {
    const std::lock_guard lock(mutex_);
    for (uint32_t i = 0; i < clients_.size(); i++) {
        if (clients_[i] == name) return i;
    }
    clients_.emplace_back(name);
    return static_cast<uint32_t>(clients_.size() - 1);
}

void ScriptChannel::admit(IoList& ios, IoList& granted) {
    const uint64_t deadline_ns = monotonic_ns() + deadline_ns_;
    const std::lock_guard lock(mutex_);
    while (Io* io = ios.pop()) {
        io->scratch = 0;
        if (detached_) {
            io->error = EIO;
            granted.push(io);
        } else if (!free_.empty() && waiting_.empty()) {
            grant(io);
            granted.push(io);
        } else {
            io->scratch = deadline_ns;
            waiting_.push(io);
            wake_watchdog();
        }
    }
}

void ScriptChannel::turn(std::span<Io* const> done, std::span<const Published> pieces,
                         IoContext& context, IoList& granted) {
    const uint64_t deadline_ns = monotonic_ns() + deadline_ns_;
    const std::lock_guard lock(mutex_);
    for (Io* io : done) give_back(static_cast<uint32_t>(io->scratch - 1));
    for (const Published& piece : pieces) {
        const auto index = static_cast<uint32_t>(piece.io->scratch - 1);
        if (detached_) {
            give_back(index);
            piece.io->scratch = 0;
            piece.io->error = EIO;
            granted.push(piece.io);
            continue;
        }
        Slot& slot = slots_[index];
        slot.io = piece.io;
        slot.deadline_ns = deadline_ns;
        slot.client = piece.client;
        ScriptDescriptor& descriptor = descriptors_[index];
        descriptor.op = static_cast<uint32_t>(piece.io->op);
        descriptor.flags = piece.io->fua ? kScriptFua : 0;
        descriptor.offset = static_cast<double>(piece.offset);
        descriptor.length = static_cast<double>(piece.length);
        descriptor.client = piece.client;
        descriptor.tag = ++tag_;
        slot.state.store(State::kRunning, std::memory_order_relaxed);
        at_script_++;
        submit(index);
    }
    if (!pieces.empty() && !detached_) {
        ring();
        wake_watchdog();
    }
    while (!free_.empty() && !waiting_.empty()) {
        Io* io = grant_next();
        if (&static_cast<ScriptClient*>(io->queue)->context() == &context) {
            granted.push(io);
        } else {
            put(io);
        }
    }
    send();
}

// ---- under the lock

void ScriptChannel::grant(Io* io) {
    const uint32_t index = free_.back();
    free_.pop_back();
    io->scratch = uint64_t{index} + 1;
    slots_[index].state.store(State::kGranted, std::memory_order_relaxed);
}

Io* ScriptChannel::grant_next() {
    if (free_.empty() || detached_) return nullptr;
    Io* io = waiting_.pop();
    if (io) grant(io);
    return io;
}

void ScriptChannel::give_back(uint32_t index) {
    slots_[index].state.store(State::kFree, std::memory_order_relaxed);
    slots_[index].io = nullptr;
    free_.push_back(index);
}

void ScriptChannel::submit(uint32_t entry) {
    std::atomic<uint32_t>& end = indices().submitted.value;
    const uint32_t at = end.load(std::memory_order_relaxed);
    submissions_[at & (submission_entries_ - 1)] = entry;
    end.store(at + 1, std::memory_order_seq_cst);
}

// Dekker's protocol with the script: it sets `armed`, then looks at `submitted`.
void ScriptChannel::ring() {
    std::atomic<uint32_t>& armed = indices().armed.value;
    if (!bell_ || armed.load(std::memory_order_seq_cst) == 0) return;
    if (armed.exchange(0, std::memory_order_seq_cst) != 0) bell_();
}

void ScriptChannel::fail(Io* io, int32_t error) {
    io->scratch = 0;
    io->error = error;
    put(io);
}

void ScriptChannel::put(Io* io) {
    IoContext* context = &static_cast<ScriptClient*>(io->queue)->context();
    for (Outbox& box : outbox_) {
        if (box.context == context) return box.ios.push(io);
    }
    outbox_.push_back({context, {}});
    outbox_.back().ios.push(io);
}

void ScriptChannel::send() {
    for (Outbox& box : outbox_) box.context->resume_from_thread(box.ios);
    outbox_.clear();
}

// ---- the watchdog

void ScriptChannel::wake_watchdog() {
    if (!std::exchange(watchdog_idle_, false)) return;
    watchdog_wakes_.notify_one();
}

void ScriptChannel::watch() {
    const auto period =
        std::chrono::nanoseconds(std::clamp(deadline_ns_ / 8, kLeastPeriodNs, kMostPeriodNs));
    std::vector<Overdue> found;
    std::unique_lock lock(mutex_);
    while (!stopping_) {
        if (watchdog_idle_) {
            watchdog_wakes_.wait(lock, [this] { return stopping_ || !watchdog_idle_; });
        } else {
            watchdog_wakes_.wait_for(lock, period, [this] { return stopping_; });
        }
        fail_overdue(monotonic_ns(), found);
        watchdog_idle_ = at_script_ == 0 && waiting_.empty();
        if (found.empty()) continue;
        lock.unlock();
        for (const Overdue& request : found) on_overdue_(request);
        found.clear();
        lock.lock();
    }
}

void ScriptChannel::fail_overdue(uint64_t now_ns, std::vector<Overdue>& found) {
    for (uint32_t i = 0; i < slots_.size(); i++) {
        Slot& slot = slots_[i];
        if (slot.state.load(std::memory_order_relaxed) != State::kRunning) continue;
        if (slot.deadline_ns > now_ns) continue;
        found.push_back({slot.io->op, slot.io->offset, slot.io->length, clients_[slot.client]});
        slot.state.store(State::kAbandoned, std::memory_order_relaxed);
        at_script_--;
        abandoned_++;
        fail(std::exchange(slot.io, nullptr), ETIMEDOUT);
        submit(i | kScriptAbort);
    }
    // Whoever waits behind requests that run has their deadlines; behind lost ones alone, its own.
    while (abandoned_ == slots_.size() && waiting_.front() && waiting_.front()->scratch <= now_ns) {
        Io* io = waiting_.pop();
        const uint32_t client = static_cast<ScriptClient*>(io->queue)->client();
        found.push_back({io->op, io->offset, io->length, clients_[client]});
        fail(io, ETIMEDOUT);
    }
    if (!found.empty()) ring();
    send();
}

}  // namespace vbd::block
