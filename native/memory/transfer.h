// Transfer: makes the guest pages of a batch of requests reachable, and lets them go again. One per
// ring, on the reactor's thread. Three strategies:
//
//   persistent  found mapped by reference (no call); a miss is mapped once and kept; a full cache
//   falls back to copy copy        through pool pages: one grant copy call before the writes of a
//   batch, one after its reads map         one map call for the reads and one for the writes of a
//   batch, one unmap call each when the last is done
//
// Descriptor pages of indirect requests are copied to private memory and checked there, whatever
// the strategy.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/counters.h"
#include "base/reserved.h"
#include "memory/in_flight.h"
#include "memory/page_pool.h"
#include "memory/persistent_grants.h"
#include "xen/grant_table.h"

namespace vbd::memory {

enum class Strategy : uint8_t { kPersistent, kCopy, kMap };

struct TransferCounters {
    Counter maps;          // pages mapped
    Counter unmaps;        // pages unmapped
    Counter copies;        // segments copied
    Counter calls;         // grant table calls behind the three
    Counter overflow;      // segments copied because the persistent cache was full
    Counter purged;        // persistent grants dropped by the purge
    Counter grant_errors;  // requests failed by a grant operation
    Gauge persistent;      // persistent grants held
};

/// Work space of a batch, shared by the rings of one reactor.
class TransferScratch {
  public:
    /// A batch may hold this many segments and one request more.
    static constexpr uint32_t kBatchSegments = 2048;
    static constexpr uint32_t kCapacity = kBatchSegments + blkif::kMaxIndirectSegments;

    static Result<std::unique_ptr<TransferScratch>> create();

  private:
    friend class Transfer;
    ReservedArray<xen::GrantCopy> copies_;
    ReservedArray<InFlight*> owners_;  // whose copies_[i] is
    ReservedArray<GrantRef> refs_;
    ReservedArray<void*> pages_;
};

class Transfer {
  public:
    struct Options {
        Strategy strategy = Strategy::kCopy;
        DomainId domain = 0;
        uint32_t entries = 32;  // of the ring: bounds the map groups
        uint32_t max_persistent_grants = 1056;
        bool reads_fill_buffers =
            true;  // false: the device may leave read buffers as they are; pool pages are zeroed
    };

    /// Everything passed by reference outlives the Transfer. Errors: kNoMemory.
    static Result<std::unique_ptr<Transfer>> create(const Options& options, xen::GrantTable& grants,
                                                    PagePool& pool, TransferScratch& scratch,
                                                    TransferCounters& counters);

    /// Reaches the pages of every request in the batch: sets outcome, iov, iov_count, and
    /// nr_sectors of indirect ones. A request whose outcome is not kReady holds nothing. At most
    /// kBatchSegments segments plus one request.
    void prepare(std::span<InFlight* const> batch, const blkif::Limits& limits, uint32_t now_ms);

    /// Takes requests that the device is done with (failed set or not), copies what was read to the
    /// guest, lets the pages go, and moves to `ready` every request that may now be answered: this
    /// batch's, and those that waited for its unmap.
    void finish(InFlightList& done, InFlightList& ready);

    /// Every 100 ms: the purge of persistent grants.
    void purge(uint32_t now_ms, uint32_t idle_ms);

    void set_max_persistent_grants(uint32_t cap);

    /// Persistent grants held, for timers and statistics.
    uint32_t persistent_grants() const { return persistent_ ? persistent_->size() : 0; }

    Strategy strategy() const { return options_.strategy; }

    /// Unmaps all. Nothing is in flight.
    void close();

  private:
    Transfer(const Options& options, xen::GrantTable& grants, PagePool& pool,
             TransferScratch& scratch, TransferCounters& counters)
        : options_(options), grants_(grants), pool_(pool), scratch_(scratch), counters_(counters) {}

    void fetch_descriptors(std::span<InFlight* const> batch, const blkif::Limits& limits,
                           uint32_t now_ms);
    bool read_mapped_descriptors(InFlight& item, uint32_t page, uint32_t now_ms);
    void reach_persistent(InFlight& item, uint32_t now_ms);
    void reach_copy(InFlight& item);
    void reach_mapped(std::span<InFlight* const> batch, bool guest_writes);
    bool map_group(std::span<InFlight* const> members, uint32_t pages, xen::Access access);
    void take_pool_page(InFlight& item, uint32_t index);
    void add_copy(InFlight& item, const blkif::Segment& segment, void* page,
                  xen::CopyDirection direction);
    void run_copies();
    void fail(InFlight& item);
    void build_iovecs(InFlight& item);
    void let_go(InFlight& item);
    void finish_group(MapGroup* group, InFlight* item, InFlightList& ready);

    const Options options_;
    xen::GrantTable& grants_;
    PagePool& pool_;
    TransferScratch& scratch_;
    TransferCounters& counters_;
    std::unique_ptr<PersistentGrants> persistent_;
    ReservedArray<MapGroup> groups_;
    MapGroup* free_group_ = nullptr;
    uint32_t copy_count_ = 0;  // scratch_.copies_ queued
};

}  // namespace vbd::memory
