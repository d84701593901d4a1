// XenWorld: a guest's hands and a backend's Xen, for tests that hold on the mock and on real Xen
// alike.
//
//   MockXenWorld   both in this process, on a broker of its own
//   HostXenWorld   both in the domain that the test runs in (a dom0): the guest grants its pages
//   through
//                  /dev/xen/gntalloc and has its ports on /dev/xen/evtchn, all towards its own
//                  domain
//
// One thread. What a guest asks for in vain fails the test.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "base/units.h"
#include "xen/xen.h"

namespace vbd::xen {

class XenWorld {
  public:
    virtual ~XenWorld() = default;

    /// A page of the guest that is granted to the backend, or to another domain.
    struct Page {
        std::byte* bytes = nullptr;  // the guest's own view, zero at first
        GrantRef ref = 0;
    };

    // The domains, as the backend calls them.
    virtual DomainId guest() const = 0;
    virtual DomainId absent() const = 0;    // that none has
    virtual DomainId stranger() const = 0;  // neither guest nor backend

    /// How often one grant can be mapped at a time: PV counts each mapping twice.
    virtual uint32_t most_mappings() const = 0;

    // The guest's hands.
    virtual Page grant(bool writable) = 0;
    virtual Page grant_to_stranger() = 0;
    /// A reference within the guest's table that grants nothing.
    virtual GrantRef ungranted() = 0;
    /// The guest is done with the page and its grant; its own view is gone. While a peer uses the
    /// grant, it stays.
    virtual void end_access(const Page& page) = 0;
    virtual Port alloc_unbound() = 0;
    virtual Port alloc_unbound_for_stranger() = 0;
    virtual void notify(Port port) = 0;
    /// Waits until an event is pending on the port, takes and masks it. False: none came in time.
    virtual bool take(Port port, int timeout_ms) = 0;
    virtual void unmask(Port port) = 0;
    virtual void close_port(Port port) = 0;
    /// All at once: its ports close, its grants end where nobody uses them, its views of its pages
    /// are gone.
    virtual void leave() = 0;

    /// The backend's.
    virtual Xen& xen() = 0;
};

std::unique_ptr<XenWorld> make_mock_world();

/// Only where host_world_problem() has nothing to say.
std::unique_ptr<XenWorld> make_host_world();

/// Why this machine cannot be its own guest; empty: it can.
std::string host_world_problem();

}  // namespace vbd::xen
