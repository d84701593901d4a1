#include "node/mock_load.h"


#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "node/convert.h"
#include "node/mock_guest_handle.h"

namespace vbd::node {
namespace {

constexpr uint64_t kMaxWord = 0xffffffff;
constexpr uint64_t kMaxSafe = 9007199254740991;  // Number.MAX_SAFE_INTEGER

/// Reads the fields of one object; the first mistake stays.
class Fields {
  public:
    explicit Fields(Napi::Value value)
        : object_(value.IsObject() ? value.As<Napi::Object>() : Napi::Object()) {
        if (object_.IsEmpty())
            status_ = Error{ErrorKind::kInvalidArgument, 0, "a load's options are an object"};
    }

    template <typename T>
    void number(const char* name, T& target, uint64_t max, bool optional = false) {
        if (!status_) return;
        Napi::Value value = object_.Get(name);
        if (optional && value.IsUndefined()) return;
        Result<uint64_t> number = whole_number(value, name, 0, max);
        if (number) {
            target = static_cast<T>(number.value());
        } else {
            status_ = number.error();
        }
    }

    void flag(const char* name, bool& target) {
        if (status_) target = object_.Get(name).ToBoolean();
    }

    template <typename T>
    void choice(const char* name, T& target,
                std::initializer_list<std::pair<const char*, T>> choices) {
        if (!status_) return;
        Napi::Value value = object_.Get(name);
        const std::string given = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
        for (const auto& [known, meaning] : choices) {
            if (given == known) {
                target = meaning;
                return;
            }
        }
        status_ = Error{ErrorKind::kInvalidArgument, 0,
                        "'" + given + "' is not a " + name + " of a load"};
    }

    Napi::Value get(const char* name) { return status_ ? object_.Get(name) : Napi::Value(); }
    const Status& status() const { return status_; }

