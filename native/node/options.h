// What JavaScript passes in, as the core's structs. TypeScript has validated it (lib/), so a wrong
// type here is a programming mistake, answered with an Error all the same.
#pragma once

#include <napi.h>

#include "engine/vbd.h"

namespace vbd::node {

/// VbdFeatures.
engine::Features features_of(Napi::Object features);

/// Connection.
Result<engine::ConnectionSpec> connection_of(Napi::Value connection);

/// "persistent", "copy" or "map".
const char* name_of(memory::Strategy strategy);

}  // namespace vbd::node
