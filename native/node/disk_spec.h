// DiskSpec of lib/disk/spec.ts, from JavaScript to the core's. JavaScript thread.
#pragma once

#include <napi.h>

#include "stages/disk_spec.h"

namespace vbd::node {

/// Errors: kInvalidArgument. TypeScript has made and checked it, so that is a programming mistake.
Result<stages::DiskSpec> disk_spec_of(Napi::Value spec);

}  // namespace vbd::node
