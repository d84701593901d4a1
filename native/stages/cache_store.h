// CacheStore: the blocks of a disk that a cache holds, each with the sectors of it that are there and
// those that the disk below does not have yet. A fixed number of sets of a few blocks; which set a block
// belongs to follows from its number, and within a set the block that was not used for the longest time
// makes room. A block that is dirty, being written back or being filled stays.
//
//   valid    sectors whose content is here
//   dirty    of those: newer than below
//   writing  of those: a copy of them is on its way down; one at a time for a block
//   fillers  reads of the whole block on their way up; what was dropped meanwhile is `stale`, and not
//            taken from them
//
// Threads: any. Each of 64 parts has a mutex that is held for one block, for as long as a copy of 4 KiB
// takes; rings that do not meet in a part do not meet at all.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/reserved.h"
#include "base/result.h"
#include "stages/iov_cursor.h"

namespace vbd::stages {

class CacheStore {
  public:
    static constexpr uint64_t kBlockBytes = 4096;
    static constexpr uint32_t kNone = UINT32_MAX;

    /// `bytes`: of data; `sector_size`: 512 or 4096. Errors: kNoMemory.
    static Result<std::unique_ptr<CacheStore>> create(uint64_t bytes, uint32_t sector_size);

    // The data path. `inside` and `bytes` are whole sectors of one block.

    /// False: some of it is not here, and nothing was copied.
    bool read(uint64_t block, uint32_t inside, uint32_t bytes, IovCursor& to);

    enum class Written { kClean, kDirtied, kNoRoom };
    /// kDirtied: the block was not dirty before.
    Written write(uint64_t block, uint32_t inside, uint32_t bytes, IovCursor& from);

    enum class Fill { kHit, kFill };
    /// kFill: the block has to be read; end_fill() follows, with `entry`, which is kNone where there is no
    /// room to keep it.
    Fill begin_fill(uint64_t block, uint32_t inside, uint32_t bytes, uint32_t& entry);
    /// `data`: the first `data_bytes` of the block as read from below; null: that failed.
    /// Copies the part that was asked for, where it did not fail.
    void end_fill(uint32_t entry, const uint8_t* data, uint32_t data_bytes, uint32_t inside,
                  uint32_t bytes, IovCursor& to);

    // For the thread that writes back.

    struct Dirty {
        uint64_t block;
        uint32_t entry;
    };
    /// What is dirtied from now on belongs to the next epoch; returns the present one.
    uint32_t next_epoch() { return epoch_.fetch_add(1); }
    /// Dirty blocks of `epoch` or before, as many as `found` has room for.
    void collect(uint32_t epoch, std::vector<Dirty>& found);

    struct Run {
        uint32_t first = 0;  // sectors of the block
        uint32_t count = 0;
    };
    /// Copies dirty sectors in a row to `to`, and takes them for written until end_write_back(). None
    /// where the block is not dirty any more, or where `from_start` and they do not begin with it. What
    /// lies at `disk_bytes` and beyond is dropped.
    Run begin_write_back(const Dirty& dirty, bool from_start, uint64_t disk_bytes, uint8_t* to);
    /// Not `written`: they are as dirty as before.
    void end_write_back(uint32_t entry, Run run, bool written);

    /// Forgets what it has of [begin, end), dirty or not. Nothing is being written back.
    void drop(uint64_t begin, uint64_t end);

    uint64_t capacity_bytes() const { return capacity_ * kBlockBytes; }
    uint64_t capacity() const { return capacity_; }
    uint32_t sector_size() const { return sector_size_; }
    uint64_t dirty_blocks() const { return dirty_blocks_.load(); }

    std::atomic<uint64_t> hits{0};    // blocks
    std::atomic<uint64_t> misses{0};

  private:
    static constexpr uint32_t kWays = 16;
    static constexpr uint32_t kParts = 64;

    using Mask = uint8_t;  // of the sectors of a block

    struct Entry {
        uint64_t block = UINT64_MAX;
        uint32_t used = 0;   // when, by the clock of its part
        uint32_t epoch = 0;  // of when it became dirty
        Mask valid = 0;
        Mask dirty = 0;
        Mask writing = 0;
        Mask stale = 0;
        uint32_t fillers = 0;
    };
    struct alignas(64) Part {
        std::mutex mutex;
        uint32_t clock = 0;
    };

    CacheStore() = default;
    uint64_t set_of(uint64_t block) const;
    Part& part_of(uint64_t set) { return parts_[set % kParts]; }
    /// The block's entry, or null.
    Entry* find(uint64_t set, uint64_t block);
    /// The block's entry, a new one where it has none; null: none can make room.
    Entry* make(uint64_t set, uint64_t block);
    Mask mask_of(uint32_t inside, uint32_t bytes) const;
    uint8_t* data_of(const Entry& entry) {
        return data_.data() + static_cast<uint64_t>(&entry - entries_.get()) * kBlockBytes;
    }
    void set_dirty(Entry& entry, Mask sectors, uint32_t epoch);
    void set_clean(Entry& entry, Mask sectors);
    void forget(Entry& entry, Mask sectors);
    static void free_if_empty(Entry& entry);

    uint64_t sets_ = 0;
    uint64_t capacity_ = 0;  // blocks
    uint32_t sector_size_ = 512;
    std::unique_ptr<Entry[]> entries_;
    ReservedArray<uint8_t> data_;
    std::unique_ptr<std::atomic<uint64_t>[]> dirty_bits_;  // of entries, for collect()
    std::atomic<uint64_t> dirty_blocks_{0};
    std::atomic<uint32_t> epoch_{1};
    std::array<Part, kParts> parts_;
};

}  // namespace vbd::stages
