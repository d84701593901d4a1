// The addon's entry: what `require` of the .node file gives (lib/engine/addon.ts has the types).
#include <napi.h>
#include <sys/resource.h>
#include <unistd.h>

#include "block/io_context.h"
#include "node/disk_object.h"
#include "node/engine_object.h"
#include "node/host_object.h"
#include "node/mock_object.h"
#include "node/primitives_object.h"
#include "node/script_object.h"

namespace {

#ifndef VBDKIT_VERSION
#define VBDKIT_VERSION "0.1.0"
#endif

// Tries io_uring the way a reactor would.
Napi::Value probe(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    Napi::Object result = Napi::Object::New(env);
    auto context = vbd::block::IoContext::create({});
    bool works = context && context.value()->uring() != nullptr;
    result.Set("ioUring", works);
    result.Set("ioUringReason", context ? context.value()->status() : context.error().message);
    rlimit memlock{};
    ::getrlimit(RLIMIT_MEMLOCK, &memlock);
    result.Set("memlockBytes",
               memlock.rlim_cur == RLIM_INFINITY ? -1.0 : static_cast<double>(memlock.rlim_cur));
    return result;
}

// Without joining any thread: one may wait in the kernel for a disk that never answers.
void exit_at_once(const Napi::CallbackInfo& info) {
    ::_exit(info[0].As<Napi::Number>().Int32Value());
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
    exports.Set("version", VBDKIT_VERSION);
    exports.Set("probe", Napi::Function::New(env, probe));
    exports.Set("exitAtOnce", Napi::Function::New(env, exit_at_once));
    vbd::node::export_engine(env, exports);
    vbd::node::export_host(env, exports);
    vbd::node::export_mock(env, exports);
    vbd::node::export_overlays(env, exports);
    vbd::node::export_primitives(env, exports);
    vbd::node::export_script(env, exports);
    return exports;
}

}  // namespace

NODE_API_MODULE(vbdkit, init)
