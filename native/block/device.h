// Device: a disk as the engine sees it. The control plane opens and resizes it; each reactor thread
// gets a DeviceQueue, the data-plane handle, which that thread alone uses.
//
//   Io          one operation; owned by the caller, lent to the queue from submit() until it comes
//   back from reap() DeviceQueue submit a batch, reap a batch; no allocation and no lock per Io
//   IoContext   what the devices of one reactor share: its io_uring, its wake-up descriptor
//   (io_context.h)
//
// The engine has checked every Io: inside the disk, aligned to sector_size, allowed by read_only. A
// device answers exactly once. `error` is 0 or an errno; a read that cannot be filled to its last
// byte is an error, never a short success.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace vbd::block {

class IoContext;
class DeviceQueue;

enum class IoOp : uint8_t { kRead, kWrite, kFlush, kDiscard, kSecureDiscard };

struct Io {
    IoOp op = IoOp::kRead;
    bool fua = false;        // kWrite: on stable storage before it completes
    int32_t error = 0;       // result: 0, or an errno
    uint32_t iov_count = 0;  // kRead, kWrite
    iovec* iov =
        nullptr;          // the device may change iov, iov_count and the array while it owns the Io
    uint64_t offset = 0;  // bytes; the device may change it, but gives it back as it was
    uint64_t length = 0;  // bytes; for kRead and kWrite the sum of the iovecs
    void* tag = nullptr;  // the caller's
    Io* next = nullptr;   // link of whoever holds the Io
    DeviceQueue* queue = nullptr;  // set by submit(): where a shared completion source returns it
    uint64_t done = 0;             // device scratch: bytes moved so far
    uint64_t scratch = 0;          // device scratch
};

/// A FIFO of Ios through Io::next.
class IoList {
  public:
    bool empty() const { return head_ == nullptr; }
    Io* front() const { return head_; }
    void push(Io* io) {
        io->next = nullptr;
        (head_ ? tail_->next : head_) = io;
        tail_ = io;
    }
    Io* pop() {
        Io* io = head_;
        if (io) head_ = io->next;
        return io;
    }
    Io* take_all() {
        Io* io = head_;
        head_ = tail_ = nullptr;
        return io;
    }
    /// Puts all of another list behind this one's.
    void splice(IoList& other) {
        if (other.empty()) return;
        (head_ ? tail_->next : head_) = other.head_;
        tail_ = other.tail_;
        other.head_ = other.tail_ = nullptr;
    }

  private:
    Io* head_ = nullptr;
    Io* tail_ = nullptr;
};

/// What a device can do and how its sectors are laid out. Constant for an open device, but for
/// size_bytes.
struct Geometry {
    uint64_t size_bytes =
        0;  // a multiple of sector_size; the control thread's, others ask Device::size_bytes()
    uint32_t sector_size = 512;
    uint32_t physical_sector_size = 512;
    bool read_only = false;
    bool can_flush = true;
    bool can_discard = false;
    bool can_secure_discard = false;
    bool fills_reads =
        true;  // false: a read may leave its buffer as it was (a null disk for benchmarks)
    uint32_t discard_granularity = 0;  // bytes; 0: unknown
    uint32_t discard_alignment = 0;    // bytes
    std::string description;           // for operators: "file(/srv/a.raw, io_uring, O_DIRECT)"
};

/// A disk has whole sectors of 512 or 4096 bytes, at least one, and a size that fits in off_t.
/// Errors: kInvalidArgument.
inline Status check_disk_size(uint64_t size_bytes, uint32_t sector_size) {
    if (sector_size != 512 && sector_size != 4096) {
        return Error{ErrorKind::kInvalidArgument, 0, "a sector has 512 or 4096 bytes"};
    }
    if (size_bytes == 0 || size_bytes % sector_size != 0 || size_bytes > INT64_MAX) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "a disk's size is a positive multiple of its sector size, " +
                         std::to_string(sector_size) + " bytes"};
    }
    return {};
}

