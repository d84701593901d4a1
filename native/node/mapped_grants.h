// MappedGrants: one grant table handle with the regions that it maps, for one ring of the
// JavaScript engine. JavaScript thread only.
#pragma once

#include <napi.h>

#include <memory>
#include <span>
#include <unordered_map>

#include "node/primitives.h"
#include "xen/grant_table.h"

namespace vbd::node {

class MappedGrants {
  public:
    static Result<std::shared_ptr<MappedGrants>> open(const std::shared_ptr<Primitives>& owner);

    /// Maps all or nothing; the region's number.
    Result<uint32_t> map(Napi::Env env, DomainId domain, std::span<const GrantRef> refs,
                         xen::Access access);

    /// Detaches the region's ArrayBuffer, then unmaps. A refused unmap leaves the pages to close().
    Status unmap(Napi::Env env, uint32_t region);

    /// One grant copy call. Errors: those of GrantTable::copy.
    Status copy(DomainId domain, std::span<xen::GrantCopy> segments);

    /// Unmaps all that is left. Unless `quiet`: then I/O may still reach it, and it stays mapped.
    void close(bool leaving, bool quiet);

    Primitives& owner() { return *owner_; }

  private:
    explicit MappedGrants(std::shared_ptr<Primitives> owner) : owner_(std::move(owner)) {}

    struct Mapping {
        void* address;
        uint32_t pages;
    };

    std::shared_ptr<Primitives> owner_;
    std::unique_ptr<xen::GrantTable> table_;
    std::unordered_map<uint32_t, Mapping> mappings_;  // by region
};

}  // namespace vbd::node
