// openPrimitives(): Primitives as JavaScript sees them (lib/engine/primitives.ts has the types).
#pragma once

#include <napi.h>

namespace vbd::node {

void export_primitives(Napi::Env env, Napi::Object exports);

}  // namespace vbd::node
