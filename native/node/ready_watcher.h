// ReadyWatcher: one thread that waits for descriptors to become readable, for an engine whose own
// thread must not sleep. Each descriptor is told once and then quiet until it is asked for again.
// Its destructor stops and joins the thread; the callback runs on it, everything else is for any
// thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "base/fd.h"
#include "base/result.h"
#include "base/thread.h"

namespace vbd::node {

class ReadyWatcher {
  public:
    using OnReady = std::function<void(uint32_t key)>;

    /// Errors: kXen with EMFILE and the like.
    static Result<std::unique_ptr<ReadyWatcher>> start(const char* thread_name, OnReady on_ready);
    ~ReadyWatcher();

    /// Watches `fd`, which outlives it here, and tells `key` (not 0) the next time it is readable.
    Status add(int fd, uint32_t key);

    /// Tells it again: at once, if it is readable now.
    void again(int fd, uint32_t key);

    /// A callback that is under way may still tell its key afterwards.
    void remove(int fd);

  private:
    ReadyWatcher() = default;
    void run();

    OnReady on_ready_;
    Fd epoll_;
    Fd stop_;
    Thread thread_;
};

}  // namespace vbd::node
