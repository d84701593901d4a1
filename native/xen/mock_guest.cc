#include "xen/mock_guest.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace vbd::xen {
namespace {

using mock::GrantEntry;

constexpr uint32_t kInUse = mock::kGrantReading | mock::kGrantWriting;
constexpr uint64_t kConnectionKey = uint64_t{1} << 32;  // beside the ports in a waiter's epoll set
constexpr uint64_t kWakeKey = uint64_t{1} << 33;

int control(int epoll, int operation, int fd, uint32_t events, uint64_t key) {
    epoll_event event = {};
    event.events = events;
    event.data.u64 = key;
    return ::epoll_ctl(epoll, operation, fd, &event) == 0 ? 0 : errno;
}

/// A port in a guest's epoll set: armed, it delivers one event and is masked by that.
int arm(int epoll, const GuestPort& ends, Port port) {
    return control(epoll, EPOLL_CTL_MOD, ends.incoming.get(), EPOLLIN | EPOLLONESHOT, port);
}

bool drain(const Fd& eventfd) {
    uint64_t count = 0;
    return ::read(eventfd.get(), &count, sizeof(count)) == sizeof(count);
}

void signal(const Fd& eventfd) {
    const uint64_t one = 1;
    (void)!::write(eventfd.get(), &one, sizeof(one));
}

void notify_peer(const mock::Connection& connection, const GuestPort& ends) {
    if (connection.faults().fail_call(mock::FaultCall::kNotify, ends.remote) == 0)
        signal(ends.outgoing);
}

Error not_ours(Port port) {
    return system_error(ErrorKind::kXen, ENOTCONN, "event channel " + std::to_string(port));
}

Error bad_reference(GrantRef ref) {
    return Error{ErrorKind::kInvalidArgument, EINVAL,
                 "grant reference " + std::to_string(ref) + " is not one of 8 to 32767"};
}

bool usable(GrantRef ref) {
    return ref >= mock::kFirstGrantRef && ref < mock::kGrantEntries;
}

}  // namespace

GuestPortWaiter::~GuestPortWaiter() {
    for (const Member& member : members_) (void)arm(guest_epoll_->get(), *member.ends, member.port);
}

GuestPortWaiter::Wake GuestPortWaiter::wait(uint32_t timeout_ms) {
    if (!connection_->alive()) return Wake::kClosed;
    epoll_event events[16];
    const int count =
        ::epoll_wait(epoll_.get(), events, 16, static_cast<int>(std::min(timeout_ms, 1u << 30)));
    bool closed = false;
    for (int i = 0; i < count; ++i) {
        const uint64_t key = events[i].data.u64;
        if (key == kConnectionKey) {
            closed = !connection_->connected();
        } else if (key == kWakeKey) {
            drain(wake_);
        } else {
            drain(members_[key].ends->incoming);
        }
    }
    if (closed) return Wake::kClosed;
    return count > 0 ? Wake::kEvent : Wake::kTimeout;
}

void GuestPortWaiter::wake() {
    signal(wake_);
}

void GuestPortWaiter::notify(Port port) {
    for (const Member& member : members_) {
        if (member.port == port) return notify_peer(*connection_, *member.ends);
    }
}

Result<std::unique_ptr<MockGuest>> MockGuest::connect(const std::string& socket_path,
                                                      DomainId domain, uint32_t pages) {
    mock::Connection::Answer hello;
    Result<std::shared_ptr<mock::Connection>> connection =
        mock::Connection::open(socket_path, domain, mock::Role::kGuest, pages, &hello);
    if (!connection) return connection.error();
    if (!hello.fds[1] || !hello.fds[2]) {
        return system_error(ErrorKind::kXen, EMFILE, "receiving a mock domain's memory");
    }
    Result<mock::SharedMemory> memory =
        mock::SharedMemory::attach(std::move(hello.fds[1]), size_t{hello.value} * kPageSize);
    if (!memory) return memory.error();
    Result<mock::SharedMemory> grants = mock::SharedMemory::attach(
        std::move(hello.fds[2]), sizeof(GrantEntry) * mock::kGrantEntries);
    if (!grants) return grants.error();
    Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
    if (!epoll) return system_error(ErrorKind::kXen, errno, "waiting for event channels");
    std::unique_ptr<MockGuest> guest(new MockGuest());
    guest->connection_ = std::move(connection).value();
    guest->memory_ = std::make_shared<mock::SharedMemory>(std::move(memory).value());
    guest->memory_->close_fd();
    guest->grants_ = std::move(grants).value();
    guest->grants_.close_fd();
    guest->epoll_ = std::make_shared<const Fd>(std::move(epoll));
    return guest;
}

Status MockGuest::grant(GrantRef ref, uint32_t page, DomainId peer, bool read_only) {
    if (!usable(ref)) return bad_reference(ref);
    if (page >= pages()) {
        return Error{
            ErrorKind::kInvalidArgument, EINVAL,
            "page " + std::to_string(page) + " is beyond the guest's " + std::to_string(pages())};
    }
    Result<bool> ended = end_access(ref);
    if (!ended) return ended.error();
    if (!ended.value())
        return system_error(ErrorKind::kXen, EBUSY, "granting reference " + std::to_string(ref));
    // The entry permits nothing by now, so the frame may be written; it must be seen before the
    // permission is.
    GrantEntry& entry = grants_.as<GrantEntry>()[ref];
    entry.frame.store(page, std::memory_order_relaxed);
    const uint32_t flags = mock::kGrantPermitAccess | (read_only ? mock::kGrantReadOnly : 0);
    entry.access.store(mock::grant_access(flags, peer), std::memory_order_release);
    return {};
}

