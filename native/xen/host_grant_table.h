// HostGrantTable: gntdev through libxengnttab, one handle (one descriptor) for one thread. gntdev
// walks a list of a descriptor's mappings on every call, so a ring has a handle of its own.
//
// What the caller has to know of gntdev:
//   - It says EINVAL for every refused reference and does not say which one of a batch.
//   - unmap() returns before the guest can end its access, while the kernel still does I/O on a
//   page.
//   - A page of the guest that is paged out makes the kernel try again, sleeping, for 32 s a page:
//   no call here is sure
//     to be quick. One that took kSlowCallNs or longer is reported, so that the guest can be served
//     apart.
//   - Closing the descriptor does not unmap: what is still mapped when the handle goes is unmapped
//   first.
#pragma once

#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "xen/grant_table.h"
#include "xen/host_library.h"
#include "xen/host_logger.h"

namespace vbd::xen::host {

/// A grant call that lasted so long slept in the kernel. Nothing else in it takes more than some
/// ms; but processors that are taken away for 100 ms have been seen, on crowded machines.
inline constexpr uint64_t kSlowCallNs = 500'000'000;

/// Told of each slow call, on the thread that made it, after it.
using OnSlowCall = std::function<void(DomainId, uint64_t elapsed_ns)>;

class HostGrantTable final : public GrantTable {
  public:
    /// Errors: kXen with what opening the device says (ENOENT, EACCES, EMFILE).
    static Result<std::unique_ptr<HostGrantTable>> open(std::shared_ptr<const HostLibrary> library,
                                                        OnSlowCall on_slow);
    ~HostGrantTable() override;

    Result<void*> map(DomainId domain, std::span<const GrantRef> refs, Access access) override;
    Status unmap(void* address, uint32_t pages) override;

    /// Where the kernel (before 4.9) or the library (before Xen 4.8) has no grant copy, every
    /// segment is mapped, copied and unmapped by itself.
    Status copy(DomainId domain, std::span<GrantCopy> segments) override;

    /// Whether the kernel copies. Asks it, which changes nothing.
    bool has_grant_copy();

  private:
    HostGrantTable(std::shared_ptr<const HostLibrary> library, OnSlowCall on_slow)
        : library_(std::move(library)), on_slow_(std::move(on_slow)) {}

    void* map_pages(DomainId domain, std::span<const GrantRef> refs, Access access);
    void copy_by_mapping(DomainId domain, std::span<GrantCopy> segments);
    int16_t copy_mapped(DomainId domain, const GrantCopy& segment);
    void finish_call(DomainId domain, uint64_t started_ns);

    std::shared_ptr<const HostLibrary> library_;
    OnSlowCall on_slow_;
    HostLogger logger_;
    GnttabHandle* handle_ = nullptr;
    bool copy_missing_ = false;
    std::unordered_map<void*, uint32_t> mapped_;  // address → pages
    std::vector<CopySegment> operations_;         // of the copy call at hand
};

}  // namespace vbd::xen::host
