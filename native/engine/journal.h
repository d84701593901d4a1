// Journal: which requests the backend of a ring has taken and not answered, in a file that outlives
// the process, so that the next one answers them. The ring alone does not tell: responses overwrite
// the slots of requests that are still under way. Used by one thread, the ring's; owns the mapping,
// and removes the file when told to.
//
//   take ─► copy of the slot, then `taken` ─► ... ─► answer: position, then `answered` ─► push ─► free
//
// A process may be killed between any two stores. What has become of an entry can be told all the
// same: an answer counts when the ring's rsp_prod has passed its position, so that nothing needs to
// be stored at the moment of publishing; everything else that was taken is done again. Doing it
// again does no harm, because its guest has had no answer: the same bytes are read or written, and
// what it was taken with is a copy. What the dead process still had at the disk cannot come later:
// the image is locked until the kernel is through with it (an image without a lock has no journal).
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "blkif/wire.h"

namespace vbd::engine {

class Journal {
  public:
    enum State : uint32_t { kFree, kTaken, kAnswered };

    struct alignas(128) Entry {
        blkif::RawSlot slot;
        std::atomic<uint32_t> state;
        uint32_t position;
        uint32_t sequence;
    };

    struct Header;

    Journal() = default;
    Journal(Journal&& other) noexcept { *this = std::move(other); }
    Journal& operator=(Journal&& other) noexcept;
    ~Journal();

    /// An empty journal, in place of what is at `path`. `rings` names the connection, at most 63
    /// bytes.
    static Result<Journal> create(const std::string& path, const std::string& rings,
                                  uint32_t ring_entries);

    /// What a dead process left of the same ring, whose rsp_prod is now `rsp_prod`. Errors: kRing
    /// where there is none of these rings, or it says that they cannot be gone on with.
    static Result<Journal> recover(const std::string& path, const std::string& rings,
                                   uint32_t ring_entries, uint32_t rsp_prod);

    explicit operator bool() const { return header_ != nullptr; }

    /// After recover(): the entries that have no answer, in the order in which they were taken.
    std::vector<uint32_t> unanswered() const;
    const blkif::RawSlot& slot(uint32_t entry) const;

    /// Notes a request that was taken off the ring, as the `sequence`-th; its entry.
    uint32_t take(const blkif::RawSlot& slot, uint32_t sequence);
    /// Before the response is written, which will be the ring's `position`-th.
    void answer(uint32_t entry, uint32_t position);
    /// After responses were published: their entries are free.
    void published();

    /// These rings cannot be gone on with any more: something on them may never be answered.
    void spoil();
    /// Every request was answered: nothing is left to be done for anyone.
    void remove();

  private:
    static Result<Journal> map(int fd, const std::string& path, uint32_t entries);

    Header* header_ = nullptr;
    Entry* entries_ = nullptr;
    size_t bytes_ = 0;
    std::string path_;
    // Stacks: the entry that was used last is the one whose cache lines are at hand.
    std::unique_ptr<uint32_t[]> free_;
    std::unique_ptr<uint32_t[]> answered_;  // not published yet
    uint32_t free_count_ = 0;
    uint32_t answered_count_ = 0;
};

inline uint32_t Journal::take(const blkif::RawSlot& slot, uint32_t sequence) {
    VBD_CHECK(free_count_ != 0);
    const uint32_t number = free_[--free_count_];
    Entry& entry = entries_[number];
    entry.slot = slot;
    entry.sequence = sequence;
    entry.state.store(kTaken, std::memory_order_release);
    return number;
}

inline void Journal::answer(uint32_t number, uint32_t position) {
    Entry& entry = entries_[number];
    entry.position = position;
    entry.state.store(kAnswered, std::memory_order_release);
    answered_[answered_count_++] = number;
}

// Said of each although its position says so, too: positions come around again.
inline void Journal::published() {
    while (answered_count_ != 0) {
        const uint32_t number = answered_[--answered_count_];
        entries_[number].state.store(kFree, std::memory_order_release);
        free_[free_count_++] = number;
    }
}

}  // namespace vbd::engine
