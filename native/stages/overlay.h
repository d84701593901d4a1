// Overlay: copy on write. The disk below is only read; what is written goes to a container of our own
// (overlay_file.h) and is read from there. Granules are taken over whole: a write that covers a part
// of one first copies the rest of it. What was discarded reads as zeroes.
//
// While a granule is being taken over, it is claimed, and no other write touches it: a copy of what
// was there must not undo a write that was answered. Once it is the overlay's, nobody asks for a claim
// or takes a lock any more.
//
// Flushes are done by one thread of the overlay, several at a time: data, then the bitmap.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/thread.h"
#include "block/io_context.h"
#include "stages/disk_spec.h"
#include "stages/overlay_file.h"
#include "stages/stage.h"

namespace vbd::stages {

/// Granules that are being taken over, by any queue.
class Claims {
  public:
    Claims() { ranges_.reserve(1024); }

    /// False: somebody has one of them.
    bool take(uint64_t first, uint64_t count);
    void give_back(uint64_t first);

  private:
    struct Range {
        uint64_t first;
        uint64_t count;
    };
    std::mutex mutex_;
    std::vector<Range> ranges_;  // as many as pieces are at work
};

/// The thread that makes things durable. Made with the overlay, ends with close().
class OverlayWriter {
  public:
    explicit OverlayWriter(OverlayFile& file) : file_(file) {}
    ~OverlayWriter();

    /// Starts the thread, and waits until it has the container.
    Status start(bool writable);
    /// Has a flush done: `io` comes back through `context`, in which it counts as in flight.
    void push(block::IoContext& context, block::Io* io);
    /// Runs `act` on the thread and waits for it.
    Status run(std::function<Status()> act);
    /// Ends the thread, and leaves the container in order.
    Status stop();

  private:
    void main(bool writable);
    void serve(std::unique_lock<std::mutex>& lock);

    OverlayFile& file_;
    Thread thread_;
    std::mutex mutex_;  // guards all below
    std::condition_variable changed_;
    block::IoList flushes_;
    std::function<Status()> act_;
    std::optional<Status> outcome_;  // of start, of act_, or of the end
    bool started_ = false;
    bool stopping_ = false;
};

class Overlay final : public StageDevice {
  public:
    /// Opens the container at options.scratch, or makes it where there is no such file. Errors: those
    /// of OverlayFile; kInvalidArgument for a granule that is none.
    static Result<std::unique_ptr<block::Device>> open(const OverlayOptions& options,
                                                       std::unique_ptr<block::Device> base);
    /// The same with a container that is open already.
    static Result<std::unique_ptr<block::Device>> over(const OverlayOptions& options,
                                                       std::unique_ptr<block::Device> base,
                                                       std::unique_ptr<block::Device> scratch);
    ~Overlay() override;

    Result<std::unique_ptr<block::DeviceQueue>> open_queue(block::IoContext& context) override;
    Status resize(uint64_t size_bytes) override;
    Result<uint64_t> refresh_size() override { return size_bytes(); }
    Status close() override;
    const char* kind() const override { return "overlay"; }
    void report(const Tell& tell) const override;

    /// Writes what the container at options.scratch has into `base`, which it belongs to, and empties
    /// it. Nothing is lost if that is interrupted: it can be done again. Errors: kBacking.
    static Status commit(const OverlayOptions& options, block::Device& base);
    /// Forgets what the container has. Errors: kBacking.
    static Status reset(const OverlayOptions& options, uint64_t base_bytes);

    /// What its queues share.
    struct Shared {
        explicit Shared(std::unique_ptr<OverlayFile> opened)
            : file(std::move(opened)), writer(*file) {}
        std::unique_ptr<OverlayFile> file;
        OverlayWriter writer;
        Claims claims;
    };

  private:
    Overlay(const OverlayOptions& options, std::unique_ptr<block::Device> base,
            std::unique_ptr<OverlayFile> file);

    const OverlayOptions options_;
    std::shared_ptr<Shared> shared_;
};

}  // namespace vbd::stages
