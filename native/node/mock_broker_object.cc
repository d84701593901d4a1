#include "node/mock_broker_object.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "node/closable.h"
#include "node/convert.h"
#include "node/dispatcher.h"
#include "xen/mock_broker.h"

namespace vbd::node {
namespace {

using xen::mock::Fault;
using xen::mock::FaultCall;

constexpr uint64_t kMaxWord = 0xfffffffe;  // 0xffffffff means "any" or "for ever"

const char* name_of(xen::DomainEvent event) {
    switch (event) {
        case xen::DomainEvent::kCreated:
            return "created";
        case xen::DomainEvent::kDying:
            return "dying";
        case xen::DomainEvent::kDestroyed:
            return "destroyed";
    }
    return "destroyed";
}

class BrokerState final : public Closable, public std::enable_shared_from_this<BrokerState> {
  public:
    Status start(Napi::Env env, const std::string& path, Napi::Function on_domain) {
        dispatcher_ = Dispatcher::create(env, "vbdkit mock broker");
        const auto tell = [dispatcher = dispatcher_, weak = weak_from_this()](
                              xen::DomainEvent event, DomainId domain) {
            dispatcher->post([weak, event, domain](Napi::Env task_env) {
                if (const auto self = weak.lock()) self->tell(task_env, event, domain);
            });
        };
        Result<std::unique_ptr<xen::MockBroker>> broker = xen::MockBroker::start(path, tell);
        if (!broker) {
            dispatcher_->close();
            return broker.error();
        }
        broker_ = std::move(broker).value();
        on_domain_ = Napi::Persistent(on_domain);
        return {};
    }

    xen::MockBroker& broker() const { return *broker_; }

  private:
    void tell(Napi::Env env, xen::DomainEvent event, DomainId domain) {
        if (closed()) return;
        on_domain_.Call({Napi::String::New(env, name_of(event)), Napi::Number::New(env, domain)});
    }

    void shut(bool) override {
        broker_.reset();
        dispatcher_->close();
        on_domain_.Reset();
    }

