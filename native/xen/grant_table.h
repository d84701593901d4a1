// GrantTable: how a backend reaches pages that a guest granted to it. One handle belongs to one
// thread.
//
// Two implementations: mock_* (the mock hypervisor) and host_* (libxengnttab). Both keep gntdev's
// rules:
//   - a mapping is unmapped whole, with the count it was mapped with;
//   - one bad reference fails a whole map call, and nothing of that call stays mapped;
//   - copy reports a status per segment; a whole-call failure fails every segment.
// What a handle still has mapped when it goes is unmapped with it.
#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "base/units.h"

namespace vbd::xen {

/// Per-operation status, with the values of xen/include/public/grant_table.h (GNTST_*).
enum GrantStatus : int16_t {
    kGrantOkay = 0,
    kGrantGeneralError = -1,
    kGrantBadDomain = -2,
    kGrantBadRef = -3,
    kGrantBadHandle = -4,
    kGrantBadVirtAddr = -5,
    kGrantBadDevAddr = -6,
    kGrantNoDeviceSpace = -7,
    kGrantPermissionDenied = -8,
    kGrantBadPage = -9,
    kGrantBadCopyArg = -10,
    kGrantAddressTooBig = -11,
    kGrantEagain = -12,
    kGrantNoSpace = -13,
};

enum class Access : uint8_t { kRead, kReadWrite };

enum class CopyDirection : uint8_t {
    kFromGuest,  // guest page → local
    kToGuest,    // local → guest page
};

/// One piece of one guest page. offset + length ≤ 4096, length ≥ 1. `local` should not cross a page
/// (the kernel splits there).
struct GrantCopy {
    GrantRef ref = 0;
    uint16_t offset = 0;
    uint16_t length = 0;
    CopyDirection direction = CopyDirection::kFromGuest;
    int16_t status =
        kGrantGeneralError;  // written by copy(); failure until proven otherwise (XSA-361)
    void* local = nullptr;
};

class GrantTable {
  public:
    virtual ~GrantTable() = default;

    /// Maps refs.size() pages of `domain` at one contiguous address, all or nothing. Errors: kXen
    /// with EINVAL (a reference refused), ENOMEM.
    virtual Result<void*> map(DomainId domain, std::span<const GrantRef> refs, Access access) = 0;

    /// Undoes one earlier map(): same address, same page count.
    virtual Status unmap(void* address, uint32_t pages) = 0;

    /// Copies every segment, setting each status. An Error means the call as a whole failed and
    /// every status is undefined: the caller must treat all as failed.
    virtual Status copy(DomainId domain, std::span<GrantCopy> segments) = 0;
};

}  // namespace vbd::xen
