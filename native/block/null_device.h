// NullDevice: a disk that forgets what is written and reads as zeros; everything completes inside
// submit(). For measuring what a request costs without its disk.
#pragma once

#include <cstdint>
#include <memory>

#include "block/device.h"

namespace vbd::block {

class NullDevice final : public Device {
  public:
    /// `size_bytes`: a positive multiple of `sector_size`, 512 or 4096.
    /// `no_fill`: reads leave the buffers as they are, for measurements. Pages of the pool hold what
    /// other guests read and wrote: the geometry says so, and transfer clears them. Errors:
    /// kInvalidArgument.
    static Result<std::unique_ptr<Device>> create(uint64_t size_bytes, uint32_t sector_size,
                                                  bool no_fill);

    const Geometry& geometry() const override { return geometry_; }
    Result<std::unique_ptr<DeviceQueue>> open_queue(IoContext& context) override;
    const char* kind() const override { return "null"; }
    Status resize(uint64_t size_bytes) override;
    Result<uint64_t> refresh_size() override { return size_bytes(); }

  private:
    NullDevice() = default;

    bool no_fill_ = false;
    Geometry geometry_;
};

}  // namespace vbd::block
