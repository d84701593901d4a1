#include "node/xenbus_object.h"

#include <memory>
#include <utility>

#include "node/closable.h"
#include "node/convert.h"
#include "node/dispatcher.h"
#include "node/xenbus_device.h"

namespace vbd::node {
namespace {

using Bytes = XenbusDevice::Bytes;

Napi::Value buffer_of(Napi::Env env, const Bytes& bytes) {
    return Napi::Buffer<uint8_t>::Copy(env, bytes.data(), bytes.size());
}

/// Keeps the process alive while it is open, as a socket would.
class XenbusState final : public Closable, public std::enable_shared_from_this<XenbusState> {
  public:
    Status open(Napi::Env env, const std::string& path) {
        dispatcher_ = Dispatcher::create(env, "vbdkit xenbus");
        // The threads may outlive this object: they know it by a weak pointer only.
        const auto post = [bell = dispatcher_, weak = weak_from_this()](auto task) {
            bell->post([weak, task = std::move(task)](Napi::Env task_env) {
                const auto self = weak.lock();
                if (self && !self->closed()) task(*self, task_env);
            });
        };
        XenbusDevice::Callbacks callbacks;
        callbacks.on_data = [post] {
            post([](XenbusState& self, Napi::Env task_env) {
                self.on_data_.Call({buffer_of(task_env, self.device_->take())});
            });
        };
        callbacks.on_refused = [post](Bytes packet, int code) {
            post([packet = std::move(packet), code](XenbusState& self, Napi::Env task_env) {
                self.on_refused_.Call(
                    {buffer_of(task_env, packet), Napi::Number::New(task_env, code)});
            });
        };
        callbacks.on_lost = [post](int code) {
            post([code](XenbusState& self, Napi::Env task_env) {
                self.on_lost_.Call({Napi::Number::New(task_env, code)});
            });
        };
        auto device = XenbusDevice::open(path, std::move(callbacks));
        if (!device) {
            dispatcher_->close();
            return device.error();
        }
        device_ = std::move(device).value();
        dispatcher_->hold();
        return {};
    }

    void listen(Napi::Function on_data, Napi::Function on_refused, Napi::Function on_lost) {
        on_data_ = Napi::Persistent(on_data);
        on_refused_ = Napi::Persistent(on_refused);
        on_lost_ = Napi::Persistent(on_lost);
    }

    void write(const Napi::CallbackInfo& info) {
        if (!info[0].IsTypedArray()) {
            throw_error(info.Env(), Error{ErrorKind::kInvalidArgument, 0, "a packet is bytes"});
            return;
        }
        if (closed()) return;  // as a socket that was destroyed
        const auto bytes = info[0].As<Napi::Uint8Array>();
        device_->write(Bytes(bytes.Data(), bytes.Data() + bytes.ByteLength()));
    }

  private:
    void shut(bool leaving) override {
        device_.reset();
        if (!leaving) dispatcher_->let_go();
        dispatcher_->close();
        on_data_.Reset();
        on_refused_.Reset();
        on_lost_.Reset();
    }

    std::shared_ptr<Dispatcher> dispatcher_;
    std::unique_ptr<XenbusDevice> device_;
    Napi::FunctionReference on_data_;
    Napi::FunctionReference on_refused_;
    Napi::FunctionReference on_lost_;
};

}  // namespace

Napi::Value open_xenbus_device(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    if (!info[0].IsString() || !info[1].IsFunction() || !info[2].IsFunction() ||
        !info[3].IsFunction()) {
        throw_error(env, Error{ErrorKind::kInvalidArgument, 0,
                               "a xenbus device needs a path and three functions"});
        return env.Undefined();
    }
    auto state = std::make_shared<XenbusState>();
    state->listen(info[1].As<Napi::Function>(), info[2].As<Napi::Function>(),
                  info[3].As<Napi::Function>());
    if (Status opened = state->open(env, info[0].As<Napi::String>().Utf8Value()); !opened) {
        throw_error(env, opened.error());
        return env.Undefined();
    }
    state->keep(env, state);
    Napi::Object object = Napi::Object::New(env);
    object.Set("write",
               Napi::Function::New(
                   env, [state](const Napi::CallbackInfo& call) { state->write(call); }, "write"));
    object.Set("close", Napi::Function::New(
                            env, [state](const Napi::CallbackInfo&) { state->close(); }, "close"));
    return object;
}

}  // namespace vbd::node
