#include "node/disk_object.h"

#include <string>

#include "node/convert.h"
#include "node/wrap.h"

namespace vbd::node {

namespace {

constexpr napi_type_tag kDiskTag = {0x7662646b69740001, 0xd15c};

}  // namespace

void set_number(Napi::Object object, const char* name, double value) {
    object.Set(name, Napi::Number::New(object.Env(), value));
}

Napi::Object disk_info(Napi::Env env, const block::Device& device) {
    const block::Geometry& geometry = device.geometry();
    Napi::Object info = Napi::Object::New(env);
    set_number(info, "sizeBytes", static_cast<double>(device.size_bytes()));
    set_number(info, "sectorSize", geometry.sector_size);
    set_number(info, "physicalSectorSize", geometry.physical_sector_size);
    info.Set("readOnly", geometry.read_only);
    info.Set("canFlush", geometry.can_flush);
    info.Set("canDiscard", geometry.can_discard);
    info.Set("canSecureDiscard", geometry.can_secure_discard);
    set_number(info, "discardGranularity", geometry.discard_granularity);
    set_number(info, "discardAlignment", geometry.discard_alignment);
    info.Set("description", geometry.description);
    return info;
}

Napi::Value throw_closed(Napi::Env env, const char* what) {
    throw_error(env, Error{ErrorKind::kInvalidArgument, 0, std::string(what) + " is closed"});
    return env.Undefined();
}

Napi::Object disk_object(Napi::Env env, const std::shared_ptr<DiskState>& state) {
    Napi::Object object = Napi::Object::New(env);
    wrap(object, kDiskTag, state);
    object.Set("info",
               Napi::Function::New(env, [state](const Napi::CallbackInfo& call) -> Napi::Value {
                   if (!state->device) return throw_closed(call.Env(), "the disk");
                   return disk_info(call.Env(), *state->device);
               }));
    object.Set("resize",
               Napi::Function::New(env, [state](const Napi::CallbackInfo& call) -> Napi::Value {
                   if (!state->device) return throw_closed(call.Env(), "the disk");
                   Status status = state->device->resize(
                       static_cast<uint64_t>(call[0].As<Napi::Number>().Int64Value()));
                   if (!status) {
                       throw_error(call.Env(), status.error());
                       return call.Env().Undefined();
                   }
                   return disk_info(call.Env(), *state->device);
               }));
    object.Set("close", Napi::Function::New(
                            env, [state](const Napi::CallbackInfo&) { state->device.reset(); }));
    return object;
}

std::shared_ptr<DiskState> disk_of(Napi::Value value) {
    return unwrap<DiskState>(value, kDiskTag);
}

}  // namespace vbd::node
