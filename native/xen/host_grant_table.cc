#include "xen/host_grant_table.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "base/clock.h"

namespace vbd::xen::host {
namespace {

constexpr size_t kMaxMapCount = 64 * 1024;  // gntdev's own limit per call

std::string name(const char* verb, size_t count, DomainId domain) {
    return std::string(verb) + " " + std::to_string(count) + " grants of domain " +
           std::to_string(domain);
}

CopySegment operation_for(DomainId domain, const GrantCopy& segment) {
    CopySegment operation;
    std::memset(&operation, 0, sizeof(operation));
    const bool to_guest = segment.direction == CopyDirection::kToGuest;
    CopyEnd& guest = to_guest ? operation.dest : operation.source;
    guest.foreign.ref = segment.ref;
    guest.foreign.offset = segment.offset;
    guest.foreign.domain = domain;
    (to_guest ? operation.source : operation.dest).local = segment.local;
    operation.length = segment.length;
    operation.flags = to_guest ? kDestIsGrant : kSourceIsGrant;
    operation.status = kGrantGeneralError;
    return operation;
}

/// What a kernel or a library says that does not know grant copy.
bool means_missing(int code) {
    return code == ENOTTY || code == ENOSYS || code == EOPNOTSUPP;
}

}  // namespace

Result<std::unique_ptr<HostGrantTable>> HostGrantTable::open(
    std::shared_ptr<const HostLibrary> library, OnSlowCall on_slow) {
    std::unique_ptr<HostGrantTable> table(
        new HostGrantTable(std::move(library), std::move(on_slow)));
    table->handle_ = table->library_->gnttab_open(table->logger_.tool_logger(), 0);
    if (table->handle_ == nullptr) {
        const int code = errno;
        return system_error(ErrorKind::kXen, code,
                            "opening a grant table handle" + table->logger_.take());
    }
    table->copy_missing_ = table->library_->gnttab_grant_copy == nullptr;
    return table;
}

HostGrantTable::~HostGrantTable() {
    if (handle_ == nullptr) return;
    for (const auto& [address, pages] : mapped_) library_->gnttab_unmap(handle_, address, pages);
    library_->gnttab_close(handle_);
}

void HostGrantTable::finish_call(DomainId domain, uint64_t started_ns) {
    const uint64_t elapsed_ns = monotonic_ns() - started_ns;
    if (elapsed_ns >= kSlowCallNs && on_slow_) [[unlikely]]
        on_slow_(domain, elapsed_ns);
}

// Null with errno.
void* HostGrantTable::map_pages(DomainId domain, std::span<const GrantRef> refs, Access access) {
    const int protection = access == Access::kReadWrite ? PROT_READ | PROT_WRITE : PROT_READ;
    // The library takes a pointer to what it only reads.
    auto* list = const_cast<GrantRef*>(refs.data());
    if (refs.size() == 1) {
        return library_->gnttab_map_grant_ref(handle_, domain, list[0], protection);
    }
    return library_->gnttab_map_domain_grant_refs(handle_, static_cast<uint32_t>(refs.size()),
                                                  domain, list, protection);
}

Result<void*> HostGrantTable::map(DomainId domain, std::span<const GrantRef> refs, Access access) {
    if (refs.empty() || refs.size() > kMaxMapCount) {
        return system_error(ErrorKind::kXen, EINVAL, name("mapping", refs.size(), domain));
    }
    const uint64_t started_ns = monotonic_ns();
    void* address = map_pages(domain, refs, access);
    const int code = errno;
    finish_call(domain, started_ns);
    if (address == nullptr) {
        return system_error(ErrorKind::kXen, code,
                            name("mapping", refs.size(), domain) + logger_.take());
    }
    mapped_[address] = static_cast<uint32_t>(refs.size());
    return address;
}

// The books come first: the library would look up an address that it never mapped in whatever lives
// there now.
Status HostGrantTable::unmap(void* address, uint32_t pages) {
    const auto found = mapped_.find(address);
    if (found == mapped_.end() || found->second != pages) {
        return system_error(ErrorKind::kXen, EINVAL,
                            "unmapping grants that were not mapped like this");
    }
    if (library_->gnttab_unmap(handle_, address, pages) != 0) {
        const int code = errno;
        return system_error(ErrorKind::kXen, code,
                            "unmapping " + std::to_string(pages) + " grants" + logger_.take());
    }
    mapped_.erase(found);
    return {};
}

bool HostGrantTable::has_grant_copy() {
    if (copy_missing_) return false;
    CopySegment none = {};
    if (library_->gnttab_grant_copy(handle_, 0, &none) != 0) copy_missing_ = means_missing(errno);
    (void)logger_.take();
    return !copy_missing_;
}

Status HostGrantTable::copy(DomainId domain, std::span<GrantCopy> segments) {
    const uint64_t started_ns = monotonic_ns();
    if (copy_missing_) {
        copy_by_mapping(domain, segments);
        finish_call(domain, started_ns);
        return {};
    }
    operations_.clear();
    for (const GrantCopy& segment : segments) {
        if (segment.length != 0) operations_.push_back(operation_for(domain, segment));
    }
    int code = 0;
    if (!operations_.empty() &&
        library_->gnttab_grant_copy(handle_, static_cast<uint32_t>(operations_.size()),
                                    operations_.data()) != 0) {
        code = errno;
    }
    finish_call(domain, started_ns);
    if (means_missing(code)) {
        copy_missing_ = true;
        (void)logger_.take();
        return copy(domain, segments);
    }
    if (code != 0) {
        for (GrantCopy& segment : segments) segment.status = kGrantGeneralError;
        return system_error(ErrorKind::kXen, code,
                            name("copying", operations_.size(), domain) + logger_.take());
    }
    size_t done = 0;
    for (GrantCopy& segment : segments) {
        segment.status = kGrantOkay;
        if (segment.length != 0) segment.status = operations_[done++].status;
    }
    return {};
}

void HostGrantTable::copy_by_mapping(DomainId domain, std::span<GrantCopy> segments) {
    for (GrantCopy& segment : segments) {
        segment.status = kGrantOkay;
        if (segment.length != 0) segment.status = copy_mapped(domain, segment);
    }
    (void)logger_.take();
}

int16_t HostGrantTable::copy_mapped(DomainId domain, const GrantCopy& segment) {
    if (segment.offset + segment.length > kPageSize) return kGrantBadCopyArg;
    const bool to_guest = segment.direction == CopyDirection::kToGuest;
    void* page =
        map_pages(domain, {&segment.ref, 1}, to_guest ? Access::kReadWrite : Access::kRead);
    if (page == nullptr) return kGrantGeneralError;
    auto* guest = static_cast<std::byte*>(page) + segment.offset;
    std::memcpy(to_guest ? guest : segment.local, to_guest ? segment.local : guest, segment.length);
    if (library_->gnttab_unmap(handle_, page, 1) != 0) {
        mapped_[page] = 1;  // for the destructor
        return kGrantGeneralError;
    }
    return kGrantOkay;
}

}  // namespace vbd::xen::host
