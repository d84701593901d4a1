// SharedMemory: a sealed memfd and its mapping in this process, as the mock's processes pass it to
// each other. Owned by one object; the mapped bytes are shared with other processes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/fd.h"
#include "base/result.h"

namespace vbd::xen::mock {

class SharedMemory {
  public:
    SharedMemory() = default;
    SharedMemory(SharedMemory&& other) noexcept;
    SharedMemory& operator=(SharedMemory&& other) noexcept;
    ~SharedMemory();

    /// A new, zeroed memfd of `bytes`, sealed against any change of size: a peer that truncated it
    /// could kill us with SIGBUS. Errors: kXen with ENOMEM, EMFILE and the like.
    static Result<SharedMemory> create(const char* name, size_t bytes);

    /// Maps a memfd that the broker sent. Errors: kXen, EPROTO when it is shorter than `bytes` or
    /// not sealed.
    static Result<SharedMemory> attach(Fd fd, size_t bytes);

    int fd() const { return fd_.get(); }
    /// Keeps the mapping alone.
    void close_fd() { fd_.reset(); }
    size_t size() const { return bytes_; }
    std::byte* data() const { return data_; }

    template <typename T>
    T* as() const {
        VBD_CHECK(bytes_ >= sizeof(T));
        return reinterpret_cast<T*>(data_);
    }

  private:
    Status map();

    Fd fd_;
    std::byte* data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace vbd::xen::mock
