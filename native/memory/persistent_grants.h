// PersistentGrants: guest pages that stay mapped for one ring, found again by their grant
// reference. One thread uses it; it owns every mapping it made.
//
// Semantics of xen-blkback: at most `cap` pages; a purge every 100 ms drops pages idle for longer
// than the timeout and, when the cache overflowed, at least 5 % of it, least recently used first;
// never one in use.
//
//   entries_   [ by reference, below 2^20 │ others, by their slot ]   what a request touches
//   held_      the entries that have a page, in no order: what the purge walks
//
// A guest's grant table has 32,768 references by default, all of them below 2^20: the entry is found
// without a search and is the only cache line that finding it touches. Wilder references go through
// a seeded hash, so that a hostile guest cannot make it slow. No entry is touched before Xen has
// mapped its page, so that a guest makes the table no larger than its own grant table.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/reserved.h"
#include "base/units.h"
#include "xen/grant_table.h"

namespace vbd::memory {

class PersistentGrants {
  public:
    static constexpr uint32_t kMaxCap = 1'000'000;
    static constexpr uint32_t kNone = UINT32_MAX;

    /// `grants` outlives the cache. Errors: kNoMemory.
    static Result<std::unique_ptr<PersistentGrants>> create(xen::GrantTable& grants,
                                                            DomainId domain, uint32_t cap);
    ~PersistentGrants();
    PersistentGrants(const PersistentGrants&) = delete;
    PersistentGrants& operator=(const PersistentGrants&) = delete;

    /// Pins the page of `ref` if it is mapped: its entry, or kNone. `now_ms` stamps its last use.
    uint32_t acquire(GrantRef ref, uint32_t now_ms) {
        uint32_t entry = find(ref);
        if (entry == kNone) return kNone;
        entries_[entry].in_use++;
        entries_[entry].last_used_ms = now_ms;
        return entry;
    }

    enum class Insert { kInserted, kFull, kRefused };

    /// Maps `ref` read-write and pins it. kFull: the cap is reached (remembered for the next
    /// purge); kRefused: no such grant.
    Insert insert(GrantRef ref, uint32_t now_ms, uint32_t& entry);

    void release(uint32_t entry) { entries_[entry].in_use--; }

    void* address(uint32_t entry) const { return entries_[entry].address; }

    /// Every 100 ms. idle_ms 0: pages never expire. Returns how many were unmapped.
    uint32_t purge(uint32_t now_ms, uint32_t idle_ms);

    /// Takes effect at the next insert or purge. Capped at kMaxCap.
    void set_cap(uint32_t cap) { cap_ = cap < kMaxCap ? cap : kMaxCap; }

    /// Unmaps everything. Nothing may be pinned.
    void clear();

    uint32_t size() const { return size_; }
    uint32_t cap() const { return cap_; }

  private:
    /// What every request touches: four to a cache line, none in two.
    struct Entry {
        void* address;    // null: free
        uint32_t in_use;  // requests that hold it now
        uint32_t last_used_ms;
    };
    struct WildSlot {
        GrantRef ref;
        uint32_t entry_plus_one;  // 0: empty
    };
    static constexpr uint32_t kFlatRefs = 1u << 20;

    PersistentGrants(xen::GrantTable& grants, DomainId domain) : grants_(grants), domain_(domain) {}

    uint32_t find(GrantRef ref) const {
        if (ref < kFlatRefs) [[likely]]
            return entries_[ref].address ? ref : kNone;
        return find_wild(ref);
    }
    uint32_t find_wild(GrantRef ref) const;
    uint32_t place(GrantRef ref);
    void link_wild(GrantRef ref, uint32_t entry);
    void unlink_wild(GrantRef ref);
    bool grow_wild();
    uint32_t wild_home(GrantRef ref) const;
    uint32_t purge_idle(uint32_t now_ms, uint32_t idle_ms);
    uint32_t purge_overflow(uint32_t now_ms);
    void drop(uint32_t position);

    xen::GrantTable& grants_;
    const DomainId domain_;
    uint32_t cap_ = 0;
    uint32_t size_ = 0;  // pages held
    uint32_t idle_cursor_ = 0;  // where in held_ the next idle scan goes on
    bool overflowed_ = false;
    uint64_t seed_ = 0;
    ReservedArray<Entry> entries_;
    ReservedArray<uint32_t> held_;       // entries, [0, size_)
    ReservedArray<GrantRef> wild_refs_;  // of each wild slot; of a free one: the next free slot
    uint32_t used_slots_ = 0;            // wild_refs_[0, used_slots_) have been used
    uint32_t first_free_slot_ = kNone;
    std::vector<WildSlot> wild_;  // open addressing, a power of two, at most half full
    uint32_t wild_count_ = 0;
    std::vector<uint32_t> candidates_;  // scratch of purge_overflow: positions in held_
};

}  // namespace vbd::memory
