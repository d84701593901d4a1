// How an Io moves on a FileBacking: the rules that io_uring and plain system calls share. Functions
// that block say so.
#pragma once

#include <cstdint>
#include <optional>

#include "block/device.h"
#include "block/file_backing.h"

namespace vbd::block {

/// The kernel's limit of vectors per call (UIO_MAXIOV).
inline constexpr uint32_t kMaxVectors = 1024;

/// No discard is larger, so that one cannot hold up a device for long; one is outstanding
/// per Io.
inline constexpr uint64_t kDiscardStepBytes = 64ull << 20;

/// On memory the reactor does it itself: freeing these pages takes it less than half a millisecond.
inline constexpr uint64_t kMemoryDiscardStepBytes = 4ull << 20;

enum class Progress : uint8_t { kComplete, kPartial, kStuck };

/// Moves `io` (a read or write) past `bytes` that were transferred. A rest has to start at a
/// multiple of `granule` bytes from the beginning. kStuck: no progress, which is the end of the
/// file, and an error for a disk.
Progress advance(Io& io, uint64_t bytes, uint32_t granule);

/// Bytes of the next discard of `io`, at Io::offset + Io::done.
uint64_t next_discard(const Io& io, uint64_t step_bytes);

/// Tries of a step that fails with such an error, before the error is the answer.
inline constexpr uint32_t kMaxRetries = 100;

/// Whether a failed step may succeed when tried again at once.
inline bool is_transient(int error) {
    return error == EINTR || error == EAGAIN;
}

/// Blocks: the next step of `io`, of any operation, by plain system calls. Its errno or 0 when it
/// is finished, nothing while more steps are to come. A step is a whole transfer, a sync, or one
/// discard of at most `discard_step_bytes`.
std::optional<int32_t> run_step(FileBacking& backing, Io& io, uint64_t discard_step_bytes);

/// Reads that the page cache answers, without leaving the thread: cheaper than a way through
/// io_uring or a worker.
class InlineReads {
  public:
    /// What one try may copy while the reactor's other rings wait, about 10 µs.
    static constexpr uint64_t kMaxBytes = 64 * 1024;

    explicit InlineReads(bool enabled) : enabled_(enabled) {}

    /// Never blocks. True: `io` is complete. False: the rest of it, which can be all, has to go
    /// another way.
    bool try_read(int fd, Io& io);

  private:
    // A try in vain costs some 0.3 µs. After a few in a row the cache is taken for cold, and asked
    // again ever less often.
    static constexpr uint32_t kMissesBeforePause = 8;
    static constexpr uint32_t kFirstPause = 64;
    static constexpr uint32_t kLongestPause = 4096;

    bool missed();

    bool enabled_;
    uint32_t misses_ = 0;
    uint32_t pause_ = kFirstPause;
    uint32_t skip_ = 0;  // reads left until the next try
};

}  // namespace vbd::block