  private:
    Napi::Object object_;
    Status status_;
};

Result<guest::LoadQueue> queue_of(Napi::Value value) {
    Fields fields(value);
    guest::LoadQueue queue;
    fields.number("ringOffset", queue.ring_offset, kMaxSafe);
    fields.number("ringPages", queue.ring_pages, kMaxWord);
    fields.number("port", queue.port, kMaxWord);
    fields.number("firstRef", queue.first_ref, kMaxWord);
    fields.number("firstPage", queue.first_page, kMaxWord);
    fields.number("firstIndirectRef", queue.first_indirect_ref, kMaxWord, true);
    fields.number("firstIndirectPage", queue.first_indirect_page, kMaxWord, true);
    if (!fields.status()) return fields.status().error();
    return queue;
}

/// `owners`: by queue, the guest that it is of; null: the load's own.
Result<guest::LoadOptions> options_of(Napi::Value value,
                                      std::vector<std::shared_ptr<xen::MockGuest>>& owners) {
    using guest::LoadOperation;
    using guest::LoadPattern;
    Fields fields(value);
    guest::LoadOptions options;
    fields.choice(
        "protocol", options.protocol,
        {{"x86_64-abi", blkif::Protocol::kX86_64}, {"x86_32-abi", blkif::Protocol::kX86_32}});
    fields.choice("operation", options.operation,
                  {{"read", LoadOperation::kRead},
                   {"write", LoadOperation::kWrite},
                   {"mixed", LoadOperation::kMixed}});
    fields.choice("pattern", options.pattern,
                  {{"random", LoadPattern::kRandom}, {"sequential", LoadPattern::kSequential}});
    fields.number("depth", options.depth, kMaxWord);
    fields.number("segments", options.segments, kMaxWord);
    fields.flag("indirect", options.indirect);
    fields.number("diskSectors", options.disk_sectors, kMaxSafe);
    fields.number("durationMs", options.duration_ms, 24 * 3600 * 1000);
    fields.flag("poll", options.poll);
    fields.number("seed", options.seed, kMaxSafe);
    Napi::Value cpu = fields.get("cpu");
    if (!cpu.IsEmpty() && cpu.IsNumber() && cpu.As<Napi::Number>().DoubleValue() >= 0) {
        fields.number("cpu", options.cpu, 4095);
    }
    Napi::Value queues = fields.get("queues");
    if (!fields.status()) return fields.status().error();
    if (!queues.IsArray())
        return Error{ErrorKind::kInvalidArgument, 0, "a load's queues are an array"};
    Napi::Array list = queues.As<Napi::Array>();
    for (uint32_t i = 0; i < list.Length(); ++i) {
        Result<guest::LoadQueue> queue = queue_of(list.Get(i));
        if (!queue) return queue.error();
        options.queues.push_back(queue.value());
        Napi::Value owner = list.Get(i).As<Napi::Object>().Get("guest");
        owners.push_back(mock_guest_of(owner));
        if (!owner.IsUndefined() && !owners.back()) {
            return Error{ErrorKind::kInvalidArgument, 0, "a queue's guest is closed, or is none"};
        }
    }
    return options;
}

Napi::Object result_object(Napi::Env env, const guest::LoadResult& result) {
    Napi::Object object = Napi::Object::New(env);
    const auto set = [&](const char* name, uint64_t value) {
        object.Set(name, Napi::Number::New(env, static_cast<double>(value)));
    };
    set("requests", result.requests);
    set("errors", result.errors);
    set("elapsedNs", result.elapsed_ns);
    set("cpuNs", result.cpu_ns);
    set("notifications", result.notifications);
    Napi::Array queues = Napi::Array::New(env, result.queue_requests.size());
    for (uint32_t i = 0; i < result.queue_requests.size(); ++i) {
        queues.Set(i, Napi::Number::New(env, static_cast<double>(result.queue_requests[i])));
    }
    object.Set("queueRequests", queues);
    object.Set("latencyNs", histogram_object(env, result.latency_ns));
    return object;
}

}  // namespace

guest::EventSource::Wake MockLoad::Events::wait(uint32_t timeout_ms) {
    switch (waiter_->wait(timeout_ms)) {
        case xen::GuestPortWaiter::Wake::kEvent:
            return Wake::kEvent;
        case xen::GuestPortWaiter::Wake::kTimeout:
            return Wake::kTimeout;
        case xen::GuestPortWaiter::Wake::kClosed:
            return Wake::kClosed;
    }
    return Wake::kClosed;
}

Result<std::shared_ptr<MockLoad>> MockLoad::start(Napi::Env env, Napi::Value options,
                                                  xen::MockGuest& guest,
                                                  std::shared_ptr<Dispatcher> dispatcher) {
    std::vector<std::shared_ptr<xen::MockGuest>> owners;
    Result<guest::LoadOptions> parsed = options_of(options, owners);
    if (!parsed) return parsed.error();
    std::vector<Port> ports;
    for (size_t i = 0; i < owners.size(); ++i) {
        if (!owners[i]) ports.push_back(parsed.value().queues[i].port);
    }
    Result<std::unique_ptr<xen::GuestPortWaiter>> waiter = guest.wait_on(ports);
    if (!waiter) return waiter.error();
    std::shared_ptr<MockLoad> self(new MockLoad(env, std::move(dispatcher)));
    self->memory_ = guest.shared_memory();
    self->events_ = std::make_unique<Events>(std::move(waiter).value());
    if (Status taken = self->take_others(owners, parsed.value()); !taken) return taken.error();
    Result<std::unique_ptr<guest::Load>> load = guest::Load::create(
        self->memory_->data(), self->memory_->size(), *self->events_, parsed.value());
    if (!load) return load.error();
    self->load_ = std::move(load).value();
    // The thread has no part in the ownership: whoever has the load joins it before letting go
    // (cancel(), settle()).
    Status running = self->thread_.start(
        "vbdkit-load", [raw = self.get(), weak = std::weak_ptr(self), bell = self->dispatcher_] {
            raw->result_.emplace(raw->load_->run());
            bell->post([weak](Napi::Env) {
                if (const auto done = weak.lock()) done->settle();
            });
        });
    if (!running) return running.error();
    self->dispatcher_->hold();
    return self;
}

/// One waiter for each other guest, with all the ports of its queues.
Status MockLoad::take_others(const std::vector<std::shared_ptr<xen::MockGuest>>& owners,
                             guest::LoadOptions& options) {
    others_.reserve(owners.size());
    for (const auto& owner : owners) {
        const auto known = [&](const Other& other) { return other.guest == owner; };
        if (!owner || std::ranges::any_of(others_, known)) continue;
        std::vector<Port> ports;
        for (size_t i = 0; i < owners.size(); ++i) {
            if (owners[i] == owner) ports.push_back(options.queues[i].port);
        }
        Result<std::unique_ptr<xen::GuestPortWaiter>> waiter = owner->wait_on(ports);
        if (!waiter) return waiter.error();
        others_.push_back({owner, owner->shared_memory(),
                           std::make_unique<Events>(std::move(waiter).value())});
        for (size_t i = 0; i < owners.size(); ++i) {
            if (owners[i] != owner) continue;
            options.queues[i].memory = others_.back().memory->data();
            options.queues[i].memory_bytes = others_.back().memory->size();
            options.queues[i].events = others_.back().events.get();
        }
    }
    return {};
}

MockLoad::~MockLoad() {
    join();
}

void MockLoad::cancel(bool leaving) {
    if (settled_) return;  // it has nothing left to wake
    load_->stop();
    events_->wake();
    join();
    if (!leaving) settle();
}

void MockLoad::join() {
    if (thread_.joinable()) thread_.join();
}

void MockLoad::settle() {
    if (std::exchange(settled_, true)) return;
    join();
    events_.reset();  // the guests wait for their ports themselves again
    others_.clear();
    dispatcher_->let_go();
    if (*result_) {
        deferred_.Resolve(result_object(env_, result_->value()));
    } else {
        deferred_.Reject(error_value(env_, result_->error()));
    }
}

}  // namespace vbd::node
