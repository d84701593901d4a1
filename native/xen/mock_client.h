// MockXen: one connection of this process to the mock hypervisor, as a domain that reaches others'
// pages (dom0 or a driver domain). Thread safe; its handles keep the connection open, so they may
// outlive it.
#pragma once

#include <memory>
#include <string>

#include "xen/mock_connection.h"
#include "xen/xen.h"

namespace vbd::xen {

class MockXen final : public Xen {
  public:
    /// Joins the mock whose broker listens on `socket_path`, as domain `self`. Errors: kXen with
    /// ENOENT or ECONNREFUSED (no broker there), EPROTO (a broker of another version), ETIMEDOUT.
    static Result<std::unique_ptr<MockXen>> connect(const std::string& socket_path, DomainId self);

    Result<std::unique_ptr<GrantTable>> open_grant_table() override;
    Result<std::unique_ptr<EventChannel>> bind_interdomain(DomainId domain,
                                                           Port remote_port) override;

    /// Whether the broker lives. Once this was false, and after any call that failed with EPIPE,
    /// map and copy fail with EPIPE too; unmap works always, and so does notify.
    bool connected() { return connection_->connected(); }

    /// Becomes readable (POLLRDHUP, POLLHUP) when the broker closes it. Wait for nothing else on
    /// it, read nothing from it.
    int connection_fd() const { return connection_->fd(); }

  private:
    explicit MockXen(std::shared_ptr<mock::Connection> connection)
        : connection_(std::move(connection)) {}

    std::shared_ptr<mock::Connection> connection_;
};

}  // namespace vbd::xen
