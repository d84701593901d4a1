#include "stages/fault.h"

#include <cstring>
#include <string>
#include <utility>

#include "base/mix64.h"

namespace vbd::stages {

using block::Io;
using block::IoOp;

namespace {

class FaultQueue final : public StageQueue {
  public:
    FaultQueue(std::unique_ptr<block::DeviceQueue> base, std::shared_ptr<FaultState> state)
        : StageQueue(std::move(base)), state_(std::move(state)) {}

    void submit(std::span<Io* const> batch) override {
        // In runs between those that fail.
        size_t begin = 0;
        for (size_t i = 0; i < batch.size(); i++) {
            if (!state_->strikes(*batch[i])) continue;
            if (i > begin) base_->submit(batch.subspan(begin, i - begin));
            begin = i + 1;
            complete(batch[i], state_->options.error);
        }
        if (begin < batch.size()) base_->submit(batch.subspan(begin));
    }

  private:
    std::shared_ptr<FaultState> state_;
};

}  // namespace

bool FaultState::strikes(const Io& io) {
    if (!(options.operations & (1u << static_cast<unsigned>(io.op)))) return false;
    if (io.op != IoOp::kFlush &&
        (io.offset >= options.end_bytes || io.offset + io.length <= options.begin_bytes)) {
        return false;
    }
    const uint64_t n = matched.fetch_add(1, std::memory_order_relaxed);
    if (n < options.skip) return false;
    const double chance = probability.load(std::memory_order_relaxed);
    const uint64_t die = mix64(options.seed, n) >> 11;
    if (static_cast<double>(die) * 0x1p-53 >= chance) return false;
    uint64_t remaining = left.load(std::memory_order_relaxed);
    do {
        if (remaining == 0) return false;
    } while (remaining != UINT64_MAX &&
             !left.compare_exchange_weak(remaining, remaining - 1, std::memory_order_relaxed));
    failed.fetch_add(1, std::memory_order_relaxed);
    return true;
}

Result<std::unique_ptr<block::Device>> Fault::open(const FaultOptions& options,
                                                   std::unique_ptr<block::Device> base) {
    if (options.error == 0 || !::strerrorname_np(options.error)) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     std::to_string(options.error) + " is the number of no error"};
    }
    return std::unique_ptr<block::Device>(new Fault(options, std::move(base)));
}

Fault::Fault(const FaultOptions& options, std::unique_ptr<block::Device> base)
    : StageDevice(std::move(base)), state_(std::make_shared<FaultState>(options)) {
    describe(std::string("fault(") + ::strerrorname_np(options.error) + ")");
}

Result<std::unique_ptr<block::DeviceQueue>> Fault::open_queue(block::IoContext& context) {
    auto base = base_->open_queue(context);
    if (!base) return base.error();
    return std::unique_ptr<block::DeviceQueue>(new FaultQueue(std::move(base).value(), state_));
}

void Fault::report(const Tell& tell) const {
    tell("probability", state_->probability);
    tell("matched", static_cast<double>(state_->matched.load()));
    tell("failed", static_cast<double>(state_->failed.load()));
}

Status Fault::tune(std::string_view setting, double value) {
    if (setting == "probability") {
        if (!(value >= 0 && value <= 1)) {
            return Error{ErrorKind::kInvalidArgument, 0, "a probability is 0 to 1"};
        }
        state_->probability = value;
        return {};
    }
    if (setting == "count") {
        if (!(value >= 0 && value <= 9e15)) {
            return Error{ErrorKind::kInvalidArgument, 0, "a count is 0 or more"};
        }
        state_->left = static_cast<uint64_t>(value);
        return {};
    }
    return StageDevice::tune(setting, value);
}

}  // namespace vbd::stages
