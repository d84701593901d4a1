// BlockingIo: a disk for a thread that may wait: one request at a time, with a context and a queue of
// its own. For the control plane; made, used and destroyed on one thread.
#pragma once

#include <cstdint>
#include <memory>

#include "block/device.h"
#include "block/io_context.h"

namespace vbd::block {

class BlockingIo {
  public:
    /// Errors: those of Device::open_queue.
    static Result<std::unique_ptr<BlockingIo>> open(Device& device);
    ~BlockingIo();

    // Each returns 0 or an errno. `memory` is aligned to a page where the disk is past the page
    // cache.
    int32_t read(uint64_t offset, void* memory, uint64_t length);
    int32_t write(uint64_t offset, const void* memory, uint64_t length);
    int32_t flush();
    int32_t discard(uint64_t offset, uint64_t length);

    /// Until nothing that the queue itself has begun is left: prefetches, write-back.
    void settle();

  private:
    BlockingIo() = default;
    int32_t run(Io& io);
    void wait();

    std::unique_ptr<IoContext> context_;
    std::unique_ptr<DeviceQueue> queue_;
};

/// Memory for a BlockingIo, aligned to a page.
class PageBuffer {
  public:
    explicit PageBuffer(size_t bytes);
    ~PageBuffer();
    PageBuffer(const PageBuffer&) = delete;
    PageBuffer& operator=(const PageBuffer&) = delete;

    uint8_t* data() { return data_; }
    const uint8_t* data() const { return data_; }
    size_t size() const { return bytes_; }

  private:
    uint8_t* data_;
    size_t bytes_;
};

}  // namespace vbd::block
