// ReservedArray<T>: room for a fixed number of trivially constructible elements, zeroed, whose
// memory is taken from the system only when it is first touched. Sized once for the worst case,
// paid for by use: no allocation later, and an idle ring costs next to nothing.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "base/result.h"

namespace vbd {

template <typename T>
class ReservedArray {
    static_assert(std::is_trivially_destructible_v<T>);

  public:
    ReservedArray() = default;
    ReservedArray(ReservedArray&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    ReservedArray& operator=(ReservedArray&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ReservedArray(const ReservedArray&) = delete;
    ReservedArray& operator=(const ReservedArray&) = delete;
    ~ReservedArray() {
        if (data_) ::munmap(data_, size_ * sizeof(T));
    }

    static Result<ReservedArray> create(size_t size) {
        ReservedArray array;
        if (size == 0) return array;
        void* memory = ::mmap(nullptr, size * sizeof(T), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) {
            return system_error(ErrorKind::kNoMemory, errno, "reserving memory for a table");
        }
        array.data_ = static_cast<T*>(memory);
        array.size_ = size;
        return array;
    }

    /// Lets what lies beyond the first 2 MiB be huge pages, where the system has them: an array
    /// that is used that far pays for its page table walks, one that is not costs nothing more.
    void prefer_huge_tail() {
#ifdef MADV_HUGEPAGE
        constexpr uintptr_t kHuge = 2u << 20;
        const uintptr_t begin = (reinterpret_cast<uintptr_t>(data_) + 2 * kHuge - 1) & ~(kHuge - 1);
        const uintptr_t end = reinterpret_cast<uintptr_t>(data_ + size_);
        if (begin < end) {
            (void)::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
        }
#endif
    }

    T* data() { return data_; }
    const T* data() const { return data_; }
    size_t size() const { return size_; }
    T& operator[](size_t i) { return data_[i]; }
    const T& operator[](size_t i) const { return data_[i]; }

  private:
    T* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace vbd
