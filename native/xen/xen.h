// Xen: one connection of this process to a hypervisor, as one domain; the factory of handles.
// Thread safe.
#pragma once

#include <memory>

#include "xen/event_channel.h"
#include "xen/grant_table.h"

namespace vbd::xen {

class Xen {
  public:
    virtual ~Xen() = default;

    /// A grant table handle of its own, for the one thread that will use it.
    virtual Result<std::unique_ptr<GrantTable>> open_grant_table() = 0;

    /// Binds a local port to `remote_port` that `domain` left unbound for us. Errors: kXen with
    /// EINVAL (not unbound for us, already bound), ESRCH (no such domain).
    virtual Result<std::unique_ptr<EventChannel>> bind_interdomain(DomainId domain,
                                                                   Port remote_port) = 0;
};

}  // namespace vbd::xen
