#include "xen/mock_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

namespace vbd::xen::mock {

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : fd_(std::move(other.fd_)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
    if (this != &other) {
        if (data_ != nullptr) ::munmap(data_, bytes_);
        fd_ = std::move(other.fd_);
        data_ = std::exchange(other.data_, nullptr);
        bytes_ = std::exchange(other.bytes_, 0);
    }
    return *this;
}

SharedMemory::~SharedMemory() {
    if (data_ != nullptr) ::munmap(data_, bytes_);
}

Result<SharedMemory> SharedMemory::create(const char* name, size_t bytes) {
    SharedMemory memory;
    memory.fd_ = Fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!memory.fd_) return system_error(ErrorKind::kXen, errno, "making the mock's shared memory");
    if (::ftruncate(memory.fd(), static_cast<off_t>(bytes)) != 0 ||
        ::fcntl(memory.fd(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        return system_error(ErrorKind::kXen, errno, "sizing the mock's shared memory");
    }
    memory.bytes_ = bytes;
    if (Status mapped = memory.map(); !mapped) return mapped.error();
    return memory;
}

Result<SharedMemory> SharedMemory::attach(Fd fd, size_t bytes) {
    struct stat info = {};
    const int seals = ::fcntl(fd.get(), F_GET_SEALS);
    if (::fstat(fd.get(), &info) != 0 || static_cast<size_t>(info.st_size) < bytes || seals < 0 ||
        (seals & F_SEAL_SHRINK) == 0) {
        return system_error(ErrorKind::kXen, EPROTO, "taking over the mock's shared memory");
    }
    SharedMemory memory;
    memory.fd_ = std::move(fd);
    memory.bytes_ = bytes;
    if (Status mapped = memory.map(); !mapped) return mapped.error();
    return memory;
}

Status SharedMemory::map() {
    void* address =
        ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd(), 0);
    if (address == MAP_FAILED)
        return system_error(ErrorKind::kXen, errno, "mapping the mock's shared memory");
    data_ = static_cast<std::byte*>(address);
    return {};
}

}  // namespace vbd::xen::mock
