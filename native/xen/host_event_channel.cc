#include "xen/host_event_channel.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <string>

namespace vbd::xen::host {

Result<std::unique_ptr<EventChannel>> HostEventChannel::bind(
    std::shared_ptr<const HostLibrary> library, DomainId domain, Port remote_port) {
    std::unique_ptr<HostEventChannel> channel(new HostEventChannel(std::move(library)));
    if (Status status = channel->open(domain, remote_port); !status) return status.error();
    return std::unique_ptr<EventChannel>(std::move(channel));
}

Status HostEventChannel::open(DomainId domain, Port remote_port) {
    const std::string what = "binding to event channel " + std::to_string(remote_port) +
                             " of domain " + std::to_string(domain);
    handle_ = library_->evtchn_open(logger_.tool_logger(), 0);
    if (handle_ == nullptr) {
        const int code = errno;
        return system_error(ErrorKind::kXen, code, what + ", opening a handle" + logger_.take());
    }
    fd_ = library_->evtchn_fd(handle_);
    const int flags = ::fcntl(fd_, F_GETFL);
    if (flags < 0 || ::fcntl(fd_, F_SETFL, flags | O_NONBLOCK) != 0) {
        return system_error(ErrorKind::kXen, errno, what);
    }
    const int port = library_->evtchn_bind_interdomain(handle_, domain, remote_port);
    if (port < 0) {
        const int code = errno;
        return system_error(ErrorKind::kXen, code, what + logger_.take());
    }
    port_ = static_cast<Port>(port);
    return {};
}

HostEventChannel::~HostEventChannel() {
    if (handle_ == nullptr) return;
    if (port_ != 0) library_->evtchn_unbind(handle_, port_);
    library_->evtchn_close(handle_);
}

bool HostEventChannel::take_pending() {
    Port ports[16];  // one is bound; a read takes whole numbers only
    const ssize_t bytes = ::read(fd_, ports, sizeof(ports));
    for (ssize_t i = 0; i < bytes / static_cast<ssize_t>(sizeof(Port)); ++i) {
        if (ports[i] == port_) return true;
    }
    return false;
}

void HostEventChannel::unmask() {
    (void)!::write(fd_, &port_, sizeof(port_));
}

// Refused only for a port that is not bound; towards a peer that is gone it is dropped without a
// word.
void HostEventChannel::notify() {
    (void)library_->evtchn_notify(handle_, port_);
}

}  // namespace vbd::xen::host