class DeviceQueue {
  public:
    virtual ~DeviceQueue() = default;  // only when nothing is in flight

    /// Takes a batch. Ios may complete at once; they are then in the next reap(). Never blocks for
    /// longer than a page cache hit or a memcpy, unless the device says so in its header.
    virtual void submit(std::span<Io* const> batch) = 0;

    /// Completed Ios as a list through Io::next, or null. Their offset and length are as submitted.
    virtual Io* reap() { return done_.take_all(); }

    virtual bool has_completions() const { return !done_.empty(); }

    /// Puts a finished Io where reap() finds it. For the device and for the IoContext; on the
    /// owning thread.
    void complete(Io* io, int32_t error) {
        io->error = error;
        done_.push(io);
    }

    /// The next step of an Io that this queue gave to IoContext::yield().
    virtual void resume(Io* io) { complete(io, EIO); }

    /// The same of a list that another thread gave to IoContext::resume_from_thread().
    virtual void resume_list(Io* list) {
        while (list) {
            Io* next = list->next;
            resume(list);
            list = next;
        }
    }

    /// Whose requests come through this queue, `1:xvda`; told once, before the first.
    virtual void identify(std::string_view) {}

    /// Its Timer (io_context.h) is due.
    virtual void on_timer(uint64_t /*now_ns*/) {}

    /// The queue is about to close: what is only being delayed goes on at once.
    virtual void hurry() {}

    /// Nothing is under way that nobody submitted, such as a prefetch. A queue is destroyed only
    /// when nothing is in flight and it is idle.
    virtual bool idle() const { return true; }

  protected:
    IoList done_;
};

/// One Io as a log keeps it.
struct IoRecord {
    uint64_t started_ns = 0;  // monotonic
    uint64_t elapsed_ns = 0;
    uint64_t offset = 0;  // bytes
    uint64_t length = 0;
    int32_t error = 0;
    IoOp op = IoOp::kRead;
    bool fua = false;
};

class Device {
  public:
    virtual ~Device() = default;  // when no queue is left

    virtual const Geometry& geometry() const = 0;
    uint64_t size_bytes() const { return size_bytes_.load(std::memory_order_acquire); }

    /// The data-plane handle for the reactor that owns `context`; called on that reactor's thread.
    /// The device outlives it.
    virtual Result<std::unique_ptr<DeviceQueue>> open_queue(IoContext& context) = 0;

    /// Control thread: makes the disk `size_bytes` long (a file is extended; a block device must
    /// already be that long). Shrinking below data in use is the caller's decision. Errors:
    /// kBacking, kInvalidArgument.
    virtual Status resize(uint64_t size_bytes) = 0;

    /// Control thread: re-reads the size of the file or device from the operating system.
    virtual Result<uint64_t> refresh_size() = 0;

    /// A thread that may wait, when no queue is left: brings what the device still holds to stable
    /// storage. Errors: kBacking; then what was not flushed may be lost.
    virtual Status close() { return {}; }

    // For the control thread, while queues are at work: what a chain of disks is made of.

    /// "throttle"; the driver's name for a disk without disks below it.
    virtual const char* kind() const { return "disk"; }
    /// The disks directly below.
    virtual std::vector<Device*> below() const { return {}; }
    /// Calls `tell` with every setting and every counter.
    using Tell = std::function<void(const char* name, double value)>;
    virtual void report(const Tell& /*tell*/) const {}
    /// Changes a setting at once. Errors: kUnsupported where there is none of this name,
    /// kInvalidArgument.
    virtual Status tune(std::string_view setting, double /*value*/) {
        return Error{ErrorKind::kUnsupported, 0,
                     std::string(kind()) + " has no setting '" + std::string(setting) +
                         "' that can be changed"};
    }
    /// Appends the records of a log that nobody has taken yet. Returns how many were lost since the
    /// last call.
    virtual uint64_t take_records(std::vector<IoRecord>& /*records*/) { return 0; }

  protected:
    std::atomic<uint64_t> size_bytes_{0};
};

}  // namespace vbd::block
