#include "node/mock_object.h"

#include <string>
#include <utility>

#include "node/closable.h"
#include "node/convert.h"
#include "node/dispatcher.h"
#include "node/mock_broker_object.h"
#include "node/mock_guest_object.h"
#include "node/mock_watcher.h"
#include "node/xen_handle.h"
#include "xen/mock_client.h"

namespace vbd::node {
namespace {

/// NativeXen. The watcher is there only for a caller that wants to know when the broker dies.
class XenState final : public Closable,
                       public XenHandle,
                       public std::enable_shared_from_this<XenState> {
  public:
    explicit XenState(std::shared_ptr<xen::MockXen> xen) : xen_(std::move(xen)) {}

    std::shared_ptr<xen::Xen> xen() const override { return xen_; }

    Status watch(Napi::Env env, Napi::Function on_close) {
        on_close_ = Napi::Persistent(on_close);
        dispatcher_ = Dispatcher::create(env, "vbdkit mock connection");
        const auto on_lost = [this] {
            dispatcher_->post([weak = weak_from_this()](Napi::Env) {
                if (const auto self = weak.lock()) self->lost();
            });
        };
        Result<std::unique_ptr<MockWatcher>> watcher =
            MockWatcher::start(xen_->connection_fd(), -1, {on_lost, {}});
        if (!watcher) {
            shut(false);
            return watcher.error();
        }
        watcher_ = std::move(watcher).value();
        return {};
    }

  private:
    void lost() {
        if (closed()) return;
        (void)xen_->connected();  // from now on every handle knows
        on_close_.Call({});
    }

    void shut(bool) override {
        watcher_.reset();
        if (dispatcher_) dispatcher_->close();
        on_close_.Reset();
        xen_.reset();
    }

    std::shared_ptr<xen::MockXen> xen_;
    std::shared_ptr<Dispatcher> dispatcher_;
    std::unique_ptr<MockWatcher> watcher_;
    Napi::FunctionReference on_close_;
};

Napi::Value connect_mock(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    Result<uint64_t> domid = whole_number(info[1], "a domid", 0, 32751);
    if (!domid || !info[0].IsString()) {
        throw_error(env, domid ? Error{ErrorKind::kInvalidArgument, 0, "a socket path is a string"}
                               : domid.error());
        return env.Undefined();
    }
    Result<std::unique_ptr<xen::MockXen>> xen = xen::MockXen::connect(
        info[0].As<Napi::String>().Utf8Value(), static_cast<DomainId>(domid.value()));
    if (!xen) {
        throw_error(env, xen.error());
        return env.Undefined();
    }
    auto state = std::make_shared<XenState>(std::move(xen).value());
    if (info[2].IsFunction()) {
        if (Status watched = state->watch(env, info[2].As<Napi::Function>()); !watched) {
            throw_error(env, watched.error());
            return env.Undefined();
        }
    }
    state->keep(env, state);
    Napi::Object object = Napi::Object::New(env);
    wrap<XenHandle>(object, kXenTag, state);
    object.Set("close",
               Napi::Function::New(env, [state](const Napi::CallbackInfo&) { state->close(); }));
    return object;
}

}  // namespace

void export_mock(Napi::Env env, Napi::Object exports) {
    exports.Set("connectMock", Napi::Function::New(env, connect_mock, "connectMock"));
    exports.Set("startMockBroker", Napi::Function::New(env, start_mock_broker, "startMockBroker"));
    exports.Set("connectMockGuest",
                Napi::Function::New(env, connect_mock_guest, "connectMockGuest"));
}

}  // namespace vbd::node
