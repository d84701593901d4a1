// Task: work on Node's thread pool whose outcome keeps a promise, for what may wait for a disk. Made on the JavaScript
// thread, deletes itself there.
#pragma once

#include <napi.h>

#include <functional>

#include "base/result.h"

namespace vbd::node {

class Task final : public Napi::AsyncWorker {
  public:
    /// On a thread of the pool.
    using Work = std::function<Status()>;
    /// What the promise resolves to where that was well. JavaScript thread.
    using Keep = std::function<Napi::Value(Napi::Env)>;

    static Napi::Promise run(Napi::Env env, Work work, Keep keep);

  protected:
    void Execute() override { status_ = work_(); }
    void OnOK() override;

  private:
    Task(Napi::Env env, Work work, Keep keep);

    Napi::Promise::Deferred deferred_;
    Work work_;
    Keep keep_;
    Status status_;
};

}  // namespace vbd::node
