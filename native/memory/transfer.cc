// Transfer: prepare and finish of a batch.
#include "memory/transfer.h"

#include <atomic>
#include <cstring>

namespace vbd::memory {

using blkif::Operation;
using blkif::Segment;

namespace {

bool guest_reads(const InFlight& item) {
    return item.request.operation == Operation::kRead;
}

uint32_t segment_bytes(const Segment& segment) {
    return uint32_t(segment.last_sector - segment.first_sector + 1) * kSectorSize;
}

void* segment_start(const Segment& segment, void* page) {
    return static_cast<uint8_t*>(page) + size_t{segment.first_sector} * kSectorSize;
}

// Copies descriptors out of a page the guest can still change: each byte is loaded once.
void copy_once(Segment* to, const void* shared_page, uint32_t count) {
    auto* from = static_cast<uint64_t*>(const_cast<void*>(shared_page));
    for (uint32_t i = 0; i < count; i++) {
        uint64_t word = __atomic_load_n(from + i, __ATOMIC_RELAXED);
        std::memcpy(&to[i], &word, sizeof word);
    }
}

uint32_t descriptors_on_page(const InFlight& item, uint32_t page) {
    uint32_t first = page * blkif::kSegmentsPerIndirectPage;
    uint32_t left = item.request.nr_segments - first;
    return left < blkif::kSegmentsPerIndirectPage ? left : blkif::kSegmentsPerIndirectPage;
}

}  // namespace

Result<std::unique_ptr<TransferScratch>> TransferScratch::create() {
    auto scratch = std::make_unique<TransferScratch>();
    auto copies = ReservedArray<xen::GrantCopy>::create(kCapacity);
    if (!copies) return copies.error();
    auto owners = ReservedArray<InFlight*>::create(kCapacity);
    if (!owners) return owners.error();
    auto refs = ReservedArray<GrantRef>::create(kCapacity);
    if (!refs) return refs.error();
    auto pages = ReservedArray<void*>::create(kCapacity);
    if (!pages) return pages.error();
    scratch->copies_ = std::move(copies).value();
    scratch->owners_ = std::move(owners).value();
    scratch->refs_ = std::move(refs).value();
    scratch->pages_ = std::move(pages).value();
    return scratch;
}

Result<std::unique_ptr<Transfer>> Transfer::create(const Options& options, xen::GrantTable& grants,
                                                   PagePool& pool, TransferScratch& scratch,
                                                   TransferCounters& counters) {
    auto transfer =
        std::unique_ptr<Transfer>(new Transfer(options, grants, pool, scratch, counters));
    if (options.strategy == Strategy::kPersistent) {
        auto cache =
            PersistentGrants::create(grants, options.domain, options.max_persistent_grants);
        if (!cache) return cache.error();
        transfer->persistent_ = std::move(cache).value();
    }
    if (options.strategy == Strategy::kMap) {
        auto groups = ReservedArray<MapGroup>::create(options.entries);
        if (!groups) return groups.error();
        transfer->groups_ = std::move(groups).value();
        for (uint32_t i = 0; i < options.entries; i++) {
            MapGroup* group = &transfer->groups_[i];
            group->next_free = transfer->free_group_;
            transfer->free_group_ = group;
        }
    }
    return transfer;
}

void Transfer::prepare(std::span<InFlight* const> batch, const blkif::Limits& limits,
                       uint32_t now_ms) {
    bool any_indirect = false;
    for (InFlight* item : batch) {
        item->outcome = Outcome::kReady;
        item->page_count = 0;
        item->iov_count = 0;
        item->group = nullptr;
        any_indirect |= item->request.indirect;
    }
    if (any_indirect) fetch_descriptors(batch, limits, now_ms);

    if (options_.strategy == Strategy::kMap) {
        reach_mapped(batch, false);
        reach_mapped(batch, true);
    } else {
        for (InFlight* item : batch) {
            if (item->outcome != Outcome::kReady || item->request.nr_segments == 0) continue;
            if (persistent_) {
                reach_persistent(*item, now_ms);
            } else {
                reach_copy(*item);
            }
        }
        run_copies();
    }
    for (InFlight* item : batch) {
        if (item->outcome == Outcome::kReady) {
            build_iovecs(*item);
        } else {
            let_go(*item);
        }
    }
}

// Brings the descriptors of every indirect request of the batch into private memory with one copy
// call, and checks them.
void Transfer::fetch_descriptors(std::span<InFlight* const> batch, const blkif::Limits& limits,
                                 uint32_t now_ms) {
    for (InFlight* item : batch) {
        if (!item->request.indirect) continue;
        for (uint32_t page = 0;
             page < item->request.indirect_pages() && item->outcome == Outcome::kReady; page++) {
            if (persistent_ && read_mapped_descriptors(*item, page, now_ms)) continue;
            if (item->outcome != Outcome::kReady) break;
            uint32_t i = copy_count_++;
            scratch_.copies_[i] = {
                .ref = item->request.indirect_refs[page],
                .offset = 0,
                .length = static_cast<uint16_t>(descriptors_on_page(*item, page) * sizeof(Segment)),
                .direction = xen::CopyDirection::kFromGuest,
                .status = xen::kGrantGeneralError,
                .local = item->segments + size_t{page} * blkif::kSegmentsPerIndirectPage,
            };
            scratch_.owners_[i] = item;
        }
    }
    run_copies();
    for (InFlight* item : batch) {
        if (!item->request.indirect || item->outcome != Outcome::kReady) continue;
        std::span<const Segment> segments(item->segments, item->request.nr_segments);
        item->reject = blkif::check_segments(segments, limits, item->request);
        if (item->reject != blkif::Reject::kNone) item->outcome = Outcome::kRejected;
    }
}

// Frontends with persistent grants keep their descriptor pages granted too. False: not mapped here;
// copy it.
bool Transfer::read_mapped_descriptors(InFlight& item, uint32_t page, uint32_t now_ms) {
    GrantRef ref = item.request.indirect_refs[page];
    uint32_t entry = persistent_->acquire(ref, now_ms);
    if (entry == PersistentGrants::kNone) {
        auto inserted = persistent_->insert(ref, now_ms, entry);
        if (inserted != PersistentGrants::Insert::kFull) counters_.calls.add();
        if (inserted != PersistentGrants::Insert::kInserted) return false;
        counters_.maps.add();
        counters_.persistent.set(persistent_->size());
    }
    copy_once(item.segments + size_t{page} * blkif::kSegmentsPerIndirectPage,
              persistent_->address(entry), descriptors_on_page(item, page));
    persistent_->release(entry);
    return true;
}

void Transfer::reach_persistent(InFlight& item, uint32_t now_ms) {
    for (uint32_t i = 0; i < item.request.nr_segments; i++) {
        const Segment& segment = item.segments[i];
        uint32_t entry = persistent_->acquire(segment.ref, now_ms);
        if (entry == PersistentGrants::kNone) [[unlikely]] {
            auto inserted = persistent_->insert(segment.ref, now_ms, entry);
            if (inserted == PersistentGrants::Insert::kFull) {
                counters_.overflow.add();
                take_pool_page(item, i);
                if (!guest_reads(item)) {
                    add_copy(item, segment, item.pages[i].address, xen::CopyDirection::kFromGuest);
                }
                continue;
            }
            counters_.calls.add();
            if (inserted == PersistentGrants::Insert::kRefused) return fail(item);
            counters_.maps.add();
            counters_.persistent.set(persistent_->size());
        }
        item.pages[i] = {persistent_->address(entry), entry};
        item.page_count = i + 1;
    }
}

void Transfer::reach_copy(InFlight& item) {
    uint32_t count = item.request.nr_segments;
    std::span<void*> taken(scratch_.pages_.data(), count);
    VBD_CHECK(pool_.acquire(taken));  // the queue reserved room before it consumed the request
    for (uint32_t i = 0; i < count; i++) {
        item.pages[i] = {taken[i], kPoolPage};
        if (!guest_reads(item)) {
            add_copy(item, item.segments[i], taken[i], xen::CopyDirection::kFromGuest);
        } else if (!options_.reads_fill_buffers) {
            std::memset(taken[i], 0, kPageSize);
        }
    }
    item.page_count = count;
}

void Transfer::take_pool_page(InFlight& item, uint32_t index) {
    void* page = nullptr;
    VBD_CHECK(pool_.acquire(std::span<void*>(&page, 1)));
    if (guest_reads(item) && !options_.reads_fill_buffers) std::memset(page, 0, kPageSize);
    item.pages[index] = {page, kPoolPage};
    item.page_count = index + 1;
}

// One map call for all requests of the batch in one direction; if Xen refuses it, one for each, to
// find the bad one.
void Transfer::reach_mapped(std::span<InFlight* const> batch, bool guest_writes) {
    uint32_t pages = 0;
    uint32_t count = 0;
    InFlight** members = scratch_.owners_.data();  // no copies are queued while mapping
    for (InFlight* item : batch) {
        if (item->outcome != Outcome::kReady || item->request.nr_segments == 0) continue;
        if (guest_reads(*item) == guest_writes) continue;
        members[count++] = item;
        pages += item->request.nr_segments;
    }
    if (count == 0) return;
    // What the guest writes we only read: frontends grant those pages read-only.
    xen::Access access = guest_writes ? xen::Access::kRead : xen::Access::kReadWrite;
    if (map_group({members, count}, pages, access)) return;
    for (uint32_t i = 0; i < count; i++) {
        if (count == 1 || !map_group({members + i, 1}, members[i]->request.nr_segments, access))
            fail(*members[i]);
    }
}

bool Transfer::map_group(std::span<InFlight* const> members, uint32_t pages, xen::Access access) {
    uint32_t n = 0;
    for (InFlight* item : members) {
        for (uint32_t i = 0; i < item->request.nr_segments; i++)
            scratch_.refs_[n++] = item->segments[i].ref;
    }
    counters_.calls.add();
    auto mapped = grants_.map(options_.domain,
                              std::span<const GrantRef>(scratch_.refs_.data(), pages), access);
    if (!mapped) return false;
    counters_.maps.add(pages);
    MapGroup* group = free_group_;
    VBD_CHECK(group);  // one per ring entry, and every group has a request
    free_group_ = group->next_free;
    *group = {mapped.value(), pages, static_cast<uint32_t>(members.size()), nullptr, nullptr};
    auto* page = static_cast<uint8_t*>(mapped.value());
    for (InFlight* item : members) {
        item->group = group;
        for (uint32_t i = 0; i < item->request.nr_segments; i++, page += kPageSize) {
            item->pages[i] = {page, kMappedPage};
        }
        item->page_count = item->request.nr_segments;
    }
    return true;
}

void Transfer::add_copy(InFlight& item, const Segment& segment, void* page,
                        xen::CopyDirection direction) {
    uint32_t i = copy_count_++;
    scratch_.copies_[i] = {
        .ref = segment.ref,
        .offset = static_cast<uint16_t>(segment.first_sector * kSectorSize),
        .length = static_cast<uint16_t>(segment_bytes(segment)),
        .direction = direction,
        .status = xen::kGrantGeneralError,
        .local = segment_start(segment, page),
    };
    scratch_.owners_[i] = &item;
}

void Transfer::run_copies() {
    if (copy_count_ == 0) return;
    std::span<xen::GrantCopy> copies(scratch_.copies_.data(), copy_count_);
    counters_.calls.add();
    counters_.copies.add(copy_count_);
    bool whole_call_failed = !grants_.copy(options_.domain, copies);
    for (uint32_t i = 0; i < copy_count_; i++) {
        if (whole_call_failed || copies[i].status != xen::kGrantOkay) fail(*scratch_.owners_[i]);
    }
    copy_count_ = 0;
}

void Transfer::fail(InFlight& item) {
    if (item.outcome == Outcome::kGrantFailed) return;
    item.outcome = Outcome::kGrantFailed;
    item.failed = true;
    counters_.grant_errors.add();
}

// Neighbouring pages become one iovec: with luck a whole request is one, which is what the disk
// likes best.
void Transfer::build_iovecs(InFlight& item) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < item.page_count; i++) {
        auto* start = static_cast<uint8_t*>(segment_start(item.segments[i], item.pages[i].address));
        size_t length = segment_bytes(item.segments[i]);
        if (count > 0) {
            iovec& last = item.iov[count - 1];
            if (static_cast<uint8_t*>(last.iov_base) + last.iov_len == start) {
                last.iov_len += length;
                continue;
            }
        }
        item.iov[count++] = {start, length};
    }
    item.iov_count = count;
}

