#include "node/host_object.h"

#include <memory>
#include <utility>

#include "node/closable.h"
#include "node/convert.h"
#include "node/dispatcher.h"
#include "node/notify_object.h"
#include "node/xen_handle.h"
#include "node/xenbus_object.h"
#include "xen/host_xen.h"

namespace vbd::node {
namespace {

/// NativeXen. Handles that are still in use go on without it.
class HostState final : public Closable,
                        public XenHandle,
                        public std::enable_shared_from_this<HostState> {
  public:
    Status open(Napi::Env env, Napi::Value on_slow) {
        xen::host::OnSlowCall slow;
        if (on_slow.IsFunction()) {
            on_slow_ = Napi::Persistent(on_slow.As<Napi::Function>());
            dispatcher_ = Dispatcher::create(env, "vbdkit xen");
            slow = [bell = dispatcher_, weak = weak_from_this()](DomainId domain, uint64_t ns) {
                bell->post([weak, domain, ns](Napi::Env task_env) {
                    const auto self = weak.lock();
                    if (self && !self->closed()) self->tell(task_env, domain, ns);
                });
            };
        }
        auto xen = xen::HostXen::open(std::move(slow));
        if (!xen) {
            if (dispatcher_) dispatcher_->close();
            return xen.error();
        }
        xen_ = std::move(xen).value();
        return {};
    }

    std::shared_ptr<xen::Xen> xen() const override { return xen_; }

  private:
    void tell(Napi::Env env, DomainId domain, uint64_t elapsed_ns) {
        on_slow_.Call({Napi::Number::New(env, domain),
                       Napi::Number::New(env, static_cast<double>(elapsed_ns) / 1e6)});
    }

    void shut(bool) override {
        if (dispatcher_) dispatcher_->close();
        on_slow_.Reset();
        xen_.reset();
    }

    std::shared_ptr<xen::HostXen> xen_;
    std::shared_ptr<Dispatcher> dispatcher_;
    Napi::FunctionReference on_slow_;
};

Napi::Value open_host_xen(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    auto state = std::make_shared<HostState>();
    if (Status opened = state->open(env, info[0]); !opened) {
        throw_error(env, opened.error());
        return env.Undefined();
    }
    state->keep(env, state);
    Napi::Object object = Napi::Object::New(env);
    wrap<XenHandle>(object, kXenTag, state);
    object.Set("close", Napi::Function::New(
                            env, [state](const Napi::CallbackInfo&) { state->close(); }, "close"));
    return object;
}

Napi::Array strings(Napi::Env env, const std::vector<std::string>& list) {
    Napi::Array array = Napi::Array::New(env, list.size());
    for (uint32_t i = 0; i < list.size(); ++i) array.Set(i, Napi::String::New(env, list[i]));
    return array;
}

Napi::Object library_object(Napi::Env env, const xen::host::LibraryReport& library) {
    Napi::Object object = Napi::Object::New(env);
    object.Set("soname", library.soname);
    object.Set("path", library.path);
    object.Set("error", library.error);
    object.Set("missing", strings(env, library.missing));
    return object;
}

Napi::Value probe_host(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    const xen::HostReport report = xen::probe_host();
    Napi::Array devices = Napi::Array::New(env, report.devices.size());
    for (uint32_t i = 0; i < report.devices.size(); ++i) {
        Napi::Object device = Napi::Object::New(env);
        device.Set("path", report.devices[i].path);
        device.Set("errno", report.devices[i].errno_code);
        devices.Set(i, device);
    }
    Napi::Object object = Napi::Object::New(env);
    object.Set("gnttab", library_object(env, report.gnttab));
    object.Set("evtchn", library_object(env, report.evtchn));
    object.Set("devices", devices);
    object.Set("grantCopy", report.grant_copy);
    object.Set("smallPages", report.small_pages);
    object.Set("problems", strings(env, report.problems()));
    return object;
}

}  // namespace

void export_host(Napi::Env env, Napi::Object exports) {
    exports.Set("openHostXen", Napi::Function::New(env, open_host_xen, "openHostXen"));
    exports.Set("probeHost", Napi::Function::New(env, probe_host, "probeHost"));
    exports.Set("openXenbusDevice",
                Napi::Function::New(env, open_xenbus_device, "openXenbusDevice"));
    exports.Set("sdNotify", Napi::Function::New(env, sd_notify, "sdNotify"));
}

}  // namespace vbd::node
