// NativeXenbusDevice: the device of a domain without a xenstored, for the xenstore client.
#pragma once

#include <napi.h>

namespace vbd::node {

/// openXenbusDevice(path, onData, onRefused, onLost)
Napi::Value open_xenbus_device(const Napi::CallbackInfo& info);

}  // namespace vbd::node
