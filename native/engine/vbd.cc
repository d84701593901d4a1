// Vbd: connect and disconnect as messages to reactors, counted down by the last to finish.
#include "engine/vbd.h"

#include <algorithm>

namespace vbd::engine {

// One try at connecting. Rings are opened, started or abandoned on their reactors; whoever counts
// `left` down to zero goes on.
struct Vbd::Attempt {
    ConnectionSpec spec;
    memory::Strategy strategy;
    ConnectDone done;
    std::vector<Reactor*> reactors;              // per ring
    std::vector<std::unique_ptr<Queue>> queues;  // per ring; each touched by its reactor only
    std::atomic<size_t> left{0};
    std::mutex mutex;
    std::optional<Error> error;
};

std::shared_ptr<Vbd> Vbd::create(std::string name, std::shared_ptr<block::Device> device,
                                 const Features& features, std::function<void(Event)> on_event) {
    auto vbd = std::shared_ptr<Vbd>(new Vbd);
    vbd->shared_ = std::make_shared<VbdShared>();
    vbd->shared_->name = std::move(name);
    vbd->shared_->device = device.get();
    vbd->shared_->device_owner = std::move(device);
    vbd->shared_->features = features;
    vbd->shared_->on_event = std::move(on_event);
    return vbd;
}

memory::Strategy Vbd::strategy_for(const ConnectionSpec& spec) const {
    switch (shared_->features.transfer) {
        case TransferChoice::kMap:
            return memory::Strategy::kMap;
        case TransferChoice::kCopy:
            return memory::Strategy::kCopy;
        case TransferChoice::kAuto:
        case TransferChoice::kPersistent:
            break;
    }
    // A frontend that does not keep its grants cannot be made to: copying is then the right thing.
    return spec.persistent ? memory::Strategy::kPersistent : memory::Strategy::kCopy;
}

void Vbd::connect(const ConnectionSpec& spec, std::shared_ptr<xen::Xen> xen,
                  std::span<Reactor* const> reactors, ConnectDone done) {
    {
        std::lock_guard lock(mutex_);
        if (state_ != State::kIdle || spec.rings.empty()) {
            done(Error{ErrorKind::kInvalidArgument, 0,
                       shared_->name + " is connected already, or has no rings"});
            return;
        }
        state_ = State::kConnecting;
    }
    auto attempt = std::make_shared<Attempt>();
    attempt->spec = spec;
    attempt->strategy = strategy_for(spec);
    xen_ = std::move(xen);
    attempt->done = std::move(done);
    size_t rings = spec.rings.size();
    attempt->queues.resize(rings);
    attempt->left = rings;

    // The reactor with the fewest rings first, then in turn: a vbd's rings spread as far as they
    // can.
    auto fewest = std::min_element(reactors.begin(), reactors.end(), [](auto& a, auto& b) {
        return a->ring_count() < b->ring_count();
    });
    size_t first = static_cast<size_t>(fewest - reactors.begin());
    shared_->unanswered = 0;
    shared_->slots.clear();
    shared_->barrier_owner = nullptr;
    for (size_t i = 0; i < rings; i++) {
        Reactor* reactor = reactors[(first + i) % reactors.size()];
        reactor->expect_ring();
        attempt->reactors.push_back(reactor);
        shared_->slots.push_back(std::make_unique<QueueSlot>());
        shared_->slots.back()->mailbox = &reactor->mailbox();
        if (shared_->counters.size() <= i) {
            shared_->counters.push_back(std::make_unique<QueueCounters>());
            shared_->traces.push_back(std::make_unique<TraceRing>());
            shared_->traces.back()->set(shared_->tracing);
        }
    }
    open_rings(attempt);
}

void Vbd::open_rings(const std::shared_ptr<Attempt>& attempt) {
    for (size_t i = 0; i < attempt->queues.size(); i++) {
        attempt->reactors[i]->mailbox().post([self = shared_from_this(), attempt, i] {
            Queue::Options options;
            options.index = static_cast<uint32_t>(i);
            options.domain = attempt->spec.domain;
            options.protocol = attempt->spec.protocol;
            options.ring_refs = attempt->spec.rings[i].ring_refs;
            options.remote_port = attempt->spec.rings[i].remote_port;
            options.strategy = attempt->strategy;
            options.take_over = attempt->spec.take_over;
            if (!attempt->spec.journal.empty()) {
                options.journal = attempt->spec.journal + "-" + std::to_string(i);
                options.journal_rings = attempt->spec.journal_rings;
            }
            auto queue =
                Queue::open(options, self->shared_, *self->xen_, attempt->reactors[i]->services());
            // Here, where it can still fail for all of them: a ring that wakes nobody is not served.
            Status opened = queue ? attempt->reactors[i]->watch(*queue.value()) : queue.error();
            if (opened) {
                attempt->queues[i] = std::move(queue).value();
            } else {
                std::lock_guard lock(attempt->mutex);
                if (!attempt->error) attempt->error = opened.error();
            }
            if (attempt->left.fetch_sub(1) > 1) return;
            attempt->left = attempt->queues.size();
            if (attempt->error) {
                self->abandon_rings(attempt);
            } else {
                self->start_rings(attempt);
            }
        });
    }
}

void Vbd::start_rings(const std::shared_ptr<Attempt>& attempt) {
    {
        std::lock_guard lock(mutex_);
        placed_.clear();
        for (size_t i = 0; i < attempt->queues.size(); i++) {
            placed_.push_back({attempt->queues[i].get(), attempt->reactors[i]});
        }
    }
    for (size_t i = 0; i < attempt->queues.size(); i++) {
        attempt->reactors[i]->mailbox().post([self = shared_from_this(), attempt, i] {
            attempt->reactors[i]->adopt(std::move(attempt->queues[i]));
            if (attempt->left.fetch_sub(1) > 1) return;
            self->settled(State::kConnected);
            attempt->done(attempt->strategy);
        });
    }
}

void Vbd::abandon_rings(const std::shared_ptr<Attempt>& attempt) {
    for (size_t i = 0; i < attempt->queues.size(); i++) {
        attempt->reactors[i]->mailbox().post([self = shared_from_this(), attempt, i] {
            if (auto queue = std::move(attempt->queues[i])) attempt->reactors[i]->unwatch(*queue);
            attempt->reactors[i]->forget_ring();
            if (attempt->left.fetch_sub(1) > 1) return;
            self->settled(State::kIdle);
            attempt->done(*attempt->error);
        });
    }
}

void Vbd::disconnect(std::function<void()> done) {
    bool close_now = false;
    {
        std::lock_guard lock(mutex_);
        if (state_ != State::kIdle) {
            waiting_.push_back(std::move(done));
            done = nullptr;
            close_now = state_ == State::kConnected;
            if (close_now) state_ = State::kDisconnecting;
            disconnect_wanted_ = state_ == State::kConnecting;
        }
    }
    if (done) return done();
    if (close_now) close_rings();
}

void Vbd::close_rings() {
    auto left = std::make_shared<std::atomic<size_t>>(placed_.size());
    for (const Placed& placed : placed_) {
        placed.reactor->mailbox().post([self = shared_from_this(), left, placed] {
            placed.reactor->close(placed.queue, [self, left] {
                if (left->fetch_sub(1) == 1) self->settled(State::kIdle);
            });
        });
    }
}

Status Vbd::use_device(std::shared_ptr<block::Device> device) {
    std::lock_guard lock(mutex_);
    if (state_ != State::kIdle) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     shared_->name + " is connected: its disk cannot be changed"};
    }
    shared_->device = device.get();
    shared_->device_owner = std::move(device);
    shared_->flush_failed = false;  // of the one before
    return {};
}

void Vbd::trace(bool on) {
    shared_->tracing = on;
    for (auto& ring : shared_->traces) ring->set(on);
}

void Vbd::settled(State state) {
    std::vector<std::function<void()>> waiting;
    std::shared_ptr<xen::Xen> unused;
    bool close_now = false;
    {
        std::lock_guard lock(mutex_);
        state_ = state;
        if (state == State::kConnected && disconnect_wanted_) {
            state_ = State::kDisconnecting;
            close_now = true;
        }
        disconnect_wanted_ = false;
        if (state == State::kIdle) {
            waiting.swap(waiting_);
            unused.swap(xen_);
        }
    }
    if (close_now) close_rings();
    for (auto& done : waiting) done();
}

}  // namespace vbd::engine
