// NativeEngine, NativeDisk, NativeVbd.
#include "node/engine_object.h"

#include <algorithm>

#include "engine/reactor_set.h"
#include "engine/vbd.h"
#include "node/client_object.h"
#include "node/convert.h"
#include "node/counters_object.h"
#include "node/disk_object.h"
#include "node/disk_spec.h"
#include "node/dispatcher.h"
#include "node/options.h"
#include "node/script_object.h"
#include "node/task.h"
#include "node/trace_object.h"
#include "node/xen_handle.h"
#include "stages/open_disk.h"

namespace vbd::node {

namespace {

/// Shared by the JavaScript objects of one engine; the clean-up hook and close() stop it, whichever
/// comes first.
struct EngineState {
    std::shared_ptr<xen::Xen> xen;
    engine::ReactorSet reactors;
    stages::RateGroups rate_groups;
    std::vector<std::weak_ptr<engine::Vbd>> vbds;
    std::vector<std::weak_ptr<DiskState>> disks;
    std::shared_ptr<Dispatcher> dispatcher;
    bool left = false;  // JavaScript thread

    explicit EngineState(engine::ReactorSet set) : reactors(std::move(set)) {}
    ~EngineState() { stop(); }

    bool stopped() const { return reactors.stopped(); }

    // Joins every thread; no callback comes after it.
    void stop() {
        reactors.stop();
        if (dispatcher) dispatcher->close();
        xen.reset();  // now, and not when JavaScript has collected the engine
    }

    // The environment ends: nobody closes what is open any more, and what JavaScript objects hold is not
    // given back where one of them was being made.
    void leave() {
        left = true;
        stop();
        for (auto& weak : disks) {
            if (auto disk = weak.lock()) disk->device.reset();
        }
    }