void Transfer::let_go(InFlight& item) {
    uint32_t pool_pages = 0;
    for (uint32_t i = 0; i < item.page_count; i++) {
        const PageRef& page = item.pages[i];
        if (page.owner == kPoolPage) {
            scratch_.pages_[pool_pages++] = page.address;
        } else if (page.owner != kMappedPage) {
            persistent_->release(page.owner);
        }
    }
    if (pool_pages > 0) pool_.release({scratch_.pages_.data(), pool_pages});
    item.page_count = 0;
}

void Transfer::finish(InFlightList& done, InFlightList& ready) {
    while (!done.empty()) {
        // As much as the scratch holds at a time; nearly always everything.
        InFlightList chunk;
        while (!done.empty() && copy_count_ < TransferScratch::kBatchSegments) {
            InFlight* item = done.pop();
            chunk.push(item);
            if (!guest_reads(*item) || item->failed) continue;
            for (uint32_t i = 0; i < item->page_count; i++) {
                if (item->pages[i].owner != kPoolPage) continue;
                add_copy(*item, item->segments[i], item->pages[i].address,
                         xen::CopyDirection::kToGuest);
            }
        }
        run_copies();
        while (InFlight* item = chunk.pop()) {
            MapGroup* group = item->group;
            let_go(*item);
            if (group) {
                finish_group(group, item, ready);
            } else {
                ready.push(item);
            }
        }
    }
}

