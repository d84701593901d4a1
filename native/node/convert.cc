#include "node/convert.h"

#include <cmath>
#include <string>

namespace vbd::node {
namespace {

const char* name_of(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::kInvalidArgument:
            return "invalid-argument";
        case ErrorKind::kXen:
            return "xen";
        case ErrorKind::kRing:
            return "ring";
        case ErrorKind::kBacking:
            return "backing";
        case ErrorKind::kUnsupported:
            return "unsupported";
        case ErrorKind::kNoMemory:
            return "no-memory";
    }
    return "invalid-argument";
}

Napi::Number number(Napi::Env env, uint64_t value) {
    return Napi::Number::New(env, static_cast<double>(value));
}

}  // namespace

Napi::Value error_value(Napi::Env env, const Error& error) {
    Napi::Object value = Napi::Error::New(env, error.message).Value();
    value.Set("kind", Napi::String::New(env, name_of(error.kind)));
    value.Set("errno", Napi::Number::New(env, error.errno_code));
    return value;
}

void throw_error(Napi::Env env, const Error& error) {
    napi_throw(env, error_value(env, error));
}

Napi::Object histogram_object(Napi::Env env, const Histogram& histogram) {
    Napi::Object object = Napi::Object::New(env);
    const uint32_t used = histogram.used_buckets();
    Napi::Array buckets = Napi::Array::New(env, used);
    for (uint32_t i = 0; i < used; ++i) buckets.Set(i, number(env, histogram.bucket(i)));
    object.Set("count", number(env, histogram.count()));
    object.Set("sum", number(env, histogram.sum()));
    object.Set("min", number(env, histogram.min()));
    object.Set("max", number(env, histogram.max()));
    object.Set("buckets", buckets);
    return object;
}

Result<uint64_t> whole_number(Napi::Value value, const char* what, uint64_t min, uint64_t max) {
    const double given = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
    const double low = static_cast<double>(min);
    const double high = static_cast<double>(max);
    if (!value.IsNumber() || !(given >= low && given <= high) || given != std::floor(given)) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     std::string(what) + " is not a whole number of " + std::to_string(min) +
                         " to " + std::to_string(max)};
    }
    return static_cast<uint64_t>(given);
}

}  // namespace vbd::node
