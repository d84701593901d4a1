// FileDevice: a raw disk image or block device. Opened by the control plane; each reactor gets a
// UringQueue, or a SyncQueue where there is no io_uring (or no use for it: on tmpfs its workers are
// three times slower than doing it inline).
//
// Owns the FileBacking, and the one Worker thread that its queues share, which runs only when it is
// needed.
#pragma once

#include <memory>
#include <string>

#include "block/device.h"
#include "block/file_backing.h"
#include "block/worker.h"

namespace vbd::block {

/// kUring: io_uring or an Error; kSync: plain system calls; kAuto: io_uring where the kernel allows
/// it.
enum class IoChoice : uint8_t { kAuto, kUring, kSync };

class FileDevice final : public Device {
  public:
    /// Errors: those of FileBacking::open, and kUnsupported where io_uring was asked for and there
    /// is none.
    static Result<std::unique_ptr<Device>> open(const FileOptions& options, IoChoice io);

    /// Over a backing that is open already. `way`: how I/O is done, for the description, where
    /// somebody else does it on the backing's descriptor.
    FileDevice(std::unique_ptr<FileBacking> backing, IoChoice io, const char* way = nullptr);

    const Geometry& geometry() const override { return geometry_; }
    Result<std::unique_ptr<DeviceQueue>> open_queue(IoContext& context) override;
    const char* kind() const override { return "file"; }
    Status resize(uint64_t size_bytes) override;
    Result<uint64_t> refresh_size() override;

  private:
    std::string describe(bool uring, const char* way) const;
    void set_size(uint64_t size_bytes);

    std::unique_ptr<FileBacking> backing_;
    const IoChoice io_;
    Geometry geometry_;
    Worker worker_;
};

}  // namespace vbd::block
