// MemoryDevice: a disk in this process's memory; gone with it. Sparse: pages that were never
// written, or were discarded, take no memory and read as zeros. The system's memory is the only
// limit of what guests can make it take: size it accordingly.
//
// Queues of several reactors work on the same bytes without a lock (racy_bytes.h). Everything
// completes inside submit(), but for discards longer than a step, which go on from poll() to
// poll().
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>

#include "block/device.h"

namespace vbd::block {

class MemoryDevice final : public Device {
  public:
    /// Discarded bytes per turn: about half a millisecond of freeing pages, if all were written.
    static constexpr uint64_t kDiscardStepBytes = 16ull << 20;

    /// `size_bytes`: a positive multiple of `sector_size`, 512 or 4096. Address space for at least
    /// twice that is reserved if it can be had, since the memory cannot move when the disk grows.
    /// Errors: kInvalidArgument, kNoMemory.
    static Result<std::unique_ptr<Device>> create(uint64_t size_bytes, uint32_t sector_size);
    ~MemoryDevice() override;

    const Geometry& geometry() const override { return geometry_; }
    Result<std::unique_ptr<DeviceQueue>> open_queue(IoContext& context) override;

    /// Up to what create() reserved. What is cut off is freed, and zeros if the disk grows again.
    const char* kind() const override { return "memory"; }
    Status resize(uint64_t size_bytes) override;
    Result<uint64_t> refresh_size() override { return size_bytes(); }

  private:
    MemoryDevice() = default;

    uint8_t* base_ = nullptr;
    uint64_t reserved_bytes_ = 0;
    Geometry geometry_;
};

}  // namespace vbd::block
