// ReadFile: a file that reads are measured on, whichever way they go: open, measured, with a buffer
// for one block. Owned by the benchmark that reads it.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "base/fd.h"
#include "bench/benchmark.h"

namespace vbd::bench {

class ReadFile {
  public:
    /// path= block= direct=0|1, and cpu= for the calling thread. Errors: kBacking, kNoMemory,
    /// kInvalidArgument.
    static Result<ReadFile> open(Arguments& arguments) {
        const std::string path = arguments.text("path", "");
        ReadFile file;
        file.block_ = static_cast<uint32_t>(arguments.number("block", 4096));
        const int direct = arguments.number("direct", 0) != 0 ? O_DIRECT : 0;
        if (Status pinned = pin_to(static_cast<int>(arguments.number("cpu", 0))); !pinned) {
            return pinned.error();
        }
        file.fd_ = Fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | direct));
        struct stat stats{};
        if (!file.fd_ || ::fstat(file.fd_.get(), &stats) != 0) {
            return system_error(ErrorKind::kBacking, errno, "opening " + path);
        }
        file.blocks_ = static_cast<uint64_t>(stats.st_size) / file.block_;
        void* buffer = ::mmap(nullptr, file.block_, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (buffer == MAP_FAILED) return system_error(ErrorKind::kNoMemory, errno, "a buffer");
        file.buffer_ = buffer;
        return file;
    }

    ReadFile(ReadFile&& other) noexcept
        : fd_(std::move(other.fd_)),
          block_(other.block_),
          blocks_(other.blocks_),
          buffer_(std::exchange(other.buffer_, nullptr)) {}
    ReadFile& operator=(ReadFile&&) = delete;
    ~ReadFile() {
        if (buffer_ != nullptr) ::munmap(buffer_, block_);
    }

    int fd() const { return fd_.get(); }
    uint32_t block() const { return block_; }
    void* buffer() const { return buffer_; }
    /// Of a random block.
    uint64_t offset() { return random_.below(blocks_) * block_; }

  private:
    ReadFile() = default;

    Fd fd_;
    uint32_t block_ = 0;
    uint64_t blocks_ = 0;
    void* buffer_ = nullptr;
    Random random_{1};
};

}  // namespace vbd::bench
