#include "xen/mock_grant_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>

namespace vbd::xen {
namespace {

using mock::DomainView;

constexpr size_t kCopyBatch = 16;  // GNTDEV_COPY_BATCH

std::string name(const char* verb, DomainId domain) {
    return std::string(verb) + " grants of domain " + std::to_string(domain);
}

/// One GNTTABOP_copy operation: a piece of a segment whose local side lies in one page.
struct Piece {
    GrantCopy* segment;
    uint16_t offset;
    uint16_t length;
    std::byte* local;
};

int16_t copy_piece(const DomainView* view, const Piece& piece) {
    if (view == nullptr || view->state() != mock::kAlive) return kGrantBadDomain;
    const bool to_guest = piece.segment->direction == CopyDirection::kToGuest;
    const Access access = to_guest ? Access::kReadWrite : Access::kRead;
    const mock::Pinned pinned = mock::pin_grant(view->space(), piece.segment->ref, access);
    if (pinned.status != kGrantOkay) return pinned.status;
    std::byte* guest = view->page(pinned.frame) + piece.offset;
    std::memcpy(to_guest ? guest : piece.local, to_guest ? piece.local : guest, piece.length);
    mock::unpin_grant(view->space(), piece.segment->ref, access);
    return kGrantOkay;
}

/// Collects operations and performs them sixteen at a time, as gntdev does: a call that fails half
/// way has done the full batches before it.
class CopyBatch {
  public:
    explicit CopyBatch(const DomainView* view) : view_(view) {}

    void add(const Piece& piece) {
        if (used_ == pieces_.size()) flush();
        pieces_[used_++] = piece;
    }
    void flush() {
        for (size_t i = 0; i < used_; ++i) {
            const int16_t status = copy_piece(view_, pieces_[i]);
            if (pieces_[i].segment->status == kGrantOkay) pieces_[i].segment->status = status;
        }
        used_ = 0;
    }

