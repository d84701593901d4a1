#include "node/task.h"

#include <utility>

#include "node/convert.h"

namespace vbd::node {

Task::Task(Napi::Env env, Work work, Keep keep)
    : Napi::AsyncWorker(env),
      deferred_(Napi::Promise::Deferred::New(env)),
      work_(std::move(work)),
      keep_(std::move(keep)) {}

Napi::Promise Task::run(Napi::Env env, Work work, Keep keep) {
    auto* task = new Task(env, std::move(work), std::move(keep));
    Napi::Promise promise = task->deferred_.Promise();
    task->Queue();
    return promise;
}

void Task::OnOK() {
    work_ = nullptr;  // and with it what it held open
    if (status_) {
        deferred_.Resolve(keep_(Env()));
    } else {
        deferred_.Reject(error_value(Env(), status_.error()));
    }
}

}  // namespace vbd::node
