// From the core's types to JavaScript's, and numbers the other way; what every object of the addon
// needs. JavaScript thread.
#pragma once

#include <napi.h>

#include <cstdint>

#include "base/histogram.h"
#include "base/result.h"

namespace vbd::node {

/// NativeError of lib/engine/addon.ts: an Error with `kind` and `errno`.
Napi::Value error_value(Napi::Env env, const Error& error);

/// Leaves that error pending: return to JavaScript then.
void throw_error(Napi::Env env, const Error& error);

/// HistogramCounters of lib/engine/engine.ts.
Napi::Object histogram_object(Napi::Env env, const Histogram& histogram);

/// A whole number of min..max, in JavaScript's own range. Errors: kInvalidArgument, naming it
/// `what`.
Result<uint64_t> whole_number(Napi::Value value, const char* what, uint64_t min, uint64_t max);

}  // namespace vbd::node
