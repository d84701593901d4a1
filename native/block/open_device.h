// open_device: from an operator's description of a disk without stages to the Device. For the
// control thread; may take as long as the disk does to answer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "block/device.h"
#include "block/file_backing.h"
#include "block/file_device.h"

namespace vbd::block {

enum class Driver : uint8_t { kFile, kMemory, kNull, kZero, kPattern };

/// A leaf of DiskSpec (lib/disk/spec.ts), in C++.
struct DeviceOptions {
    Driver driver = Driver::kFile;
    uint32_t sector_size = 512;  // 512 or 4096

    std::string path = {};  // kFile, like the next four
    bool read_only = false;
    DirectChoice direct = DirectChoice::kAuto;
    IoChoice io = IoChoice::kAuto;
    bool write_through = false;

    uint64_t size_bytes = 0;  // all but kFile: a positive multiple of sector_size
    bool no_fill = false;     // kNull: see NullDevice::create
    uint64_t seed = 0;        // kPattern
};

/// Errors: kBacking, kInvalidArgument, kUnsupported, kNoMemory; each one line that names the path.
Result<std::unique_ptr<Device>> open_device(const DeviceOptions& options);

}  // namespace vbd::block
