// InFlightTable: the arrays behind the entries.
#include "memory/in_flight.h"

#include <bit>

namespace vbd::memory {

Result<InFlightTable> InFlightTable::create(uint32_t entries, uint32_t max_indirect_segments) {
    InFlightTable table;
    auto items = ReservedArray<InFlight>::create(entries);
    if (!items) return items.error();
    table.items_ = std::move(items).value();
    if (max_indirect_segments > 0) {
        // A power of two, so that no descriptor page's copy straddles two of our pages.
        table.stride_ = std::bit_ceil(max_indirect_segments);
        auto segments = ReservedArray<blkif::Segment>::create(size_t{entries} * table.stride_);
        if (!segments) return segments.error();
        auto iov = ReservedArray<iovec>::create(size_t{entries} * table.stride_);
        if (!iov) return iov.error();
        auto pages = ReservedArray<PageRef>::create(size_t{entries} * table.stride_);
        if (!pages) return pages.error();
        table.segments_ = std::move(segments).value();
        table.iov_ = std::move(iov).value();
        table.pages_ = std::move(pages).value();
    }
    for (uint32_t i = entries; i-- > 0;) table.give_back(&table.items_[i]);
    return table;
}

void InFlightTable::attach_arrays(InFlight* item) {
    if (!item->request.indirect) {
        item->segments = item->request.segments;
        item->iov = item->inline_iov;
        item->pages = item->inline_pages;
        return;
    }
    size_t first = size_t(item - items_.data()) * stride_;
    item->segments = segments_.data() + first;
    item->iov = iov_.data() + first;
    item->pages = pages_.data() + first;
}

}  // namespace vbd::memory
