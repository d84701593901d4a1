#include "node/mapped_grants.h"

#include <utility>

#include "base/units.h"

namespace vbd::node {

Result<std::shared_ptr<MappedGrants>> MappedGrants::open(const std::shared_ptr<Primitives>& owner) {
    auto table = owner->xen()->open_grant_table();
    if (!table) return table.error();
    std::shared_ptr<MappedGrants> grants(new MappedGrants(owner));
    grants->table_ = std::move(table).value();
    owner->adopt(grants);
    return grants;
}

Result<uint32_t> MappedGrants::map(Napi::Env env, DomainId domain, std::span<const GrantRef> refs,
                                   xen::Access access) {
    if (!table_) return Error{ErrorKind::kInvalidArgument, 0, "the grant table handle is closed"};
    auto mapped = table_->map(domain, refs, access);
    if (!mapped) return mapped.error();
    const uint32_t region =
        owner_->regions().add(env, mapped.value(), refs.size() * size_t{kPageSize});
    mappings_[region] = {mapped.value(), static_cast<uint32_t>(refs.size())};
    return region;
}

Status MappedGrants::unmap(Napi::Env env, uint32_t region) {
    const auto found = mappings_.find(region);
    if (found == mappings_.end()) {
        return Error{ErrorKind::kInvalidArgument, 0, "no such mapping of this handle"};
    }
    const Mapping mapping = found->second;
    mappings_.erase(found);
    owner_->regions().remove(env, region);
    return table_->unmap(mapping.address, mapping.pages);
}

Status MappedGrants::copy(DomainId domain, std::span<xen::GrantCopy> segments) {
    if (!table_) return Error{ErrorKind::kInvalidArgument, 0, "the grant table handle is closed"};
    return table_->copy(domain, segments);
}

void MappedGrants::close(bool leaving, bool quiet) {
    if (!table_) return;
    if (!quiet) {
        (void)table_.release();
        return;
    }
    for (const auto& [region, mapping] : mappings_) {
        if (!leaving) owner_->regions().remove(owner_->env(), region);
        (void)!!table_->unmap(mapping.address, mapping.pages);
    }
    mappings_.clear();
    table_.reset();
}

}  // namespace vbd::node
