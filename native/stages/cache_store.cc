#include "stages/cache_store.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/mix64.h"

namespace vbd::stages {

namespace {

/// Epochs go round.
bool is_after(uint32_t epoch, uint32_t other) {
    return static_cast<int32_t>(epoch - other) > 0;
}

}  // namespace

Result<std::unique_ptr<CacheStore>> CacheStore::create(uint64_t bytes, uint32_t sector_size) {
    std::unique_ptr<CacheStore> store(new CacheStore);
    store->sets_ = std::max<uint64_t>(bytes / (kWays * kBlockBytes), 1);
    store->capacity_ = store->sets_ * kWays;
    store->sector_size_ = sector_size;
    auto data = ReservedArray<uint8_t>::create(store->capacity_ * kBlockBytes);
    if (!data) return data.error();
    store->data_ = std::move(data).value();
    store->entries_ = std::make_unique<Entry[]>(store->capacity_);
    store->dirty_bits_ =
        std::make_unique<std::atomic<uint64_t>[]>((store->capacity_ + 63) / 64);
    return store;
}

uint64_t CacheStore::set_of(uint64_t block) const {
    return mix64(0, block) % sets_;
}

CacheStore::Mask CacheStore::mask_of(uint32_t inside, uint32_t bytes) const {
    const uint32_t first = inside / sector_size_, count = bytes / sector_size_;
    return static_cast<Mask>(((1u << count) - 1) << first);
}

CacheStore::Entry* CacheStore::find(uint64_t set, uint64_t block) {
    Entry* ways = &entries_[set * kWays];
    for (uint32_t i = 0; i < kWays; i++) {
        if (ways[i].block == block) return &ways[i];
    }
    return nullptr;
}

CacheStore::Entry* CacheStore::make(uint64_t set, uint64_t block) {
    const uint32_t now = ++part_of(set).clock;
    Entry* best = nullptr;
    uint32_t best_age = 0;
    Entry* ways = &entries_[set * kWays];
    for (uint32_t i = 0; i < kWays; i++) {
        Entry& entry = ways[i];
        if (entry.block == block) {
            entry.used = now;
            return &entry;
        }
        if (entry.dirty || entry.writing || entry.fillers > 0) continue;
        const uint32_t age = entry.block == UINT64_MAX ? UINT32_MAX : now - entry.used;
        if (best && age <= best_age) continue;
        best = &entry;
        best_age = age;
    }
    if (best) *best = Entry{.block = block, .used = now};
    return best;
}

void CacheStore::set_dirty(Entry& entry, Mask sectors, uint32_t epoch) {
    if (sectors == 0) return;
    if (entry.dirty == 0) {
        const auto index = static_cast<uint64_t>(&entry - entries_.get());
        entry.epoch = epoch;
        dirty_bits_[index / 64].fetch_or(1ull << (index % 64), std::memory_order_relaxed);
        dirty_blocks_.fetch_add(1);
    }
    entry.dirty |= sectors;
    if (is_after(entry.epoch, epoch)) entry.epoch = epoch;
}

void CacheStore::set_clean(Entry& entry, Mask sectors) {
    if ((entry.dirty & sectors) == 0) return;
    entry.dirty &= static_cast<Mask>(~sectors);
    if (entry.dirty != 0) return;
    const auto index = static_cast<uint64_t>(&entry - entries_.get());
    dirty_bits_[index / 64].fetch_and(~(1ull << (index % 64)), std::memory_order_relaxed);
    dirty_blocks_.fetch_sub(1);
}

void CacheStore::free_if_empty(Entry& entry) {
    if (entry.valid == 0 && entry.writing == 0 && entry.fillers == 0) entry = Entry{};
}

void CacheStore::forget(Entry& entry, Mask sectors) {
    set_clean(entry, sectors);
    entry.valid &= static_cast<Mask>(~sectors);
    if (entry.fillers > 0) entry.stale |= sectors;
    free_if_empty(entry);
}

bool CacheStore::read(uint64_t block, uint32_t inside, uint32_t bytes, IovCursor& to) {
    const uint64_t set = set_of(block);
    Part& part = part_of(set);
    const std::lock_guard lock(part.mutex);
    Entry* entry = find(set, block);
    const Mask wanted = mask_of(inside, bytes);
    if (!entry || (entry->valid & wanted) != wanted) return false;
    entry->used = ++part.clock;
    to.copy_in(data_of(*entry) + inside, bytes);
    hits.fetch_add(1, std::memory_order_relaxed);
    return true;
}

CacheStore::Written CacheStore::write(uint64_t block, uint32_t inside, uint32_t bytes,
                                      IovCursor& from) {
    const uint64_t set = set_of(block);
    const std::lock_guard lock(part_of(set).mutex);
    Entry* entry = make(set, block);
    if (!entry) return Written::kNoRoom;
    from.copy_out(data_of(*entry) + inside, bytes);
    const Mask sectors = mask_of(inside, bytes);
    const bool was_clean = entry->dirty == 0;
    entry->valid |= sectors;
    set_dirty(*entry, sectors, epoch_.load());
    return was_clean ? Written::kDirtied : Written::kClean;
}

CacheStore::Fill CacheStore::begin_fill(uint64_t block, uint32_t inside, uint32_t bytes,
                                        uint32_t& index) {
    const uint64_t set = set_of(block);
    const std::lock_guard lock(part_of(set).mutex);
    const Mask wanted = mask_of(inside, bytes);
    index = kNone;
    if (Entry* found = find(set, block); found && (found->valid & wanted) == wanted) {
        return Fill::kHit;
    }
    misses.fetch_add(1, std::memory_order_relaxed);
    if (Entry* entry = make(set, block)) {
        entry->fillers++;
        index = static_cast<uint32_t>(entry - entries_.get());
    }
    return Fill::kFill;
}

void CacheStore::end_fill(uint32_t index, const uint8_t* data, uint32_t data_bytes, uint32_t inside,
                          uint32_t bytes, IovCursor& to) {
    if (index == kNone) {
        if (data) to.copy_in(data + inside, bytes);
        return;
    }
    Entry& entry = entries_[index];
    const std::lock_guard lock(part_of(index / kWays).mutex);
    if (data) {
        uint8_t* kept = data_of(entry);
        const Mask there = mask_of(0, data_bytes);
        const Mask taken = there & static_cast<Mask>(~(entry.valid | entry.stale));
        for (uint32_t at = 0; at < data_bytes; at += sector_size_) {
            if (taken & mask_of(at, sector_size_)) {
                std::memcpy(kept + at, data + at, sector_size_);
            }
        }
        entry.valid |= taken;
        // What was written meanwhile is newer than what was read.
        for (uint32_t at = inside; at < inside + bytes; at += sector_size_) {
            const bool here = (entry.valid & mask_of(at, sector_size_)) != 0;
            to.copy_in((here ? kept : data) + at, sector_size_);
        }
    }
    if (--entry.fillers == 0) entry.stale = 0;
    free_if_empty(entry);
}

void CacheStore::collect(uint32_t epoch, std::vector<Dirty>& found) {
    for (uint64_t word = 0; word < (capacity_ + 63) / 64; word++) {
        uint64_t bits = dirty_bits_[word].load(std::memory_order_relaxed);
        for (; bits != 0; bits &= bits - 1) {
            if (found.size() == found.capacity()) return;
            const auto index = static_cast<uint32_t>(
                word * 64 + static_cast<uint64_t>(std::countr_zero(bits)));
            const std::lock_guard lock(part_of(index / kWays).mutex);
            const Entry& entry = entries_[index];
            if (entry.dirty == 0 || is_after(entry.epoch, epoch)) continue;
            found.push_back({entry.block, index});
        }
    }
}

CacheStore::Run CacheStore::begin_write_back(const Dirty& dirty, bool from_start,
                                             uint64_t disk_bytes, uint8_t* to) {
    const std::lock_guard lock(part_of(dirty.entry / kWays).mutex);
    Entry& entry = entries_[dirty.entry];
    if (entry.block != dirty.block || entry.writing) return {};
    const uint64_t begin = dirty.block * kBlockBytes;
    const uint64_t there = disk_bytes > begin ? std::min(disk_bytes - begin, kBlockBytes) : 0;
    if (there < kBlockBytes) {
        const auto inside = static_cast<uint32_t>(there);
        forget(entry, mask_of(inside, static_cast<uint32_t>(kBlockBytes) - inside));
    }
    if (entry.dirty == 0) return {};
    Run run;
    run.first = static_cast<uint32_t>(std::countr_zero(entry.dirty));
    run.count = static_cast<uint32_t>(std::countr_one(
        static_cast<Mask>(static_cast<uint32_t>(entry.dirty) >> run.first)));
    if (from_start && run.first != 0) return {};
    const uint32_t inside = run.first * sector_size_, bytes = run.count * sector_size_;
    std::memcpy(to, data_of(entry) + inside, bytes);
    entry.writing = mask_of(inside, bytes);
    set_clean(entry, entry.writing);
    return run;
}

void CacheStore::end_write_back(uint32_t index, Run run, bool written) {
    const std::lock_guard lock(part_of(index / kWays).mutex);
    Entry& entry = entries_[index];
    const Mask sectors = mask_of(run.first * sector_size_, run.count * sector_size_);
    entry.writing &= static_cast<Mask>(~sectors);
    // As old as it can be: every flush from now on has to write it.
    if (!written) set_dirty(entry, sectors, epoch_.load() - (1u << 30));
    free_if_empty(entry);
}

void CacheStore::drop(uint64_t begin, uint64_t end) {
    const auto cut = [&](Entry& entry) {
        const uint64_t first = entry.block * kBlockBytes;
        const uint64_t from = std::max(begin, first), to = std::min(end, first + kBlockBytes);
        if (from >= to) return;
        forget(entry, mask_of(static_cast<uint32_t>(from - first), static_cast<uint32_t>(to - from)));
    };
    if (begin >= end) return;
    const uint64_t first = begin / kBlockBytes, last = (end - 1) / kBlockBytes;
    if (last - first < capacity_) {
        for (uint64_t block = first; block <= last; block++) {
            const uint64_t set = set_of(block);
            const std::lock_guard lock(part_of(set).mutex);
            if (Entry* entry = find(set, block)) cut(*entry);
        }
        return;
    }
    for (uint64_t index = 0; index < capacity_; index++) {
        const std::lock_guard lock(part_of(index / kWays).mutex);
        if (entries_[index].block != UINT64_MAX) cut(entries_[index]);
    }
}

}  // namespace vbd::stages
