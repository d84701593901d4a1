#include "stages/delay.h"

#include <algorithm>

#include "stages/hold_queue.h"

namespace vbd::stages {

using block::Io;
using block::IoList;
using block::IoOp;
using block::Timer;

namespace {

constexpr double kLongestMs = 3'600'000;
constexpr const char* kSettings[] = {"readMs", "writeMs", "flushMs", "discardMs"};

size_t kind_of(IoOp op) {
    return op == IoOp::kRead ? 0 : op == IoOp::kWrite ? 1 : op == IoOp::kFlush ? 2 : 3;
}

/// Due times are in Io::scratch.
class DelayQueue final : public HoldQueue {
  public:
    DelayQueue(std::unique_ptr<block::DeviceQueue> base, block::IoContext& context,
               std::shared_ptr<Delays> delays)
        : HoldQueue(std::move(base), context), delays_(std::move(delays)) {}

    void submit(std::span<Io* const> batch) override {
        const uint64_t now_ns = monotonic_ns();
        uint64_t first_ns = due_ns();
        for (Io* io : batch) {
            const size_t kind = kind_of(io->op);
            const uint64_t delay_ns =
                hurried() ? 0 : (*delays_)[kind].load(std::memory_order_relaxed);
            if (delay_ns == 0 && held_[kind].empty()) {
                base_->submit(std::span(&io, 1));
                continue;
            }
            io->scratch = now_ns + delay_ns;
            first_ns = std::min(first_ns, io->scratch);
            hold(held_[kind], io);
        }
        if (first_ns != due_ns()) look_at(first_ns);
    }

  private:
    void release(uint64_t now_ns) override {
        uint64_t first_ns = Timer::kNever;
        for (IoList& list : held_) {
            let_go(list, [&](const Io& io) { return hurried() || io.scratch <= now_ns; });
            if (!list.empty()) first_ns = std::min(first_ns, list.front()->scratch);
        }
        look_at(first_ns);
    }

    std::shared_ptr<Delays> delays_;
    std::array<IoList, 4> held_;
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
