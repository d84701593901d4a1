#include "stages/open_disk.h"

#include <utility>

#include "stages/slice.h"

namespace vbd::stages {

namespace {

using block::Device;
using Devices = std::vector<std::unique_ptr<Device>>;
using Opened = Result<std::unique_ptr<Device>>;

Opened open_stage(const block::DeviceOptions& options, Devices) {
    return block::open_device(options);
}

Opened open_stage(const SliceOptions& options, Devices bases) {
    return Slice::open(options, std::move(bases.front()));
}

size_t bases_wanted(const DiskSpec& spec) {
    return std::holds_alternative<block::DeviceOptions>(spec.stage) ? 0 : 1;
}

}  // namespace

Opened open_disk(const DiskSpec& spec) {
    if (spec.bases.size() != bases_wanted(spec)) {
        return Error{ErrorKind::kInvalidArgument, 0, "a stage without the disk below it"};
    }
    Devices bases;
    for (const DiskSpec& below : spec.bases) {
        auto base = open_disk(below);
        if (!base) return base;
        bases.push_back(std::move(base).value());
    }
    return std::visit(
        [&bases](const auto& options) { return open_stage(options, std::move(bases)); },
        spec.stage);
}

}  // namespace vbd::stages
