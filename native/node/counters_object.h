// A vbd's counters as a JavaScript object (VbdCounters of lib/engine/engine.ts), summed over its
// rings.
#pragma once

#include <napi.h>

#include "engine/vbd.h"

namespace vbd::node {

struct PoolPages {
    uint64_t in_use = 0;
    uint64_t free = 0;
};

Napi::Object counters_object(Napi::Env env, engine::Vbd& vbd, const PoolPages& pool);

}  // namespace vbd::node
