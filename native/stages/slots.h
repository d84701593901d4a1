// Slots<T>: a fixed number of T, made once, lent one at a time. Not for threads.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "base/result.h"

namespace vbd::stages {

/// T has a member `T* next_free`.
template <typename T>
class Slots {
  public:
    explicit Slots(size_t count) : slots_(new T[count]), count_(count), free_count_(count) {
        for (size_t i = count; i > 0; i--) {
            slots_[i - 1].next_free = free_;
            free_ = &slots_[i - 1];
        }
    }

    /// One that is free, or null.
    T* take() {
        T* slot = free_;
        if (slot) {
            free_ = slot->next_free;
            free_count_--;
        }
        return slot;
    }
    void give_back(T* slot) {
        slot->next_free = free_;
        free_ = slot;
        free_count_++;
    }

    /// Whether `inside` points into one of them.
    bool contains(const void* inside) const {
        const std::less<const void*> before;
        return !before(inside, slots_.get()) && before(inside, slots_.get() + count_);
    }

    bool all_free() const { return free_count_ == count_; }
    bool none_free() const { return free_ == nullptr; }
    size_t count() const { return count_; }
    size_t index_of(const T* slot) const { return static_cast<size_t>(slot - slots_.get()); }
    T& operator[](size_t i) { return slots_[i]; }

  private:
    std::unique_ptr<T[]> slots_;
    const size_t count_;
    size_t free_count_;
    T* free_ = nullptr;
};

}  // namespace vbd::stages
