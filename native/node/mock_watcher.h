// MockWatcher: the one thread of a mock handle that JavaScript holds. It waits for the end of the
// handle's connection and, for a guest, for its event channels. Its destructor stops and joins it;
// callbacks run on it.
#pragma once

#include <functional>
#include <memory>

#include "base/fd.h"
#include "base/result.h"
#include "base/thread.h"

namespace vbd::node {

class MockWatcher {
  public:
    struct Callbacks {
        std::function<void()> on_lost;    // once, when the other end of the connection is gone
        std::function<void()> on_events;  // while the event descriptor is readable
    };

    /// `event_fd` may be -1. Both descriptors outlive the watcher. Errors: kXen with EMFILE and the
    /// like.
    static Result<std::unique_ptr<MockWatcher>> start(int connection_fd, int event_fd,
                                                      Callbacks callbacks);
    ~MockWatcher();

  private:
    MockWatcher() = default;
    void run(int connection_fd);

    Callbacks callbacks_;
    Fd epoll_;
    Fd stop_;
    Thread thread_;
};

}  // namespace vbd::node
