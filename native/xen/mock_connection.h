// Connection: one client's end of the broker's socket, and what the client knows through it: the
// memory of the domains it touched, the fault rules. Shared by all handles of the client; thread
// safe. Owned by them together: it closes with the last, and then the broker takes back whatever is
// still pinned or bound.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "xen/mock_faults.h"
#include "xen/mock_memory.h"
#include "xen/mock_pins.h"
#include "xen/mock_protocol.h"
#include "xen/mock_socket.h"

namespace vbd::xen::mock {

/// One domain as its peer sees it. Immutable but for the memory behind it, so any thread may use
/// it.
class DomainView {
  public:
    DomainView(DomainId domain, SharedMemory memory, SharedMemory grants, SharedMemory pins,
               SharedMemory journal, ClientId client, DomainId self);

    DomainId domain() const { return domain_; }
    const PinSpace& space() const { return space_; }
    DomainState state() const;
    int memory_fd() const { return memory_.fd(); }
    std::byte* page(uint32_t frame) const { return memory_.data() + size_t{frame} * kPageSize; }

  private:
    DomainId domain_;
    SharedMemory memory_;
    SharedMemory grants_;
    SharedMemory pins_;
    SharedMemory journal_;
    PinSpace space_;
};

class Connection {
  public:
    struct Answer {
        uint32_t value = 0;
        ClientId client = 0;
        Descriptors fds;
    };

    /// Connects and greets as `self`. A guest's domain is made with `pages` pages if there is none;
    /// `hello` has its size and its memory's descriptors then. Errors: kXen with ENOENT or
    /// ECONNREFUSED (no broker), EPROTO (another version), EBUSY (the domain is dying), EINVAL,
    /// ETIMEDOUT.
    static Result<std::shared_ptr<Connection>> open(const std::string& path, DomainId self,
                                                    Role role, uint32_t pages, Answer* hello);

    DomainId self() const { return self_; }
    const Faults& faults() const { return faults_; }
    int fd() const { return socket_.get(); }

    /// One request, one reply. Errors: kXen with the broker's errno; EPIPE when the broker is gone,
    /// ETIMEDOUT when it does not answer within ten seconds, after which the connection counts as
    /// gone. `what` begins the message.
    Result<Answer> call(const Request& request, const std::string& what);

    /// One request without a reply; nothing happens when the broker is gone.
    void tell(const Request& request);

    /// The memory of a domain, asked for once while anybody uses it. Errors: kXen with ESRCH (no
    /// such domain), EMFILE, ENOMEM, and call()'s.
    Result<std::shared_ptr<DomainView>> domain(DomainId domain);

    /// Tells the broker, if that domain is dying, that we gave something back.
    void released(const DomainView& view);

    /// False once somebody has noticed that the broker is gone. Costs one load.
    bool alive() const { return alive_.load(std::memory_order_relaxed); }

    /// Looks, and notices.
    bool connected();

    Error lost_error(const std::string& what) const;

  private:
    Connection(Fd socket, DomainId self) : socket_(std::move(socket)), self_(self) {}
    int exchange(const Request& request, Reply& reply, Descriptors& fds);
    int wait_for(short events) const;
    int send_patiently(const Request& request) const;
    void lose(int errno_code);

    Fd socket_;
    DomainId self_;
    ClientId client_ = 0;
    Faults faults_;
    std::atomic<bool> alive_{true};
    std::atomic<int> lost_errno_{0};
    std::mutex call_mutex_;  // one request at a time
    std::mutex views_mutex_;
    /// A view closes with its last user, so that of a domain that is gone nothing stays.
    std::map<DomainId, std::weak_ptr<DomainView>> views_;
};

}  // namespace vbd::xen::mock
