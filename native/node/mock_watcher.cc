#include "node/mock_watcher.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace vbd::node {
namespace {

enum Key : uint64_t { kConnection, kEvents, kStop };

int watch(int epoll, int fd, uint32_t events, Key key) {
    epoll_event event = {};
    event.events = events;
    event.data.u64 = key;
    return ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : errno;
}

}  // namespace

Result<std::unique_ptr<MockWatcher>> MockWatcher::start(int connection_fd, int event_fd,
                                                        Callbacks callbacks) {
    std::unique_ptr<MockWatcher> watcher(new MockWatcher());
    watcher->callbacks_ = std::move(callbacks);
    watcher->epoll_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
    watcher->stop_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    const int epoll = watcher->epoll_.get();
    int code = watcher->epoll_ && watcher->stop_ ? 0 : errno;
    if (code == 0) code = watch(epoll, watcher->stop_.get(), EPOLLIN, kStop);
    if (code == 0) code = watch(epoll, connection_fd, EPOLLRDHUP, kConnection);
    if (code == 0 && event_fd >= 0) code = watch(epoll, event_fd, EPOLLIN, kEvents);
    if (code != 0) return system_error(ErrorKind::kXen, code, "watching the mock Xen");
    Status running = watcher->thread_.start(
        "vbdkit-watch", [self = watcher.get(), connection_fd] { self->run(connection_fd); });
    if (!running) return running.error();
    return watcher;
}

MockWatcher::~MockWatcher() {
    const uint64_t one = 1;
    if (stop_) (void)!::write(stop_.get(), &one, sizeof(one));
    if (thread_.joinable()) thread_.join();
}

void MockWatcher::run(int connection_fd) {
    for (;;) {
        epoll_event events[3];
        const int count = ::epoll_wait(epoll_.get(), events, 3, -1);
        for (int i = 0; i < count; ++i) {
            switch (static_cast<Key>(events[i].data.u64)) {
                case kStop:
                    return;
                case kConnection:
                    // It would stay readable for ever; event channels go on without it.
                    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection_fd, nullptr);
                    if (callbacks_.on_lost) callbacks_.on_lost();
                    break;
                case kEvents:
                    callbacks_.on_events();
                    break;
            }
        }
    }
}

}  // namespace vbd::node
