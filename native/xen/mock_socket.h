// The broker's socket: listening without stealing a living broker's path, and messages that carry
// descriptors.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <span>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "xen/mock_protocol.h"

namespace vbd::xen::mock {

using Descriptors = std::array<Fd, kMaxDescriptors>;

/// A listening SOCK_SEQPACKET socket and the path it occupies, which goes away with it.
class Listener {
  public:
    Listener() = default;
    Listener(Listener&&) noexcept = default;
    Listener& operator=(Listener&&) noexcept = default;
    ~Listener() { close(); }

    /// Replaces a socket that nobody listens on any more. Errors: kXen with EADDRINUSE when
    /// somebody does, EEXIST when the path is not a socket, ENAMETOOLONG over 107 bytes, ENOENT,
    /// EACCES.
    static Result<Listener> open(const std::string& path);

    int fd() const { return fd_.get(); }

    /// Stops listening and removes the path, unless somebody else's socket is there by now.
    void close();

  private:
    Fd fd_;
    std::string path_;
    dev_t device_ = 0;
    ino_t inode_ = 0;
};

/// Errors: kXen with ENOENT, ECONNREFUSED (no broker), ENAMETOOLONG, EPROTOTYPE.
Result<Fd> connect_socket(const std::string& path);

/// Sends one message whole; 0 or an errno. Never raises SIGPIPE, never blocks.
int send_message(int socket, const void* bytes, size_t size, std::span<const int> descriptors);

/// Receives one message: its size, also where that is more than `capacity`; 0 at the end of the
/// connection; or -errno. Surplus descriptors are closed.
ssize_t receive_message(int socket, void* bytes, size_t capacity, Descriptors* descriptors);

}  // namespace vbd::xen::mock
