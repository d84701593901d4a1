// Verify: knows the checksum of every block that was written or read through it, and notices a disk
// that answers with anything else. Checksums live in memory, for as long as the disk is open: 8 bytes
// a block that was touched.
//
//   entry   63..40  writers now at work on the block
//           32      two of them met, or one failed: what the block holds then is known to nobody
//           31..0   checksum, 0: unknown
//
// A block is known when exactly one whole write to it ended well with nobody else at it, or when it
// was read and nobody wrote meanwhile. A read is compared only if the entry was known before the
// disk was asked, and is the same after.
#pragma once

#include <atomic>
#include <memory>

#include "base/reserved.h"
#include "stages/disk_spec.h"
#include "stages/stage.h"

namespace vbd::stages {

/// What the queues of one Verify share: one entry a block.
class ChecksumTable {
  public:
    static Result<std::unique_ptr<ChecksumTable>> create(uint64_t blocks);

    /// A write begins to change the block.
    void begin_write(uint64_t block);
    /// It ended: with the block's checksum, or 0 where nobody knows.
    void end_write(uint64_t block, uint32_t checksum);
    /// For a read, before it begins.
    uint64_t look(uint64_t block) const;
    /// After it: false where the block should be another one. `discards_before`: discards() of the
    /// same time as look().
    bool check(uint64_t block, uint64_t looked, uint32_t checksum, uint64_t discards_before);

    /// Around a discard, each at its beginning and its end: what its blocks hold is unknown.
    void forget(uint64_t block);
    void begin_discard() { discards_running_.fetch_add(1); }
    void end_discard() {
        discards_.fetch_add(1);
        discards_running_.fetch_sub(1);
    }
    uint64_t discards() const { return discards_.load(); }

    uint64_t blocks() const { return entries_.size(); }

    std::atomic<uint64_t> compared{0};
    std::atomic<uint64_t> mismatches{0};
    std::atomic<uint64_t> last_mismatch_offset{0};

  private:
    ReservedArray<uint64_t> entries_;
    std::atomic<uint64_t> discards_{0};  // that have ended
    std::atomic<uint32_t> discards_running_{0};
};

class Verify final : public StageDevice {
  public:
    /// Errors: kInvalidArgument for a block size that is no power of two of a sector to 64 KiB;
    /// kNoMemory.
    static Result<std::unique_ptr<block::Device>> open(const VerifyOptions& options,
                                                       std::unique_ptr<block::Device> base);

    Result<std::unique_ptr<block::DeviceQueue>> open_queue(block::IoContext& context) override;
    Status resize(uint64_t size_bytes) override;
    Result<uint64_t> refresh_size() override;
    const char* kind() const override { return "verify"; }
    void report(const Tell& tell) const override;

  private:
    Verify(const VerifyOptions& options, std::unique_ptr<ChecksumTable> table,
           std::unique_ptr<block::Device> base);
    Status check_size(uint64_t size_bytes) const;
    /// What lies between, and only where the disk becomes shorter: it reads as something else when the
    /// disk has grown again.
    void forget_beyond(uint64_t size_bytes);

    const VerifyOptions options_;
    std::shared_ptr<ChecksumTable> table_;
};

}  // namespace vbd::stages
