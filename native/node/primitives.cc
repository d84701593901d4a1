#include "node/primitives.h"

#include <sys/mman.h>

#include <utility>

#include "base/units.h"
#include "node/mapped_grants.h"

namespace vbd::node {
namespace {

constexpr uint32_t kIoKey = 1;  // channels are numbered from 2 on

}  // namespace

Status Primitives::start(Napi::Env env, uint32_t arena_pages, Napi::Function on_ready) {
    env_ = env;
    const size_t bytes = size_t{arena_pages} * kPageSize;
    auto arena = ReservedArray<uint8_t>::create(bytes);
    if (!arena) return arena.error();
    arena_ = std::move(arena).value();
    // Guest data has no business in a core dump; one huge page for one busy page would undo the
    // budget.
    ::madvise(arena_.data(), bytes, MADV_DONTDUMP);
    ::madvise(arena_.data(), bytes, MADV_NOHUGEPAGE);
    auto watcher = ReadyWatcher::start("vbdkit-js", [this](uint32_t key) { fire(key); });
    if (!watcher) return watcher.error();
    dispatcher_ = Dispatcher::create(env, "vbdkit js engine");
    watcher_ = std::move(watcher).value();
    regions_.add(env, arena_.data(), bytes);
    on_ready_ = Napi::Persistent(on_ready);
    return {};
}

Status Primitives::give_back(uint64_t offset, uint64_t length) {
    uint8_t* begin = regions_.resolve(0, offset, length);
    if (begin == nullptr || offset % kPageSize != 0 || length % kPageSize != 0) {
        return Error{ErrorKind::kInvalidArgument, 0, "no whole pages of the arena"};
    }
    if (io_) io_->forget_buffers(begin, length);
    ::madvise(begin, length, MADV_DONTNEED);
    return {};
}

Result<uint32_t> Primitives::bind(DomainId domain, Port remote_port) {
    auto channel = xen_->bind_interdomain(domain, remote_port);
    if (!channel) return channel.error();
    const uint32_t number = next_channel_++;
    if (Status added = watcher_->add(channel.value()->fd(), number); !added) return added.error();
    channels_[number] = std::move(channel).value();
    return number;
}

xen::EventChannel* Primitives::channel(uint32_t number) {
    const auto found = channels_.find(number);
    return found == channels_.end() ? nullptr : found->second.get();
}

void Primitives::unbind(uint32_t number) {
    const auto found = channels_.find(number);
    if (found == channels_.end()) return;
    watcher_->remove(found->second->fd());
    channels_.erase(found);
}

Result<IoBatch*> Primitives::io() {
    if (!io_) {
        auto made = IoBatch::create(regions_, {arena_.data(), arena_.size()});
        if (!made) return made.error();
        if (Status added = watcher_->add(made.value()->wake_fd(), kIoKey); !added) {
            return added.error();
        }
        io_ = std::move(made).value();
    }
    return io_.get();
}

bool Primitives::arm_io() {
    if (!io_) return true;
    if (!io_->arm()) return false;
    watcher_->again(io_->wake_fd(), kIoKey);
    return true;
}

void Primitives::fire(uint32_t key) {
    const std::lock_guard lock(mutex_);
    fired_.push_back(key);
    if (std::exchange(posted_, true)) return;
    dispatcher_->post([weak = weak_from_this()](Napi::Env env) {
        if (const auto self = weak.lock()) self->deliver(env);
    });
}

// Taking an event masks it, so that no channel is told twice before JavaScript unmasks it.
void Primitives::deliver(Napi::Env env) {
    std::vector<uint32_t> keys;
    {
        const std::lock_guard lock(mutex_);
        posted_ = false;
        keys.swap(fired_);
    }
    if (closed()) return;
    Napi::Array fired = Napi::Array::New(env);
    bool io = false;
    for (const uint32_t key : keys) {
        io = io || key == kIoKey;
        xen::EventChannel* from = channel(key);
        if (from == nullptr) continue;  // the I/O's, or of a port that was unbound meanwhile
        if (from->take_pending()) fired.Set(fired.Length(), Napi::Number::New(env, key));
        watcher_->again(from->fd(), key);
    }
    if (fired.Length() > 0 || io) on_ready_.Call({fired, Napi::Boolean::New(env, io)});
}

// Ports first, then guests' pages, as everywhere. The kernel may still write into memory
// that I/O was started on: what does not end in time keeps its memory for ever.
void Primitives::shut(bool leaving) {
    watcher_.reset();
    if (dispatcher_) dispatcher_->close();
    on_ready_.Reset();
    channels_.clear();
    const bool quiet = !io_ || io_->shut();
    for (const auto& weak : grants_) {
        if (const auto grants = weak.lock()) grants->close(leaving, quiet);
    }
    if (!quiet) {
        (void)io_.release();
        new ReservedArray<uint8_t>(std::move(arena_));
    }
    if (leaving) {
        regions_.abandon();
    } else {
        regions_.remove(env_, 0);
    }
    io_.reset();
    arena_ = {};
    xen_.reset();
}

}  // namespace vbd::node
