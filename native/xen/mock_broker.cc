#include "xen/mock_broker.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "base/thread.h"
#include "xen/mock_socket.h"

namespace vbd::xen {
namespace {

using namespace mock;

constexpr size_t kMaxClients = 4096;
constexpr int kMessagesPerTurn = 16;  // of one client, before the others get their turn
constexpr uint64_t kListenerKey = 0;  // keys of the epoll set: client ids, and these two
constexpr uint64_t kStopKey = uint64_t{1} << 32;

struct Client {
    ClientId id = 0;
    Fd socket;
    bool greeted = false;
    Role role = Role::kPeer;
    DomainId domain = 0;
};

/// What a request is answered with; the descriptors are borrowed from the broker's books until the
/// reply is sent.
struct Answer {
    Reply reply = {};
    int fds[kMaxDescriptors] = {};
    size_t fd_count = 0;
    std::shared_ptr<EventPair> keep;

    static Answer failure(int errno_code) {
        Answer answer;
        answer.reply.errno_code = errno_code != 0 ? errno_code : EIO;
        return answer;
    }
    void attach(int fd) {
        VBD_CHECK(fd_count < kMaxDescriptors);
        fds[fd_count++] = fd;
    }
};

class Broker final : public MockBroker {
  public:
    Broker(Listener listener, Faults faults, Fd epoll, Fd stop, OnDomain on_domain)
        : listener_(std::move(listener)),
          faults_(std::move(faults)),
          epoll_(std::move(epoll)),
          stop_(std::move(stop)),
          reserve_(::open("/dev/null", O_RDONLY | O_CLOEXEC)),
          domains_(on_domain ? std::move(on_domain) : [](DomainEvent, DomainId) {}) {}
    ~Broker() override { close(); }

    Status arm();
    Status create_domain(DomainId domain, uint32_t pages) override;
    Status destroy_domain(DomainId domain) override;
    std::vector<DomainSummary> domains() override;
    Status set_faults(std::span<const Fault> faults) override;
    void close() override;

  private:
    int watch(int fd, uint64_t key) const;
    void run();
    void accept_clients();
    void shed_connection();
    ClientId free_client_id();
    void serve(ClientId id);
    void drop(ClientId id);
    void cut_off_guests(DomainId domain);

    Answer handle(Client& client, const Request& request);
    Answer hello(Client& client, const Request& request);
    Answer open_domain(const Client& client, const Request& request);
    static Answer port_answer(Result<BoundPort> port, bool binder);

