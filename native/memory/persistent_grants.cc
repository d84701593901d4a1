// PersistentGrants: the cache and its purge.
#include "memory/persistent_grants.h"

#include <sys/random.h>

#include <algorithm>
#include <functional>

namespace vbd::memory {

namespace {
constexpr uint32_t kScanPerPurge = 16384;  // bounds one tick's scan, however large the cap
constexpr uint32_t kWildInitial = 256;
}  // namespace

Result<std::unique_ptr<PersistentGrants>> PersistentGrants::create(xen::GrantTable& grants,
                                                                   DomainId domain, uint32_t cap) {
    auto cache = std::unique_ptr<PersistentGrants>(new PersistentGrants(grants, domain));
    auto entries = ReservedArray<Entry>::create(kFlatRefs + kMaxCap);
    if (!entries) return entries.error();
    auto held = ReservedArray<uint32_t>::create(kMaxCap);
    if (!held) return held.error();
    auto wild_refs = ReservedArray<GrantRef>::create(kMaxCap);
    if (!wild_refs) return wild_refs.error();
    entries.value().prefer_huge_tail();
    cache->entries_ = std::move(entries).value();
    cache->held_ = std::move(held).value();
    cache->wild_refs_ = std::move(wild_refs).value();
    cache->set_cap(cap);
    if (::getrandom(&cache->seed_, sizeof cache->seed_, 0) != sizeof cache->seed_) {
        cache->seed_ = reinterpret_cast<uintptr_t>(cache->entries_.data());
    }
    return cache;
}

PersistentGrants::~PersistentGrants() {
    clear();
}

uint32_t PersistentGrants::wild_home(GrantRef ref) const {
    uint64_t x = (ref ^ seed_) * 0x9E3779B97F4A7C15ull;
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93ull;
    return static_cast<uint32_t>(x >> 32) & (static_cast<uint32_t>(wild_.size()) - 1);
}

uint32_t PersistentGrants::find_wild(GrantRef ref) const {
    if (wild_.empty()) return kNone;
    uint32_t mask = static_cast<uint32_t>(wild_.size()) - 1;
    for (uint32_t i = wild_home(ref); wild_[i].entry_plus_one != 0; i = (i + 1) & mask) {
        if (wild_[i].ref == ref) return wild_[i].entry_plus_one - 1;
    }
    return kNone;
}

bool PersistentGrants::grow_wild() {
    std::vector<WildSlot> old;
    old.swap(wild_);
    wild_.resize(old.empty() ? kWildInitial : old.size() * 2);
    wild_count_ = 0;
    for (const WildSlot& slot : old) {
        if (slot.entry_plus_one != 0) link_wild(slot.ref, slot.entry_plus_one - 1);
    }
    return true;
}

/// The entry that a page of `ref` gets, which has none.
uint32_t PersistentGrants::place(GrantRef ref) {
    if (ref < kFlatRefs) return ref;
    uint32_t slot = first_free_slot_;
    if (slot != kNone) {
        first_free_slot_ = wild_refs_[slot];
    } else {
        slot = used_slots_++;
    }
    wild_refs_[slot] = ref;
    link_wild(ref, kFlatRefs + slot);
    return kFlatRefs + slot;
}

void PersistentGrants::link_wild(GrantRef ref, uint32_t entry) {
    if ((wild_count_ + 1) * 2 > wild_.size()) grow_wild();
    uint32_t mask = static_cast<uint32_t>(wild_.size()) - 1;
    uint32_t i = wild_home(ref);
    while (wild_[i].entry_plus_one != 0) i = (i + 1) & mask;
    wild_[i] = {ref, entry + 1};
    wild_count_++;
}

void PersistentGrants::unlink_wild(GrantRef ref) {
    uint32_t mask = static_cast<uint32_t>(wild_.size()) - 1;
    uint32_t hole = wild_home(ref);
    while (wild_[hole].ref != ref || wild_[hole].entry_plus_one == 0) hole = (hole + 1) & mask;
    // Backward shift keeps every probe sequence unbroken without tombstones.
    for (uint32_t i = (hole + 1) & mask; wild_[i].entry_plus_one != 0; i = (i + 1) & mask) {
        uint32_t home = wild_home(wild_[i].ref);
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            wild_[hole] = wild_[i];
            hole = i;
        }
    }
    wild_[hole] = {0, 0};
    wild_count_--;
}