  private:
    const DomainView* view_;
    std::array<Piece, kCopyBatch> pieces_;
    size_t used_ = 0;
};

}  // namespace

MockGrantTable::~MockGrantTable() {
    for (const auto& [address, mapping] : mappings_) {
        ::munmap(address, mapping.refs.size() * kPageSize);
        unpin_all(*mapping.view, mapping.refs, mapping.access);
    }
}

Result<std::shared_ptr<DomainView>> MockGrantTable::view(DomainId domain) {
    for (auto known = views_.begin(); known != views_.end(); ++known) {
        if ((*known)->domain() != domain) continue;
        if ((*known)->state() != mock::kGone) return *known;
        views_.erase(known);
        break;
    }
    Result<std::shared_ptr<DomainView>> found = connection_->domain(domain);
    if (found) views_.push_back(found.value());
    return found;
}

Result<void*> MockGrantTable::map(DomainId domain, std::span<const GrantRef> refs, Access access) {
    if (refs.empty() || refs.size() > mock::kMaxMapCount) {
        return system_error(ErrorKind::kXen, EINVAL, name("mapping", domain));
    }
    if (!connection_->alive()) return connection_->lost_error(name("mapping", domain));
    if (const int code = connection_->faults().fail_call(mock::FaultCall::kMap, domain, refs);
        code != 0) {
        return system_error(ErrorKind::kXen, code, name("mapping", domain));
    }
    Result<std::shared_ptr<DomainView>> view = this->view(domain);
    if (!view) {
        if (view.error().errno_code != ESRCH) return view.error();
        return system_error(ErrorKind::kXen, EINVAL, name("mapping", domain) + " (no such domain)");
    }
    if (Status pinned = pin_all(*view.value(), refs, access); !pinned) return pinned.error();
    Result<void*> address = map_frames(*view.value(), access);
    if (!address) {
        unpin_all(*view.value(), refs, access);
        return address.error();
    }
    mappings_[address.value()] =
        Mapping{std::move(view).value(), {refs.begin(), refs.end()}, access};
    return address;
}

/// Pins every reference, or none. The frames are left in frames_.
Status MockGrantTable::pin_all(const DomainView& view, std::span<const GrantRef> refs,
                               Access access) {
    frames_.clear();
    for (size_t i = 0; i < refs.size(); ++i) {
        const mock::Pinned pinned = mock::pin_grant(view.space(), refs[i], access);
        if (pinned.status != kGrantOkay) {
            unpin_all(view, refs.first(i), access);
            return system_error(ErrorKind::kXen, EINVAL,
                                name("mapping", view.domain()) + " (reference " +
                                    std::to_string(refs[i]) + ", status " +
                                    std::to_string(pinned.status) + ")");
        }
        frames_.push_back(pinned.frame);
    }
    return {};
}

void MockGrantTable::unpin_all(const DomainView& view, std::span<const GrantRef> refs,
                               Access access) {
    for (const GrantRef ref : refs) mock::unpin_grant(view.space(), ref, access);
    connection_->released(view);
}

/// Maps frames_ at one address: a reservation first, then every run of adjacent frames over its
/// part of it. A single run needs no reservation.
Result<void*> MockGrantTable::map_frames(const DomainView& view, Access access) {
    const size_t pages = frames_.size();
    const int protection = access == Access::kReadWrite ? PROT_READ | PROT_WRITE : PROT_READ;
    std::byte* base = nullptr;
    for (size_t first = 0; first < pages;) {
        size_t end = first + 1;
        while (end < pages && frames_[end] == frames_[end - 1] + 1) ++end;
        if (base == nullptr && end < pages) {
            void* reserved = ::mmap(nullptr, pages * kPageSize, PROT_NONE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (reserved == MAP_FAILED)
                return system_error(ErrorKind::kXen, ENOMEM, name("mapping", view.domain()));
            base = static_cast<std::byte*>(reserved);
        }
        void* mapped =
            ::mmap(base == nullptr ? nullptr : base + first * kPageSize, (end - first) * kPageSize,
                   protection, MAP_SHARED | (base == nullptr ? 0 : MAP_FIXED), view.memory_fd(),
                   static_cast<off_t>(size_t{frames_[first]} * kPageSize));
        if (mapped == MAP_FAILED) {
            if (base != nullptr) ::munmap(base, pages * kPageSize);
            return system_error(ErrorKind::kXen, ENOMEM, name("mapping", view.domain()));
        }
        if (base == nullptr) base = static_cast<std::byte*>(mapped);
        first = end;
    }
    return static_cast<void*>(base);
}

Status MockGrantTable::unmap(void* address, uint32_t pages) {
    const auto found = mappings_.find(address);
    if (found == mappings_.end() || found->second.refs.size() != pages) {
        return system_error(ErrorKind::kXen, EINVAL,
                            "unmapping grants that were not mapped like this");
    }
    const Mapping& mapping = found->second;
    const DomainId domain = mapping.view->domain();
    const int code = connection_->faults().fail_call(mock::FaultCall::kUnmap, domain, mapping.refs);
    if (code != 0) return system_error(ErrorKind::kXen, code, name("unmapping", domain));
    if (::munmap(address, size_t{pages} * kPageSize) != 0) {
        return system_error(ErrorKind::kXen, errno, name("unmapping", domain));
    }
    unpin_all(*mapping.view, mapping.refs, mapping.access);
    mappings_.erase(found);
    return {};
}

Status MockGrantTable::copy(DomainId domain, std::span<GrantCopy> segments) {
    if (!connection_->alive()) return connection_->lost_error(name("copying", domain));
    if (const int code = connection_->faults().fail_copy(domain, segments); code != 0) {
        return system_error(ErrorKind::kXen, code, name("copying", domain));
    }
    Result<std::shared_ptr<DomainView>> view = this->view(domain);
    if (!view && view.error().errno_code != ESRCH) return view.error();
    const DomainView* present = view ? view.value().get() : nullptr;
    const Status done = copy_pieces(present, domain, segments);
    if (present != nullptr) connection_->released(*present);
    return done;
}

Status MockGrantTable::copy_pieces(const DomainView* view, DomainId domain,
                                   std::span<GrantCopy> segments) {
    const mock::Faults& faults = connection_->faults();
    CopyBatch batch(view);
    for (GrantCopy& segment : segments) {
        if (segment.offset + segment.length > kPageSize) {
            return system_error(ErrorKind::kXen, EINVAL,
                                name("copying", domain) + " (beyond the page)");
        }
        segment.status = faults.fail_segment(domain, segment.ref);
        if (segment.status != kGrantOkay) continue;
        auto* local = static_cast<std::byte*>(segment.local);
        for (uint32_t done = 0; done < segment.length;) {  // an empty segment succeeds unseen
            const uint32_t in_page =
                kPageSize -
                static_cast<uint32_t>(reinterpret_cast<uintptr_t>(local + done) % kPageSize);
            const uint32_t length = std::min(segment.length - done, in_page);
            batch.add({&segment, static_cast<uint16_t>(segment.offset + done),
                       static_cast<uint16_t>(length), local + done});
            done += length;
        }
    }
    batch.flush();
    return {};
}

}  // namespace vbd::xen
