// HoldQueue: for stages that let Ios wait until a time, in lists of their own, in order. What waits
// counts as in flight; a timer of the reactor looks after it, the reactor itself waits for nothing. A
// queue that is about to close lets everything go at once.
#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "base/clock.h"
#include "block/io_context.h"
#include "stages/stage.h"

namespace vbd::stages {

class HoldQueue : public StageQueue {
  public:
    HoldQueue(std::unique_ptr<block::DeviceQueue> base, block::IoContext& context)
        : StageQueue(std::move(base)), context_(context), timer_(context, *this) {}

    void on_timer(uint64_t now_ns) override { release(now_ns); }

    /// The guest goes: what it has asked for is done now, or it would have to wait for that.
    void hurry() override {
        hurried_ = true;
        release(monotonic_ns());
        StageQueue::hurry();
    }

  protected:
    /// Lets go what may go, and says when the next may: look_at(). Called when a timer is due.
    virtual void release(uint64_t now_ns) = 0;

    void hold(block::IoList& list, block::Io* io) {
        context_.note_started();
        list.push(io);
    }
    /// Hands down what is at the head of `list`, for as long as `may_go(io)`.
    template <typename MayGo>
    void let_go(block::IoList& list, MayGo may_go) {
        std::array<block::Io*, kBatch> batch;
        size_t count = 0;
        while (!list.empty() && may_go(*list.front())) {
            context_.note_finished();
            batch[count++] = list.pop();
            if (count < kBatch) continue;
            base_->submit(batch);
            count = 0;
        }
        if (count > 0) base_->submit(std::span(batch.data(), count));
    }

    /// Calls release() at that time; Timer::kNever: when another one says so.
    void look_at(uint64_t due_ns) { timer_.set(due_ns); }
    uint64_t due_ns() const { return timer_.due_ns(); }
    bool hurried() const { return hurried_; }

  private:
    static constexpr size_t kBatch = 64;

    block::IoContext& context_;
    block::Timer timer_;
    bool hurried_ = false;
};

}  // namespace vbd::stages
