#include "xen/mock_event_channel.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <cerrno>

namespace vbd::xen {
namespace {

int watch(int epoll, int operation, int fd) {
    epoll_event event = {};
    event.events = EPOLLIN | EPOLLONESHOT;
    return ::epoll_ctl(epoll, operation, fd, &event) == 0 ? 0 : errno;
}

}  // namespace

Result<std::unique_ptr<EventChannel>> MockEventChannel::bind(
    std::shared_ptr<mock::Connection> connection, DomainId domain, Port remote_port) {
    const std::string what = "binding to event channel " + std::to_string(remote_port) +
                             " of domain " + std::to_string(domain);
    if (const int code = connection->faults().fail_call(mock::FaultCall::kBind, domain);
        code != 0) {
        return system_error(ErrorKind::kXen, code, what);
    }
    Result<mock::Connection::Answer> answer =
        connection->call({mock::Verb::kBind, domain, remote_port, 0, 0}, what);
    if (!answer) return answer.error();
    // From here on the port is ours: whatever fails, the destructor gives it back.
    std::unique_ptr<MockEventChannel> channel(
        new MockEventChannel(std::move(connection), domain, answer.value().value));
    channel->incoming_ = std::move(answer.value().fds[0]);
    channel->outgoing_ = std::move(answer.value().fds[1]);
    channel->epoll_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
    if (!channel->incoming_ || !channel->outgoing_ || !channel->epoll_) {
        return system_error(ErrorKind::kXen, EMFILE, what);
    }
    if (const int code = watch(channel->fd(), EPOLL_CTL_ADD, channel->incoming_.get()); code != 0) {
        return system_error(ErrorKind::kXen, code, what);
    }
    return std::unique_ptr<EventChannel>(std::move(channel));
}

MockEventChannel::~MockEventChannel() {
    // Answered before we go on: whoever binds next finds the peer's port free. Without a broker
    // there is nobody to tell.
    (void)connection_->call({mock::Verb::kClosePort, 0, port_, 0, 0}, "closing an event channel");
}

bool MockEventChannel::take_pending() {
    epoll_event event = {};
    if (::epoll_wait(epoll_.get(), &event, 1, 0) <= 0) return false;
    uint64_t count = 0;
    if (::read(incoming_.get(), &count, sizeof(count)) == sizeof(count)) return true;
    unmask();  // nothing was there after all
    return false;
}

void MockEventChannel::unmask() {
    (void)watch(epoll_.get(), EPOLL_CTL_MOD, incoming_.get());
}

void MockEventChannel::notify() {
    if (connection_->faults().fail_call(mock::FaultCall::kNotify, domain_) != 0) return;
    const uint64_t one = 1;
    (void)!::write(outgoing_.get(), &one, sizeof(one));
}

}  // namespace vbd::xen
