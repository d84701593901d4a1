// This machine's Xen as JavaScript sees it: openHostXen(), probeHost(), openXenbusDevice() and
// sdNotify() of lib/engine/addon.ts. Everything runs on the JavaScript thread; other threads come
// in through a Dispatcher.
#pragma once

#include <napi.h>

namespace vbd::node {

void export_host(Napi::Env env, Napi::Object exports);

}  // namespace vbd::node
