// MockEventChannel: the bound end of an event channel. The eventfd that the peer signals sits in an
// epoll set with EPOLLONESHOT, which is the mask: a delivered event disarms it, unmask() arms it
// again, and what arrived in between fires then, once.
#pragma once

#include <memory>
#include <string>

#include "base/fd.h"
#include "xen/event_channel.h"
#include "xen/mock_connection.h"

namespace vbd::xen {

class MockEventChannel final : public EventChannel {
  public:
    /// Errors: kXen with ESRCH, EINVAL, ENOSPC, EMFILE, EPIPE.
    static Result<std::unique_ptr<EventChannel>> bind(std::shared_ptr<mock::Connection> connection,
                                                      DomainId domain, Port remote_port);
    ~MockEventChannel() override;

    int fd() const override { return epoll_.get(); }
    bool take_pending() override;
    void unmask() override;
    void notify() override;
    Port local_port() const override { return port_; }

  private:
    MockEventChannel(std::shared_ptr<mock::Connection> connection, DomainId domain, Port port)
        : connection_(std::move(connection)), domain_(domain), port_(port) {}

    std::shared_ptr<mock::Connection> connection_;
    DomainId domain_;
    Port port_;
    Fd incoming_;
    Fd outgoing_;
    Fd epoll_;
};

}  // namespace vbd::xen
