// FakeXen: one guest's pages and grants inside the test process, with every rule of grant_table.h
// and event_channel.h that the engine relies on, knobs to break each call, and counts of what is
// mapped and bound. Far smaller than the mock on purpose: the engine's tests should not trust the
// mock, nor the mock's the engine.
#pragma once

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "base/fd.h"
#include "xen/xen.h"

namespace vbd::test {

class FakeXen : public xen::Xen {
  public:
    struct Grant {
        uint32_t page;
        bool read_only;
    };
    struct Channel {
        Fd to_back{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
        Fd to_front{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
        bool bound = false;
    };

    explicit FakeXen(uint32_t pages)
        : pages_(pages), memory_fd_(::memfd_create("guest", MFD_CLOEXEC)) {
        VBD_CHECK(::ftruncate(memory_fd_.get(), off_t{pages} * kPageSize) == 0);
        memory_ = map_all();
    }
    ~FakeXen() override { ::munmap(memory_, size_t{pages_} * kPageSize); }

    uint8_t* page(uint32_t index) { return memory_ + size_t{index} * kPageSize; }

    void grant(GrantRef ref, uint32_t page_index, bool read_only = false) {
        std::lock_guard lock(mutex_);
        grants_[ref] = {page_index, read_only};
    }
    void revoke(GrantRef ref) {
        std::lock_guard lock(mutex_);
        grants_.erase(ref);
    }
    Port alloc_port() {
        std::lock_guard lock(mutex_);
        channels_.push_back(std::make_unique<Channel>());
        return static_cast<Port>(channels_.size());
    }
    Channel& channel(Port port) { return *channels_[port - 1]; }

    std::atomic<int> mapped_pages{0};
    std::atomic<int> bound_ports{0};
    std::atomic<uint64_t> map_calls{0};
    std::atomic<uint64_t> unmap_calls{0};
    std::atomic<uint64_t> copy_calls{0};
    std::atomic<bool> fail_copy_calls{false};
    std::atomic<bool> fail_bind{false};
    /// The port whose descriptor no epoll instance takes.
    std::atomic<Port> unwatchable{0};
    /// Called at each unmap, before it happens.
    std::function<void()> on_unmap;
    /// Called at each copy, before it happens.
    std::function<void()> on_copy;

    Result<std::unique_ptr<xen::GrantTable>> open_grant_table() override;
    Result<std::unique_ptr<xen::EventChannel>> bind_interdomain(DomainId domain,
                                                                Port port) override;

  private:
    friend class FakeGrantTable;
    friend class FakeEventChannel;
    uint8_t* map_all() {
        return static_cast<uint8_t*>(::mmap(nullptr, size_t{pages_} * kPageSize,
                                            PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd_.get(),
                                            0));
    }
    bool lookup(GrantRef ref, bool write, uint32_t& page_index) {
        std::lock_guard lock(mutex_);
        auto found = grants_.find(ref);
        if (found == grants_.end() || (write && found->second.read_only)) return false;
        page_index = found->second.page;
        return true;
    }

    uint32_t pages_;
    Fd memory_fd_;
    uint8_t* memory_ = nullptr;
    std::mutex mutex_;
    std::map<GrantRef, Grant> grants_;
    std::vector<std::unique_ptr<Channel>> channels_;
};

class FakeGrantTable : public xen::GrantTable {
  public:
    explicit FakeGrantTable(FakeXen& xen) : xen_(xen), view_(xen.map_all()) {}
    ~FakeGrantTable() override {
        VBD_CHECK(mapped_.empty());
        ::munmap(view_, size_t{xen_.pages_} * kPageSize);
    }

