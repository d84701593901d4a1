// The mock's XenWorld.
#include <array>
#include <map>
#include <vector>

#include "mock_world.h"
#include "support/xen_world.h"

namespace vbd::xen {
namespace {

class MockXenWorld final : public XenWorld {
  public:
    DomainId guest() const override { return World::kGuest; }
    DomainId absent() const override { return 99; }
    DomainId stranger() const override { return 3; }
    uint32_t most_mappings() const override { return 128; }

    Page grant(bool writable) override { return grant_to(0, writable); }
    Page grant_to_stranger() override { return grant_to(stranger(), true); }
    GrantRef ungranted() override { return 32'000; }
    void end_access(const Page& page) override {
        ending_.push_back(page.ref);
        retry_ends();
    }
    Port alloc_unbound() override { return require_value(world_.guest->alloc_unbound(0)); }
    Port alloc_unbound_for_stranger() override {
        return require_value(world_.guest->alloc_unbound(stranger()));
    }
    void notify(Port port) override { require_done(world_.guest->notify(port)); }
    bool take(Port port, int timeout_ms) override {
        if (taken_[port] || !readable(world_.guest->event_fd(), timeout_ms)) {
            return std::exchange(taken_[port], false);
        }
        std::array<Port, 8> ports;
        const size_t count = world_.guest->take_pending(ports);
        for (size_t i = 0; i < count; ++i) taken_[ports[i]] = true;
        return std::exchange(taken_[port], false);
    }
    void unmask(Port port) override { require_done(world_.guest->unmask(port)); }
    void close_port(Port port) override { require_done(world_.guest->close_port(port)); }
    void leave() override { world_.guest.reset(); }
    Xen& xen() override {
        retry_ends();
        return *world_.xen;
    }

  private:
    Page grant_to(DomainId peer, bool writable) {
        const uint32_t page = next_++;
        const GrantRef ref = mock::kFirstGrantRef + page;
        require_done(world_.guest->grant(ref, page, peer, !writable));
        return {world_.page(page), ref};
    }
    // A guest that could not end a grant tries again every so often.
    void retry_ends() {
        if (!world_.guest) return;
        std::erase_if(
            ending_, [this](GrantRef ref) { return require_value(world_.guest->end_access(ref)); });
    }

    World world_;
    uint32_t next_ = 0;
    std::vector<GrantRef> ending_;
    std::map<Port, bool> taken_;
};

}  // namespace

std::unique_ptr<XenWorld> make_mock_world() {
    return std::make_unique<MockXenWorld>();
}

}  // namespace vbd::xen
