// DiskSpec: the description of a disk with its stages, as lib/disk/spec.ts has it: a tree of a leaf
// (block::DeviceOptions) and stages over one or several disks. Plain data.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "block/open_device.h"

namespace vbd::stages {

/// `length_bytes` of the disk below, from `offset_bytes` on; 0: to its end.
struct SliceOptions {
    uint64_t offset_bytes = 0;
    uint64_t length_bytes = 0;
};

struct DiskSpec {
    std::variant<block::DeviceOptions, SliceOptions> stage;
    std::vector<DiskSpec> bases = {};  // none for a leaf
};

}  // namespace vbd::stages
