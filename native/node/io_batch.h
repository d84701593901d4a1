// IoBatch: disk I/O for an engine that is not C++: a whole pass's operations in, their results out,
// with one call. Behind it are the same DeviceQueues that reactors use; the JavaScript thread is
// their reactor. Memory is named by regions, so that a wrong number is refused, not followed.
//
//   operation  6 numbers  file, op, tag, offset, length, vectors      vector  3 numbers  region,
//   start, length //   result     2 numbers  tag, errno
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "block/file_device.h"
#include "block/io_context.h"
#include "node/regions.h"

namespace vbd::node {

/// A file: its device (null: closed), and the queue that is made for its first operation.
struct BatchFile {
    std::unique_ptr<block::FileDevice> device;
    block::FileBacking* backing = nullptr;
    std::unique_ptr<block::DeviceQueue> queue;
    uint32_t in_flight = 0;
};

class IoBatch {
  public:
    static constexpr uint32_t kOperationNumbers = 6;
    static constexpr uint32_t kVectorNumbers = 3;
    static constexpr uint32_t kResultNumbers = 2;

    /// Errors: kBacking.
    static Result<std::unique_ptr<IoBatch>> create(const Regions& regions, iovec arena);

    /// Errors: kUnsupported where the kernel has or allows no io_uring, with its reason.
    Status need_uring();

    /// Returns the file's number.
    uint32_t add(std::shared_ptr<BatchFile> file);
    /// Closes the file and with it its lock, whoever still holds it. Nothing is in flight there.
    void remove(uint32_t file);

    /// Queues `operations`, hands them to the kernel, and writes up to results.size() / 2 of what
    /// has completed into `results`. Returns how many. All operations are refused when one makes no
    /// sense. Errors: kInvalidArgument, and those of opening a queue.
    Result<uint32_t> turn(std::span<const double> operations, std::span<const double> vectors,
                          std::span<int32_t> results);

    /// False: turn() has results now.
    bool arm() { return context_->arm() && !has_completions(); }
    int wake_fd() const { return context_->wake_fd(); }
    void forget_buffers(const void* begin, size_t length) {
        context_->forget_buffers(begin, length);
    }

    /// Waits up to two seconds for what is in flight, then closes every file. False: some still is.
    bool shut();

  private:
    struct Slot {
        block::Io io;
        std::vector<iovec> iov;
        int32_t tag = 0;
        BatchFile* file = nullptr;
        Slot* next_free = nullptr;
    };

    explicit IoBatch(const Regions& regions) : regions_(regions) {}
    Result<Slot*> prepare(std::span<const double> operation, std::span<const double>& vectors);
    Slot* take();
    void give_back(Slot* slot);
    bool has_completions() const;

    const Regions& regions_;
    std::unique_ptr<block::IoContext> context_;
    std::vector<std::shared_ptr<BatchFile>> files_;  // by number; null: free
    std::vector<std::unique_ptr<Slot>> slots_;
    Slot* free_ = nullptr;
    block::Io* finished_ = nullptr;  // taken from a queue, not told yet
    std::vector<Slot*> batch_;
    std::vector<block::Io*> run_;
};

}  // namespace vbd::node
