// Fault: answers some requests with an error, without asking the disk. Which ones follows from the
// seed alone: the n-th request that matches has its own die, whatever else happens meanwhile.
#pragma once

#include <atomic>
#include <memory>

#include "stages/disk_spec.h"
#include "stages/stage.h"

namespace vbd::stages {

/// What the queues of one Fault share.
struct FaultState {
    explicit FaultState(const FaultOptions& given)
        : options(given), probability(given.probability), left(given.count) {}

    const FaultOptions options;
    std::atomic<double> probability;
    std::atomic<uint64_t> left;  // faults still to come
    std::atomic<uint64_t> matched{0};
    std::atomic<uint64_t> failed{0};

    /// Whether this request is one to fail.
    bool strikes(const block::Io& io);
};

class Fault final : public StageDevice {
  public:
    /// Errors: kInvalidArgument for an errno that is none.
    static Result<std::unique_ptr<block::Device>> open(const FaultOptions& options,
                                                       std::unique_ptr<block::Device> base);

    Result<std::unique_ptr<block::DeviceQueue>> open_queue(block::IoContext& context) override;
    const char* kind() const override { return "fault"; }
    void report(const Tell& tell) const override;
    /// `probability` 0..1; `count`: faults from now on.
    Status tune(std::string_view setting, double value) override;

  private:
    Fault(const FaultOptions& options, std::unique_ptr<block::Device> base);

    std::shared_ptr<FaultState> state_;
};

}  // namespace vbd::stages
