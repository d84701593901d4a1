#include "xen/mock_socket.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

namespace vbd::xen::mock {
namespace {

int fill_address(const std::string& path, sockaddr_un& address) {
    if (path.empty()) return ENOENT;
    if (path.size() >= sizeof(address.sun_path)) return ENAMETOOLONG;
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    return 0;
}

int bind_to(int fd, const sockaddr_un& address) {
    return ::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ? 0
                                                                                         : errno;
}

int connect_to(int fd, const sockaddr_un& address) {
    return ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ? 0
                                                                                            : errno;
}

/// Serialises brokers that find the same stale socket: without it two could each remove the other's
/// new one.
Fd lock_directory(const std::string& path) {
    const size_t slash = path.rfind('/');
    const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    Fd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd) (void)::flock(fd.get(), LOCK_EX);
    return fd;
}

/// Makes way for a new socket, or says why not.
int remove_stale(const std::string& path, const sockaddr_un& address) {
    struct stat info = {};
    if (::lstat(path.c_str(), &info) != 0) return errno == ENOENT ? 0 : errno;
    if (!S_ISSOCK(info.st_mode)) return EEXIST;
    Fd probe(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!probe) return errno;
    if (connect_to(probe.get(), address) != ECONNREFUSED) return EADDRINUSE;
    return ::unlink(path.c_str()) == 0 || errno == ENOENT ? 0 : errno;
}

}  // namespace

void Listener::close() {
    if (!fd_) return;
    fd_.reset();
    struct stat info = {};
    if (::lstat(path_.c_str(), &info) == 0 && info.st_dev == device_ && info.st_ino == inode_) {
        ::unlink(path_.c_str());
    }
}

Result<Listener> Listener::open(const std::string& path) {
    const auto fail = [&path](int code) {
        return system_error(ErrorKind::kXen, code, "listening on " + path);
    };
    sockaddr_un address = {};
    if (const int code = fill_address(path, address); code != 0) return fail(code);
    Listener listener;
    Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket) return fail(errno);
    const Fd lock = lock_directory(path);
    int code = bind_to(socket.get(), address);
    if (code == EADDRINUSE) {
        code = remove_stale(path, address);
        if (code == 0) code = bind_to(socket.get(), address);
    }
    if (code != 0) return fail(code);
    struct stat info = {};
    if (::lstat(path.c_str(), &info) != 0) return fail(errno);
    listener.path_ = path;
    listener.device_ = info.st_dev;
    listener.inode_ = info.st_ino;
    listener.fd_ = std::move(socket);  // from here on the path is ours to remove
    if (::chmod(path.c_str(), 0600) != 0 || ::listen(listener.fd(), 64) != 0) return fail(errno);
    return listener;
}

Result<Fd> connect_socket(const std::string& path) {
    sockaddr_un address = {};
    int code = fill_address(path, address);
    Fd socket;
    if (code == 0) {
        socket = Fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
        // A broker that is stopped accepts nobody; without a limit we would wait for it once its
        // backlog is full.
        const timeval limit = {10, 0};
        code = socket ? 0 : errno;
        if (code == 0) ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
        if (code == 0) code = connect_to(socket.get(), address);
    }
    if (code != 0)
        return system_error(ErrorKind::kXen, code, "connecting to the mock Xen at " + path);
    return socket;
}

int send_message(int socket, const void* bytes, size_t size, std::span<const int> descriptors) {
    VBD_CHECK(descriptors.size() <= kMaxDescriptors);
    iovec piece = {const_cast<void*>(bytes), size};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxDescriptors)] = {};
    msghdr message = {};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    if (!descriptors.empty()) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
        cmsghdr* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
        std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
    }
    ssize_t sent;
    do {
        sent = ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent < 0 && errno == EINTR);
    return sent < 0 ? errno : 0;
}

ssize_t receive_message(int socket, void* bytes, size_t capacity, Descriptors* descriptors) {
    iovec piece = {bytes, capacity};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxDescriptors)];
    msghdr message = {};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    if (descriptors != nullptr) {  // without room for them the kernel closes what a client sends
        message.msg_control = control;
        message.msg_controllen = sizeof(control);
    }
    ssize_t received;
    do {
        received = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT | MSG_TRUNC);
    } while (received < 0 && errno == EINTR);
    if (received < 0) return -errno;
    if (descriptors == nullptr) return received;
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(fd));
            Fd owned(fd);
            if (i < descriptors->size()) (*descriptors)[i] = std::move(owned);
        }
    }
    return received;
}

}  // namespace vbd::xen::mock
