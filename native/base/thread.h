// Thread: one of ours, under its name and without the program's signals, which are for the program's
// own threads. Its start can fail, as std::thread's cannot where there are no exceptions: a host that
// has no room for one more thread must not take every guest down with it.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "base/result.h"

namespace vbd {

class Thread {
  public:
    Thread() = default;
    ~Thread() { VBD_CHECK(!joinable_); }
    Thread(const Thread&) = delete;
    Thread& operator=(const Thread&) = delete;

    /// Runs `body` on a new thread; of `name` the system keeps 15 bytes. Errors: kNoMemory; then
    /// `body` is gone unrun.
    Status start(std::string name, std::function<void()> body) {
        VBD_CHECK(!joinable_);
        auto work = std::make_unique<Work>(Work{std::move(name), std::move(body)});
        sigset_t all, before;
        sigfillset(&all);
        ::pthread_sigmask(SIG_SETMASK, &all, &before);
        const int error = ::pthread_create(&thread_, nullptr, &Thread::main, work.get());
        ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
        if (error != 0) {
            return system_error(ErrorKind::kNoMemory, error, "starting the thread " + work->name);
        }
        (void)work.release();
        joinable_ = true;
        return {};
    }

    bool joinable() const { return joinable_; }

    /// Waits for its end.
    void join() {
        ::pthread_join(thread_, nullptr);
        joinable_ = false;
    }
    /// Lets it go on by itself.
    void detach() {
        ::pthread_detach(thread_);
        joinable_ = false;
    }

  private:
    struct Work {
        std::string name;
        std::function<void()> body;
    };

    static void* main(void* given) {
        const std::unique_ptr<Work> work(static_cast<Work*>(given));
        ::pthread_setname_np(::pthread_self(), work->name.substr(0, 15).c_str());
        work->body();
        return nullptr;
    }

    pthread_t thread_{};
    bool joinable_ = false;
};

}  // namespace vbd
