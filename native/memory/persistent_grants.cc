// PersistentGrants: the cache and its purge.
#include "memory/persistent_grants.h"

#include <sys/random.h>

#include <algorithm>

namespace vbd::memory {

namespace {
constexpr uint32_t kScanPerPurge = 16384;  // bounds one tick's scan, however large the cap
constexpr uint32_t kWildInitial = 256;
}  // namespace

Result<std::unique_ptr<PersistentGrants>> PersistentGrants::create(xen::GrantTable& grants,
                                                                   DomainId domain, uint32_t cap) {
    auto cache = std::unique_ptr<PersistentGrants>(new PersistentGrants(grants, domain));
    auto flat = ReservedArray<uint32_t>::create(kFlatRefs);
    if (!flat) return flat.error();
    auto entries = ReservedArray<Entry>::create(kMaxCap);
    if (!entries) return entries.error();
    auto refs = ReservedArray<GrantRef>::create(kMaxCap);
    if (!refs) return refs.error();
    flat.value().prefer_huge_tail();
    entries.value().prefer_huge_tail();
    cache->flat_ = std::move(flat).value();
    cache->entries_ = std::move(entries).value();
    cache->refs_ = std::move(refs).value();
    cache->set_cap(cap);
    if (::getrandom(&cache->seed_, sizeof cache->seed_, 0) != sizeof cache->seed_) {
        cache->seed_ = reinterpret_cast<uintptr_t>(cache->flat_.data());
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
        if (slot.entry_plus_one != 0) link(slot.ref, slot.entry_plus_one - 1);
    }
    return true;
}

void PersistentGrants::link(GrantRef ref, uint32_t entry) {
    if (ref < kFlatRefs) {
        flat_[ref] = entry + 1;
        return;
    }
    if ((wild_count_ + 1) * 2 > wild_.size()) grow_wild();
    uint32_t mask = static_cast<uint32_t>(wild_.size()) - 1;
    uint32_t i = wild_home(ref);
    while (wild_[i].entry_plus_one != 0) i = (i + 1) & mask;
    wild_[i] = {ref, entry + 1};
    wild_count_++;
}

void PersistentGrants::unlink(GrantRef ref) {
    if (ref < kFlatRefs) {
        flat_[ref] = 0;
        return;
    }
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
    if (first_free_ != kNone) {
        entry = first_free_;
        first_free_ = refs_[entry];
    } else {
        entry = used_entries_++;
    }
    entries_[entry] = Entry{mapped.value(), 1, now_ms};
    refs_[entry] = ref;
    link(ref, entry);
    size_++;
    return Insert::kInserted;
}

void PersistentGrants::drop(uint32_t entry) {
    Entry& dropped = entries_[entry];
    VBD_CHECK(dropped.in_use == 0 && dropped.address != nullptr);
    unlink(refs_[entry]);
    // A refused unmap leaves nothing to retry: the handle's table still has the page and closing it
    // releases it.
    (void)!!grants_.unmap(dropped.address, 1);
    dropped = Entry{nullptr, 0, 0};
    refs_[entry] = first_free_;
    first_free_ = entry;
    size_--;
}

uint32_t PersistentGrants::purge(uint32_t now_ms, uint32_t idle_ms) {
    uint32_t dropped = idle_ms > 0 ? purge_idle(now_ms, idle_ms) : 0;
    return dropped + purge_overflow(now_ms);
}

uint32_t PersistentGrants::purge_idle(uint32_t now_ms, uint32_t idle_ms) {
    uint32_t dropped = 0;
    uint32_t scan = std::min(used_entries_, kScanPerPurge);
    for (uint32_t i = 0; i < scan; i++) {
        if (idle_cursor_ >= used_entries_) idle_cursor_ = 0;
        uint32_t entry = idle_cursor_++;
        const Entry& candidate = entries_[entry];
        if (!candidate.address || candidate.in_use > 0) continue;
        if (now_ms - candidate.last_used_ms < idle_ms) continue;
        drop(entry);
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
    for (uint32_t entry = 0; entry < used_entries_; entry++) {
        if (entries_[entry].address && entries_[entry].in_use == 0) candidates_.push_back(entry);
    }
    wanted = std::min<uint32_t>(wanted, static_cast<uint32_t>(candidates_.size()));
    if (wanted == 0) return 0;
    auto older = [&](uint32_t a, uint32_t b) {
        return now_ms - entries_[a].last_used_ms > now_ms - entries_[b].last_used_ms;
    };
    std::nth_element(candidates_.begin(), candidates_.begin() + (wanted - 1), candidates_.end(),
                     older);
    for (uint32_t i = 0; i < wanted; i++) drop(candidates_[i]);
    return wanted;
}

void PersistentGrants::clear() {
    for (uint32_t entry = 0; entry < used_entries_; entry++) {
        if (entries_[entry].address) drop(entry);
    }
}

}  // namespace vbd::memory
