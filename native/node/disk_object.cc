#include "node/disk_object.h"

#include <cstring>
#include <functional>
#include <string>
#include <utility>

#include "block/blocking_io.h"
#include "node/convert.h"
#include "node/disk_spec.h"
#include "node/task.h"
#include "node/wrap.h"
#include "stages/open_disk.h"
#include "stages/overlay_layers.h"

namespace vbd::node {

namespace {

constexpr napi_type_tag kDiskTag = {0x7662646b69740001, 0xd15c};
constexpr uint64_t kMaxReadBytes = 64 << 20;
constexpr uint32_t kMaxStages = 4096;

using Device = block::Device;

Napi::Object info_of(Napi::Env env, const Device& device) {
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

Napi::Value refuse(Napi::Env env, const Error& error) {
    throw_error(env, error);
    return env.Undefined();
}

/// The device and all below it, outermost first: as stagesOf() of lib/disk/spec.ts counts.
void collect(Device* device, std::vector<Device*>& all) {
    all.push_back(device);
    for (Device* below : device->below()) collect(below, all);
}

Result<Device*> stage_at(Device& device, Napi::Value index) {
    auto wanted = whole_number(index, "the number of a stage", 0, kMaxStages);
    if (!wanted) return wanted.error();
    std::vector<Device*> all;
    collect(&device, all);
    if (wanted.value() < all.size()) return all[wanted.value()];
    return Error{ErrorKind::kInvalidArgument, 0, "the disk has no such stage"};
}

Napi::Value stages(Napi::Env env, Device& device) {
    std::vector<Device*> all;
    collect(&device, all);
    Napi::Array list = Napi::Array::New(env, all.size());
    for (uint32_t i = 0; i < all.size(); i++) {
        Napi::Object stage = Napi::Object::New(env), values = Napi::Object::New(env);
        stage.Set("kind", all[i]->kind());
        all[i]->report([&](const char* name, double value) { set_number(values, name, value); });
        stage.Set("values", values);
        list.Set(i, stage);
    }
    return list;
}

Napi::Value tune_stage(Device& device, const Napi::CallbackInfo& call) {
    auto stage = stage_at(device, call[0]);
    if (!stage) return refuse(call.Env(), stage.error());
    Status tuned = stage.value()->tune(call[1].As<Napi::String>().Utf8Value(),
                                       call[2].As<Napi::Number>().DoubleValue());
    if (!tuned) return refuse(call.Env(), tuned.error());
    return call.Env().Undefined();
}

/// Seven numbers a record: see NativeDisk.takeRecords.
Napi::Value take_records(Device& device, const Napi::CallbackInfo& call) {
    auto stage = stage_at(device, call[0]);
    if (!stage) return refuse(call.Env(), stage.error());
    std::vector<block::IoRecord> records;
    const uint64_t lost = stage.value()->take_records(records);
    auto numbers = Napi::Float64Array::New(call.Env(), records.size() * 7);
    size_t at = 0;
    for (const block::IoRecord& record : records) {
        for (double value :
             {static_cast<double>(record.started_ns), static_cast<double>(record.elapsed_ns),
              static_cast<double>(record.op), static_cast<double>(record.offset),
              static_cast<double>(record.length), static_cast<double>(record.error),
              record.fua ? 1.0 : 0.0}) {
            numbers[at++] = value;
        }
    }
    Napi::Object result = Napi::Object::New(call.Env());
    result.Set("records", numbers);
    set_number(result, "lost", static_cast<double>(lost));
    return result;
}

Napi::Value read_bytes(const std::shared_ptr<Device>& device, const Napi::CallbackInfo& call) {
    auto offset = whole_number(call[0], "the offset", 0, INT64_MAX);
    if (!offset) return refuse(call.Env(), offset.error());
    auto length = whole_number(call[1], "the length", 1, kMaxReadBytes);
    if (!length) return refuse(call.Env(), length.error());
    const uint64_t sector = device->geometry().sector_size;
    if (offset.value() % sector != 0 || length.value() % sector != 0 ||
        offset.value() + length.value() > device->size_bytes()) {
        return refuse(call.Env(), {ErrorKind::kInvalidArgument, 0,
                                   "a read of whole sectors inside the disk was expected"});
    }
    auto bytes = std::make_shared<block::PageBuffer>(length.value());
    auto work = [device, bytes, at = offset.value()]() -> Status {
        auto io = block::BlockingIo::open(*device);
        if (!io) return io.error();
        const int32_t error = io.value()->read(at, bytes->data(), bytes->size());
        if (error) return system_error(ErrorKind::kBacking, error, "reading the disk");
        return {};
    };
    return Task::run(call.Env(), work, [bytes](Napi::Env env) -> Napi::Value {
        return Napi::Buffer<uint8_t>::Copy(env, bytes->data(), bytes->size());
    });
}

Napi::Value flush(const std::shared_ptr<Device>& device, const Napi::CallbackInfo& call) {
    auto work = [device]() -> Status {
        auto io = block::BlockingIo::open(*device);
        if (!io) return io.error();
        const int32_t error = io.value()->flush();
        if (error) return system_error(ErrorKind::kBacking, error, "flushing the disk");
        return {};
    };
    return Task::run(call.Env(), work, [](Napi::Env env) { return env.Undefined(); });
}

Napi::Value resize(const std::shared_ptr<Device>& device, const Napi::CallbackInfo& call) {
    auto size = whole_number(call[0], "the size", 1, INT64_MAX);
    if (!size) return refuse(call.Env(), size.error());
    auto work = [device, size_bytes = size.value()] { return device->resize(size_bytes); };
    return Task::run(call.Env(), work,
                     [device](Napi::Env env) -> Napi::Value { return info_of(env, *device); });
}

Napi::Value close(const std::shared_ptr<DiskState>& state, Napi::Env env) {
    auto work = [device = std::move(state->device)]() -> Status {
        return device ? device->close() : Status{};
    };
    return Task::run(env, work, [](Napi::Env task_env) { return task_env.Undefined(); });
}

Napi::Value overlay_layers(const Napi::CallbackInfo& call) {
    auto layers = stages::overlay_layers(call[0].As<Napi::String>().Utf8Value());
    if (!layers) return refuse(call.Env(), layers.error());
    return Napi::Number::New(call.Env(), layers.value());
}

/// What is below is opened for a commit alone.
Status commit_overlay(const stages::OverlayOptions& options, const stages::DiskSpec& below) {
    stages::RateGroups groups;
    auto base = stages::open_disk(below, groups);
    if (!base) return base.error();
    if (base.value()->geometry().read_only) {
        return Error{ErrorKind::kBacking, EROFS, "the disk below the overlay cannot be written"};
    }
    Status done = stages::commit_overlay(options, *base.value());
    Status closed = base.value()->close();
    return done ? closed : done;
}

Napi::Value change_overlay(const Napi::CallbackInfo& call) {
    const std::string act = call[0].As<Napi::String>().Utf8Value();
    auto spec = disk_spec_of(call[1]);
    if (!spec) return refuse(call.Env(), spec.error());
    if (!std::holds_alternative<stages::OverlayOptions>(spec.value().stage)) {
        return refuse(call.Env(), {ErrorKind::kInvalidArgument, 0, "an overlay was expected"});
    }
    auto layer = std::make_shared<std::string>();
    auto work = [act, layer, disk = std::move(spec).value()]() -> Status {
        const auto& options = std::get<stages::OverlayOptions>(disk.stage);
        if (act == "commit") return commit_overlay(options, disk.bases.front());
        if (act == "reset") return stages::reset_overlay(options);
        auto made = stages::snapshot_overlay(options);
        if (!made) return made.error();
        *layer = made.value();
        return {};
    };
    return Task::run(call.Env(), work, [layer](Napi::Env env) -> Napi::Value {
        return Napi::String::New(env, *layer);
    });
}

}  // namespace

void export_overlays(Napi::Env env, Napi::Object exports) {
    exports.Set("overlayLayers", Napi::Function::New(env, overlay_layers));
    exports.Set("changeOverlay", Napi::Function::New(env, change_overlay));
}

void set_number(Napi::Object object, const char* name, double value) {
    object.Set(name, Napi::Number::New(object.Env(), value));
}

Napi::Object disk_info(Napi::Env env, const block::Device& device) {
    return info_of(env, device);
}

Napi::Value throw_closed(Napi::Env env, const char* what) {
    return refuse(env, {ErrorKind::kInvalidArgument, 0, std::string(what) + " is closed"});
}

Napi::Object disk_object(Napi::Env env, const std::shared_ptr<DiskState>& state) {
    Napi::Object object = Napi::Object::New(env);
    wrap(object, kDiskTag, state);
    using Act = std::function<Napi::Value(const std::shared_ptr<Device>&, const Napi::CallbackInfo&)>;
    auto method = [&](const char* name, Act act) {
        object.Set(name, Napi::Function::New(
                             env, [state, act](const Napi::CallbackInfo& call) -> Napi::Value {
                                 if (state->device) return act(state->device, call);
                                 return throw_closed(call.Env(), "the disk");
                             }));
    };
    method("info", [](const auto& device, const auto& call) -> Napi::Value {
        return info_of(call.Env(), *device);
    });
    method("resize", resize);
    method("stages",
           [](const auto& device, const auto& call) { return stages(call.Env(), *device); });
    method("tuneStage",
           [](const auto& device, const auto& call) { return tune_stage(*device, call); });
    method("takeRecords",
           [](const auto& device, const auto& call) { return take_records(*device, call); });
    method("read", read_bytes);
    method("flush", flush);
    object.Set("close", Napi::Function::New(env, [state](const Napi::CallbackInfo& call) {
                   return close(state, call.Env());
               }));
    return object;
}

std::shared_ptr<DiskState> disk_of(Napi::Value value) {
    return unwrap<DiskState>(value, kDiskTag);
}

}  // namespace vbd::node