    std::vector<std::shared_ptr<engine::Vbd>> live_vbds() {
        std::vector<std::shared_ptr<engine::Vbd>> live;
        std::erase_if(vbds, [&](auto& weak) {
            auto vbd = weak.lock();
            if (vbd) live.push_back(std::move(vbd));
            return weak.expired();
        });
        return live;
    }
};

/// A JavaScript function that reactors have called; touched on the JavaScript thread only.
struct Callback {
    Napi::FunctionReference function;
};

// ---- disks

Napi::Object add_disk(const std::shared_ptr<EngineState>& engine, Napi::Env env,
                      std::unique_ptr<block::Device> device) {
    auto state = std::make_shared<DiskState>();
    state->device = std::move(device);
    engine->disks.push_back(state);
    return disk_object(env, state);
}

Napi::Value open_disk(const std::shared_ptr<EngineState>& engine, const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    auto spec = disk_spec_of(info[0]);
    if (!spec) {
        throw_error(env, spec.error());
        return env.Undefined();
    }
    auto opened = std::make_shared<std::unique_ptr<block::Device>>();
    auto work = [engine, opened, disk = std::move(spec).value()]() -> Status {
        auto device = stages::open_disk(disk, engine->rate_groups);
        if (!device) return device.error();
        *opened = std::move(device).value();
        return {};
    };
    return Task::run(env, work, [engine, opened](Napi::Env task_env) -> Napi::Value {
        if (engine->left) opened->reset();
        return add_disk(engine, task_env, std::move(*opened));
    });
}

Napi::Value open_script(const std::shared_ptr<EngineState>& engine,
                        const Napi::CallbackInfo& info) {
    auto device = script_device_of(info[0], info[1], engine->dispatcher);
    if (!device) {
        throw_error(info.Env(), device.error());
        return info.Env().Undefined();
    }
    Napi::Object object = add_disk(engine, info.Env(), std::move(device.value().device));
    set_number(object, "channel", device.value().channel);
    return object;
}

// ---- vbds

struct VbdState {
    std::shared_ptr<EngineState> engine;
    std::shared_ptr<engine::Vbd> vbd;  // null: closed
    std::shared_ptr<Callback> on_event;
};

Napi::Object event_object(Napi::Env env, const engine::Event& event) {
    bool corrupt = event.type == engine::Event::Type::kRingCorrupt;
    Napi::Object object = Napi::Object::New(env);
    object.Set("type", corrupt ? "ring-corrupt" : "flush-failed");
    if (corrupt) set_number(object, "queue", event.queue);
    object.Set("message", event.message);
    return object;
}

void apply_tunables(const std::shared_ptr<EngineState>& engine, engine::Tunables* vbd,
                    Napi::Object given) {
    auto number = [&](const char* name) -> std::optional<double> {
        Napi::Value value = given.Get(name);
        if (!value.IsNumber()) return std::nullopt;
        return std::max(0.0, value.As<Napi::Number>().DoubleValue());
    };
    if (auto poll_us = number("pollUs"))
        engine->reactors.set_poll_us(static_cast<uint32_t>(*poll_us));
    if (auto pages = number("maxBufferPages"))
        engine->reactors.set_max_buffer_pages(static_cast<uint32_t>(*pages));
    if (!vbd) return;
    if (auto cap = number("maxPersistentGrants"))
        vbd->max_persistent_grants = static_cast<uint32_t>(*cap);
    if (auto seconds = number("persistentGrantIdleSeconds")) {
        vbd->persistent_idle_ms = static_cast<uint32_t>(std::min(*seconds, 4'000'000.0) * 1000);
    }
    if (auto bytes = number("maxInFlightBytes"))
        vbd->max_in_flight_bytes = static_cast<uint64_t>(*bytes);
}

Napi::Value connect_vbd(const std::shared_ptr<VbdState>& state, const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!state->vbd || state->engine->stopped()) return throw_closed(env, "the vbd");
    auto spec = connection_of(info[0]);
    if (!spec) {
        throw_error(env, spec.error());
        return env.Undefined();
    }
    const bool apart = info[0].As<Napi::Object>().Get("apart").ToBoolean();
    auto reactors =
        state->engine->reactors.of_guest(spec.value().domain, spec.value().rings.size(), apart);
    if (!reactors) {
        throw_error(env, reactors.error());
        return env.Undefined();
    }
    auto deferred = Napi::Promise::Deferred::New(env);
    auto dispatcher = state->engine->dispatcher;
    dispatcher->hold();
    state->vbd->connect(spec.value(), state->engine->xen, reactors.value(),
                        [dispatcher, deferred](Result<memory::Strategy> outcome) {
                            dispatcher->post([dispatcher, deferred,
                                              outcome = std::move(outcome)](Napi::Env task_env) {
                                dispatcher->let_go();
                                if (!outcome)
                                    return deferred.Reject(error_value(task_env, outcome.error()));
                                Napi::Object result = Napi::Object::New(task_env);
                                result.Set("transfer", name_of(outcome.value()));
                                deferred.Resolve(result);
                            });
                        });
    return deferred.Promise();
}

Napi::Value disconnect_vbd(const std::shared_ptr<VbdState>& state, Napi::Env env) {
    auto deferred = Napi::Promise::Deferred::New(env);
    if (!state->vbd || state->engine->stopped()) {
        deferred.Resolve(Napi::Boolean::New(env, false));
        return deferred.Promise();
    }
    auto dispatcher = state->engine->dispatcher;
    dispatcher->hold();
    auto engine = std::weak_ptr(state->engine);
    auto vbd = std::weak_ptr(state->vbd);
    state->vbd->disconnect([dispatcher, deferred, engine, vbd] {
        dispatcher->post([dispatcher, deferred, engine, vbd](Napi::Env task_env) {
            dispatcher->let_go();
            if (auto alive = engine.lock()) alive->reactors.drop_idle();
            auto left = vbd.lock();
            deferred.Resolve(Napi::Boolean::New(task_env, left && left->drained()));
        });
    });
    return deferred.Promise();
}

/// What may be asked of a vbd besides its connection: another disk, and a trace.
void set_live_methods(Napi::Env env, Napi::Object object, const std::shared_ptr<VbdState>& state) {
    object.Set("useDisk", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   auto disk = disk_of(call[0]);
                   if (!state->vbd || !disk || !disk->device) {
                       throw_closed(call.Env(), "the disk or the vbd");
                       return;
                   }
                   Status status = state->vbd->use_device(disk->device);
                   if (!status) throw_error(call.Env(), status.error());
               }));
    object.Set("trace", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   if (state->vbd) state->vbd->trace(call[0].ToBoolean());
               }));
    object.Set("takeTrace",
               Napi::Function::New(env, [state](const Napi::CallbackInfo& call) -> Napi::Value {
                   if (!state->vbd) return throw_closed(call.Env(), "the vbd");
                   return take_trace(call.Env(), *state->vbd);
               }));
}

Napi::Value create_vbd(const std::shared_ptr<EngineState>& engine, const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (engine->stopped()) return throw_closed(env, "the engine");
    auto disk = disk_of(info[1]);
    if (!disk || !disk->device) return throw_closed(env, "the disk");
    auto state = std::make_shared<VbdState>();
    state->engine = engine;
    state->on_event = std::make_shared<Callback>();
    state->on_event->function = Napi::Persistent(info[4].As<Napi::Function>());
    auto on_event = [dispatcher = std::weak_ptr(engine->dispatcher),
                     callback = std::weak_ptr(state->on_event)](engine::Event event) {
        auto bell = dispatcher.lock();
        if (!bell) return;
        bell->post([callback, event = std::move(event)](Napi::Env task_env) {
            auto target = callback.lock();
            if (target) target->function.Call({event_object(task_env, event)});
        });
    };
    state->vbd = engine::Vbd::create(info[0].As<Napi::String>().Utf8Value(), disk->device,
                                     features_of(info[2].As<Napi::Object>()), std::move(on_event));
    apply_tunables(engine, &state->vbd->tunables(), info[3].As<Napi::Object>());
    engine->vbds.push_back(state->vbd);

    Napi::Object object = Napi::Object::New(env);
    set_live_methods(env, object, state);
    object.Set("connect", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   return connect_vbd(state, call);
               }));
    object.Set("disconnect", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   return disconnect_vbd(state, call.Env());
               }));
    object.Set("tune", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   if (state->vbd)
                       apply_tunables(state->engine, &state->vbd->tunables(),
                                      call[0].As<Napi::Object>());
               }));
    object.Set("counters",
               Napi::Function::New(env, [state](const Napi::CallbackInfo& call) -> Napi::Value {
                   if (!state->vbd) return throw_closed(call.Env(), "the vbd");
                   PoolPages pool;
                   state->engine->reactors.each([&pool](const engine::ReactorSet::Member& member) {
                       pool.in_use += member.reactor->pool_pages_in_use();
                       pool.free += member.reactor->pool_pages_free();
                   });
                   return counters_object(call.Env(), *state->vbd, pool);
               }));
    object.Set("close", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   Napi::Value gone = disconnect_vbd(state, call.Env());
                   state->vbd.reset();  // reactors keep it until the last ring is closed
                   return gone;
               }));
    return object;
}