// The guest may reuse a page as soon as it sees the response, so the unmap comes first.
void Transfer::finish_group(MapGroup* group, InFlight* item, InFlightList& ready) {
    item->group = nullptr;
    item->next = group->waiting;
    group->waiting = item;
    if (--group->users > 0) return;
    counters_.calls.add();
    counters_.unmaps.add(group->pages);
    (void)!!grants_.unmap(group->address, group->pages);
    InFlight* waiting = group->waiting;
    group->waiting = nullptr;
    group->next_free = free_group_;
    free_group_ = group;
    while (waiting) {
        InFlight* next = waiting->next;
        ready.push(waiting);
        waiting = next;
    }
}

void Transfer::purge(uint32_t now_ms, uint32_t idle_ms) {
    if (!persistent_) return;
    uint32_t dropped = persistent_->purge(now_ms, idle_ms);
    counters_.purged.add(dropped);
    counters_.unmaps.add(dropped);
    counters_.calls.add(dropped);
    counters_.persistent.set(persistent_->size());
}

void Transfer::set_max_persistent_grants(uint32_t cap) {
    if (persistent_) persistent_->set_cap(cap);
}

void Transfer::close() {
    if (!persistent_) return;
    counters_.unmaps.add(persistent_->size());
    persistent_->clear();
    counters_.persistent.set(0);
}

}  // namespace vbd::memory
