// PagePool: the pages through which one reactor copies guest data; the buffers that io_uring may
// have registered. One thread uses it. Owns one aligned arena of address space, touched only as far
// as it is used.
//
//   arena   | warm (resident, free) | in use | cold (given back to the system, or never touched) |
//
// Free pages are kept warm up to max_free; beyond that they are given back in batches (madvise), as
// blkback's max_buffer_pages does. A page holds whatever its last user left: a page reaches a guest
// only after a device or a grant copy wrote every byte that the guest will see.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "base/reserved.h"
#include "base/units.h"

namespace vbd::memory {

class PagePool {
  public:
    /// capacity_pages: address space, not memory. Errors: kNoMemory.
    static Result<std::unique_ptr<PagePool>> create(uint32_t capacity_pages,
                                                    uint32_t max_free_pages);
    ~PagePool();
    PagePool(const PagePool&) = delete;
    PagePool& operator=(const PagePool&) = delete;

    /// Fills `pages` with free pages, adjacent ones in ascending order where it can. False: too few
    /// are left, none taken.
    bool acquire(std::span<void*> pages);

    /// Gives pages back. Call with the pages in the order of acquire(), so that runs stay runs.
    void release(std::span<void* const> pages);

    /// Called before memory is given back to the system: whoever registered it must forget it
    /// first.
    void on_give_back(std::function<void(void* begin, size_t length)> hook) {
        before_give_back_ = std::move(hook);
    }

    /// 0 gives every free page back at the next shrink().
    void set_max_free(uint32_t pages) { max_free_ = pages; }

    /// Returns warm pages beyond max_free to the system, in one batch. Cheap when there are none.
    void shrink();

    iovec arena() const { return {base_, size_t{capacity_} * kPageSize}; }
    uint32_t in_use() const { return in_use_; }
    uint32_t available() const { return capacity_ - in_use_; }
    uint32_t warm() const { return warm_count_; }

  private:
    PagePool() = default;
    void give_back(uint32_t keep);

    uint8_t* base_ = nullptr;
    uint32_t capacity_ = 0;
    uint32_t max_free_ = 0;
    uint32_t in_use_ = 0;
    uint32_t warm_count_ = 0;  // stack of resident free pages
    uint32_t cold_count_ = 0;  // stack of pages given back
    uint32_t untouched_ = 0;   // pages from here on were never used
    ReservedArray<uint32_t> warm_;
    ReservedArray<uint32_t> cold_;
    std::function<void(void*, size_t)> before_give_back_;
};

}  // namespace vbd::memory
