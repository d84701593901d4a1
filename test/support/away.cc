// away.so, for LD_PRELOAD: files on a server that is away. Opening one whose path ends in `.away` waits, as on a hard NFS
// mount, until a file `back` is beside it.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <unistd.h>

#include <string>

extern "C" int open(const char* path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    const mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    const std::string text = path;
    if (text.ends_with(".away")) {
        const std::string back = text.substr(0, text.rfind('/')) + "/back";
        while (access(back.c_str(), F_OK) != 0) usleep(1000);
    }
    using Open = int (*)(const char*, int, ...);
    return reinterpret_cast<Open>(dlsym(RTLD_NEXT, "open"))(path, flags, mode);
}

// The same on every 64-bit machine.
extern "C" int open64(const char* path, int flags, ...) __attribute__((alias("open")));
