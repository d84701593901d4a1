// MockBroker: the hypervisor's part of the mock Xen. It owns domains (memory, grant tables, pins),
// event channel ports and fault rules, serves them to clients on a unix socket, and cleans up after
// clients that die, however they die.
//
//   guest process                   broker thread                    backend process
//   ┌───────────┐   socket        ┌──────────────┐       socket     ┌──────────────┐
//   │ MockGuest │ ◄─────────────► │  MockBroker  │ ◄──────────────► │ MockXen      │  data path:
//   memory and eventfds that └─────┬─────┘                 └──────────────┘ └──────┬───────┘  both
//   ends share; no broker in it
//         └──────────── pages, grant entries, pins, eventfds ─────────────┘
//
// Threads: one of its own serves the socket. The public functions may be called from any thread.
// `on_domain` runs with the broker's lock held, on the broker's thread or a caller's: it must not
// call back into the broker.
//
// Life after the broker: when it dies, mappings and event channels that exist keep working (they
// live in the kernel), and guests keep their memory. Every other call of a client fails with kXen
// and EPIPE; connected() says so.
//
// Access control is the file mode of the socket (0600): a client says which domain it is and is
// believed.
//
// What of Xen this does not model:
//   - Hypercalls, their traps and their latency; a mapped page costs mmap and munmap, not a
//   hypercall and an IPI to every
//     processor. Costs measured here rank strategies, they do not predict a Xen host.
//   - One VMA per map call: pages whose frames are not adjacent get a VMA each, so vm.max_map_count
//   is reached earlier.
//   - PV's two pins per mapping (kernel and user): 128 mappings of one grant are possible, as on
//   PVH, not 64.
//   - Asynchronous unmapping: unmap() returns with the grant given back, even while the kernel
//   still does I/O on the page.
//   - Version 2, transitive and transfer grants, grant table growth (32768 entries from the start),
//   maptrack limits,
//     paging (GNTST_eagain comes from fault rules only), EFAULT of a copy (a bad local pointer is a
//     crash).
//   - Isolation. Pins are kept by the clients themselves, by Xen's rules, in memory they share. A
//   guest cannot reach that
//     memory (it has its pages and its grant entries only); a peer that corrupts it corrupts the
//     mock.
//   - Event channels between domains only: no VIRQs, no IPIs; event priorities and storm deferral
//   (lateeoi) do not exist.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "xen/mock_domains.h"
#include "xen/mock_faults.h"

namespace vbd::xen {

class MockBroker {
  public:
    using OnDomain = std::function<void(DomainEvent, DomainId)>;

    /// Listens on `socket_path` (at most 107 bytes), replacing a socket that a dead broker left.
    /// `on_domain` is told of every domain that appears, starts dying and disappears, in order.
    /// Errors: kXen with EADDRINUSE when a broker listens there, EEXIST when the path is no socket,
    /// ENOENT, EACCES, ENAMETOOLONG.
    static Result<std::unique_ptr<MockBroker>> start(const std::string& socket_path,
                                                     OnDomain on_domain = {});

    virtual ~MockBroker() = default;  // close()

    /// A domain without a guest yet; it lives until destroy_domain(). `domain` 1 to 32751, `pages`
    /// 1 to 4194304 of 4 KiB. Errors: kInvalidArgument, kXen with EEXIST, ENOMEM.
    virtual Status create_domain(DomainId domain, uint32_t pages) = 0;

    /// As `xl destroy`: its guests are cut off, the domain is dying until its pages are unmapped.
    /// Errors: kXen with ESRCH.
    virtual Status destroy_domain(DomainId domain) = 0;

    virtual std::vector<DomainSummary> domains() = 0;

    /// Replaces the rules that make calls fail, in every process of this mock. Errors:
    /// kInvalidArgument.
    virtual Status set_faults(std::span<const mock::Fault> faults) = 0;

    /// Stops listening, cuts all clients off, joins the thread, removes the socket, forgets all
    /// domains. Idempotent.
    virtual void close() = 0;
};

}  // namespace vbd::xen