Result<bool> MockGuest::end_access(GrantRef ref) {
    if (!usable(ref)) return bad_reference(ref);
    GrantEntry& entry = grants_.as<GrantEntry>()[ref];
    uint32_t seen = entry.access.load(std::memory_order_acquire);
    do {
        if ((seen & kInUse) != 0) return false;
    } while (!entry.access.compare_exchange_weak(seen, 0, std::memory_order_acq_rel,
                                                 std::memory_order_acquire));
    return true;
}

Result<Port> MockGuest::alloc_unbound(DomainId peer) {
    const std::string what = "allocating an event channel for domain " + std::to_string(peer);
    if (const int code = connection_->faults().fail_call(mock::FaultCall::kAllocUnbound, peer);
        code != 0) {
        return system_error(ErrorKind::kXen, code, what);
    }
    Result<mock::Connection::Answer> answer =
        connection_->call({mock::Verb::kAllocUnbound, peer, 0, 0, 0}, what);
    if (!answer) return answer.error();
    const Port port = answer.value().value;
    auto ends = std::make_shared<GuestPort>();
    ends->incoming = std::move(answer.value().fds[0]);
    ends->outgoing = std::move(answer.value().fds[1]);
    ends->remote = peer;
    int code = ends->incoming && ends->outgoing ? 0 : EMFILE;
    const std::lock_guard lock(mutex_);
    if (code == 0) {
        code = control(epoll_->get(), EPOLL_CTL_ADD, ends->incoming.get(), EPOLLIN | EPOLLONESHOT,
                       port);
    }
    if (code != 0) {
        (void)connection_->call({mock::Verb::kClosePort, 0, port, 0, 0}, what);
        return system_error(ErrorKind::kXen, code, what);
    }
    ports_[port] = std::move(ends);
    return port;
}

std::shared_ptr<GuestPort> MockGuest::find(Port port) {
    const std::lock_guard lock(mutex_);
    const auto found = ports_.find(port);
    return found == ports_.end() ? nullptr : found->second;
}

Status MockGuest::notify(Port port) {
    const std::shared_ptr<GuestPort> ends = find(port);
    if (!ends) return not_ours(port);
    notify_peer(*connection_, *ends);
    return {};
}

Status MockGuest::unmask(Port port) {
    const std::shared_ptr<GuestPort> ends = find(port);
    if (!ends) return not_ours(port);
    (void)arm(epoll_->get(), *ends, port);
    return {};
}

Status MockGuest::close_port(Port port) {
    const std::shared_ptr<GuestPort> ends = find(port);
    if (!ends) return not_ours(port);
    {
        const std::lock_guard lock(mutex_);
        ports_.erase(port);
        (void)control(epoll_->get(), EPOLL_CTL_DEL, ends->incoming.get(), 0, 0);
    }
    // Without a broker the port is gone as well: that is no failure.
    (void)connection_->call({mock::Verb::kClosePort, 0, port, 0, 0}, "closing an event channel");
    return {};
}

size_t MockGuest::take_pending(std::span<Port> ports) {
    epoll_event events[64];
    const int room = static_cast<int>(std::min<size_t>(ports.size(), 64));
    if (room == 0) return 0;
    const int count = ::epoll_wait(epoll_->get(), events, room, 0);
    size_t taken = 0;
    for (int i = 0; i < count; ++i) {
        const Port port = static_cast<Port>(events[i].data.u64);
        const std::shared_ptr<GuestPort> ends = find(port);
        if (!ends) continue;  // closed in between
        if (drain(ends->incoming)) {
            ports[taken++] = port;
        } else {
            (void)arm(epoll_->get(), *ends, port);
        }
    }
    return taken;
}

Result<std::unique_ptr<GuestPortWaiter>> MockGuest::wait_on(std::span<const Port> ports) {
    auto waiter = std::make_unique<GuestPortWaiter>();
    waiter->connection_ = connection_;
    waiter->guest_epoll_ = epoll_;
    waiter->epoll_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
    waiter->wake_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    const int epoll = waiter->epoll_.get();
    int code = waiter->epoll_ && waiter->wake_ ? 0 : errno;
    if (code == 0) code = control(epoll, EPOLL_CTL_ADD, waiter->wake_.get(), EPOLLIN, kWakeKey);
    if (code == 0)
        code = control(epoll, EPOLL_CTL_ADD, connection_->fd(), EPOLLRDHUP, kConnectionKey);
    for (const Port port : ports) {
        std::shared_ptr<GuestPort> ends = find(port);
        if (!ends) return not_ours(port);
        if (code == 0)
            code = control(epoll, EPOLL_CTL_ADD, ends->incoming.get(), EPOLLIN,
                           waiter->members_.size());
        if (code != 0) break;
        waiter->members_.push_back({port, std::move(ends)});
        (void)control(epoll_->get(), EPOLL_CTL_MOD, waiter->members_.back().ends->incoming.get(), 0,
                      port);
    }
    if (code == EEXIST)
        return Error{ErrorKind::kInvalidArgument, EINVAL, "an event channel is named twice"};
    if (code != 0) return system_error(ErrorKind::kXen, code, "waiting for event channels");
    return waiter;
}

}  // namespace vbd::xen
