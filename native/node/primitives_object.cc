#include "node/primitives_object.h"

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "node/convert.h"
#include "node/disk_object.h"
#include "node/disk_spec.h"
#include "node/mapped_grants.h"
#include "node/primitives.h"
#include "node/xen_handle.h"

namespace vbd::node {
namespace {

using Info = Napi::CallbackInfo;

constexpr uint32_t kMaxArenaPages = 1u << 20;
constexpr uint32_t kCopyWords = 4;  // ref, offset in the guest's page, length, offset in the arena

Napi::Value fail(const Info& info, const Error& error) {
    throw_error(info.Env(), error);
    return info.Env().Undefined();
}

Napi::Value nonsense(const Info& info, const char* what) {
    return fail(info, Error{ErrorKind::kInvalidArgument, 0, std::string(what) + " makes no sense"});
}

/// The first `count` elements of a typed array; none where it is of another type, or shorter.
template <typename T>
std::span<T> elements(Napi::Value value, napi_typedarray_type wanted, size_t count) {
    napi_typedarray_type type{};
    size_t length = 0;
    void* data = nullptr;
    if (!value.IsTypedArray() ||
        napi_get_typedarray_info(value.Env(), value, &type, &length, &data, nullptr, nullptr) !=
            napi_ok ||
        type != wanted || length < count) {
        return {};
    }
    return {static_cast<T*>(data), count};
}

uint32_t word(Napi::Value value) {
    return value.IsNumber() ? value.As<Napi::Number>().Uint32Value() : UINT32_MAX;
}

// ---- grants

Napi::Value map(MappedGrants& grants, const Info& info) {
    const uint32_t count = word(info[2]);
    const auto refs = elements<const GrantRef>(info[1], napi_uint32_array, count);
    if (count == 0 || refs.empty()) return nonsense(info, "a list of grant references");
    auto region =
        grants.map(info.Env(), static_cast<DomainId>(word(info[0])), refs,
                   info[3].ToBoolean() ? xen::Access::kReadWrite : xen::Access::kRead);
    if (!region) return fail(info, region.error());
    Napi::Object mapping = Napi::Object::New(info.Env());
    mapping.Set("region", Napi::Number::New(info.Env(), region.value()));
    mapping.Set("buffer", grants.owner().regions().buffer(region.value()));
    return mapping;
}

Napi::Value unmap(MappedGrants& grants, const Info& info) {
    const Status done = grants.unmap(info.Env(), word(info[0]));
    return Napi::Boolean::New(info.Env(), static_cast<bool>(done));
}

Napi::Value copy(MappedGrants& grants, const Info& info) {
    const uint32_t count = word(info[2]);
    if (count == 0 || count > (1u << 20)) return nonsense(info, "a number of segments");
    const auto table =
        elements<const uint32_t>(info[3], napi_uint32_array, size_t{count} * kCopyWords);
    const auto statuses = elements<int16_t>(info[4], napi_int16_array, count);
    if (table.empty() || statuses.empty()) return nonsense(info, "a list of segments");
    const auto direction =
        info[1].ToBoolean() ? xen::CopyDirection::kToGuest : xen::CopyDirection::kFromGuest;
    static thread_local std::vector<xen::GrantCopy> segments;
    segments.clear();
    for (uint32_t i = 0; i < count; ++i) {
        const uint32_t* row = table.data() + size_t{i} * kCopyWords;
        uint8_t* local = grants.owner().regions().resolve(0, row[3], row[2]);
        if (local == nullptr || row[2] == 0 || row[1] > kPageSize || row[2] > kPageSize - row[1]) {
            return nonsense(info, "a segment");
        }
        segments.push_back({.ref = row[0],
                            .offset = static_cast<uint16_t>(row[1]),
                            .length = static_cast<uint16_t>(row[2]),
                            .direction = direction,
                            .status = xen::kGrantGeneralError,
                            .local = local});
    }
    const Status done = grants.copy(static_cast<DomainId>(word(info[0])), segments);
    for (uint32_t i = 0; i < count; ++i) {
        statuses[i] = done ? segments[i].status : static_cast<int16_t>(xen::kGrantGeneralError);
    }
    return Napi::Boolean::New(info.Env(), static_cast<bool>(done));
}

template <Napi::Value (*Method)(MappedGrants&, const Info&)>
void set_grants_method(Napi::Object object, const char* name,
                       const std::shared_ptr<MappedGrants>& grants) {
    object.Set(name, Napi::Function::New(
                         object.Env(), [grants](const Info& info) { return Method(*grants, info); },
                         name));
}

Napi::Value open_grants(Primitives& primitives, const Info& info) {
    auto opened = MappedGrants::open(primitives.shared_from_this());
    if (!opened) return fail(info, opened.error());
    const std::shared_ptr<MappedGrants>& grants = opened.value();
    Napi::Object object = Napi::Object::New(info.Env());
    set_grants_method<map>(object, "map", grants);
    set_grants_method<unmap>(object, "unmap", grants);
    set_grants_method<copy>(object, "copy", grants);
    object.Set("close", Napi::Function::New(
                            info.Env(), [grants](const Info&) { grants->close(false, true); },
                            "close"));
    return object;
}

// ---- event channels

Napi::Value bind(Primitives& primitives, const Info& info) {
    auto bound = primitives.bind(static_cast<DomainId>(word(info[0])), word(info[1]));
    if (!bound) return fail(info, bound.error());
    return Napi::Number::New(info.Env(), bound.value());
}

template <void (xen::EventChannel::*Operation)()>
Napi::Value on_channel(Primitives& primitives, const Info& info) {
    if (xen::EventChannel* channel = primitives.channel(word(info[0]))) (channel->*Operation)();
    return info.Env().Undefined();
}

Napi::Value unbind(Primitives& primitives, const Info& info) {
    primitives.unbind(word(info[0]));
    return info.Env().Undefined();
}

// ---- files

Napi::Value open_file(Primitives& primitives, const Info& info) {
    Napi::Env env = info.Env();
    auto spec = disk_spec_of(info[0]);
    if (!spec) return fail(info, spec.error());
    const auto* options = std::get_if<block::DeviceOptions>(&spec.value().stage);
    if (options == nullptr || options->driver != block::Driver::kFile) {
        return nonsense(info, "a disk that is no file");
    }
    const bool uring = info[1].ToBoolean();
    auto io = primitives.io();
    if (!io) return fail(info, io.error());
    if (uring) {
        if (Status can = io.value()->need_uring(); !can) return fail(info, can.error());
    }
    auto backing = block::FileBacking::open({.path = options->path,
                                             .read_only = options->read_only,
                                             .direct = options->direct,
                                             .sector_size = options->sector_size,
                                             .write_through = options->write_through});
    if (!backing) return fail(info, backing.error());
    auto file = std::make_shared<BatchFile>();
    file->backing = backing.value().get();
    file->device = std::make_unique<block::FileDevice>(
        std::move(backing).value(), uring ? block::IoChoice::kUring : block::IoChoice::kSync,
        uring ? nullptr : "node:fs");
    const uint32_t number = io.value()->add(file);

    Napi::Object object = Napi::Object::New(env);
    object.Set("file", Napi::Number::New(env, number));
    object.Set("fd", Napi::Number::New(env, file->backing->fd()));
    object.Set("granule", Napi::Number::New(env, file->backing->granule()));
    object.Set("inMemory", file->backing->in_memory());
    object.Set("direct", file->backing->direct());
    object.Set("writeThrough", file->backing->write_through());
    object.Set("info", Napi::Function::New(env, [file](const Info& call) -> Napi::Value {
                   if (!file->device) return nonsense(call, "a disk that is closed");
                   return disk_info(call.Env(), *file->device);
               }));
    object.Set("resize", Napi::Function::New(env, [file](const Info& call) -> Napi::Value {
                   if (!file->device) return nonsense(call, "a disk that is closed");
                   const auto size = whole_number(call[0], "a size", 1, 1ULL << 53);
                   if (!size) return fail(call, size.error());
                   const Status done = file->device->resize(size.value());
                   if (!done) return fail(call, done.error());
                   return disk_info(call.Env(), *file->device);
               }));
    object.Set("close",
               Napi::Function::New(env, [number, weak = primitives.weak_from_this()](const Info&) {
                   const auto owner = weak.lock();
                   if (!owner || owner->closed()) return;
                   if (auto batch = owner->io()) batch.value()->remove(number);
               }));
    return object;
}

Napi::Value turn_io(Primitives& primitives, const Info& info) {
    const uint32_t count = word(info[1]);
    const uint32_t vector_count = word(info[3]);
    const auto operations = elements<const double>(info[0], napi_float64_array,
                                                   size_t{count} * IoBatch::kOperationNumbers);
    const auto vectors = elements<const double>(info[2], napi_float64_array,
                                                size_t{vector_count} * IoBatch::kVectorNumbers);
    size_t room = 0;
    if (info[4].IsTypedArray()) room = info[4].As<Napi::TypedArray>().ElementLength();
    const auto results = elements<int32_t>(info[4], napi_int32_array, room);
    if ((count > 0 && operations.empty()) || (vector_count > 0 && vectors.empty()) ||
        results.empty()) {
        return nonsense(info, "a batch of I/O");
    }
    auto io = primitives.io();
    if (!io) return fail(info, io.error());
    auto told = io.value()->turn(operations, vectors, results);
    if (!told) return fail(info, told.error());
    return Napi::Number::New(info.Env(), told.value());
}

Napi::Value arm_io(Primitives& primitives, const Info& info) {
    return Napi::Boolean::New(info.Env(), primitives.arm_io());
}

Napi::Value give_back(Primitives& primitives, const Info& info) {
    const Status done =
        primitives.give_back(static_cast<uint64_t>(info[0].ToNumber().Int64Value()),
                             static_cast<uint64_t>(info[1].ToNumber().Int64Value()));
    if (!done) return fail(info, done.error());
    return info.Env().Undefined();
}

template <Napi::Value (*Method)(Primitives&, const Info&)>
void set_method(Napi::Object object, const char* name,
                const std::shared_ptr<Primitives>& primitives) {
    const auto call = [primitives](const Info& info) -> Napi::Value {
        if (!primitives->closed()) return Method(*primitives, info);
        return fail(info, Error{ErrorKind::kInvalidArgument, 0, "the engine is closed"});
    };
    object.Set(name, Napi::Function::New(object.Env(), call, name));
}

Napi::Value open_primitives(const Info& info) {
    Napi::Env env = info.Env();
    auto xen = xen_of(info[0]);
    const auto pages = whole_number(info[1], "the pages of an arena", 1, kMaxArenaPages);
    if (!xen || !pages || !info[2].IsFunction()) return nonsense(info, "opening primitives");
    auto state = std::make_shared<Primitives>(std::move(xen));
    const Status started = state->start(env, static_cast<uint32_t>(pages.value()),
                                        info[2].As<Napi::Function>());
    if (!started) return fail(info, started.error());
    state->keep(env, state);

    Napi::Object object = Napi::Object::New(env);
    object.Set("arena", state->regions().buffer(0));
    set_method<give_back>(object, "giveBack", state);
    set_method<open_grants>(object, "openGrants", state);
    set_method<bind>(object, "bind", state);
    set_method<on_channel<&xen::EventChannel::notify>>(object, "notify", state);
    set_method<on_channel<&xen::EventChannel::unmask>>(object, "unmask", state);
    set_method<unbind>(object, "unbind", state);
    set_method<open_file>(object, "openFile", state);
    set_method<turn_io>(object, "turnIo", state);
    set_method<arm_io>(object, "armIo", state);
    object.Set("close",
               Napi::Function::New(env, [state](const Info&) { state->close(); }, "close"));
    return object;
}

}  // namespace

void export_primitives(Napi::Env env, Napi::Object exports) {
    exports.Set("openPrimitives", Napi::Function::New(env, open_primitives, "openPrimitives"));
}

}  // namespace vbd::node
