#include "node/xenbus_device.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <utility>

namespace vbd::node {
namespace {

constexpr auto kWriterPatience = std::chrono::milliseconds(200);

}  // namespace

Result<std::unique_ptr<XenbusDevice>> XenbusDevice::open(const std::string& path,
                                                         Callbacks callbacks) {
    auto shared = std::make_shared<Shared>();
    shared->callbacks = std::move(callbacks);
    shared->device = Fd(::open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY));
    if (!shared->device) return system_error(ErrorKind::kXen, errno, "opening " + path);
    shared->wake = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!shared->wake) return system_error(ErrorKind::kXen, errno, "opening " + path);
    std::unique_ptr<XenbusDevice> device(new XenbusDevice());
    device->shared_ = shared;
    Status running = device->reader_.start("vbdkit-xs-read", [shared] { shared->read_all(); });
    if (running)
        running = device->writer_.start("vbdkit-xs-write", [shared] { shared->write_all(); });
    if (!running) return running.error();
    return device;
}

XenbusDevice::~XenbusDevice() {
    std::unique_lock lock(shared_->mutex);
    shared_->stopping = true;
    shared_->queue.clear();
    shared_->changed.notify_all();
    shared_->ring();
    const bool done =
        writer_.joinable() &&
        shared_->changed.wait_for(lock, kWriterPatience, [this] { return shared_->writer_done; });
    lock.unlock();
    if (reader_.joinable()) reader_.join();
    if (!writer_.joinable()) return;
    if (done) {
        writer_.join();
    } else {
        writer_.detach();
    }
}

void XenbusDevice::write(Bytes packet) {
    const std::lock_guard lock(shared_->mutex);
    shared_->queue.push_back(std::move(packet));
    shared_->changed.notify_all();
}

XenbusDevice::Bytes XenbusDevice::take() {
    const std::lock_guard lock(shared_->mutex);
    if (shared_->pending.size() >= kMaxPending) shared_->ring();
    return std::exchange(shared_->pending, {});
}

void XenbusDevice::Shared::ring() {
    const uint64_t one = 1;
    (void)!::write(wake.get(), &one, sizeof(one));
}

void XenbusDevice::Shared::read_all() {
    for (;;) {
        bool room = false;
        {
            const std::lock_guard lock(mutex);
            if (stopping) return;
            room = pending.size() < kMaxPending;
        }
        pollfd fds[] = {{wake.get(), POLLIN, 0}, {room ? device.get() : -1, POLLIN, 0}};
        if (::poll(fds, 2, -1) < 0) continue;  // EINTR
        uint64_t rung = 0;
        if (fds[0].revents != 0) (void)!::read(wake.get(), &rung, sizeof(rung));
        if (fds[1].revents != 0 && !read_once()) return;
    }
}

// False: the device is of no more use.
bool XenbusDevice::Shared::read_once() {
    uint8_t chunk[8192];
    const ssize_t count = ::read(device.get(), chunk, sizeof(chunk));
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (count <= 0) {
        callbacks.on_lost(count < 0 ? errno : 0);
        return false;
    }
    bool first = false;
    {
        const std::lock_guard lock(mutex);
        first = pending.empty();
        pending.insert(pending.end(), chunk, chunk + count);
    }
    if (first) callbacks.on_data();
    return true;
}

void XenbusDevice::Shared::write_all() {
    std::unique_lock lock(mutex);
    for (;;) {
        changed.wait(lock, [this] { return stopping || !queue.empty(); });
        if (stopping) break;
        Bytes packet = std::move(queue.front());
        queue.pop_front();
        lock.unlock();
        const ssize_t count = ::write(device.get(), packet.data(), packet.size());
        const int code = count < 0 ? errno : EIO;
        const bool whole = count == static_cast<ssize_t>(packet.size());
        if (!whole) callbacks.on_refused(std::move(packet), code);
        lock.lock();
    }
    writer_done = true;
    changed.notify_all();
}

}  // namespace vbd::node