    std::unique_ptr<xen::MockBroker> broker_;
    std::shared_ptr<Dispatcher> dispatcher_;
    Napi::FunctionReference on_domain_;
};

Result<FaultCall> call_of(Napi::Value value) {
    static constexpr std::pair<const char*, FaultCall> kNames[] = {
        {"map", FaultCall::kMap},       {"unmap", FaultCall::kUnmap},
        {"copy", FaultCall::kCopy},     {"bind", FaultCall::kBind},
        {"notify", FaultCall::kNotify}, {"alloc-unbound", FaultCall::kAllocUnbound},
    };
    const std::string name = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
    for (const auto& [known, call] : kNames) {
        if (name == known) return call;
    }
    return Error{ErrorKind::kInvalidArgument, 0,
                 "'" + name + "' is not a call that can be made to fail"};
}

/// One optional field of a rule.
template <typename T>
Status read_field(Napi::Object rule, const char* name, uint64_t max, T& target) {
    Napi::Value value = rule.Get(name);
    if (value.IsEmpty() || value.IsUndefined()) return {};
    Result<uint64_t> number = whole_number(value, name, 0, max);
    if (!number) return number.error();
    target = static_cast<T>(number.value());
    return {};
}

Result<Fault> fault_of(Napi::Value value) {
    if (!value.IsObject())
        return Error{ErrorKind::kInvalidArgument, 0, "a fault rule is an object"};
    Napi::Object rule = value.As<Napi::Object>();
    Result<FaultCall> call = call_of(rule.Get("call"));
    if (!call) return call.error();
    Fault fault;
    fault.call = call.value();
    Status status = read_field(rule, "domid", 0xffff, fault.domain);
    if (status) status = read_field(rule, "ref", kMaxWord, fault.ref);
    if (status) status = read_field(rule, "skip", kMaxWord, fault.skip);
    if (status) status = read_field(rule, "count", kMaxWord, fault.count);
    if (status) status = read_field(rule, "errno", 4095, fault.errno_code);
    if (status) status = read_field(rule, "delayMs", 60'000, fault.delay_ms);
    if (!status) return status.error();
    Napi::Value grant_status = rule.Get("status");
    if (grant_status.IsNumber()) {
        const double given = grant_status.As<Napi::Number>().DoubleValue();
        if (!(given >= -128 && given <= -1)) {
            return Error{ErrorKind::kInvalidArgument, 0, "a grant status that fails is -1 to -128"};
        }
        fault.status = static_cast<int16_t>(given);
    }
    return fault;
}

Result<std::vector<Fault>> faults_of(Napi::Value value) {
    if (!value.IsArray()) return Error{ErrorKind::kInvalidArgument, 0, "fault rules are an array"};
    Napi::Array rules = value.As<Napi::Array>();
    std::vector<Fault> faults;
    for (uint32_t i = 0; i < std::min(rules.Length(), xen::mock::kMaxFaults + 1); ++i) {
        Result<Fault> fault = fault_of(rules.Get(i));
        if (!fault) return fault.error();
        faults.push_back(fault.value());
    }
    return faults;
}

Napi::Value list_domains(Napi::Env env, xen::MockBroker& broker) {
    Napi::Array list = Napi::Array::New(env);
    uint32_t count = 0;
    for (const xen::DomainSummary& each : broker.domains()) {
        Napi::Object object = Napi::Object::New(env);
        object.Set("domid", Napi::Number::New(env, each.domain));
        object.Set("pages", Napi::Number::New(env, each.pages));
        object.Set("dying", Napi::Boolean::New(env, each.dying));
        object.Set("grantsMapped", Napi::Number::New(env, each.grants_mapped));
        object.Set("portsBound", Napi::Number::New(env, each.ports_bound));
        list.Set(count++, object);
    }
    return list;
}

Status create_domain(const BrokerState& state, const Napi::CallbackInfo& info) {
    Result<uint64_t> domid = whole_number(info[0], "a domid", 1, 32751);
    if (!domid) return domid.error();
    Result<uint64_t> pages = whole_number(info[1], "the number of pages", 1, xen::mock::kMaxPages);
    if (!pages) return pages.error();
    return state.broker().create_domain(static_cast<DomainId>(domid.value()),
                                        static_cast<uint32_t>(pages.value()));
}

Status destroy_domain(const BrokerState& state, const Napi::CallbackInfo& info) {
    Result<uint64_t> domid = whole_number(info[0], "a domid", 1, 32751);
    if (!domid) return domid.error();
    return state.broker().destroy_domain(static_cast<DomainId>(domid.value()));
}

Status set_faults(const BrokerState& state, const Napi::CallbackInfo& info) {
    Result<std::vector<Fault>> faults = faults_of(info[0]);
    if (!faults) return faults.error();
    return state.broker().set_faults(faults.value());
}

bool throw_if_closed(const BrokerState& state, Napi::Env env) {
    if (state.closed())
        throw_error(env, Error{ErrorKind::kInvalidArgument, 0, "the mock broker is closed"});
    return state.closed();
}

/// A method that succeeds without a value, or throws.
void set_method(Napi::Object object, const char* name, std::shared_ptr<BrokerState> state,
                Status (*method)(const BrokerState&, const Napi::CallbackInfo&)) {
    const auto call = [state = std::move(state), method](const Napi::CallbackInfo& info) {
        if (throw_if_closed(*state, info.Env())) return;
        const Status done = method(*state, info);
        if (!done) throw_error(info.Env(), done.error());
    };
    object.Set(name, Napi::Function::New(object.Env(), call, name));
}

}  // namespace

Napi::Value start_mock_broker(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!info[0].IsString() || !info[1].IsFunction()) {
        throw_error(env, Error{ErrorKind::kInvalidArgument, 0,
                               "a mock broker needs a socket path and a function"});
        return env.Undefined();
    }
    auto state = std::make_shared<BrokerState>();
    const Status started =
        state->start(env, info[0].As<Napi::String>().Utf8Value(), info[1].As<Napi::Function>());
    if (!started) {
        throw_error(env, started.error());
        return env.Undefined();
    }
    state->keep(env, state);
    Napi::Object object = Napi::Object::New(env);
    set_method(object, "createDomain", state, create_domain);
    set_method(object, "destroyDomain", state, destroy_domain);
    set_method(object, "setFaults", state, set_faults);
    const auto domains = [state](const Napi::CallbackInfo& call) -> Napi::Value {
        if (throw_if_closed(*state, call.Env())) return call.Env().Undefined();
        return list_domains(call.Env(), state->broker());
    };
    object.Set("domains", Napi::Function::New(env, domains, "domains"));
    object.Set("close",
               Napi::Function::New(env, [state](const Napi::CallbackInfo&) { state->close(); }));
    return object;
}

}  // namespace vbd::node
