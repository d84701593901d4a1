#include "node/notify_object.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>

#include "base/fd.h"
#include "node/convert.h"

namespace vbd::node {
namespace {

Status send_datagram(const std::string& path, const std::string& text) {
    const std::string what = "notifying " + path;
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    if (path.size() < 2 || (path[0] != '/' && path[0] != '@')) {
        return system_error(ErrorKind::kUnsupported, EAFNOSUPPORT, what);
    }
    if (path.size() >= sizeof(address.sun_path)) {
        return system_error(ErrorKind::kInvalidArgument, ENAMETOOLONG, what);
    }
    std::memcpy(address.sun_path, path.data(), path.size());
    size_t length = offsetof(sockaddr_un, sun_path) + path.size();
    if (path[0] == '@') {
        address.sun_path[0] = '\0';  // an abstract name ends where its length says
    } else {
        length++;
    }
    const Fd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!fd ||
        ::sendto(fd.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
                 reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(length)) < 0) {
        return system_error(ErrorKind::kBacking, errno, what);
    }
    return {};
}

}  // namespace

Napi::Value sd_notify(const Napi::CallbackInfo& info) {
    Status status =
        info[0].IsString() && info[1].IsString()
            ? send_datagram(info[0].As<Napi::String>(), info[1].As<Napi::String>())
            : Error{ErrorKind::kInvalidArgument, 0, "a notification is a path and a text"};
    if (!status) throw_error(info.Env(), status.error());
    return info.Env().Undefined();
}

}  // namespace vbd::node
