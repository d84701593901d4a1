// HostEventChannel: one port on a /dev/xen/evtchn descriptor of its own, through libxenevtchn.
// Taking an event and unmasking are a read and a write on the descriptor; the library would do the
// same, and can block.
//
// The kernel delivers a port once and keeps it masked until it is written back (lateeoi). It holds
// no back-off of its own against events that bring nothing: that is the caller's.
#pragma once

#include <memory>

#include "xen/event_channel.h"
#include "xen/host_library.h"
#include "xen/host_logger.h"

namespace vbd::xen::host {

class HostEventChannel final : public EventChannel {
  public:
    /// Errors: kXen with ESRCH (no such domain), EINVAL (the port does not wait for us), ENOSPC (no
    /// port left), ENOENT, EACCES, EMFILE (the device cannot be opened).
    static Result<std::unique_ptr<EventChannel>> bind(std::shared_ptr<const HostLibrary> library,
                                                      DomainId domain, Port remote_port);
    ~HostEventChannel() override;

    int fd() const override { return fd_; }
    bool take_pending() override;
    void unmask() override;
    void notify() override;
    Port local_port() const override { return port_; }

  private:
    explicit HostEventChannel(std::shared_ptr<const HostLibrary> library)
        : library_(std::move(library)) {}
    Status open(DomainId domain, Port remote_port);

    std::shared_ptr<const HostLibrary> library_;
    HostLogger logger_;
    EvtchnHandle* handle_ = nullptr;
    int fd_ = -1;  // the handle's
    Port port_ = 0;
};

}  // namespace vbd::xen::host
