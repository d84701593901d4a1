// Domains: the broker's books. Which domains exist and what state they are in, whose journals tell
// what is pinned, which event channel ports are unbound or bound to what. No sockets, no threads:
// the broker serialises all calls.
//
//   create ──► alive ──destroy──► dying ──last pin gone──► gone (forgotten)
//                                   ▲ peers keep what they mapped, and may map again what is still
//                                   pinned
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "xen/mock_memory.h"
#include "xen/mock_protocol.h"

namespace vbd::xen {

enum class DomainEvent { kCreated, kDying, kDestroyed };

/// One domain as the broker accounts for it.
struct DomainSummary {
    DomainId domain = 0;
    uint32_t pages = 0;
    bool dying = false;
    uint32_t grants_mapped = 0;  // pins that peers hold on it, counted per mapping
    uint32_t ports_bound = 0;    // its event channel ports that have a peer
};

namespace mock {

/// The two ways of one event channel: each end reads its own descriptor and writes the other's.
/// Both exist from alloc-unbound on and outlive a backend, so that the next one can take the
/// channel over.
struct EventPair {
    Fd allocator;  // signalled towards the end that allocated the port
    Fd binder;     // signalled towards the end that binds to it
};

struct BoundPort {
    Port port = 0;
    std::shared_ptr<EventPair> events;
};

class Domains {
  public:
    using OnEvent = std::function<void(DomainEvent, DomainId)>;

    explicit Domains(OnEvent on_event) : on_event_(std::move(on_event)) {}

    struct Record {
        DomainId domain = 0;
        uint32_t pages = 0;
        ClientId creator = 0;  // dies with this client; 0: with destroy() only
        SharedMemory memory;
        SharedMemory grants;
        SharedMemory pins;
        std::map<ClientId, SharedMemory> journals;
        GrantRef pinned_hint = 0;

        bool dying() const {
            return pins.as<PinTable>()->state.load(std::memory_order_relaxed) != kAlive;
        }
    };

    /// Errors: kXen with EEXIST, ENOMEM...; kInvalidArgument for a domid or size out of range.
    Result<Record*> create(DomainId domain, uint32_t pages, ClientId creator);
    Record* find(DomainId domain);

    /// The memory in which `client` keeps count of its pins on `record`.
    Result<SharedMemory*> journal(Record& record, ClientId client);

    /// Starts the end of a domain: its ports close, its unpinned grants are gone. False: there is
    /// none.
    bool destroy(DomainId domain);

    /// Ends a dying domain of which nothing is pinned any more.
    void reap(DomainId domain);

    /// A client is gone: its pins, its ports and the domains it made. The domains that started
    /// dying by this.
    std::vector<DomainId> forget(ClientId client);

    /// A new port of `self` that `remote` may bind. Errors: ESRCH when self is dying, ENOSPC,
    /// EMFILE.
    Result<BoundPort> alloc_unbound(DomainId self, ClientId client, DomainId remote);

    /// A new port of `self` bound to `remote`'s port, one event pending. Errors: ESRCH, EINVAL,
    /// ENOSPC.
    Result<BoundPort> bind(DomainId self, ClientId client, DomainId remote, Port remote_port);

    /// Error: EINVAL when `client` has no such port.
    int close(DomainId self, ClientId client, Port port);

    std::vector<DomainSummary> list() const;

    /// The end of the world: nobody is told.
    void clear() {
        ports_.clear();
        domains_.clear();
    }

  private:
    struct PortRecord {
        ClientId client = 0;
        DomainId remote = 0;
        Port remote_port = 0;    // 0: unbound
        bool allocated = false;  // made by alloc_unbound(): it can be bound to, again and again
        std::shared_ptr<EventPair> events;
    };
    using PortKey = std::pair<DomainId, Port>;

    Result<Port> free_port(DomainId domain) const;
    std::map<PortKey, PortRecord>::iterator close(std::map<PortKey, PortRecord>::iterator port);

    OnEvent on_event_;
    std::map<DomainId, Record> domains_;
    std::map<PortKey, PortRecord> ports_;
};

}  // namespace mock
}  // namespace vbd::xen
