#include "stages/throttle.h"

#include <algorithm>
#include <cstdio>

#include "stages/hold_queue.h"

namespace vbd::stages {

using block::Io;
using block::IoList;
using block::IoOp;
using block::Timer;

namespace {

/// No timer is set further ahead, so that changed limits take effect soon.
constexpr uint64_t kLookAgainNs = 50'000'000;
constexpr double kMostPerSecond = 1e15;
constexpr double kLongestBurstS = 3600;

/// A setting of this name: 0 to `most`.
Status check_setting(std::string_view name, double value, double most) {
    if (value >= 0 && value <= most) return {};
    char range[64];
    std::snprintf(range, sizeof range, " of a throttle is 0 to %.15g", most);
    return Error{ErrorKind::kInvalidArgument, 0, std::string(name) + range};
}

Status check_options(const ThrottleOptions& options) {
    if (Status s = check_setting("iops", options.iops, kMostPerSecond); !s) return s;
    if (Status s = check_setting("bps", options.bps, kMostPerSecond); !s) return s;
    return check_setting("burstSeconds", options.burst_s, kLongestBurstS);
}

class ThrottleQueue final : public HoldQueue {
  public:
    ThrottleQueue(std::unique_ptr<block::DeviceQueue> base, block::IoContext& context,
                  std::shared_ptr<Rate> rate)
        : HoldQueue(std::move(base), context), rate_(std::move(rate)) {}

    void submit(std::span<Io* const> batch) override {
        const uint64_t now_ns = monotonic_ns();
        // The longest run that may go goes in one piece, without being copied.
        size_t passed = 0;
        while (passed < batch.size() && held_.empty() && may_pass(*batch[passed], now_ns)) {
            passed++;
        }
        if (passed > 0) base_->submit(batch.first(passed));
        for (Io* io : batch.subspan(passed)) {
            if (io->op == IoOp::kFlush) {
                base_->submit(std::span(&io, 1));
                continue;
            }
            rate_->delayed.fetch_add(1, std::memory_order_relaxed);
            hold(held_, io);
        }
        if (!held_.empty() && due_ns() == Timer::kNever) set_timer(now_ns);
    }

  private:
    bool may_pass(const Io& io, uint64_t now_ns) {
        if (io.op == IoOp::kFlush) return true;
        if (!hurried() && paid_ns(now_ns) > now_ns) return false;
        rate_->requests.take(1, now_ns);
        if (io.op == IoOp::kRead || io.op == IoOp::kWrite) rate_->bytes.take(io.length, now_ns);
        return true;
    }

    /// When what was taken is paid for.
    uint64_t paid_ns(uint64_t now_ns) const {
        return std::max(rate_->requests.due_ns(now_ns), rate_->bytes.due_ns(now_ns));
    }

    void release(uint64_t now_ns) override {
        let_go(held_, [&](const Io& io) { return may_pass(io, now_ns); });
        if (!held_.empty()) set_timer(now_ns);
    }

    void set_timer(uint64_t now_ns) {
        look_at(std::clamp(paid_ns(now_ns), now_ns, now_ns + kLookAgainNs));
    }

    std::shared_ptr<Rate> rate_;
    IoList held_;
};

std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.15g", value);
    return text;
}

std::string label_of(const ThrottleOptions& options) {
    std::string label;
    if (options.iops > 0) label += number(options.iops) + " requests/s";
    if (options.bps > 0) label += (label.empty() ? "" : ", ") + number(options.bps) + " bytes/s";
    if (label.empty()) label = "no limit";
    if (!options.group.empty()) label += ", group " + options.group;
    return "throttle(" + label + ")";
}

}  // namespace

void Rate::apply() {
    const auto burst_ns =
        static_cast<uint64_t>(std::clamp(burst_s.load(), 0.0, kLongestBurstS) * 1e9);
    requests.set(iops.load(), burst_ns);
    bytes.set(bps.load(), burst_ns);
}

std::shared_ptr<Rate> make_rate(const ThrottleOptions& options) {
    auto rate = std::make_shared<Rate>();
    rate->iops = options.iops;
    rate->bps = options.bps;
    rate->burst_s = options.burst_s;
    rate->apply();
    return rate;
}

Result<std::shared_ptr<Rate>> RateGroups::join(const ThrottleOptions& options) {
    if (Status s = check_options(options); !s) return s.error();
    if (options.group.empty()) return make_rate(options);
    std::lock_guard lock(mutex_);
    std::erase_if(groups_, [](const auto& entry) { return entry.second.expired(); });
    auto rate = groups_[options.group].lock();
    if (!rate) {
        rate = make_rate(options);
        groups_[options.group] = rate;
        return rate;
    }
    if (rate->iops != options.iops || rate->bps != options.bps ||
        rate->burst_s != options.burst_s) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "the throttle group '" + options.group + "' is open with other limits"};
    }
    return rate;
}

Throttle::Throttle(const ThrottleOptions& options, std::shared_ptr<Rate> rate,
                   std::unique_ptr<block::Device> base)
    : StageDevice(std::move(base)), rate_(std::move(rate)) {
    describe(label_of(options));
}

Result<std::unique_ptr<block::DeviceQueue>> Throttle::open_queue(block::IoContext& context) {
    auto base = base_->open_queue(context);
    if (!base) return base.error();
    return std::unique_ptr<block::DeviceQueue>(
        new ThrottleQueue(std::move(base).value(), context, rate_));
}

void Throttle::report(const Tell& tell) const {
    tell("iops", rate_->iops);
    tell("bps", rate_->bps);
    tell("burstSeconds", rate_->burst_s);
    tell("delayed", static_cast<double>(rate_->delayed.load(std::memory_order_relaxed)));
}

Status Throttle::tune(std::string_view setting, double value) {
    std::atomic<double>* target = setting == "iops"           ? &rate_->iops
                                  : setting == "bps"          ? &rate_->bps
                                  : setting == "burstSeconds" ? &rate_->burst_s
                                                              : nullptr;
    if (!target) return StageDevice::tune(setting, value);
    const double most = target == &rate_->burst_s ? kLongestBurstS : kMostPerSecond;
    if (Status s = check_setting(setting, value, most); !s) return s;
    *target = value;
    rate_->apply();
    // A debt that was made at the old rate is not waited for.
    rate_->requests.refill();
    rate_->bytes.refill();
    return {};
}

}  // namespace vbd::stages
