// open_disk: from a DiskSpec to the Device, the disks below first. For the control thread; may take
// as long as the disks do to answer.
#pragma once

#include <memory>

#include "block/device.h"
#include "stages/disk_spec.h"
#include "stages/throttle.h"

namespace vbd::stages {

/// Errors: those of open_device and of the stages; each one line that names the path or the stage.
/// `groups`: the throttle groups that it may share with other disks.
Result<std::unique_ptr<block::Device>> open_disk(const DiskSpec& spec, RateGroups& groups);

}  // namespace vbd::stages
