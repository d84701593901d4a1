// sdNotify: tells the service manager how the process is.
#pragma once

#include <napi.h>

namespace vbd::node {

/// sdNotify(socketPath, text): one datagram to the unix socket that $NOTIFY_SOCKET names, an
/// abstract one where it begins with '@'. Never blocks.
Napi::Value sd_notify(const Napi::CallbackInfo& info);

}  // namespace vbd::node
