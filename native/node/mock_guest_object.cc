#include "node/mock_guest_object.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "node/closable.h"
#include "node/convert.h"
#include "node/dispatcher.h"
#include "node/mock_guest_handle.h"
#include "node/mock_load.h"
#include "node/mock_watcher.h"
#include "xen/mock_guest.h"

namespace vbd::node {
namespace {

constexpr uint64_t kMaxWord = 0xffffffff;

/// Ports that fired wait in `fired_` until JavaScript takes them all in one call; each is masked,
/// so there are at most as many as the guest has.
class GuestState final : public Closable,
                         public MockGuestHandle,
                         public std::enable_shared_from_this<GuestState> {
  public:
    Status start(Napi::Env env, std::unique_ptr<xen::MockGuest> guest, Napi::Function on_event,
                 Napi::Function on_close) {
        guest_ = std::move(guest);
        dispatcher_ = Dispatcher::create(env, "vbdkit mock guest");
        Result<std::unique_ptr<MockWatcher>> watcher =
            MockWatcher::start(guest_->connection_fd(), guest_->event_fd(),
                               {[this] { on_lost(); }, [this] { on_events(); }});
        if (!watcher) {
            dispatcher_->close();
            return watcher.error();
        }
        watcher_ = std::move(watcher).value();
        on_event_ = Napi::Persistent(on_event);
        on_close_ = Napi::Persistent(on_close);
        return {};
    }

    const std::shared_ptr<xen::MockGuest>& guest() const override { return guest_; }

    Napi::Value run_load(const Napi::CallbackInfo& info) {
        std::erase_if(loads_, [](const auto& load) { return load->settled(); });
        Result<std::shared_ptr<MockLoad>> load =
            MockLoad::start(info.Env(), info[0], *guest_, dispatcher_);
        if (!load) {
            throw_error(info.Env(), load.error());
            return info.Env().Undefined();
        }
        loads_.push_back(load.value());
        return load.value()->promise();
    }

  private:
    // ---- on the watcher's thread

    void on_events() {
        Port ports[64];
        const size_t count = guest_->take_pending(ports);
        if (count == 0) return;
        const std::lock_guard lock(mutex_);
        fired_.insert(fired_.end(), ports, ports + count);
        if (std::exchange(posted_, true)) return;
        dispatcher_->post([weak = weak_from_this()](Napi::Env env) {
            if (const auto self = weak.lock()) self->deliver(env);
        });
    }

    void on_lost() {
        dispatcher_->post([weak = weak_from_this()](Napi::Env) {
            const auto self = weak.lock();
            if (!self || self->closed()) return;
            (void)self->guest_->connected();  // from now on every call knows
            self->on_close_.Call({});
        });
    }

    // ---- on the JavaScript thread

    void deliver(Napi::Env env) {
        std::vector<Port> ports;
        {
            const std::lock_guard lock(mutex_);
            posted_ = false;
            ports.swap(fired_);
        }
        if (closed()) return;
        Napi::Array list = Napi::Array::New(env, ports.size());
        for (uint32_t i = 0; i < ports.size(); ++i) list.Set(i, Napi::Number::New(env, ports[i]));
        on_event_.Call({list});
    }

    void shut(bool leaving) override {
        for (const auto& load : loads_) load->cancel(leaving);
        loads_.clear();
        watcher_.reset();
        dispatcher_->close();
        on_event_.Reset();
        on_close_.Reset();
        guest_.reset();
    }

    std::shared_ptr<xen::MockGuest> guest_;
    std::shared_ptr<Dispatcher> dispatcher_;
    std::unique_ptr<MockWatcher> watcher_;
    std::vector<std::shared_ptr<MockLoad>> loads_;
    Napi::FunctionReference on_event_;
    Napi::FunctionReference on_close_;
    std::mutex mutex_;  // guards the two below
    std::vector<Port> fired_;
    bool posted_ = false;
};

/// The guest's memory, mapped until JavaScript has forgotten the buffer, however long the guest is
/// gone.
Napi::ArrayBuffer memory_buffer(Napi::Env env, const xen::MockGuest& guest) {
    auto* memory = new std::shared_ptr<xen::mock::SharedMemory>(guest.shared_memory());
    return Napi::ArrayBuffer::New(
        env, (*memory)->data(), (*memory)->size(),
        [](Napi::BasicEnv, void*, std::shared_ptr<xen::mock::SharedMemory>* held) { delete held; },
        memory);
}

using Guest = xen::MockGuest;
using Info = Napi::CallbackInfo;

Napi::Value grant(Guest& guest, const Info& info) {
    Result<uint64_t> ref = whole_number(info[0], "a grant reference", 0, kMaxWord);
    Result<uint64_t> page = whole_number(info[1], "a page", 0, kMaxWord);
    Result<uint64_t> peer = whole_number(info[2], "a domid", 0, 0xffff);
    Status done;
    for (const Result<uint64_t>* each : {&ref, &page, &peer}) {
        if (done && !*each) done = each->error();
    }
    if (done) {
        done = guest.grant(static_cast<GrantRef>(ref.value()), static_cast<uint32_t>(page.value()),
                           static_cast<DomainId>(peer.value()), info[3].ToBoolean());
    }
    if (!done) throw_error(info.Env(), done.error());
    return info.Env().Undefined();
}

Napi::Value end_access(Guest& guest, const Info& info) {
    Result<uint64_t> ref = whole_number(info[0], "a grant reference", 0, kMaxWord);
    Result<bool> ended =
        ref ? guest.end_access(static_cast<GrantRef>(ref.value())) : Result<bool>(ref.error());
    if (ended) return Napi::Boolean::New(info.Env(), ended.value());
    throw_error(info.Env(), ended.error());
    return info.Env().Undefined();
}

Napi::Value alloc_unbound(Guest& guest, const Info& info) {
    Result<uint64_t> peer = whole_number(info[0], "a domid", 0, 0xffff);
    Result<Port> port = peer ? guest.alloc_unbound(static_cast<DomainId>(peer.value()))
                             : Result<Port>(peer.error());
    if (port) return Napi::Number::New(info.Env(), port.value());
    throw_error(info.Env(), port.error());
    return info.Env().Undefined();
}

/// notify, unmask and closePort.
template <Status (Guest::*Operation)(Port)>
Napi::Value on_port(Guest& guest, const Info& info) {
    Result<uint64_t> port = whole_number(info[0], "a port", 0, kMaxWord);
    const Status done =
        port ? (guest.*Operation)(static_cast<Port>(port.value())) : Status(port.error());
    if (!done) throw_error(info.Env(), done.error());
    return info.Env().Undefined();
}

/// A method of an object that may be closed.
template <typename Method>
void set_method(Napi::Object object, const char* name, std::shared_ptr<GuestState> state,
                Method method) {
    const auto call = [state = std::move(state), method](const Info& info) -> Napi::Value {
        if (!state->closed()) return method(*state, info);
        throw_error(info.Env(), Error{ErrorKind::kInvalidArgument, 0, "the mock guest is closed"});
        return info.Env().Undefined();
    };
    object.Set(name, Napi::Function::New(object.Env(), call, name));
}

template <Napi::Value (*Method)(Guest&, const Info&)>
Napi::Value with_guest(GuestState& state, const Info& info) {
    return Method(*state.guest(), info);
}

Result<std::unique_ptr<Guest>> connect(const Info& info) {
    Result<uint64_t> domid = whole_number(info[1], "a domid", 1, 32751);
    if (!domid) return domid.error();
    Result<uint64_t> pages = whole_number(info[2], "the number of pages", 0, xen::mock::kMaxPages);
    if (!pages) return pages.error();
    if (!info[0].IsString() || !info[3].IsFunction() || !info[4].IsFunction()) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "a mock guest needs a socket path and two functions"};
    }
    return Guest::connect(info[0].As<Napi::String>().Utf8Value(),
                          static_cast<DomainId>(domid.value()),
                          static_cast<uint32_t>(pages.value()));
}

}  // namespace

