// The engine as JavaScript sees it: createEngine() and the objects it gives out
// (lib/engine/addon.ts has their types). Everything here runs on the JavaScript thread; reactors
// answer through a Dispatcher.
#pragma once

#include <napi.h>

namespace vbd::node {

void export_engine(Napi::Env env, Napi::Object exports);

}  // namespace vbd::node
