// Delay: every operation begins so much later, by its kind. What waits is in one FIFO per kind, and
// one timer of the reactor looks after all of them.
#pragma once

#include <array>
#include <atomic>
#include <memory>

#include "stages/disk_spec.h"
#include "stages/stage.h"

namespace vbd::stages {

/// By IoOp; a secure discard is a discard.
using Delays = std::array<std::atomic<uint64_t>, 4>;  // nanoseconds

class Delay final : public StageDevice {
  public:
    Delay(const DelayOptions& options, std::unique_ptr<block::Device> base);

    Result<std::unique_ptr<block::DeviceQueue>> open_queue(block::IoContext& context) override;
    const char* kind() const override { return "delay"; }
    void report(const Tell& tell) const override;
    /// `readMs`, `writeMs`, `flushMs`, `discardMs`: 0..3,600,000.
    Status tune(std::string_view setting, double value) override;

  private:
    std::shared_ptr<Delays> delays_;
};

}  // namespace vbd::stages
