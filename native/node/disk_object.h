// NativeDisk of lib/engine/addon.ts: an open disk and its stages. JavaScript thread; what may wait
// for a disk runs on Node's pool and comes back as a promise.
#pragma once

#include <napi.h>

#include <memory>

#include "block/device.h"

namespace vbd::node {

struct DiskState {
    std::shared_ptr<block::Device> device;  // null: closed
};

Napi::Object disk_object(Napi::Env env, const std::shared_ptr<DiskState>& state);

/// The disk behind an object of disk_object(); null for anything else.
std::shared_ptr<DiskState> disk_of(Napi::Value value);

/// Leaves an error pending: `what` is closed.
Napi::Value throw_closed(Napi::Env env, const char* what);

/// overlayLayers() and changeOverlay() of lib/engine/addon.ts.
void export_overlays(Napi::Env env, Napi::Object exports);

/// DiskInfo.
Napi::Object disk_info(Napi::Env env, const block::Device& device);

void set_number(Napi::Object object, const char* name, double value);

}  // namespace vbd::node
