// Closable: a native object with threads behind a JavaScript object. It lives until JavaScript
// closes it or the environment ends (process.exit, a worker's termination), whichever is first:
// being unreachable is not enough, for its callbacks go on.
//
// JavaScript thread only. keep() is called after the object's Dispatcher is made: environment hooks
// run last in, first out, so that the threads are joined before the doorbell goes away.
#pragma once

#include <napi.h>

#include <memory>
#include <utility>

namespace vbd::node {

class Closable {
  public:
    virtual ~Closable() = default;

    void keep(Napi::Env env, std::shared_ptr<Closable> self) {
        env_ = env;
        self_ = std::move(self);
        napi_add_env_cleanup_hook(env, &Closable::on_environment_exit, this);
    }

    /// Idempotent.
    void close() {
        if (!self_) return;
        napi_remove_env_cleanup_hook(env_, &Closable::on_environment_exit, this);
        const std::shared_ptr<Closable> self = std::move(self_);
        shut(false);
    }

    bool closed() const { return !self_; }

  protected:
    /// Joins the threads and lets go of everything; called once. While `leaving`, no JavaScript can
    /// run any more.
    virtual void shut(bool leaving) = 0;

  private:
    static void on_environment_exit(void* object) {
        const std::shared_ptr<Closable> self = std::move(static_cast<Closable*>(object)->self_);
        self->shut(true);
    }

    napi_env env_ = nullptr;
    std::shared_ptr<Closable> self_;
};

}  // namespace vbd::node
