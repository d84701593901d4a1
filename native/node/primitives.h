// Primitives: what the JavaScript engine (lib/engine/js/) cannot do itself, and nothing more: reach
// guest pages, bind event channels and be woken by them, and hand batches of I/O to the kernel. No
// blkif in here. One per engine; everything runs on the JavaScript thread, but for the watcher's
// one callback.
//
//   watcher thread ──key──► fired_ ──doorbell──► deliver(): take_pending() ──► on_ready(channels,
//   io)
#pragma once

#include <napi.h>

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "base/reserved.h"
#include "node/closable.h"
#include "node/dispatcher.h"
#include "node/io_batch.h"
#include "node/ready_watcher.h"
#include "node/regions.h"
#include "xen/xen.h"

namespace vbd::node {

class MappedGrants;

class Primitives final : public Closable, public std::enable_shared_from_this<Primitives> {
  public:
    explicit Primitives(std::shared_ptr<xen::Xen> xen) : xen_(std::move(xen)) {}

    /// Reserves the arena and starts the watcher. `on_ready` gets an array of channel numbers and
    /// whether I/O has completed. Errors: kNoMemory, kXen.
    Status start(Napi::Env env, uint32_t arena_pages, Napi::Function on_ready);

    Regions& regions() { return regions_; }
    const std::shared_ptr<xen::Xen>& xen() const { return xen_; }
    Napi::Env env() const { return env_; }

    /// Gives memory of the arena back to the system; it reads as zeroes then.
    Status give_back(uint64_t offset, uint64_t length);

    // ---- event channels, by number
    Result<uint32_t> bind(DomainId domain, Port remote_port);
    xen::EventChannel* channel(uint32_t number);
    void unbind(uint32_t number);

    // ---- grants
    void adopt(const std::shared_ptr<MappedGrants>& grants) { grants_.push_back(grants); }

    // ---- I/O
    /// Made by the first that needs it. Errors: kBacking, kXen.
    Result<IoBatch*> io();
    /// Has completions told to on_ready, once. False: there are some now.
    bool arm_io();

  private:
    void fire(uint32_t key);
    void deliver(Napi::Env env);
    void shut(bool leaving) override;

    std::shared_ptr<xen::Xen> xen_;
    ReservedArray<uint8_t> arena_;
    Regions regions_;
    std::unique_ptr<IoBatch> io_;
    std::vector<std::weak_ptr<MappedGrants>> grants_;
    std::map<uint32_t, std::unique_ptr<xen::EventChannel>> channels_;
    uint32_t next_channel_ = 2;
    std::shared_ptr<Dispatcher> dispatcher_;
    std::unique_ptr<ReadyWatcher> watcher_;
    Napi::FunctionReference on_ready_;
    Napi::Env env_{nullptr};
    std::mutex mutex_;  // guards the two below
    std::vector<uint32_t> fired_;
    bool posted_ = false;
};

}  // namespace vbd::node
