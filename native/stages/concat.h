// Concat: several disks in a row, as one. An Io that lies in one of them goes there as it is; one
// that crosses from one to the next is cut there, and a flush goes to all of them. What one of them
// cannot do is not offered.
#pragma once

#include <memory>
#include <vector>

#include "block/device.h"
#include "stages/disk_spec.h"

namespace vbd::stages {

class Concat final : public block::Device {
  public:
    /// Errors: kInvalidArgument for fewer than 2 disks, or different sector sizes.
    static Result<std::unique_ptr<block::Device>> open(
        std::vector<std::unique_ptr<block::Device>> parts);

    const block::Geometry& geometry() const override { return geometry_; }
    Result<std::unique_ptr<block::DeviceQueue>> open_queue(block::IoContext& context) override;
    /// The last part takes the difference.
    Status resize(uint64_t size_bytes) override;
    Result<uint64_t> refresh_size() override;
    Status close() override;
    const char* kind() const override { return "concat"; }
    std::vector<block::Device*> below() const override;

    /// Where each part begins. The last one alone may change its size, so these never do.
    struct Start {
        uint64_t offset = 0;
        block::Device* device = nullptr;
    };

  private:
    explicit Concat(std::vector<std::unique_ptr<block::Device>> parts);
    void set_size(uint64_t size_bytes);

    std::vector<std::unique_ptr<block::Device>> parts_;
    std::vector<Start> starts_;
    block::Geometry geometry_;
};

}  // namespace vbd::stages