    Result<void*> map(DomainId, std::span<const GrantRef> refs, xen::Access access) override {
        xen_.map_calls++;
        bool write = access == xen::Access::kReadWrite;
        std::vector<uint32_t> pages(refs.size());
        for (size_t i = 0; i < refs.size(); i++) {
            if (!xen_.lookup(refs[i], write, pages[i]))
                return Error{ErrorKind::kXen, EINVAL, "a grant was refused"};
        }
        size_t bytes = refs.size() * kPageSize;
        auto* base = static_cast<uint8_t*>(
            ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        for (size_t i = 0; i < refs.size(); i++) {
            void* at =
                ::mmap(base + i * kPageSize, kPageSize, write ? PROT_READ | PROT_WRITE : PROT_READ,
                       MAP_SHARED | MAP_FIXED, xen_.memory_fd_.get(), off_t{pages[i]} * kPageSize);
            VBD_CHECK(at != MAP_FAILED);
        }
        mapped_[base] = static_cast<uint32_t>(refs.size());
        xen_.mapped_pages += static_cast<int>(refs.size());
        return static_cast<void*>(base);
    }

    Status unmap(void* address, uint32_t pages) override {
        xen_.unmap_calls++;
        auto found = mapped_.find(address);
        VBD_CHECK(found != mapped_.end() && found->second == pages);
        if (xen_.on_unmap) xen_.on_unmap();
        ::munmap(address, size_t{pages} * kPageSize);
        mapped_.erase(found);
        xen_.mapped_pages -= static_cast<int>(pages);
        return {};
    }

    Status copy(DomainId, std::span<xen::GrantCopy> segments) override {
        xen_.copy_calls++;
        if (xen_.on_copy) xen_.on_copy();
        if (xen_.fail_copy_calls) return Error{ErrorKind::kXen, EFAULT, "the copy failed"};
        for (xen::GrantCopy& segment : segments) {
            VBD_CHECK(segment.length > 0 && segment.offset + segment.length <= kPageSize);
            bool write = segment.direction == xen::CopyDirection::kToGuest;
            uint32_t page = 0;
            if (!xen_.lookup(segment.ref, write, page)) {
                segment.status = xen::kGrantBadRef;
                continue;
            }
            uint8_t* guest = view_ + size_t{page} * kPageSize + segment.offset;
            std::memcpy(write ? guest : segment.local, write ? segment.local : guest,
                        segment.length);
            segment.status = xen::kGrantOkay;
        }
        return {};
    }

  private:
    FakeXen& xen_;
    // Copies go through addresses of their own: guest and backend order their accesses through the
    // ring, which they see at different addresses too, so a race detector cannot know that they are
    // ordered.
    uint8_t* view_;
    std::map<void*, uint32_t> mapped_;
};

class FakeEventChannel : public xen::EventChannel {
  public:
    FakeEventChannel(FakeXen& xen, Port port)
        : xen_(xen), channel_(xen.channel(port)), port_(port) {
        epoll_event event{};
        event.events = EPOLLIN | EPOLLONESHOT;
        ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, channel_.to_back.get(), &event);
        uint64_t one = 1;
        (void)!::write(channel_.to_back.get(), &one,
                       sizeof one);  // binding leaves one event pending
        channel_.bound = true;
        xen_.bound_ports++;
    }
    ~FakeEventChannel() override {
        channel_.bound = false;
        xen_.bound_ports--;
    }

    int fd() const override {
        return xen_.unwatchable == port_ ? xen_.memory_fd_.get() : epoll_.get();
    }
    bool take_pending() override {
        epoll_event event{};
        if (::epoll_wait(epoll_.get(), &event, 1, 0) < 1) return false;
        uint64_t drained;
        return ::read(channel_.to_back.get(), &drained, sizeof drained) == sizeof drained;
    }
    void unmask() override {
        epoll_event event{};
        event.events = EPOLLIN | EPOLLONESHOT;
        ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, channel_.to_back.get(), &event);
    }
    void notify() override {
        uint64_t one = 1;
        (void)!::write(channel_.to_front.get(), &one, sizeof one);
    }
    Port local_port() const override { return port_; }

  private:
    FakeXen& xen_;
    FakeXen::Channel& channel_;
    Port port_;
    Fd epoll_{::epoll_create1(EPOLL_CLOEXEC)};
};

inline Result<std::unique_ptr<xen::GrantTable>> FakeXen::open_grant_table() {
    return std::unique_ptr<xen::GrantTable>(std::make_unique<FakeGrantTable>(*this));
}

inline Result<std::unique_ptr<xen::EventChannel>> FakeXen::bind_interdomain(DomainId, Port port) {
    std::lock_guard lock(mutex_);
    if (fail_bind || port == 0 || port > channels_.size() || channels_[port - 1]->bound) {
        return Error{ErrorKind::kXen, EINVAL, "binding the event channel was refused"};
    }
    return std::unique_ptr<xen::EventChannel>(std::make_unique<FakeEventChannel>(*this, port));
}

}  // namespace vbd::test
