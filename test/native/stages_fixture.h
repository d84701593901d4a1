// Descriptions of disks with stages, in few words.
#pragma once

#include "disk_fixture.h"
#include "stages/open_disk.h"

namespace stages_test {

using namespace vbd::stages;
using vbd::Result;
using vbd::block::Device;
using vbd::block::DeviceOptions;

inline constexpr unsigned long long kMiB = 1 << 20;

inline DiskSpec leaf(const DeviceOptions& options) {
    return {.stage = options};
}

template <typename Options>
DiskSpec over(const Options& options, DiskSpec base) {
    DiskSpec spec{.stage = options};
    spec.bases.push_back(std::move(base));
    return spec;
}

inline Result<std::unique_ptr<Device>> try_open(const DiskSpec& spec) {
    RateGroups groups;
    return open_disk(spec, groups);
}

inline std::unique_ptr<Device> open(const DiskSpec& spec) {
    auto device = try_open(spec);
    if (!device) FAIL(device.error().message);
    return std::move(device).value();
}

}  // namespace stages_test
