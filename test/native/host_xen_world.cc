// Real Xen's XenWorld: this domain grants pages and ports to itself. The numbers of the two
// devices' requests are those of <xen/gntalloc.h> and <xen/evtchn.h> of the kernel, which need not
// be installed.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <vector>

#include "base/fd.h"
#include "mock_world.h"
#include "support/xen_world.h"
#include "xen/host_xen.h"

namespace vbd::xen {
namespace {

struct AllocGrant {
    uint16_t domain;
    uint16_t flags;
    uint32_t count;
    uint64_t index;  // out: for mmap
    uint32_t ref;    // out
};
struct DeallocGrant {
    uint64_t index;
    uint32_t count;
};
constexpr unsigned long kAllocGrant = _IOC(_IOC_NONE, 'G', 5, sizeof(AllocGrant));
constexpr unsigned long kDeallocGrant = _IOC(_IOC_NONE, 'G', 6, sizeof(DeallocGrant));
constexpr unsigned long kBindUnbound = _IOC(_IOC_NONE, 'E', 2, sizeof(unsigned));
constexpr unsigned long kNotify = _IOC(_IOC_NONE, 'E', 4, sizeof(unsigned));
static_assert(kAllocGrant == 0x00184705 && kDeallocGrant == 0x00104706);
constexpr uint16_t kWritable = 1;
constexpr DomainId kSelf = 0;

class HostXenWorld final : public XenWorld {
  public:
    HostXenWorld() {
        xen_ = require_value(HostXen::open());
        grants_ = Fd(::open("/dev/xen/gntalloc", O_RDWR | O_CLOEXEC));
        REQUIRE(grants_);
    }
    ~HostXenWorld() override { leave(); }

    DomainId guest() const override { return kSelf; }
    DomainId absent() const override { return 4242; }
    DomainId stranger() const override { return 4243; }
    uint32_t most_mappings() const override {
        std::string type;
        std::ifstream("/sys/hypervisor/guest_type") >> type;
        return type == "PV" ? 64 : 128;
    }

    Page grant(bool writable) override { return alloc(kSelf, writable ? kWritable : uint16_t{0}); }
    Page grant_to_stranger() override { return alloc(stranger(), kWritable); }
    // Within the table, which holds 512 entries a frame: far behind what was handed out.
    GrantRef ungranted() override {
        const Page page = alloc(kSelf, 0);
        end_access(page);
        return page.ref;
    }
    void end_access(const Page& page) override {
        const auto found = pages_.find(page.ref);
        REQUIRE(found != pages_.end());
        ::munmap(page.bytes, kPageSize);
        DeallocGrant request = {found->second.index, 1};
        CHECK(::ioctl(grants_.get(), kDeallocGrant, &request) == 0);
        pages_.erase(found);
    }

    Port alloc_unbound() override { return bind_unbound(kSelf); }
    Port alloc_unbound_for_stranger() override { return bind_unbound(stranger()); }
    void notify(Port port) override {
        unsigned number = port;
        REQUIRE(::ioctl(descriptor(port), kNotify, &number) == 0);
    }
    bool take(Port port, int timeout_ms) override {
        if (!readable(descriptor(port), timeout_ms)) return false;
        Port delivered = 0;
        CHECK(::read(descriptor(port), &delivered, sizeof(delivered)) == sizeof(delivered));
        return delivered == port;
    }
    void unmask(Port port) override {
        CHECK(::write(descriptor(port), &port, sizeof(port)) == sizeof(port));
    }
    void close_port(Port port) override { ports_.erase(port); }
    void leave() override {
        ports_.clear();
        for (const auto& [ref, held] : pages_) ::munmap(held.bytes, kPageSize);
        pages_.clear();
        grants_.reset();
    }
    Xen& xen() override { return *xen_; }

  private:
    struct Held {
        uint64_t index;
        std::byte* bytes;
    };

    int descriptor(Port port) {
        const auto found = ports_.find(port);
        REQUIRE(found != ports_.end());
        return found->second.get();
    }
    Page alloc(DomainId peer, uint16_t flags) {
        AllocGrant request = {peer, flags, 1, 0, 0};
        REQUIRE(::ioctl(grants_.get(), kAllocGrant, &request) == 0);
        void* bytes = ::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, grants_.get(),
                             static_cast<off_t>(request.index));
        REQUIRE(bytes != MAP_FAILED);
        pages_[request.ref] = {request.index, static_cast<std::byte*>(bytes)};
        return {static_cast<std::byte*>(bytes), request.ref};
    }
    Port bind_unbound(DomainId peer) {
        Fd fd(::open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC));
        REQUIRE(fd);
        unsigned request = peer;
        const int port = ::ioctl(fd.get(), kBindUnbound, &request);
        REQUIRE(port > 0);
        ports_[static_cast<Port>(port)] = std::move(fd);
        return static_cast<Port>(port);
    }

    std::unique_ptr<HostXen> xen_;
    Fd grants_;
    std::map<GrantRef, Held> pages_;
    std::map<Port, Fd> ports_;  // each on a descriptor of its own
};

}  // namespace

std::unique_ptr<XenWorld> make_host_world() {
    return std::make_unique<HostXenWorld>();
}

std::string host_world_problem() {
    const Fd grants(::open("/dev/xen/gntalloc", O_RDWR | O_CLOEXEC));
    if (!grants) return std::string("/dev/xen/gntalloc: ") + std::strerror(errno);
    const std::vector<std::string> problems = probe_host().problems();
    return problems.empty() ? "" : problems[0];
}

}  // namespace vbd::xen
