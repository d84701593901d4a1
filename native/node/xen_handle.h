// XenHandle: what stands behind every NativeXen, whichever Xen it is. JavaScript thread.
#pragma once

#include <napi.h>

#include <memory>

#include "node/wrap.h"
#include "xen/xen.h"

namespace vbd::node {

class XenHandle {
  public:
    virtual ~XenHandle() = default;

    /// Null once it was closed.
    virtual std::shared_ptr<xen::Xen> xen() const = 0;
};

inline constexpr napi_type_tag kXenTag = {0x7662646b69740002, 0x3e40};

/// The Xen behind a NativeXen; null when `value` is none, or is closed. Whoever has it keeps the
/// connection open.
inline std::shared_ptr<xen::Xen> xen_of(Napi::Value value) {
    const auto handle = unwrap<XenHandle>(value, kXenTag);
    return handle ? handle->xen() : nullptr;
}

}  // namespace vbd::node
