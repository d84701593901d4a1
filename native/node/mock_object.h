// The mock Xen as JavaScript sees it: connectMock(), startMockBroker() and connectMockGuest() of
// lib/engine/addon.ts. Everything runs on the JavaScript thread; other threads come in through a
// Dispatcher.
#pragma once

#include <napi.h>

#include <memory>

#include "xen/xen.h"

namespace vbd::node {

void export_mock(Napi::Env env, Napi::Object exports);

/// The Xen behind a NativeXen; null when `value` is none, or is closed. Whoever has it keeps the
/// connection open.
std::shared_ptr<xen::Xen> xen_of(Napi::Value value);

}  // namespace vbd::node
