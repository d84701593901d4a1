// PatternDevice: a disk whose every byte is known beforehand: zeroes, or words computed from their
// place and a seed. It keeps nothing; a write is compared with what the disk holds anyway, and one
// that differs is EIO. A discard leaves it all as it is. Completes everything inside submit(); keeps
// no state, so its queues share nothing.
#pragma once

#include <cstdint>
#include <memory>

#include "base/mix64.h"
#include "block/device.h"

namespace vbd::block {

class PatternDevice final : public Device {
  public:
    /// The 8 bytes at `offset`, a multiple of 8, in this machine's order (little-endian): a
    /// permutation of offset and seed (SplitMix64), so that no block is another's copy.
    static constexpr uint64_t word_at(uint64_t seed, uint64_t offset) {
        return mix64(seed, offset / 8);
    }

    /// Errors: kInvalidArgument for sizes that are no disk.
    static Result<std::unique_ptr<Device>> create(uint64_t size_bytes, uint32_t sector_size,
                                                  uint64_t seed);
    static Result<std::unique_ptr<Device>> create_zero(uint64_t size_bytes, uint32_t sector_size);

    const Geometry& geometry() const override { return geometry_; }
    Result<std::unique_ptr<DeviceQueue>> open_queue(IoContext& context) override;
    const char* kind() const override { return zero_ ? "zero" : "pattern"; }
    Status resize(uint64_t size_bytes) override;
    Result<uint64_t> refresh_size() override { return size_bytes(); }

  private:
    PatternDevice() = default;
    static Result<std::unique_ptr<PatternDevice>> sized(uint64_t size_bytes, uint32_t sector_size);

    bool zero_ = false;
    uint64_t seed_ = 0;
    Geometry geometry_;
};

}  // namespace vbd::block
