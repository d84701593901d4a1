// OverlayFile: what an overlay keeps: which granules of the disk it has taken over, and where they
// are. The container is a disk of its own (a sparse file), laid out in groups, so that it can grow:
//
//   0        header                          4096 bytes
//   4096     group 0: bitmap page, slot A    4096
//            group 0: bitmap page, slot B    4096
//            group 0: kBitsPerPage granules
//            group 1: slot A, slot B, granules ...
//
//   header       magic, version, granule, sizes, epoch, clean, layers below (overlay_layers.h), crc32c
//   bitmap page  crc32c, page number, epoch and sequence, bits; of the slots that are whole and of
//                the header's epoch the one with the higher sequence counts
//
// Bits only ever go from 0 to 1. A granule whose bit is durable has its data durable: commit() first
// makes the data durable, then writes the pages that changed, each into the slot that does not count
// yet, then makes those durable. Whatever a crash leaves of that, either the old page or the new one
// is whole, and what each of them promises is there. reset() is one header with the next epoch.
//
// Threads: allocated() and mark() are for all. attach() and everything after it that waits for the
// container is for one thread; the others only before attach().
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/reserved.h"
#include "block/blocking_io.h"
#include "block/device.h"

namespace vbd::stages {

/// Makes the names in the folder of `path` durable. Errors: kBacking.
Status sync_folder_of(const std::string& path);

class OverlayFile {
  public:
    static constexpr uint64_t kHeaderBytes = 4096;
    static constexpr uint64_t kPageBytes = 4096;
    /// For open(): whatever the disk below is.
    static constexpr uint64_t kAnyBase = 0;
    static constexpr uint64_t kBitsPerPage = (kPageBytes - 16) * 8;
    /// 127 TiB of the smallest granules.
    static constexpr uint64_t kMostPages = 1 << 20;

    /// How long the container of a disk is.
    static uint64_t container_bytes(uint64_t disk_bytes, uint32_t granule_bytes);

    /// Makes a container for a disk of this size where there is none. Errors: kBacking where there
    /// is something already.
    static Status create_at(const std::string& path, uint64_t disk_bytes, uint32_t granule_bytes,
                            uint32_t layers = 0);
    /// How many layers the container at `path` stands on. Errors: kBacking.
    static Result<uint32_t> read_layers(const std::string& path);
    /// The same in a device that is long enough.
    static Status create_in(block::Device& scratch, uint64_t disk_bytes, uint32_t granule_bytes);

    /// Opens the container in `scratch`. `base_bytes`: of the disk below. Errors: kBacking where it is
    /// something else, of another disk, or damaged; kInvalidArgument for another granule.
    static Result<std::unique_ptr<OverlayFile>> open(std::unique_ptr<block::Device> scratch,
                                                     uint64_t base_bytes, uint32_t granule_bytes);

    /// Errors: kUnsupported where the disk has too many granules of this size.
    static Status check_size(uint64_t disk_bytes, uint32_t granule_bytes);

    uint32_t granule_bytes() const { return header_.granule_bytes; }
    /// It may be longer than the disk below.
    uint64_t disk_bytes() const { return header_.disk_bytes; }
    uint64_t base_bytes() const { return header_.base_bytes; }
    uint32_t layers() const { return header_.layers; }
    block::Device& scratch() { return *scratch_; }

    /// Whether the overlay has this granule.
    bool allocated(uint64_t granule) const {
        return (word(granule / 64) >> (granule % 64)) & 1;
    }
    /// How many granules from `granule` on are as it is, at most `limit`, at least 1. All in one group.
    uint64_t run(uint64_t granule, uint64_t limit) const;

    /// The overlay has these granules from now on: their data is written, though not yet durable.
    void mark(uint64_t granule, uint64_t count);
    uint64_t allocated_granules() const;

    /// Where a granule is in the container. Those of one group are in a row.
    uint64_t offset_of(uint64_t granule) const {
        return kHeaderBytes + (granule / kBitsPerPage) * group_bytes(granule_bytes()) +
               2 * kPageBytes + (granule % kBitsPerPage) * granule_bytes();
    }

    /// From now on the calling thread may call what is below. `writable`: a crash is possible from
    /// here on.
    Status attach(bool writable);
    /// Everything that was written and marked before is durable after. 0, or an errno; after the
    /// first error nothing is promised any more, and every call fails.
    int32_t commit();
    bool failed() const { return failed_.load(std::memory_order_acquire); }
    Status resize(uint64_t disk_bytes);
    /// Forgets every granule, at once.
    Status reset();
    Status set_layers(uint32_t layers);
    /// The end of attach(): commits, and says that the container was left in order.
    Status detach();

  private:
    struct Header {
        char magic[8];
        uint32_t version;
        uint32_t granule_bytes;
        uint64_t disk_bytes;
        uint64_t base_bytes;
        uint32_t epoch;
        uint32_t clean;
        uint32_t layers;  // from version 2 on
        uint32_t crc;  // of all before it
    };
    struct PageHead {
        uint32_t crc;  // of all after it
        uint32_t page;
        uint64_t version;  // epoch in the upper half, sequence in the lower one
    };
    struct Page {
        uint64_t version = 0;  // of the slot that counts
        uint32_t slot = 1;
        std::atomic<bool> dirty{false};
    };
    static_assert(sizeof(PageHead) == 16);

    OverlayFile() = default;
    static Header make_header(uint64_t disk_bytes, uint32_t granule_bytes, uint32_t layers = 0);
    static uint32_t version_for(uint32_t layers) { return layers > 0 ? 2 : 1; }
    static uint64_t group_bytes(uint32_t granule_bytes) {
        return 2 * kPageBytes + kBitsPerPage * granule_bytes;
    }
    Status check_header(uint64_t base_bytes, uint32_t granule_bytes) const;
    Status load_page(uint64_t page, const uint8_t* slots);
    bool is_whole(uint64_t page, const uint8_t* slot) const;
    int32_t write_header();
    int32_t write_page(uint64_t page, uint8_t* snapshot);
    uint64_t pages() const { return page_count(header_.disk_bytes, granule_bytes()); }
    static uint64_t page_count(uint64_t disk_bytes, uint32_t granule_bytes);
    uint64_t page_offset(uint64_t page, uint32_t slot) const {
        return kHeaderBytes + page * group_bytes(granule_bytes()) + slot * kPageBytes;
    }
    uint64_t word(uint64_t index) const {
        return __atomic_load_n(&bits_[index], __ATOMIC_ACQUIRE);
    }
    Error damaged(const std::string& what) const;

    std::unique_ptr<block::Device> scratch_;
    std::unique_ptr<block::BlockingIo> io_;
    Header header_{};
    ReservedArray<uint64_t> bits_;  // room to grow; memory where it is touched
    std::unique_ptr<Page[]> page_states_;
    uint64_t page_room_ = 0;
    bool writable_ = false;
    std::atomic<bool> failed_{false};
};

}  // namespace vbd::stages
