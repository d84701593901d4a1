#include "xen/mock_connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>

namespace vbd::xen::mock {
namespace {

constexpr auto kPatience = std::chrono::seconds(10);

/// Takes one of the descriptors of an answer as memory of `bytes` bytes.
Result<SharedMemory> take(Fd& fd, size_t bytes) {
    if (!fd) return system_error(ErrorKind::kXen, EMFILE, "receiving the memory of a mock domain");
    return SharedMemory::attach(std::move(fd), bytes);
}

}  // namespace

DomainView::DomainView(DomainId domain, SharedMemory memory, SharedMemory grants, SharedMemory pins,
                       SharedMemory journal, ClientId client, DomainId self)
    : domain_(domain),
      memory_(std::move(memory)),
      grants_(std::move(grants)),
      pins_(std::move(pins)),
      journal_(std::move(journal)) {
    grants_.close_fd();
    pins_.close_fd();
    journal_.close_fd();
    space_.grants = grants_.as<GrantEntry>();
    space_.pins = pins_.as<PinTable>();
    space_.journal = journal_.as<Journal>();
    space_.pages = static_cast<uint32_t>(memory_.size() / kPageSize);
    space_.client = client;
    space_.domain = self;
}

DomainState DomainView::state() const {
    return static_cast<DomainState>(space_.pins->state.load(std::memory_order_seq_cst));
}

Result<std::shared_ptr<Connection>> Connection::open(const std::string& path, DomainId self,
                                                     Role role, uint32_t pages, Answer* hello) {
    Result<Fd> socket = connect_socket(path);
    if (!socket) return socket.error();
    std::shared_ptr<Connection> connection(new Connection(std::move(socket).value(), self));
    const Request request = {Verb::kHello, self, kProtocolVersion, static_cast<uint32_t>(role),
                             pages};
    const std::string what =
        "joining the mock Xen at " + path + " as domain " + std::to_string(self);
    Result<Answer> answer = connection->call(request, what);
    if (!answer) return answer.error();
    if (!answer.value().fds[0]) return system_error(ErrorKind::kXen, EMFILE, what);
    Result<Faults> faults = Faults::attach(std::move(answer.value().fds[0]));
    if (!faults) return faults.error();
    connection->faults_ = std::move(faults).value();
    connection->client_ = answer.value().client;
    if (hello != nullptr) *hello = std::move(answer).value();
    return connection;
}

Result<Connection::Answer> Connection::call(const Request& request, const std::string& what) {
    const std::lock_guard lock(call_mutex_);
    Reply reply = {};
    Answer answer;
    if (!alive() || exchange(request, reply, answer.fds) != 0) return lost_error(what);
    if (reply.errno_code != 0) return system_error(ErrorKind::kXen, reply.errno_code, what);
    answer.value = reply.value;
    answer.client = static_cast<ClientId>(reply.client);
    return answer;
}

/// 0, or an errno after which the connection is lost.
int Connection::exchange(const Request& request, Reply& reply, Descriptors& fds) {
    int code = send_patiently(request);
    if (code == 0) code = wait_for(POLLIN);
    if (code == 0) {
        const ssize_t size = receive_message(fd(), &reply, sizeof(reply), &fds);
        if (size < 0) code = static_cast<int>(-size);
        if (size >= 0 && size != sizeof(reply)) code = size == 0 ? EPIPE : EPROTO;
    }
    if (code != 0) lose(code);
    return code;
}

/// Waits until the socket can be read or written; a socket whose other end closed can be both.
int Connection::wait_for(short events) const {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    for (;;) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
            deadline - std::chrono::steady_clock::now());
        if (left.count() <= 0) return ETIMEDOUT;
        pollfd ready = {fd(), events, 0};
        const int count = ::poll(&ready, 1, static_cast<int>(left.count()) + 1);
        if (count > 0) return 0;
        if (count < 0 && errno != EINTR) return errno;
    }
}

int Connection::send_patiently(const Request& request) const {
    int code = send_message(fd(), &request, sizeof(request), {});
    while (code == EAGAIN) {
        code = wait_for(POLLOUT);
        if (code == 0) code = send_message(fd(), &request, sizeof(request), {});
    }
    return code;
}

void Connection::tell(const Request& request) {
    if (!alive()) return;
    if (const int code = send_patiently(request); code != 0) lose(code);
}

/// Both ends are shut down, so that nobody waits for a late reply and the broker cleans up.
void Connection::lose(int errno_code) {
    lost_errno_.store(errno_code == ETIMEDOUT || errno_code == EPROTO ? errno_code : EPIPE);
    alive_.store(false);
    ::shutdown(fd(), SHUT_RDWR);
}

bool Connection::connected() {
    if (!alive()) return false;
    pollfd state = {fd(), POLLRDHUP, 0};
    if (::poll(&state, 1, 0) > 0 && (state.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0)
        lose(EPIPE);
    return alive();
}

Error Connection::lost_error(const std::string& what) const {
    const int code = lost_errno_.load();
    const char* why = code == ETIMEDOUT ? "the mock Xen does not answer"
                      : code == EPROTO  ? "the mock Xen is not of this version"
                                        : "the mock Xen is gone";
    return Error{ErrorKind::kXen, code != 0 ? code : EPIPE, what + ": " + why};
}

Result<std::shared_ptr<DomainView>> Connection::domain(DomainId domain) {
    const std::lock_guard lock(views_mutex_);
    std::erase_if(views_, [](const auto& entry) { return entry.second.expired(); });
    const auto known = views_.find(domain);
    if (known != views_.end()) {
        std::shared_ptr<DomainView> view = known->second.lock();
        if (view && view->state() != kGone) return view;
        views_.erase(known);  // a later domain of the same number is another one
    }
    const std::string what = "reaching domain " + std::to_string(domain);
    Result<Answer> answer = call({Verb::kOpenDomain, domain, 0, 0, 0}, what);
    if (!answer) return answer.error();
    Descriptors& fds = answer.value().fds;
    Result<SharedMemory> memory = take(fds[0], size_t{answer.value().value} * kPageSize);
    if (!memory) return memory.error();
    Result<SharedMemory> grants = take(fds[1], sizeof(GrantEntry) * kGrantEntries);
    if (!grants) return grants.error();
    Result<SharedMemory> pins = take(fds[2], sizeof(PinTable));
    if (!pins) return pins.error();
    Result<SharedMemory> journal = take(fds[3], sizeof(Journal));
    if (!journal) return journal.error();
    auto view = std::make_shared<DomainView>(domain, std::move(memory).value(),
                                             std::move(grants).value(), std::move(pins).value(),
                                             std::move(journal).value(), client_, self_);
    views_[domain] = view;
    return view;
}

void Connection::released(const DomainView& view) {
    if (view.state() == kDying) tell({Verb::kReap, view.domain(), 0, 0, 0});
}

}  // namespace vbd::xen::mock
