// wrap and unwrap: a JavaScript object that carries a shared C++ object, with a type tag so that no
// other object is taken for it. The shared pointer goes when the JavaScript object is collected.
#pragma once

#include <napi.h>

#include <memory>

namespace vbd::node {

template <typename T>
void wrap(Napi::Object object, const napi_type_tag& tag, std::shared_ptr<T> native) {
    auto* holder = new std::shared_ptr<T>(std::move(native));
    napi_wrap(
        object.Env(), object, holder,
        [](napi_env, void* data, void*) { delete static_cast<std::shared_ptr<T>*>(data); }, nullptr,
        nullptr);
    napi_type_tag_object(object.Env(), object, &tag);
}

/// Null where `value` is not an object wrapped with this tag.
template <typename T>
std::shared_ptr<T> unwrap(Napi::Value value, const napi_type_tag& tag) {
    if (!value.IsObject()) return nullptr;
    bool matches = false;
    napi_check_object_type_tag(value.Env(), value, &tag, &matches);
    void* data = nullptr;
    if (!matches || napi_unwrap(value.Env(), value, &data) != napi_ok || !data) return nullptr;
    return *static_cast<std::shared_ptr<T>*>(data);
}

}  // namespace vbd::node
