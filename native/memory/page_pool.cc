// PagePool: stacks of page numbers over one arena.
#include "memory/page_pool.h"

#include <algorithm>
#include <functional>

namespace vbd::memory {

namespace {
// Slack above max_free before pages go back, so that a steady load does not pay for madvise over
// and over.
constexpr uint32_t kShrinkBatch = 64;
constexpr size_t kArenaAlignment = 2u << 20;  // huge page, and io_uring's registration chunks
}  // namespace

Result<std::unique_ptr<PagePool>> PagePool::create(uint32_t capacity_pages,
                                                   uint32_t max_free_pages) {
    auto pool = std::unique_ptr<PagePool>(new PagePool);
    auto warm = ReservedArray<uint32_t>::create(capacity_pages);
    if (!warm) return warm.error();
    auto cold = ReservedArray<uint32_t>::create(capacity_pages);
    if (!cold) return cold.error();
    pool->warm_ = std::move(warm).value();
    pool->cold_ = std::move(cold).value();

    size_t bytes = size_t{capacity_pages} * kPageSize;
    void* reserved = ::mmap(nullptr, bytes + kArenaAlignment, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED)
        return system_error(ErrorKind::kNoMemory, errno, "reserving the page pool");
    uintptr_t start = reinterpret_cast<uintptr_t>(reserved);
    uintptr_t aligned = (start + kArenaAlignment - 1) & ~(kArenaAlignment - 1);
    if (aligned > start) ::munmap(reserved, aligned - start);
    size_t tail = start + kArenaAlignment - aligned;
    if (tail > 0) ::munmap(reinterpret_cast<void*>(aligned + bytes), tail);
    pool->base_ = reinterpret_cast<uint8_t*>(aligned);
    pool->capacity_ = capacity_pages;
    pool->max_free_ = max_free_pages;
    // Guest data has no business in a core dump; one huge page for one busy page would undo the
    // budget.
    ::madvise(pool->base_, bytes, MADV_DONTDUMP);
    ::madvise(pool->base_, bytes, MADV_NOHUGEPAGE);
    return pool;
}

PagePool::~PagePool() {
    VBD_CHECK(in_use_ == 0);
    if (base_) ::munmap(base_, size_t{capacity_} * kPageSize);
}

bool PagePool::acquire(std::span<void*> pages) {
    uint32_t wanted = static_cast<uint32_t>(pages.size());
    if (capacity_ - in_use_ < wanted) return false;
    for (uint32_t i = 0; i < wanted; i++) {
        uint32_t page;
        if (warm_count_ > 0) {
            page = warm_[--warm_count_];
        } else if (cold_count_ > 0) {
            page = cold_[--cold_count_];
        } else {
            page = untouched_++;
        }
        pages[i] = base_ + size_t{page} * kPageSize;
    }
    in_use_ += wanted;
    return true;
}

void PagePool::release(std::span<void* const> pages) {
    // Last first: the stack then hands the run out again in ascending order.
    for (size_t i = pages.size(); i-- > 0;) {
        size_t offset = static_cast<size_t>(static_cast<uint8_t*>(pages[i]) - base_);
        warm_[warm_count_++] = static_cast<uint32_t>(offset / kPageSize);
    }
    in_use_ -= static_cast<uint32_t>(pages.size());
    if (warm_count_ > max_free_ + kShrinkBatch) give_back(max_free_);
}

void PagePool::shrink() {
    if (warm_count_ > max_free_) give_back(max_free_);
}

void PagePool::give_back(uint32_t keep) {
    uint32_t* first = warm_.data() + keep;
    uint32_t* last = warm_.data() + warm_count_;
    // Descending, so that the cold stack hands them out ascending; runs become one madvise each.
    std::sort(first, last, std::greater<>());
    for (uint32_t* run = first; run < last;) {
        uint32_t* end = run + 1;
        while (end < last && *end + 1 == end[-1]) end++;
        void* begin = base_ + size_t{end[-1]} * kPageSize;
        size_t length = size_t(end - run) * kPageSize;
        if (before_give_back_) before_give_back_(begin, length);
        ::madvise(begin, length, MADV_DONTNEED);
        run = end;
    }
    for (uint32_t* page = first; page < last; page++) cold_[cold_count_++] = *page;
    warm_count_ = keep;
}

}  // namespace vbd::memory
