// Dispatcher: the doorbell.
#include "node/dispatcher.h"

#include <utility>

namespace vbd::node {

namespace {

// What a listener throws becomes an 'uncaughtException'. Left pending, Node 20 would swallow it
// with a warning, and the tasks after it could not call JavaScript.
void report_exception(Napi::Env env) {
    napi_value error = nullptr;
    if (!env.IsExceptionPending() || napi_get_and_clear_last_exception(env, &error) != napi_ok)
        return;
    napi_fatal_exception(env, error);
}

}  // namespace

std::shared_ptr<Dispatcher> Dispatcher::create(Napi::Env env, const char* name) {
    auto dispatcher = std::shared_ptr<Dispatcher>(new Dispatcher);
    dispatcher->env_ = env;
    dispatcher->self_ = dispatcher;
    // The finalizer is the last to know the doorbell; only then may the memory go.
    dispatcher->doorbell_ = Doorbell::New(
        env, name, 0, 1, dispatcher.get(),
        [](Napi::Env, void*, Dispatcher* self) { self->self_.reset(); },
        static_cast<void*>(nullptr));
    dispatcher->doorbell_.Unref(env);
    return dispatcher;
}

void Dispatcher::post(Task task) {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    tasks_.push_back(std::move(task));
    if (std::exchange(rung_, true)) return;
    doorbell_.NonBlockingCall();
}

void Dispatcher::run(Napi::Env env, Napi::Function, Dispatcher* self, void*) {
    std::vector<Task> tasks;
    {
        std::lock_guard lock(self->mutex_);
        self->rung_ = false;
        if (self->closed_) return;
        tasks.swap(self->tasks_);
    }
    if (!static_cast<napi_env>(env)) return;  // the environment is being torn down
    for (Task& task : tasks) {
        Napi::HandleScope scope(env);
        task(env);
        report_exception(env);
        std::lock_guard lock(self->mutex_);
        if (self->closed_) return;  // by the task
    }
}

void Dispatcher::hold() {
    if (holds_++ == 0) doorbell_.Ref(env_);
}

void Dispatcher::let_go() {
    if (--holds_ == 0) doorbell_.Unref(env_);
}

void Dispatcher::close() {
    std::vector<Task> dropped;
    {
        std::lock_guard lock(mutex_);
        if (std::exchange(closed_, true)) return;
        dropped.swap(tasks_);
    }
    doorbell_.Release();
}

}  // namespace vbd::node
