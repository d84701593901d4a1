// Dispatcher: runs functions on the JavaScript thread for other threads. One doorbell (a
// thread-safe function) is rung once for however many functions wait, and never blocks its ringer.
// Made, closed and destroyed on the JavaScript thread.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace vbd::node {

class Dispatcher {
  public:
    using Task = std::function<void(Napi::Env)>;

    static std::shared_ptr<Dispatcher> create(Napi::Env env, const char* name);

    /// From any thread. Tasks run in the order in which they were posted; after close() they are
    /// dropped unrun.
    void post(Task task);

    /// On the JavaScript thread: while a promise waits for a task, the process must not end by
    /// itself.
    void hold();
    void let_go();

    /// On the JavaScript thread. No task runs after it, no ringer is inside it.
    void close();

  private:
    static void run(Napi::Env env, Napi::Function, Dispatcher* self, void*);
    using Doorbell = Napi::TypedThreadSafeFunction<Dispatcher, void, &Dispatcher::run>;

    Dispatcher() = default;

    std::mutex mutex_;  // guards the three below
    std::vector<Task> tasks_;
    bool rung_ = false;
    bool closed_ = false;
    Doorbell doorbell_;
    uint32_t holds_ = 0;
    std::shared_ptr<Dispatcher> self_;  // until the doorbell is gone
    Napi::Env env_{nullptr};
};

}  // namespace vbd::node