Napi::Value connect_mock_guest(const Info& info) {
    Napi::Env env = info.Env();
    Result<std::unique_ptr<Guest>> guest = connect(info);
    auto state = std::make_shared<GuestState>();
    const Status started =
        guest ? state->start(env, std::move(guest).value(), info[3].As<Napi::Function>(),
                             info[4].As<Napi::Function>())
              : Status(guest.error());
    if (!started) {
        throw_error(env, started.error());
        return env.Undefined();
    }
    state->keep(env, state);
    Napi::Object object = Napi::Object::New(env);
    wrap<MockGuestHandle>(object, kMockGuestTag, state);
    object.Set("domid", Napi::Number::New(env, state->guest()->domain()));
    object.Set("memory", memory_buffer(env, *state->guest()));
    set_method(object, "grant", state, with_guest<grant>);
    set_method(object, "endAccess", state, with_guest<end_access>);
    set_method(object, "allocUnbound", state, with_guest<alloc_unbound>);
    set_method(object, "notify", state, with_guest<on_port<&Guest::notify>>);
    set_method(object, "unmask", state, with_guest<on_port<&Guest::unmask>>);
    set_method(object, "closePort", state, with_guest<on_port<&Guest::close_port>>);
    set_method(object, "runLoad", state,
               [](GuestState& self, const Info& call) { return self.run_load(call); });
    object.Set("close", Napi::Function::New(
                            env, [state](const Info&) { state->close(); }, "close"));
    return object;
}

}  // namespace vbd::node
