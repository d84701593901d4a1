// NativeMockBroker: the mock's hypervisor, on a thread of its own in this process.
#pragma once

#include <napi.h>

namespace vbd::node {

/// startMockBroker(socketPath, onDomain)
Napi::Value start_mock_broker(const Napi::CallbackInfo& info);

}  // namespace vbd::node
