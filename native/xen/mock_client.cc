#include "xen/mock_client.h"

#include "xen/mock_event_channel.h"
#include "xen/mock_grant_table.h"

namespace vbd::xen {

Result<std::unique_ptr<MockXen>> MockXen::connect(const std::string& socket_path, DomainId self) {
    Result<std::shared_ptr<mock::Connection>> connection =
        mock::Connection::open(socket_path, self, mock::Role::kPeer, 0, nullptr);
    if (!connection) return connection.error();
    return std::unique_ptr<MockXen>(new MockXen(std::move(connection).value()));
}

Result<std::unique_ptr<GrantTable>> MockXen::open_grant_table() {
    return std::unique_ptr<GrantTable>(std::make_unique<MockGrantTable>(connection_));
}

Result<std::unique_ptr<EventChannel>> MockXen::bind_interdomain(DomainId domain, Port remote_port) {
    return MockEventChannel::bind(connection_, domain, remote_port);
}

}  // namespace vbd::xen
