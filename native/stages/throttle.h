// Throttle: at most so many requests and bytes a second, for one disk or for all disks of a group.
// What is over the rate waits in its queue, in order, until a timer of the reactor says that it may
// go; the reactor itself waits for nothing. Flushes pass: they carry nothing, and what waits here was
// not answered. The limits can change at any time.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "base/token_bucket.h"
#include "stages/disk_spec.h"
#include "stages/stage.h"

namespace vbd::stages {

/// The rate that the disks of a group share. Any thread may use it.
struct Rate {
    TokenBucket requests;
    TokenBucket bytes;
    std::atomic<double> iops{0};
    std::atomic<double> bps{0};
    std::atomic<double> burst_s{0};
    std::atomic<uint64_t> delayed{0};  // requests that had to wait

    void apply();
};

/// The groups that open disks belong to, by name. Any thread.
class RateGroups {
  public:
    /// The group's rate; made from `options` where nobody has it open. Errors: kInvalidArgument where
    /// it is open with other limits, and for limits out of range.
    Result<std::shared_ptr<Rate>> join(const ThrottleOptions& options);

  private:
    std::mutex mutex_;
    std::map<std::string, std::weak_ptr<Rate>> groups_;
};

class Throttle final : public StageDevice {
  public:
    Throttle(const ThrottleOptions& options, std::shared_ptr<Rate> rate,
             std::unique_ptr<block::Device> base);

    Result<std::unique_ptr<block::DeviceQueue>> open_queue(block::IoContext& context) override;
    const char* kind() const override { return "throttle"; }
    void report(const Tell& tell) const override;
    /// `iops`, `bps` (0 to 1e15; 0: no limit), `burstSeconds` (0 to 3600).
    Status tune(std::string_view setting, double value) override;

  private:
    std::shared_ptr<Rate> rate_;
};

/// A Rate of its own, for a disk that belongs to no group.
std::shared_ptr<Rate> make_rate(const ThrottleOptions& options);

}  // namespace vbd::stages