// ---- the engine

Napi::Value close_engine(const std::shared_ptr<EngineState>& engine, Napi::Env env) {
    auto deferred = Napi::Promise::Deferred::New(env);
    if (engine->stopped()) {
        deferred.Resolve(env.Undefined());
        return deferred.Promise();
    }
    auto vbds = engine->live_vbds();
    auto left = std::make_shared<std::atomic<size_t>>(vbds.size() + 1);
    engine->dispatcher->hold();
    auto one_done = [engine, deferred, left] {
        if (left->fetch_sub(1) > 1) return;
        engine->dispatcher->post([engine, deferred](Napi::Env task_env) {
            engine->dispatcher->let_go();
            deferred.Resolve(task_env.Undefined());
            engine->stop();
        });
    };
    for (auto& vbd : vbds) vbd->disconnect(one_done);
    one_done();
    return deferred.Promise();
}

Napi::Value resources(const std::shared_ptr<EngineState>& engine, Napi::Env env) {
    Napi::Object object = Napi::Object::New(env);
    set_number(object, "reactors", static_cast<double>(engine->reactors.size()));
    set_number(object, "vbds", static_cast<double>(engine->live_vbds().size()));
    std::erase_if(engine->disks, [](auto& weak) {
        auto disk = weak.lock();
        return !disk || !disk->device;
    });
    set_number(object, "disks", static_cast<double>(engine->disks.size()));
    return object;
}

// An idle reactor sleeps without a beat: each call wakes all of them, so that the next call finds
// every healthy one further on.
Napi::Value heartbeats(const std::shared_ptr<EngineState>& engine, Napi::Env env) {
    Napi::Array beats = Napi::Array::New(env);
    engine->reactors.each([&](const engine::ReactorSet::Member& member) {
        Napi::Object object = Napi::Object::New(env);
        set_number(object, "id", static_cast<double>(member.id));
        object.Set("name", member.reactor->name());
        set_number(object, "beats", static_cast<double>(member.reactor->heartbeat()));
        object.Set("inGuestCall", member.reactor->in_guest_call());
        beats.Set(beats.Length(), object);
        member.reactor->mailbox().wake();
    });
    return beats;
}

Napi::Value create_engine(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    Napi::Object options = info[0].As<Napi::Object>();
    auto xen = xen_of(options.Get("xen"));
    if (!xen) return throw_closed(env, "the Xen connection");
    engine::ReactorSet::Options set;
    set.name = options.Get("name").As<Napi::String>().Utf8Value();
    set.count = std::max(1u, options.Get("reactors").As<Napi::Number>().Uint32Value());
    const bool own = options.Get("placement").ToString().Utf8Value() == "guest";
    set.placement = own ? engine::Placement::kGuest : engine::Placement::kShared;
    auto reactors = engine::ReactorSet::start(set);
    if (!reactors) {
        throw_error(env, reactors.error());
        return env.Undefined();
    }
    auto state = std::make_shared<EngineState>(std::move(reactors).value());
    state->xen = std::move(xen);
    apply_tunables(state, nullptr, options.Get("tunables").As<Napi::Object>());
    state->dispatcher = Dispatcher::create(env, "vbdkit engine");
    // After the doorbell, so that it runs before the doorbell goes: hooks run last in, first out.
    env.AddCleanupHook([weak = std::weak_ptr(state)] {
        if (auto engine = weak.lock()) engine->leave();
    });

    Napi::Object object = Napi::Object::New(env);
    object.Set("openDisk", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   return open_disk(state, call);
               }));
    object.Set("openClient", Napi::Function::New(env, open_client));
    object.Set("openScript", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   return open_script(state, call);
               }));
    object.Set("createVbd", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   return create_vbd(state, call);
               }));
    object.Set("tune", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   apply_tunables(state, nullptr, call[0].As<Napi::Object>());
               }));
    object.Set("resources", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   return resources(state, call.Env());
               }));
    object.Set("heartbeats", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   return heartbeats(state, call.Env());
               }));
    object.Set("close", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   return close_engine(state, call.Env());
               }));
    return object;
}

}  // namespace

void export_engine(Napi::Env env, Napi::Object exports) {
    exports.Set("createEngine", Napi::Function::New(env, create_engine));
}

}  // namespace vbd::node
