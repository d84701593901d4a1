#include "stages/open_disk.h"

#include <utility>

#include "stages/cache.h"
#include "stages/concat.h"
#include "stages/delay.h"
#include "stages/encrypt.h"
#include "stages/fault.h"
#include "stages/log.h"
#include "stages/overlay.h"
#include "stages/read_ahead.h"
#include "stages/slice.h"
#include "stages/throttle.h"
#include "stages/verify.h"

namespace vbd::stages {

namespace {

using block::Device;
using Devices = std::vector<std::unique_ptr<Device>>;
using Opened = Result<std::unique_ptr<Device>>;

/// Opens one stage over the disks below it.
struct Opener {
    Devices bases;
    RateGroups& groups;

    std::unique_ptr<Device> base() { return std::move(bases.front()); }

    Opened operator()(const block::DeviceOptions& options) { return block::open_device(options); }
    Opened operator()(const SliceOptions& options) { return Slice::open(options, base()); }
    Opened operator()(const ConcatOptions&) { return Concat::open(std::move(bases)); }
    Opened operator()(const LogOptions& options) { return Log::open(options, base()); }
    Opened operator()(const VerifyOptions& options) { return Verify::open(options, base()); }
    Opened operator()(const EncryptOptions& options) { return Encrypt::open(options, base()); }
    Opened operator()(const OverlayOptions& options) { return Overlay::open(options, base()); }
    Opened operator()(const CacheOptions& options) { return Cache::open(options, base()); }
    Opened operator()(const ReadAheadOptions& options) { return ReadAhead::open(options, base()); }
    Opened operator()(const ThrottleOptions& options) {
        auto rate = groups.join(options);
        if (!rate) return rate.error();
        return std::unique_ptr<Device>(
            std::make_unique<Throttle>(options, std::move(rate).value(), base()));
    }
    Opened operator()(const DelayOptions& options) {
        return std::unique_ptr<Device>(std::make_unique<Delay>(options, base()));
    }
    Opened operator()(const FaultOptions& options) { return Fault::open(options, base()); }
};

bool has_its_disks(const DiskSpec& spec) {
    if (std::holds_alternative<block::DeviceOptions>(spec.stage)) return spec.bases.empty();
    return std::holds_alternative<ConcatOptions>(spec.stage) ? !spec.bases.empty()
                                                             : spec.bases.size() == 1;
}

}  // namespace

Opened open_disk(const DiskSpec& spec, RateGroups& groups) {
    if (!has_its_disks(spec)) {
        return Error{ErrorKind::kInvalidArgument, 0, "a stage without the disk below it"};
    }
    Opener opener{.bases = {}, .groups = groups};
    for (const DiskSpec& below : spec.bases) {
        auto base = open_disk(below, groups);
        if (!base) return base;
        opener.bases.push_back(std::move(base).value());
    }
    return std::visit(opener, spec.stage);
}

}  // namespace vbd::stages
