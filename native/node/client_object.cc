#include "node/client_object.h"

#include <memory>
#include <utility>

#include "block/disk_client.h"
#include "node/closable.h"
#include "node/convert.h"
#include "node/disk_object.h"
#include "node/dispatcher.h"

namespace vbd::node {

namespace {

class ClientEnd final : public Closable, public std::enable_shared_from_this<ClientEnd> {
  public:
    ClientEnd(Napi::Env env, Napi::Function on_bell)
        : dispatcher_(Dispatcher::create(env, "vbdkit client")),
          on_bell_(Napi::Persistent(on_bell)) {}

    Status open(std::shared_ptr<block::Device> device, uint32_t slots) {
        auto client = block::DiskClient::open(
            std::move(device), slots,
            [bell = std::weak_ptr(dispatcher_), weak = weak_from_this()] {
                auto alive = bell.lock();
                if (!alive) return;
                alive->post([weak](Napi::Env) {
                    const auto self = weak.lock();
                    if (self && !self->closed()) self->on_bell_.Call({});
                });
            });
        if (!client) return client.error();
        client_ = std::move(client).value();
        return {};
    }

    block::DiskClient& client() { return *client_; }

    /// Stays mapped until JavaScript has forgotten the buffer.
    Napi::ArrayBuffer buffer(Napi::Env env, iovec memory) {
        auto* held = new std::shared_ptr<block::DiskClient>(client_);
        return Napi::ArrayBuffer::New(
            env, memory.iov_base, memory.iov_len,
            [](Napi::BasicEnv, void*, std::shared_ptr<block::DiskClient>* client) {
                delete client;
            },
            held);
    }

  private:
    void shut(bool) override {
        if (client_) client_->stop();
        dispatcher_->close();
        on_bell_.Reset();
    }

    std::shared_ptr<block::DiskClient> client_;
    std::shared_ptr<Dispatcher> dispatcher_;
    Napi::FunctionReference on_bell_;
};

}  // namespace

Napi::Value open_client(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    auto disk = disk_of(info[0]);
    if (!disk || !disk->device) return throw_closed(env, "the disk");
    auto slots = whole_number(info[1], "the number of requests", 1, block::kScriptMaxSlots);
    if (!slots || !info[2].IsFunction()) {
        throw_error(env, slots ? Error{ErrorKind::kInvalidArgument, 0, "no bell"} : slots.error());
        return env.Undefined();
    }
    auto end = std::make_shared<ClientEnd>(env, info[2].As<Napi::Function>());
    end->keep(env, end);
    if (Status opened = end->open(disk->device, static_cast<uint32_t>(slots.value())); !opened) {
        end->close();
        throw_error(env, opened.error());
        return env.Undefined();
    }
    block::DiskClient& client = end->client();
    Napi::Object object = Napi::Object::New(env);
    set_number(object, "slots", client.slots());
    set_number(object, "slotBytes", block::kScriptSlotBytes);
    set_number(object, "entries", client.entries());
    object.Set("control", end->buffer(env, client.control()));
    object.Set("pool", end->buffer(env, client.pool()));
    object.Set("kick", Napi::Function::New(env, [end](const Napi::CallbackInfo&) {
                   end->client().kick();
               }));
    object.Set("close", Napi::Function::New(env, [end](const Napi::CallbackInfo&) {
                   end->close();
               }));
    return object;
}

}  // namespace vbd::node
