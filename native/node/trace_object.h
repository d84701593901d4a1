// The traced requests of a vbd as JavaScript takes them: TraceBatch of lib/engine/engine.ts. On the
// JavaScript thread.
#pragma once

#include <napi.h>

#include "engine/vbd.h"

namespace vbd::node {

/// Takes what was recorded since the last call, at most 65,536 requests.
Napi::Object take_trace(Napi::Env env, engine::Vbd& vbd);

}  // namespace vbd::node
