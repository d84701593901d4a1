// The addon's part of script disks: NativeEngine.openScript, and attachScript, by which the thread
// that runs a script gets at the script's end of its channel (NativeScriptEnd of lib/engine/addon.ts).
// That thread is often not the engine's: the two find each other by the channel's number.
#pragma once

#include <napi.h>

#include <memory>

#include "base/result.h"
#include "block/device.h"
#include "node/dispatcher.h"

namespace vbd::node {

struct OpenedScript {
    std::unique_ptr<block::Device> device;
    uint32_t channel;  // for attachScript
};

/// `spec`: ScriptGeometry. `on_overdue` is called, on the JavaScript thread of `dispatcher`, for each
/// request that was not answered in time. Errors: kInvalidArgument, kNoMemory.
Result<OpenedScript> script_device_of(Napi::Value spec, Napi::Value on_overdue,
                                      const std::shared_ptr<Dispatcher>& dispatcher);

void export_script(Napi::Env env, Napi::Object exports);

}  // namespace vbd::node
