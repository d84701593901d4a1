// MockGuest: a guest's own hands on the mock hypervisor: its memory, its grant table, its event
// channels. Thread safe.
//
// The connection that made the domain is its life: when it closes (close, process exit, SIGKILL),
// the domain dies, as does a guest that the broker destroys. Memory stays readable and writable
// until the last user lets go of it.
//
// Grant entries are written by the guest itself, in memory shared with its peers: end_access()
// compares and exchanges, so that it can tell whether a peer still uses the page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "base/units.h"
#include "xen/mock_connection.h"
#include "xen/mock_memory.h"

namespace vbd::xen {

/// A guest's end of one event channel. Shared by whoever waits for it, so that closing the port
/// pulls nothing away.
struct GuestPort {
    Fd incoming;
    Fd outgoing;
    DomainId remote = 0;
};

/// Waits for some ports of a guest on a thread of its own, away from MockGuest::take_pending(),
/// which does not see them meanwhile. One thread waits; wake() is for any thread.
class GuestPortWaiter {
  public:
    enum class Wake : uint8_t { kEvent, kTimeout, kClosed };

    GuestPortWaiter() = default;
    GuestPortWaiter(const GuestPortWaiter&) = delete;
    GuestPortWaiter& operator=(const GuestPortWaiter&) = delete;
    ~GuestPortWaiter();

    /// Sleeps until an event came in on any of the ports since the last wait, or wake() was called.
    /// kClosed: the broker is gone or has destroyed the domain.
    Wake wait(uint32_t timeout_ms);
    void wake();

    /// Notifies through one of these ports; nothing happens for any other.
    void notify(Port port);

  private:
    friend class MockGuest;
    struct Member {
        Port port = 0;
        std::shared_ptr<GuestPort> ends;
    };

    std::shared_ptr<mock::Connection> connection_;
    std::shared_ptr<const Fd> guest_epoll_;  // where the ports are armed again
    std::vector<Member> members_;
    Fd epoll_;
    Fd wake_;
};

class MockGuest {
  public:
    /// Joins as `domain` (1 to 32751), making the domain with `pages` pages (1 to 4194304 of 4 KiB)
    /// if there is none. Errors: kXen with ENOENT or ECONNREFUSED (no broker), EINVAL (domid or
    /// pages out of range), EBUSY (the domain is dying), EPROTO, ETIMEDOUT.
    static Result<std::unique_ptr<MockGuest>> connect(const std::string& socket_path,
                                                      DomainId domain, uint32_t pages);

    DomainId domain() const { return connection_->self(); }
    std::byte* memory() const { return memory_->data(); }
    uint32_t pages() const { return static_cast<uint32_t>(memory_->size() / kPageSize); }

    /// For who uses the memory longer than the guest.
    std::shared_ptr<mock::SharedMemory> shared_memory() const { return memory_; }

    /// Makes `ref` (8 to 32767) a grant of page `page` to `peer`, replacing one that nobody uses.
    /// Errors: kInvalidArgument; kXen with EBUSY while a peer uses the reference.
    Status grant(GrantRef ref, uint32_t page, DomainId peer, bool read_only);

    /// Ends a grant. False: a peer still uses it, and nothing was changed. Errors:
    /// kInvalidArgument.
    Result<bool> end_access(GrantRef ref);

    /// A new port that `peer` may bind, armed. Errors: kXen with ENOSPC, EMFILE, EPIPE, ESRCH (the
    /// domain is dying).
    Result<Port> alloc_unbound(DomainId peer);

    /// Signals the peer; dropped while none is bound. Errors: kXen with ENOTCONN when the port is
    /// not ours.
    Status notify(Port port);

    /// Lets the next event of the port through. Errors: kXen with ENOTCONN.
    Status unmask(Port port);

    /// Errors: kXen with ENOTCONN.
    Status close_port(Port port);

    /// Readable while an event is pending on a port that is not masked.
    int event_fd() const { return epoll_->get(); }

    /// Takes pending events, one per port, and masks those ports. Never blocks. One thread at a
    /// time. Returns how many.
    size_t take_pending(std::span<Port> ports);

    /// Takes over the waiting for these ports. Errors: kXen with ENOTCONN, EMFILE; kInvalidArgument
    /// for a port named twice.
    Result<std::unique_ptr<GuestPortWaiter>> wait_on(std::span<const Port> ports);

    /// False once the broker is gone or has destroyed the domain.
    bool connected() { return connection_->connected(); }

    /// Becomes readable (POLLRDHUP, POLLHUP) then. Wait for nothing else on it, read nothing from
    /// it.
    int connection_fd() const { return connection_->fd(); }

  private:
    MockGuest() = default;
    std::shared_ptr<GuestPort> find(Port port);

    std::shared_ptr<mock::Connection> connection_;
    std::shared_ptr<mock::SharedMemory> memory_;
    mock::SharedMemory grants_;
    std::shared_ptr<const Fd> epoll_;
    std::mutex mutex_;  // guards ports_
    std::map<Port, std::shared_ptr<GuestPort>> ports_;
};

}  // namespace vbd::xen
