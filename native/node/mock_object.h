// The mock Xen as JavaScript sees it: connectMock(), startMockBroker() and connectMockGuest() of
// lib/engine/addon.ts. Everything runs on the JavaScript thread; other threads come in through a
// Dispatcher.
#pragma once

#include <napi.h>

namespace vbd::node {

void export_mock(Napi::Env env, Napi::Object exports);

}  // namespace vbd::node
