// MockGrantTable: gntdev on the mock. A map call pins the grants and really maps their pages out of
// the domain's memfd, unmap really unmaps; copy pins, copies through this process's own mapping of
// the whole domain, and unpins.
//
// Used by one thread. What is still mapped when the handle goes is unmapped then.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "xen/grant_table.h"
#include "xen/mock_connection.h"

namespace vbd::xen {

class MockGrantTable final : public GrantTable {
  public:
    explicit MockGrantTable(std::shared_ptr<mock::Connection> connection)
        : connection_(std::move(connection)) {}
    ~MockGrantTable() override;

    Result<void*> map(DomainId domain, std::span<const GrantRef> refs, Access access) override;
    Status unmap(void* address, uint32_t pages) override;
    Status copy(DomainId domain, std::span<GrantCopy> segments) override;

  private:
    struct Mapping {
        std::shared_ptr<mock::DomainView> view;
        std::vector<GrantRef> refs;
        Access access = Access::kRead;
    };

    Result<std::shared_ptr<mock::DomainView>> view(DomainId domain);
    Status pin_all(const mock::DomainView& view, std::span<const GrantRef> refs, Access access);
    void unpin_all(const mock::DomainView& view, std::span<const GrantRef> refs, Access access);
    Result<void*> map_frames(const mock::DomainView& view, Access access);
    Status copy_pieces(const mock::DomainView* view, DomainId domain,
                       std::span<GrantCopy> segments);

    std::shared_ptr<mock::Connection> connection_;
    std::vector<std::shared_ptr<mock::DomainView>> views_;  // so that a known domain needs no lock
    std::unordered_map<void*, Mapping> mappings_;
    std::vector<uint32_t> frames_;  // of the map call at hand
};

}  // namespace vbd::xen
