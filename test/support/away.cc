// away.so, for LD_PRELOAD: files on a server that is away. Opening one whose path ends in `.away` waits, as on a hard NFS
// mount, until a file `back` is beside it.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <string>

namespace {

using Open = int (*)(const char*, int, ...);

int wait_and_open(const char* name, const char* path, int flags, mode_t mode) {
    const std::string text = path;
    if (text.ends_with(".away")) {
        const std::string back = text.substr(0, text.rfind('/')) + "/back";
        while (access(back.c_str(), F_OK) != 0) usleep(1000);
    }
    return reinterpret_cast<Open>(dlsym(RTLD_NEXT, name))(path, flags, mode);
}

}  // namespace

extern "C" int open(const char* path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    const mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return wait_and_open("open", path, flags, mode);
}

extern "C" int open64(const char* path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    const mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return wait_and_open("open64", path, flags, mode);
}
