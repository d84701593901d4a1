// NativeDiskClient of lib/engine/addon.ts: the script's end of a block::DiskClient. JavaScript thread.
#pragma once

#include <napi.h>

namespace vbd::node {

/// (disk, slots, onBell): a client of an open NativeDisk; onBell is called when there are answers.
Napi::Value open_client(const Napi::CallbackInfo& info);

}  // namespace vbd::node
