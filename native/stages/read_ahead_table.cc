#include "stages/read_ahead_table.h"

#include <algorithm>
#include <functional>

namespace vbd::stages {

namespace {

/// What was read ahead this long ago and not asked for makes room for others.
constexpr uint64_t kOldNs = 1'000'000'000;

}  // namespace

Result<std::unique_ptr<ReadAheadTable>> ReadAheadTable::create(uint64_t bytes) {
    std::unique_ptr<ReadAheadTable> table(new ReadAheadTable);
    table->count_ = std::max<uint64_t>(bytes / kSegmentBytes, 1);
    auto memory = ReservedArray<uint8_t>::create(table->count_ * kSegmentBytes);
    if (!memory) return memory.error();
    table->memory_ = std::move(memory).value();
    table->segments_ = std::make_unique<Segment[]>(table->count_);
    for (size_t i = 0; i < table->count_; i++) {
        table->segments_[i].buffer = table->memory_.data() + i * kSegmentBytes;
    }
    return table;
}

bool ReadAheadTable::contains(const block::Io* io) const {
    const std::less<const void*> before;
    return !before(io, segments_.get()) && before(io, segments_.get() + count_);
}

void ReadAheadTable::release(Segment& segment) {
    wasted_bytes.fetch_add(segment.length - std::min(segment.read_bytes, segment.length),
                           std::memory_order_relaxed);
    segment.state = Segment::State::kFree;
    segment.spoiled = false;
    in_use_.fetch_sub(1);
}

ReadAheadTable::Found ReadAheadTable::look(uint64_t offset, const void* owner, Segment*& segment,
                                           uint64_t& until) {
    until = UINT64_MAX;
    if (empty()) return Found::kNothing;
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < count_; i++) {
        Segment& each = segments_[i];
        if (each.state == Segment::State::kFree || each.spoiled) continue;
        if (each.offset > offset) until = std::min(until, each.offset);
        if (offset < each.offset || offset >= each.offset + each.length) continue;
        segment = &each;
        if (each.state == Segment::State::kReady) {
            each.pins++;
            return Found::kReady;
        }
        if (each.owner == owner) return Found::kLoading;
        // Another queue's: not waited for.
        until = std::min(until, each.offset + each.length);
    }
    return Found::kNothing;
}

void ReadAheadTable::unpin(Segment& segment, uint64_t offset, uint64_t bytes) {
    hit_bytes.fetch_add(bytes, std::memory_order_relaxed);
    const std::lock_guard lock(mutex_);
    segment.read_bytes += bytes;
    // Whoever reads in a row does not come back.
    if (offset + bytes == segment.offset + segment.length) segment.spoiled = true;
    if (--segment.pins == 0 && segment.spoiled) release(segment);
}

ReadAheadTable::Segment* ReadAheadTable::begin_load(uint64_t& offset, uint64_t& length,
                                                    const void* owner, uint64_t now_ns) {
    const std::lock_guard lock(mutex_);
    Segment* best = nullptr;
    for (size_t i = 0; i < count_; i++) {
        Segment& each = segments_[i];
        const bool free = each.state == Segment::State::kFree;
        if (free && (!best || best->state != Segment::State::kFree)) best = &each;
        if (free || each.spoiled) continue;
        const uint64_t end = each.offset + each.length;
        if (offset >= each.offset && offset < end) {
            const uint64_t less = std::min(length, end - offset);
            offset += less;
            length -= less;
            i = SIZE_MAX;  // it may now begin in another one
            best = nullptr;
            if (length == 0) return nullptr;
            continue;
        }
        if (each.offset > offset) length = std::min(length, each.offset - offset);
        const bool old = each.state == Segment::State::kReady && each.pins == 0 &&
                         now_ns - each.loaded_ns >= kOldNs;
        if (old && (!best || (best->state != Segment::State::kFree &&
                              each.loaded_ns < best->loaded_ns))) {
            best = &each;
        }
    }
    if (!best) return nullptr;
    if (best->state != Segment::State::kFree) release(*best);
    // Before the look at the changes: see begin_change().
    in_use_.fetch_add(1);
    if (changing(offset, offset + length)) {
        in_use_.fetch_sub(1);
        return nullptr;
    }
    best->state = Segment::State::kLoading;
    best->spoiled = false;
    best->pins = 0;
    best->offset = offset;
    best->length = length;
    best->read_bytes = 0;
    best->owner = owner;
    best->held = nullptr;
    read_ahead_bytes.fetch_add(length, std::memory_order_relaxed);
    return best;
}

bool ReadAheadTable::end_load(Segment& segment, uint64_t now_ns, uint32_t readers) {
    const std::lock_guard lock(mutex_);
    if (segment.spoiled || segment.io.error) {
        release(segment);
        return false;
    }
    segment.state = Segment::State::kReady;
    segment.loaded_ns = now_ns;
    segment.pins = readers;
    return true;
}

bool ReadAheadTable::changing(uint64_t begin, uint64_t end) const {
    for (uint64_t region = begin / kRegionBytes; region <= (end - 1) / kRegionBytes; region++) {
        if (changes_[region % kRegions].load() != 0) return true;
    }
    return false;
}

void ReadAheadTable::count_changes(uint64_t begin, uint64_t end, uint32_t by) {
    if (begin >= end) return;
    const uint64_t first = begin / kRegionBytes;
    const uint64_t count = std::min((end - 1) / kRegionBytes - first + 1, kRegions);
    for (uint64_t i = 0; i < count; i++) changes_[(first + i) % kRegions].fetch_add(by);
}

/// Whoever begins to read ahead says so, then looks at the counters; a change counts itself, then looks
/// whether there is anything: one of them sees the other.
void ReadAheadTable::begin_change(uint64_t begin, uint64_t end) {
    count_changes(begin, end, 1);
    if (!empty()) spoil(begin, end);
}

void ReadAheadTable::end_change(uint64_t begin, uint64_t end) {
    count_changes(begin, end, UINT32_MAX);
}

void ReadAheadTable::spoil(uint64_t begin, uint64_t end) {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < count_; i++) {
        Segment& each = segments_[i];
        if (each.state == Segment::State::kFree) continue;
        if (each.offset >= end || each.offset + each.length <= begin) continue;
        if (each.state == Segment::State::kReady && each.pins == 0) {
            release(each);
        } else {
            each.spoiled = true;
        }
    }
}

}  // namespace vbd::stages
