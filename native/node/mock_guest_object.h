// NativeMockGuest: a guest's hands, with one thread that waits for its event channels.
#pragma once

#include <napi.h>

namespace vbd::node {

/// connectMockGuest(socketPath, domid, pages, onEvent, onClose)
Napi::Value connect_mock_guest(const Napi::CallbackInfo& info);

}  // namespace vbd::node
