// FileBacking: an open disk image or block device: how it was opened, what it can do, how long it
// is, and whether a flush on it ever failed. Raw bytes only; nothing here looks at what they say
// (no format probing, R-81).
//
// Owns the descriptor and with it the advisory lock. open(), resize() and measure() are for the
// control thread; the rest is constant or atomic and may be used by every thread of the device.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "block/device.h"

namespace vbd::block {

/// O_DIRECT: never, always (else an Error), or where single sectors can be moved with it.
enum class DirectChoice : uint8_t { kOff, kOn, kAuto };

struct FileOptions {
    std::string path;
    bool read_only = false;
    DirectChoice direct = DirectChoice::kAuto;
    uint32_t sector_size = 512;  // 512 or 4096
    bool write_through = false;  // every write is on stable storage before it completes
};

class FileBacking {
  public:
    /// Opens and locks a regular file or a block device. Errors: kBacking (missing, not permitted,
    /// neither file nor device, empty; EWOULDBLOCK: in use), kUnsupported (O_DIRECT asked for and
    /// impossible), kInvalidArgument (sector size).
    static Result<std::unique_ptr<FileBacking>> open(const FileOptions& options);

    /// A backing over a descriptor that is open already, of the given shape; nothing is checked.
    FileBacking(Fd fd, const FileOptions& options, const Geometry& geometry);

    int fd() const { return fd_.get(); }

    /// Another open file description of the same file. Each one reports a failed write-back once,
    /// to its own next sync, so a thread with a description of its own can miss none.
    Result<Fd> reopen() const;

    const Geometry& geometry() const { return geometry_; }
    const std::string& path() const { return options_.path; }
    bool is_block_device() const { return block_device_; }
    bool direct() const { return direct_; }
    bool write_through() const { return options_.write_through; }

    /// On tmpfs or ramfs: file system calls are memory copies and never wait.
    bool in_memory() const { return in_memory_; }

    /// A transfer that stopped early may go on only at a multiple of this many bytes.
    uint32_t granule() const { return direct_ ? geometry_.sector_size : 1; }

    /// What a discard has to be aligned to: a block device's own sector, which can be larger than
    /// ours.
    uint32_t discard_unit() const { return discard_unit_; }

    /// Bytes after the last whole sector of the file, which are not part of the disk.
    uint64_t tail_bytes() const { return tail_bytes_; }

    /// The size now, in whole sectors. Errors: kBacking.
    Result<uint64_t> measure() const;

    /// Gives a file this length; a block device must have it already. Errors: kInvalidArgument,
    /// kBacking.
    Status resize(uint64_t size_bytes);

    /// A sync failed: what was written before it may be lost, although the kernel calls its pages
    /// clean. There is no way back; from now on writes, discards and flushes fail.
    void note_sync_failure() { sync_failed_.store(true, std::memory_order_release); }
    bool sync_failed() const { return sync_failed_.load(std::memory_order_acquire); }

  private:
    Status identify();
    Status lock() const;
    Status find_size();
    Status set_up_direct();
    bool direct_moves_sectors() const;
    void find_block_geometry();
    void find_file_geometry();

    Fd fd_;
    const FileOptions options_;
    Geometry geometry_;
    bool block_device_ = false;
    bool direct_ = false;
    bool in_memory_ = false;
    uint32_t discard_unit_ = 1;
    uint64_t tail_bytes_ = 0;
    std::atomic<bool> sync_failed_{false};
};

}  // namespace vbd::block
