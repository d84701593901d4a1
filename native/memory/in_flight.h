// InFlight: one consumed request from its slot to its response, with the guest pages it reaches.
// One per ring entry, made at connect and used over and over: no allocation afterwards.
//
//   RawSlot → Request → InFlight ── Transfer::prepare ──► iovecs ── device ──► Transfer::finish ──►
//   response
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>

#include "base/reserved.h"
#include "blkif/request.h"
#include "block/device.h"

namespace vbd::memory {

/// One guest page a request uses: where it is, and whose it is to give back.
struct PageRef {
    void* address;
    uint32_t owner;  // a persistent grant's entry, or one of the two below
};
inline constexpr uint32_t kPoolPage = UINT32_MAX;
inline constexpr uint32_t kMappedPage = UINT32_MAX - 1;

/// Pages of several requests that one map call made and one unmap call must undo (gntdev unmaps a
/// mapping whole).
struct MapGroup {
    void* address;
    uint32_t pages;
    uint32_t users;            // requests not finished yet
    struct InFlight* waiting;  // finished, held until the unmap: a response may not precede it
    MapGroup* next_free;
};

enum class Outcome : uint8_t {
    kReady,
    kRejected,     // InFlight::reject says why
    kGrantFailed,  // a page could not be reached
};

/// Where a request with a flush in it stands. A barrier goes through all three.
enum class Stage : uint8_t { kPreFlush, kData, kPostFlush };

struct InFlight {
    blkif::Request request;
    blkif::Segment* segments;  // request.segments, or the indirect descriptors' private copy
    iovec* iov;
    PageRef* pages;
    uint32_t iov_count;
    uint32_t page_count;  // of `pages`, filled so far
    MapGroup* group;      // `map` only
    Outcome outcome;
    blkif::Reject reject;
    Stage stage;
    bool failed;            // the device or a grant failed it: answer ERROR
    bool unsupported;       // answer EOPNOTSUPP
    bool held;              // a failed flush: let its pages go, but never answer it
    uint64_t budget_bytes;  // what it counts against the in-flight budget
    uint64_t started_ns;
    uint32_t journal_entry;
    InFlight* next;
    block::Io io;
    iovec inline_iov[blkif::kMaxSegments];
    PageRef inline_pages[blkif::kMaxSegments];
};

/// A FIFO of requests through InFlight::next.
class InFlightList {
  public:
    bool empty() const { return head_ == nullptr; }
    InFlight* front() const { return head_; }
    void push(InFlight* item) {
        item->next = nullptr;
        (head_ ? tail_->next : head_) = item;
        tail_ = item;
    }
    InFlight* pop() {
        InFlight* item = head_;
        if (item) head_ = item->next;
        return item;
    }

  private:
    InFlight* head_ = nullptr;
    InFlight* tail_ = nullptr;
};

/// The in-flight table of one ring. Indirect requests' arrays are address space until one is used.
class InFlightTable {
  public:
    static Result<InFlightTable> create(uint32_t entries, uint32_t max_indirect_segments);

    /// A cleared entry; null when all are taken.
    InFlight* take() {
        InFlight* item = free_;
        if (item) free_ = item->next;
        return item;
    }
    void give_back(InFlight* item) {
        item->next = free_;  // last in, first out: the warm entry goes next
        free_ = item;
    }

    /// Points the entry at arrays that hold its request's segments.
    void attach_arrays(InFlight* item);

  private:
    ReservedArray<InFlight> items_;
    uint32_t stride_ = 0;  // elements per entry in the arrays below
    ReservedArray<blkif::Segment> segments_;
    ReservedArray<iovec> iov_;
    ReservedArray<PageRef> pages_;
    InFlight* free_ = nullptr;
};

}  // namespace vbd::memory
