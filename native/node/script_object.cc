#include "node/script_object.h"

#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "block/script_device.h"
#include "node/closable.h"
#include "node/convert.h"
#include "node/disk_object.h"

namespace vbd::node {

namespace {

using block::ScriptChannel;

constexpr uint64_t kLargestNumber = (uint64_t{1} << 53) - 1;

/// The channels of this process by number: threads have nothing else in common that JavaScript could
/// pass from one to the other. Never destroyed: other threads outlive main().
class Channels {
  public:
    static Channels& instance() {
        static auto* channels = new Channels;
        return *channels;
    }
    uint32_t add(const std::shared_ptr<ScriptChannel>& channel) {
        const std::lock_guard lock(mutex_);
        std::erase_if(channels_, [](const auto& entry) { return entry.second.expired(); });
        channels_[++last_] = channel;
        return last_;
    }
    std::shared_ptr<ScriptChannel> find(uint32_t number) {
        const std::lock_guard lock(mutex_);
        const auto found = channels_.find(number);
        return found == channels_.end() ? nullptr : found->second.lock();
    }

  private:
    std::mutex mutex_;
    std::map<uint32_t, std::weak_ptr<ScriptChannel>> channels_;
    uint32_t last_ = 0;
};

const char* name_of(block::IoOp op) {
    switch (op) {
        case block::IoOp::kRead:
            return "read";
        case block::IoOp::kWrite:
            return "write";
        case block::IoOp::kFlush:
            return "flush";
        case block::IoOp::kDiscard:
        case block::IoOp::kSecureDiscard:
            return "discard";
    }
    return "?";
}

/// The script's end of a channel. The bell rings on the thread that attached it.
class ScriptEnd final : public Closable, public std::enable_shared_from_this<ScriptEnd> {
  public:
    ScriptEnd(Napi::Env env, std::shared_ptr<ScriptChannel> channel, Napi::Function on_bell)
        : channel_(std::move(channel)),
          dispatcher_(Dispatcher::create(env, "vbdkit script")),
          on_bell_(Napi::Persistent(on_bell)) {}

    bool attach() {
        return channel_->attach([this] {
            dispatcher_->post([weak = weak_from_this()](Napi::Env) {
                const auto self = weak.lock();
                if (self && !self->closed()) self->on_bell_.Call({});
            });
        });
    }

    ScriptChannel& channel() { return *channel_; }

    /// Stays mapped until JavaScript has forgotten the buffer: scripts keep what they were lent.
    Napi::ArrayBuffer buffer(Napi::Env env, iovec memory) {
        auto* held = new std::shared_ptr<ScriptChannel>(channel_);
        return Napi::ArrayBuffer::New(
            env, memory.iov_base, memory.iov_len,
            [](Napi::BasicEnv, void*, std::shared_ptr<ScriptChannel>* channel) { delete channel; },
            held);
    }

  private:
    // After detach() no bell is rung, and nobody rings it.
    void shut(bool) override {
        channel_->detach();
        dispatcher_->close();
        on_bell_.Reset();
    }

