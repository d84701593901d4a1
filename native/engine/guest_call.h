// GuestCall: says of a thread that it is inside a grant call. The kernel sleeps there, for up to 32 s
// a page, while a page of the guest is paged out, and nothing wakes it: such a thread is held up by
// its guest, it does not hang. Whoever watches reactors has to know the difference.
//
// GuestCallTable: a grant table that says so around each call of another one.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

#include "xen/grant_table.h"

namespace vbd::engine {

/// One per reactor; written by its thread, read by any.
class GuestCall {
  public:
    bool inside() const { return inside_.load(std::memory_order_relaxed); }

    class Scope {
      public:
        explicit Scope(GuestCall& call) : call_(call) {
            call_.inside_.store(true, std::memory_order_relaxed);
        }
        ~Scope() { call_.inside_.store(false, std::memory_order_relaxed); }
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;

      private:
        GuestCall& call_;
    };

  private:
    std::atomic<bool> inside_{false};
};

class GuestCallTable final : public xen::GrantTable {
  public:
    /// `call` outlives it.
    GuestCallTable(std::unique_ptr<xen::GrantTable> table, GuestCall& call)
        : table_(std::move(table)), call_(call) {}
    /// Unmaps what is left, which is a call, too.
    ~GuestCallTable() override {
        const GuestCall::Scope scope(call_);
        table_.reset();
    }

    Result<void*> map(DomainId domain, std::span<const GrantRef> refs,
                      xen::Access access) override {
        const GuestCall::Scope scope(call_);
        return table_->map(domain, refs, access);
    }
    Status unmap(void* address, uint32_t pages) override {
        const GuestCall::Scope scope(call_);
        return table_->unmap(address, pages);
    }
    Status copy(DomainId domain, std::span<xen::GrantCopy> segments) override {
        const GuestCall::Scope scope(call_);
        return table_->copy(domain, segments);
    }

  private:
    std::unique_ptr<xen::GrantTable> table_;
    GuestCall& call_;
};

}  // namespace vbd::engine
