#include "stages/delay.h"

#include <algorithm>

#include "base/clock.h"
#include "block/io_context.h"

namespace vbd::stages {

using block::Io;
using block::IoList;
using block::IoOp;
using block::Timer;

namespace {

constexpr double kLongestMs = 3'600'000;
constexpr size_t kBatch = 64;
constexpr const char* kSettings[] = {"readMs", "writeMs", "flushMs", "discardMs"};

size_t kind_of(IoOp op) {
    return op == IoOp::kRead ? 0 : op == IoOp::kWrite ? 1 : op == IoOp::kFlush ? 2 : 3;
}

/// Due times are in Io::scratch.
class DelayQueue final : public StageQueue {
  public:
    DelayQueue(std::unique_ptr<block::DeviceQueue> base, block::IoContext& context,
               std::shared_ptr<Delays> delays)
        : StageQueue(std::move(base)),
          context_(context),
          delays_(std::move(delays)),
          timer_(context, *this) {}

    void submit(std::span<Io* const> batch) override {
        const uint64_t now_ns = monotonic_ns();
        uint64_t due_ns = timer_.due_ns();
        for (Io* io : batch) {
            const size_t kind = kind_of(io->op);
            const uint64_t delay_ns =
                hurried_ ? 0 : (*delays_)[kind].load(std::memory_order_relaxed);
            if (delay_ns == 0 && held_[kind].empty()) {
                base_->submit(std::span(&io, 1));
                continue;
            }
            io->scratch = now_ns + delay_ns;
            due_ns = std::min(due_ns, io->scratch);
            context_.note_started();
            held_[kind].push(io);
        }
        if (due_ns != timer_.due_ns()) timer_.set(due_ns);
    }

    void on_timer(uint64_t now_ns) override { release(now_ns); }

    void hurry() override {
        hurried_ = true;
        release(Timer::kNever);
        StageQueue::hurry();
    }

  private:
    void release(uint64_t until_ns) {
        std::array<Io*, kBatch> batch;
        size_t count = 0;
        uint64_t due_ns = Timer::kNever;
        for (IoList& list : held_) {
            while (!list.empty() && list.front()->scratch <= until_ns) {
                context_.note_finished();
                batch[count++] = list.pop();
                if (count < kBatch) continue;
                base_->submit(batch);
                count = 0;
            }
            if (!list.empty()) due_ns = std::min(due_ns, list.front()->scratch);
        }
        if (count > 0) base_->submit(std::span(batch.data(), count));
        timer_.set(due_ns);
    }

    block::IoContext& context_;
    std::shared_ptr<Delays> delays_;
    Timer timer_;
    std::array<IoList, 4> held_;
    bool hurried_ = false;
};

}  // namespace

Delay::Delay(const DelayOptions& options, std::unique_ptr<block::Device> base)
    : StageDevice(std::move(base)), delays_(std::make_shared<Delays>()) {
    std::string label;
    for (size_t i = 0; i < delays_->size(); i++) {
        (*delays_)[i] = options.delay_ns[i];
        if (options.delay_ns[i] == 0) continue;
        label += (label.empty() ? "" : ", ") + std::string(kSettings[i]) + " " +
                 std::to_string(static_cast<double>(options.delay_ns[i]) / 1e6);
        label.erase(label.find_last_not_of("0") + 1);
        if (label.back() == '.') label.pop_back();
    }
    describe("delay(" + label + ")");
}

Result<std::unique_ptr<block::DeviceQueue>> Delay::open_queue(block::IoContext& context) {
    auto base = base_->open_queue(context);
    if (!base) return base.error();
    return std::unique_ptr<block::DeviceQueue>(
        new DelayQueue(std::move(base).value(), context, delays_));
}

void Delay::report(const Tell& tell) const {
    for (size_t i = 0; i < delays_->size(); i++) {
        tell(kSettings[i], static_cast<double>((*delays_)[i].load()) / 1e6);
    }
}

Status Delay::tune(std::string_view setting, double value) {
    for (size_t i = 0; i < delays_->size(); i++) {
        if (setting != kSettings[i]) continue;
        if (!(value >= 0 && value <= kLongestMs)) {
            return Error{ErrorKind::kInvalidArgument, 0, "a delay is an hour at most"};
        }
        (*delays_)[i] = static_cast<uint64_t>(value * 1e6);
        return {};
    }
    return StageDevice::tune(setting, value);
}

}  // namespace vbd::stages