    std::shared_ptr<ScriptChannel> channel_;
    std::shared_ptr<Dispatcher> dispatcher_;
    Napi::FunctionReference on_bell_;
};

Napi::Object end_object(Napi::Env env, const std::shared_ptr<ScriptEnd>& end) {
    ScriptChannel& channel = end->channel();
    Napi::Object object = Napi::Object::New(env);
    set_number(object, "slots", channel.slots());
    set_number(object, "slotBytes", block::kScriptSlotBytes);
    set_number(object, "submissionEntries", channel.submission_entries());
    set_number(object, "answerEntries", channel.answer_entries());
    object.Set("control", end->buffer(env, channel.control()));
    object.Set("pool", end->buffer(env, channel.pool()));
    object.Set("kick", Napi::Function::New(env, [end](const Napi::CallbackInfo&) {
                   end->channel().kick();
               }));
    object.Set("clientName", Napi::Function::New(env, [end](const Napi::CallbackInfo& info) {
                   return Napi::String::New(info.Env(), end->channel().client_name(
                                                            info[0].ToNumber().Uint32Value()));
               }));
    object.Set("detach",
               Napi::Function::New(env, [end](const Napi::CallbackInfo&) { end->close(); }));
    return object;
}

Napi::Value attach_script(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    auto channel = Channels::instance().find(info[0].ToNumber().Uint32Value());
    if (!channel || !info[1].IsFunction()) {
        throw_error(env, Error{ErrorKind::kInvalidArgument, 0, "no such script disk is open"});
        return env.Undefined();
    }
    auto end = std::make_shared<ScriptEnd>(env, std::move(channel), info[1].As<Napi::Function>());
    end->keep(env, end);
    if (!end->attach()) {
        end->close();
        throw_error(env, Error{ErrorKind::kInvalidArgument, 0, "the disk has its script already"});
        return env.Undefined();
    }
    return end_object(env, end);
}

Result<block::Geometry> geometry_of(Napi::Object spec) {
    block::Geometry geometry;
    auto size = whole_number(spec.Get("sizeBytes"), "a size", 1, kLargestNumber);
    auto sector = whole_number(spec.Get("sectorSize"), "a sector size", 512, 4096);
    auto physical = whole_number(spec.Get("physicalSectorSize"), "a sector size", 512, 1u << 30);
    auto granularity =
        whole_number(spec.Get("discardGranularity"), "a granularity", 0, UINT32_MAX);
    for (const auto* each : {&size, &sector, &physical, &granularity}) {
        if (!*each) return each->error();
    }
    geometry.size_bytes = size.value();
    geometry.sector_size = static_cast<uint32_t>(sector.value());
    geometry.physical_sector_size = static_cast<uint32_t>(physical.value());
    geometry.discard_granularity = static_cast<uint32_t>(granularity.value());
    geometry.read_only = spec.Get("readOnly").ToBoolean();
    geometry.can_flush = spec.Get("canFlush").ToBoolean();
    geometry.can_discard = spec.Get("canDiscard").ToBoolean();
    geometry.description = spec.Get("description").ToString().Utf8Value();
    return geometry;
}

/// Lives on watchdogs' threads; the function is JavaScript's, and goes on its thread.
std::function<void(const ScriptChannel::Overdue&)> overdue_reporter(
    Napi::Function on_overdue, const std::shared_ptr<Dispatcher>& dispatcher) {
    auto* persistent = new Napi::FunctionReference(Napi::Persistent(on_overdue));
    // Its deleter runs wherever the last owner was; the reference may only go on its own thread.
    std::shared_ptr<Napi::FunctionReference> function(
        persistent, [bell = std::weak_ptr(dispatcher)](Napi::FunctionReference* reference) {
            reference->SuppressDestruct();
            if (auto alive = bell.lock()) {
                alive->post([reference](Napi::Env) {
                    reference->Reset();
                    delete reference;
                });
            }
        });
    return [function, bell = std::weak_ptr(dispatcher)](const ScriptChannel::Overdue& request) {
        auto alive = bell.lock();
        if (!alive) return;
        alive->post([function, request](Napi::Env env) {
            Napi::Object object = Napi::Object::New(env);
            object.Set("operation", name_of(request.op));
            set_number(object, "offset", static_cast<double>(request.offset));
            set_number(object, "length", static_cast<double>(request.length));
            object.Set("vbd", request.client);
            function->Call({object});
        });
    };
}

}  // namespace

Result<OpenedScript> script_device_of(Napi::Value spec, Napi::Value on_overdue,
                                      const std::shared_ptr<Dispatcher>& dispatcher) {
    if (!spec.IsObject() || !on_overdue.IsFunction()) {
        return Error{ErrorKind::kInvalidArgument, 0, "not a script disk"};
    }
    Napi::Object given = spec.As<Napi::Object>();
    auto geometry = geometry_of(given);
    if (!geometry) return geometry.error();
    auto concurrency =
        whole_number(given.Get("concurrency"), "concurrency", 1, block::kScriptMaxSlots);
    auto deadline_ms = whole_number(given.Get("deadlineMs"), "a deadline", 1, UINT32_MAX);
    if (!concurrency) return concurrency.error();
    if (!deadline_ms) return deadline_ms.error();
    auto channel =
        ScriptChannel::create({.concurrency = static_cast<uint32_t>(concurrency.value()),
                               .deadline_ns = deadline_ms.value() * 1'000'000},
                              overdue_reporter(on_overdue.As<Napi::Function>(), dispatcher));
    if (!channel) return channel.error();
    auto device = block::ScriptDevice::create(geometry.value(), channel.value());
    if (!device) return device.error();
    return OpenedScript{std::move(device).value(), Channels::instance().add(channel.value())};
}

void export_script(Napi::Env env, Napi::Object exports) {
    exports.Set("attachScript", Napi::Function::New(env, attach_script));
}

}  // namespace vbd::node