PersistentGrants::Insert PersistentGrants::insert(GrantRef ref, uint32_t now_ms, uint32_t& entry) {
    if (size_ >= cap_) {
        overflowed_ = true;
        return Insert::kFull;
    }
    auto mapped = grants_.map(domain_, std::span<const GrantRef>(&ref, 1), xen::Access::kReadWrite);
    if (!mapped) return Insert::kRefused;
    entry = place(ref);
    entries_[entry] = Entry{mapped.value(), 1, now_ms};
    held_[size_++] = entry;
    return Insert::kInserted;
}

/// Unmaps the page of held_[position]; the last one held takes that place.
void PersistentGrants::drop(uint32_t position) {
    const uint32_t entry = held_[position];
    Entry& dropped = entries_[entry];
    VBD_CHECK(dropped.in_use == 0 && dropped.address != nullptr);
    held_[position] = held_[--size_];
    // A refused unmap leaves nothing to retry: the handle's table still has the page and closing it
    // releases it.
    (void)!!grants_.unmap(dropped.address, 1);
    dropped = Entry{nullptr, 0, 0};
    if (entry < kFlatRefs) return;
    const uint32_t slot = entry - kFlatRefs;
    unlink_wild(wild_refs_[slot]);
    wild_refs_[slot] = first_free_slot_;
    first_free_slot_ = slot;
}

uint32_t PersistentGrants::purge(uint32_t now_ms, uint32_t idle_ms) {
    uint32_t dropped = idle_ms > 0 ? purge_idle(now_ms, idle_ms) : 0;
    return dropped + purge_overflow(now_ms);
}

uint32_t PersistentGrants::purge_idle(uint32_t now_ms, uint32_t idle_ms) {
    uint32_t dropped = 0;
    const uint32_t scan = std::min(size_, kScanPerPurge);
    for (uint32_t i = 0; i < scan; i++) {
        if (idle_cursor_ >= size_) idle_cursor_ = 0;
        const Entry& candidate = entries_[held_[idle_cursor_]];
        if (candidate.in_use > 0 || now_ms - candidate.last_used_ms < idle_ms) {
            idle_cursor_++;
            continue;
        }
        drop(idle_cursor_);  // another one is here now
        dropped++;
    }
    return dropped;
}

uint32_t PersistentGrants::purge_overflow(uint32_t now_ms) {
    if (size_ < cap_ || (size_ == cap_ && !overflowed_)) return 0;
    overflowed_ = false;
    // At least 5 % of the cap, and whatever a lowered cap leaves above it.
    uint32_t wanted = std::min(size_, std::max(1u, cap_ / 20) + (size_ - cap_));
    candidates_.clear();
    for (uint32_t position = 0; position < size_; position++) {
        if (entries_[held_[position]].in_use == 0) candidates_.push_back(position);
    }
    wanted = std::min<uint32_t>(wanted, static_cast<uint32_t>(candidates_.size()));
    if (wanted == 0) return 0;
    const auto idle_ms = [&](uint32_t position) {
        return now_ms - entries_[held_[position]].last_used_ms;
    };
    const auto end = candidates_.begin() + wanted;
    std::nth_element(candidates_.begin(), end - 1, candidates_.end(),
                     [&](uint32_t a, uint32_t b) { return idle_ms(a) > idle_ms(b); });
    // From behind: what moves into a place is then none of those to be dropped.
    std::sort(candidates_.begin(), end, std::greater<>());
    for (auto position = candidates_.begin(); position != end; ++position) drop(*position);
    return wanted;
}

void PersistentGrants::clear() {
    while (size_ > 0) drop(size_ - 1);
}

}  // namespace vbd::memory
