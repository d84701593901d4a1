#include "node/ready_watcher.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>

namespace vbd::node {
namespace {

constexpr uint32_t kStopKey = 0;
constexpr int kEventsPerWait = 64;

int control(int epoll, int operation, int fd, uint32_t key, uint32_t flags) {
    epoll_event event = {};
    event.events = EPOLLIN | flags;
    event.data.u32 = key;
    return ::epoll_ctl(epoll, operation, fd, &event) == 0 ? 0 : errno;
}

}  // namespace

Result<std::unique_ptr<ReadyWatcher>> ReadyWatcher::start(const char* thread_name,
                                                          OnReady on_ready) {
    std::unique_ptr<ReadyWatcher> watcher(new ReadyWatcher());
    watcher->on_ready_ = std::move(on_ready);
    watcher->epoll_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
    watcher->stop_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    int code = watcher->epoll_ && watcher->stop_ ? 0 : errno;
    if (code == 0)
        code = control(watcher->epoll_.get(), EPOLL_CTL_ADD, watcher->stop_.get(), kStopKey, 0);
    if (code != 0) return system_error(ErrorKind::kXen, code, "watching descriptors");
    Status running = watcher->thread_.start(thread_name, [self = watcher.get()] { self->run(); });
    if (!running) return running.error();
    return watcher;
}

ReadyWatcher::~ReadyWatcher() {
    const uint64_t one = 1;
    if (stop_) (void)!::write(stop_.get(), &one, sizeof(one));
    if (thread_.joinable()) thread_.join();
}

Status ReadyWatcher::add(int fd, uint32_t key) {
    const int code = control(epoll_.get(), EPOLL_CTL_ADD, fd, key, EPOLLONESHOT);
    if (code != 0) return system_error(ErrorKind::kXen, code, "watching a descriptor");
    return {};
}

void ReadyWatcher::again(int fd, uint32_t key) {
    (void)control(epoll_.get(), EPOLL_CTL_MOD, fd, key, EPOLLONESHOT);
}

void ReadyWatcher::remove(int fd) {
    (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

void ReadyWatcher::run() {
    for (;;) {
        epoll_event events[kEventsPerWait];
        const int count = ::epoll_wait(epoll_.get(), events, kEventsPerWait, -1);
        for (int i = 0; i < count; ++i) {
            if (events[i].data.u32 == kStopKey) return;
            on_ready_(events[i].data.u32);
        }
    }
}

}  // namespace vbd::node
