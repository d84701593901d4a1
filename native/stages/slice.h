// Slice: a part of another disk, as a partition is. Where it reaches to the end of that one, it is
// resized with it; else its size is fixed.
#pragma once

#include <memory>

#include "stages/disk_spec.h"
#include "stages/stage.h"

namespace vbd::stages {

class Slice final : public StageDevice {
  public:
    /// Errors: kInvalidArgument where it is not inside the base, or not in whole sectors of it.
    static Result<std::unique_ptr<block::Device>> open(const SliceOptions& options,
                                                       std::unique_ptr<block::Device> base);

    Result<std::unique_ptr<block::DeviceQueue>> open_queue(block::IoContext& context) override;
    const char* kind() const override { return "slice"; }
    Status resize(uint64_t size_bytes) override;
    Result<uint64_t> refresh_size() override;

  private:
    Slice(const SliceOptions& options, std::unique_ptr<block::Device> base);

    const SliceOptions options_;
};

}  // namespace vbd::stages