    Listener listener_;
    Faults faults_;
    Fd epoll_;
    Fd stop_;
    Fd reserve_;        // given up for a moment to turn a client away when descriptors run out
    std::mutex mutex_;  // guards what follows
    Domains domains_;
    std::unordered_map<ClientId, Client> clients_;
    ClientId last_id_ = 0;
    bool closed_ = false;
    Thread thread_;
};

int Broker::watch(int fd, uint64_t key) const {
    epoll_event event = {};
    event.events = EPOLLIN;
    event.data.u64 = key;
    return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : errno;
}

Status Broker::arm() {
    int code = watch(listener_.fd(), kListenerKey);
    if (code == 0) code = watch(stop_.get(), kStopKey);
    if (code != 0) return system_error(ErrorKind::kXen, code, "starting the mock Xen");
    return thread_.start("vbdkit-mock", [this] { run(); });
}

void Broker::run() {
    for (;;) {
        epoll_event events[32];
        const int count = ::epoll_wait(epoll_.get(), events, 32, -1);
        for (int i = 0; i < count; ++i) {
            const uint64_t key = events[i].data.u64;
            if (key == kStopKey) return;
            const std::lock_guard lock(mutex_);
            if (key == kListenerKey) {
                accept_clients();
            } else {
                serve(static_cast<ClientId>(key));
            }
        }
    }
}

void Broker::accept_clients() {
    for (;;) {
        Fd socket(::accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (!socket && (errno == EMFILE || errno == ENFILE)) return shed_connection();
        if (!socket && errno == ECONNABORTED) continue;
        if (!socket) return;
        const ClientId id = free_client_id();
        if (id == 0 || watch(socket.get(), id) != 0)
            continue;  // turned away: it sees the connection close
        Client& client = clients_[id];
        client.id = id;
        client.socket = std::move(socket);
    }
}

/// Without a descriptor left, a waiting connection would make the listener readable for ever.
void Broker::shed_connection() {
    reserve_.reset();
    Fd(::accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    reserve_ = Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
}

/// Round robin, so that an id is not used again while anything of its last owner might linger.
ClientId Broker::free_client_id() {
    if (clients_.size() >= kMaxClients) return 0;
    do {
        last_id_ = last_id_ + 1 >= kBrokerClient ? 1 : static_cast<ClientId>(last_id_ + 1);
    } while (clients_.contains(last_id_));
    return last_id_;
}

void Broker::serve(ClientId id) {
    const auto found = clients_.find(id);
    if (found == clients_.end()) return;
    Client& client = found->second;
    for (int turn = 0; turn < kMessagesPerTurn; ++turn) {
        Request request = {};
        const ssize_t size =
            receive_message(client.socket.get(), &request, sizeof(request), nullptr);
        if (size == -EAGAIN) return;
        if (size != sizeof(request)) return drop(id);  // closed, broken, or not our protocol
        if (request.verb == Verb::kReap) {
            domains_.reap(static_cast<DomainId>(request.domain));
            continue;
        }
        Answer answer = handle(client, request);
        answer.reply.client = client.id;
        // A client has one request outstanding, so its buffer has room for the reply, or it is not
        // a client of ours.
        if (send_message(client.socket.get(), &answer.reply, sizeof(answer.reply),
                         std::span(answer.fds, answer.fd_count)) != 0) {
            return drop(id);
        }
    }
}

void Broker::drop(ClientId id) {
    clients_.erase(id);
    for (const DomainId orphan : domains_.forget(id)) cut_off_guests(orphan);
}

/// Ends the connections of a dead domain's own processes; the broker's thread takes them off the
/// books as they close.
void Broker::cut_off_guests(DomainId domain) {
    for (auto& [id, client] : clients_) {
        if (client.greeted && client.role == Role::kGuest && client.domain == domain) {
            ::shutdown(client.socket.get(), SHUT_RDWR);
        }
    }
}

Answer Broker::handle(Client& client, const Request& request) {
    if (request.verb == Verb::kHello) return hello(client, request);
    if (!client.greeted || request.domain > UINT16_MAX) return Answer::failure(EPROTO);
    const auto domain = static_cast<DomainId>(request.domain);
    switch (request.verb) {
        case Verb::kOpenDomain:
            return open_domain(client, request);
        case Verb::kAllocUnbound:
            return port_answer(domains_.alloc_unbound(client.domain, client.id, domain), false);
        case Verb::kBind:
            return port_answer(domains_.bind(client.domain, client.id, domain, request.a), true);
        case Verb::kClosePort: {
            Answer answer;
            answer.reply.errno_code = domains_.close(client.domain, client.id, request.a);
            return answer;
        }
        default:
            return Answer::failure(EPROTO);
    }
}

Answer Broker::hello(Client& client, const Request& request) {
    if (client.greeted || request.a != kProtocolVersion || request.domain > UINT16_MAX) {
        return Answer::failure(EPROTO);
    }
    const auto domain = static_cast<DomainId>(request.domain);
    Answer answer;
    answer.attach(faults_.fd());
    if (static_cast<Role>(request.b) == Role::kGuest) {
        Domains::Record* record = domains_.find(domain);
        if (record != nullptr && record->dying()) return Answer::failure(EBUSY);
        if (record == nullptr) {
            Result<Domains::Record*> made = domains_.create(domain, request.c, client.id);
            if (!made) return Answer::failure(made.error().errno_code);
            record = made.value();
        }
        client.role = Role::kGuest;
        answer.reply.value = record->pages;
        answer.attach(record->memory.fd());
        answer.attach(record->grants.fd());
    }
    client.greeted = true;
    client.domain = domain;
    return answer;
}

Answer Broker::open_domain(const Client& client, const Request& request) {
    Domains::Record* record = domains_.find(static_cast<DomainId>(request.domain));
    if (record == nullptr) return Answer::failure(ESRCH);
    Result<SharedMemory*> journal = domains_.journal(*record, client.id);
    if (!journal) return Answer::failure(journal.error().errno_code);
    Answer answer;
    answer.reply.value = record->pages;
    answer.attach(record->memory.fd());
    answer.attach(record->grants.fd());
    answer.attach(record->pins.fd());
    answer.attach(journal.value()->fd());
    return answer;
}

Answer Broker::port_answer(Result<BoundPort> port, bool binder) {
    if (!port) return Answer::failure(port.error().errno_code);
    Answer answer;
    answer.keep = port.value().events;
    answer.reply.value = port.value().port;
    answer.attach((binder ? answer.keep->binder : answer.keep->allocator).get());
    answer.attach((binder ? answer.keep->allocator : answer.keep->binder).get());
    return answer;
}

Status Broker::create_domain(DomainId domain, uint32_t pages) {
    const std::lock_guard lock(mutex_);
    if (closed_) return system_error(ErrorKind::kXen, EPIPE, "creating a domain");
    Result<Domains::Record*> made = domains_.create(domain, pages, 0);
    if (!made) return made.error();
    return {};
}

Status Broker::destroy_domain(DomainId domain) {
    const std::lock_guard lock(mutex_);
    if (closed_) return system_error(ErrorKind::kXen, EPIPE, "destroying a domain");
    if (!domains_.destroy(domain)) {
        return system_error(ErrorKind::kXen, ESRCH, "destroying domain " + std::to_string(domain));
    }
    cut_off_guests(domain);
    return {};
}

std::vector<DomainSummary> Broker::domains() {
    const std::lock_guard lock(mutex_);
    return domains_.list();
}

Status Broker::set_faults(std::span<const Fault> faults) {
    const std::lock_guard lock(mutex_);
    return faults_.set(faults);
}

void Broker::close() {
    {
        const std::lock_guard lock(mutex_);
        if (std::exchange(closed_, true)) return;
    }
    const uint64_t one = 1;
    (void)!::write(stop_.get(), &one, sizeof(one));
    if (thread_.joinable()) thread_.join();
    const std::lock_guard lock(mutex_);
    clients_.clear();
    listener_.close();
    domains_.clear();
    epoll_.reset();
    stop_.reset();
    reserve_.reset();
}

}  // namespace

Result<std::unique_ptr<MockBroker>> MockBroker::start(const std::string& socket_path,
                                                      OnDomain on_domain) {
    Result<Faults> faults = Faults::create();
    if (!faults) return faults.error();
    Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
    Fd stop(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!epoll || !stop) return system_error(ErrorKind::kXen, errno, "starting the mock Xen");
    Result<Listener> listener = Listener::open(socket_path);
    if (!listener) return listener.error();
    auto broker = std::make_unique<Broker>(std::move(listener).value(), std::move(faults).value(),
                                           std::move(epoll), std::move(stop), std::move(on_domain));
    if (Status armed = broker->arm(); !armed) return armed.error();
    return std::unique_ptr<MockBroker>(std::move(broker));
}

}  // namespace vbd::xen
