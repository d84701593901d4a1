// Vbd: one virtual disk's connections, as the control thread sees them. Spreads the rings over
// reactors, and reports when a connection stands or is gone. Its methods are called on one control
// thread; callbacks come on reactor threads.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "engine/reactor.h"

namespace vbd::engine {

struct RingSpec {
    std::vector<GrantRef> ring_refs;
    Port remote_port = 0;
};

struct ConnectionSpec {
    DomainId domain = 0;
    blkif::Protocol protocol = blkif::Protocol::kNative;
    bool persistent = false;
    TakeOver take_over = TakeOver::kNone;
    std::vector<RingSpec> rings;
    /// Where the rings' journals are, without "-0" for the first; "": nowhere. And their name there.
    std::string journal;
    std::string journal_rings;
};

class Vbd : public std::enable_shared_from_this<Vbd> {
  public:
    using ConnectDone = std::function<void(Result<memory::Strategy>)>;

    static std::shared_ptr<Vbd> create(std::string name, std::shared_ptr<block::Device> device,
                                       const Features& features,
                                       std::function<void(Event)> on_event);

    /// Opens every ring on a reactor of its own choice, then starts them. All or nothing: after an
    /// Error nothing is mapped or bound. `reactors` outlive the connection. Errors:
    /// kInvalidArgument when connected already, kXen, kRing, kNoMemory.
    void connect(const ConnectionSpec& spec, std::shared_ptr<xen::Xen> xen,
                 std::span<Reactor* const> reactors, ConnectDone done);

    /// Stops intake, drains, unmaps and unbinds. Calls `done` when no guest page is held; at once
    /// when there is no connection.
    void disconnect(std::function<void()> done);

    /// Once disconnected: every request that the last connection took was answered, so that the
    /// rings can be gone on with at their rsp_prod.
    bool drained() const { return shared_->unanswered == 0; }

    /// Serves another device from the next connect() on. Error: kInvalidArgument while connected.
    Status use_device(std::shared_ptr<block::Device> device);

    /// Records every answered request from now on, or ends that; on the control thread, like
    /// traces().
    void trace(bool on);
    std::span<const std::unique_ptr<TraceRing>> traces() const { return shared_->traces; }

    Tunables& tunables() { return shared_->tunables; }
    const std::vector<std::unique_ptr<QueueCounters>>& counters() const {
        return shared_->counters;
    }
    const std::string& name() const { return shared_->name; }

  private:
    enum class State { kIdle, kConnecting, kConnected, kDisconnecting };
    struct Attempt;
    struct Placed {
        Queue* queue;
        Reactor* reactor;
    };

    Vbd() = default;
    void open_rings(const std::shared_ptr<Attempt>& attempt);
    void start_rings(const std::shared_ptr<Attempt>& attempt);
    void abandon_rings(const std::shared_ptr<Attempt>& attempt);
    void close_rings();
    void settled(State state);
    memory::Strategy strategy_for(const ConnectionSpec& spec) const;

    std::shared_ptr<VbdShared> shared_;
    std::shared_ptr<xen::Xen> xen_;  // while there is a connection: its handles need it
    std::mutex mutex_;  // control plane only: the four below, between the control thread and the
                        // last reactor to finish
    State state_ = State::kIdle;
    bool disconnect_wanted_ = false;
    std::vector<std::function<void()>> waiting_;
    std::vector<Placed> placed_;
};

}  // namespace vbd::engine
