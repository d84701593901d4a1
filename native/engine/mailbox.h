// Mailbox: how other threads have something done on a reactor's thread. A message is a function;
// posting takes a lock, but a reactor that has no mail only reads one flag.
#pragma once

#include <sys/eventfd.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "base/fd.h"

namespace vbd::engine {

class Mailbox {
  public:
    using Message = std::function<void()>;

    Mailbox() : wake_fd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

    bool ok() const { return static_cast<bool>(wake_fd_); }

    /// From any thread. Messages run in the order in which they were posted.
    void post(Message message) {
        {
            std::lock_guard lock(mutex_);
            messages_.push_back(std::move(message));
        }
        wake();
    }

    /// From any thread: makes the reactor look around once.
    void wake() {
        if (ready_.exchange(true, std::memory_order_acq_rel)) return;
        uint64_t one = 1;
        (void)!::write(wake_fd_.get(), &one, sizeof one);
    }

    bool has_mail() const { return ready_.load(std::memory_order_acquire); }

    /// On the reactor's thread: runs all messages. Call when has_mail(), or when wake_fd() became
    /// readable.
    void deliver() {
        uint64_t drained;
        (void)!::read(wake_fd_.get(), &drained, sizeof drained);
        ready_.exchange(false, std::memory_order_acq_rel);  // sees what went with a wake()
        std::vector<Message> mail;
        {
            std::lock_guard lock(mutex_);
            mail.swap(messages_);
        }
        for (Message& message : mail) message();
    }

    /// Destroys the messages unread, and what they hold with them. When nobody delivers any more.
    void clear() {
        std::vector<Message> unread;
        const std::lock_guard lock(mutex_);
        unread.swap(messages_);
    }

    int wake_fd() const { return wake_fd_.get(); }

  private:
    Fd wake_fd_;
    std::atomic<bool> ready_{false};
    std::mutex mutex_;
    std::vector<Message> messages_;
};

}  // namespace vbd::engine
