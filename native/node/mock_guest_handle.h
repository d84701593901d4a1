// MockGuestHandle: what stands behind every NativeMockGuest. JavaScript thread.
#pragma once

#include <napi.h>

#include <memory>

#include "node/wrap.h"
#include "xen/mock_guest.h"

namespace vbd::node {

class MockGuestHandle {
  public:
    virtual ~MockGuestHandle() = default;

    /// Null once it was closed.
    virtual const std::shared_ptr<xen::MockGuest>& guest() const = 0;
};

inline constexpr napi_type_tag kMockGuestTag = {0x7662646b69740003, 0x3e40};

/// The guest behind a NativeMockGuest; null when `value` is none, or is closed.
inline std::shared_ptr<xen::MockGuest> mock_guest_of(Napi::Value value) {
    const auto handle = unwrap<MockGuestHandle>(value, kMockGuestTag);
    return handle ? handle->guest() : nullptr;
}

}  // namespace vbd::node
