// MockLoad: one run of the native load generator on a mock guest, on a thread of its own, behind a
// promise.
#pragma once

#include <napi.h>

#include <memory>
#include <optional>
#include <vector>

#include "base/thread.h"
#include "guest/load.h"
#include "node/dispatcher.h"
#include "xen/mock_guest.h"

namespace vbd::node {

class MockLoad final : public std::enable_shared_from_this<MockLoad> {
  public:
    /// `options` is LoadOptions of lib/engine/addon.ts. The process stays alive until the promise
    /// is settled. Errors: kInvalidArgument, kXen (ENOTCONN: a port is not the guest's), kRing.
    static Result<std::shared_ptr<MockLoad>> start(Napi::Env env, Napi::Value options,
                                                   xen::MockGuest& guest,
                                                   std::shared_ptr<Dispatcher> dispatcher);

    Napi::Value promise() const { return deferred_.Promise(); }
    bool settled() const { return settled_; }

    /// Stops the load and joins its thread; then the promise is rejected, unless no JavaScript can
    /// run any more.
    void cancel(bool leaving);

    ~MockLoad();

  private:
    /// The load's view of the guest's ports.
    class Events final : public guest::EventSource {
      public:
        explicit Events(std::unique_ptr<xen::GuestPortWaiter> waiter)
            : waiter_(std::move(waiter)) {}
        void notify(Port port) override { waiter_->notify(port); }
        Wake wait(uint32_t timeout_ms) override;
        void wake() { waiter_->wake(); }

      private:
        std::unique_ptr<xen::GuestPortWaiter> waiter_;
    };

    MockLoad(Napi::Env env, std::shared_ptr<Dispatcher> dispatcher)
        : env_(env), deferred_(env), dispatcher_(std::move(dispatcher)) {}
    void settle();
    void join();

    Napi::Env env_;
    Napi::Promise::Deferred deferred_;
    std::shared_ptr<Dispatcher> dispatcher_;
    Status take_others(const std::vector<std::shared_ptr<xen::MockGuest>>& owners,
                       guest::LoadOptions& options);

    std::shared_ptr<xen::mock::SharedMemory> memory_;
    std::unique_ptr<Events> events_;
    /// Guests other than the load's own: what their queues need.
    struct Other {
        std::shared_ptr<xen::MockGuest> guest;
        std::shared_ptr<xen::mock::SharedMemory> memory;
        std::unique_ptr<Events> events;
    };
    std::vector<Other> others_;
    std::unique_ptr<guest::Load> load_;
    std::optional<Result<guest::LoadResult>> result_;  // the thread's until it is joined
    bool settled_ = false;
    Thread thread_;
};

}  // namespace vbd::node
