// IovCursor: a place in the memory of an Io, that moves on part by part. The parts themselves stay
// as they are. What is copied may be a guest's memory: each byte is read once.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "block/racy_bytes.h"

namespace vbd::stages {

class IovCursor {
  public:
    IovCursor() = default;
    explicit IovCursor(const iovec* parts) : part_(parts) {}

    /// Calls `act(memory, bytes)` for the next `bytes`, in order, and moves on.
    template <typename Act>
    void each(uint64_t bytes, Act act) {
        while (bytes > 0) {
            skip_ended();
            const size_t here =
                static_cast<size_t>(std::min<uint64_t>(bytes, part_->iov_len - inside_));
            act(static_cast<uint8_t*>(part_->iov_base) + inside_, here);
            inside_ += here;
            bytes -= here;
        }
    }

    void copy_out(uint8_t* to, uint64_t bytes) {
        each(bytes, [&to](const uint8_t* from, size_t here) {
            block::racy_copy(to, from, here);
            to += here;
        });
    }
    void copy_in(const uint8_t* from, uint64_t bytes) {
        each(bytes, [&from](uint8_t* to, size_t here) {
            block::racy_copy(to, from, here);
            from += here;
        });
    }
    void fill_zero(uint64_t bytes) {
        each(bytes, [](uint8_t* to, size_t here) { block::racy_zero(to, here); });
    }
    void skip(uint64_t bytes) {
        each(bytes, [](uint8_t*, size_t) {});
    }

    /// Describes the next at most `bytes` in at most `room` parts at `to`, in multiples of `unit`,
    /// and moves on by what it described; returns that, and the parts in `count`. 0 where not even
    /// one unit has room.
    uint64_t cut(uint64_t bytes, uint32_t unit, iovec* to, uint32_t room, uint32_t& count) {
        const IovCursor before = *this;
        uint64_t total = 0;
        count = 0;
        while (total < bytes && count < room) {
            skip_ended();
            const size_t here =
                static_cast<size_t>(std::min<uint64_t>(bytes - total, part_->iov_len - inside_));
            to[count++] = {static_cast<uint8_t*>(part_->iov_base) + inside_, here};
            inside_ += here;
            total += here;
        }
        const uint64_t whole = total - total % unit;
        if (whole == total) return total;
        for (uint64_t rest = total - whole; rest > 0;) {
            iovec& last = to[count - 1];
            const size_t less = static_cast<size_t>(std::min<uint64_t>(rest, last.iov_len));
            last.iov_len -= less;
            rest -= less;
            if (last.iov_len == 0) count--;
        }
        *this = before;
        skip(whole);
        return whole;
    }

  private:
    void skip_ended() {
        while (inside_ == part_->iov_len) {
            part_++;
            inside_ = 0;
        }
    }

    const iovec* part_ = nullptr;
    size_t inside_ = 0;
};

}  // namespace vbd::stages
