#include "xen/mock_domains.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

#include "xen/mock_pins.h"

namespace vbd::xen::mock {
namespace {

constexpr DomainId kFirstReservedDomain = 0x7ff0;  // DOMID_FIRST_RESERVED

Error xen_error(int code, std::string what) {
    return system_error(ErrorKind::kXen, code, std::move(what));
}

std::string domain_name(DomainId domain) {
    return "domain " + std::to_string(domain);
}

}  // namespace

Result<Domains::Record*> Domains::create(DomainId domain, uint32_t pages, ClientId creator) {
    if (domain == 0 || domain >= kFirstReservedDomain || pages == 0 || pages > kMaxPages) {
        return Error{ErrorKind::kInvalidArgument, EINVAL,
                     "a mock domain needs a domid of 1 to 32751 and 1 to 4194304 pages"};
    }
    if (find(domain) != nullptr) return xen_error(EEXIST, "creating " + domain_name(domain));
    Result<SharedMemory> memory =
        SharedMemory::create("vbdkit-mock-memory", size_t{pages} * kPageSize);
    if (!memory) return memory.error();
    Result<SharedMemory> grants =
        SharedMemory::create("vbdkit-mock-grants", sizeof(GrantEntry) * kGrantEntries);
    if (!grants) return grants.error();
    Result<SharedMemory> pins = SharedMemory::create("vbdkit-mock-pins", sizeof(PinTable));
    if (!pins) return pins.error();
    Record& record = domains_[domain];
    record.domain = domain;
    record.pages = pages;
    record.creator = creator;
    record.memory = std::move(memory).value();
    record.grants = std::move(grants).value();
    record.pins = std::move(pins).value();
    on_event_(DomainEvent::kCreated, domain);
    return &record;
}

Domains::Record* Domains::find(DomainId domain) {
    const auto found = domains_.find(domain);
    return found == domains_.end() ? nullptr : &found->second;
}

Result<SharedMemory*> Domains::journal(Record& record, ClientId client) {
    const auto found = record.journals.find(client);
    if (found != record.journals.end()) return &found->second;
    Result<SharedMemory> made = SharedMemory::create("vbdkit-mock-journal", sizeof(Journal));
    if (!made) return made.error();
    return &record.journals.emplace(client, std::move(made).value()).first->second;
}

bool Domains::destroy(DomainId domain) {
    Record* record = find(domain);
    if (record == nullptr) return false;
    if (record->dying()) return true;
    record->pins.as<PinTable>()->state.store(kDying, std::memory_order_seq_cst);
    for (auto port = ports_.lower_bound({domain, 0});
         port != ports_.end() && port->first.first == domain;) {
        port = close(port);
    }
    on_event_(DomainEvent::kDying, domain);
    reap(domain);
    return true;
}

void Domains::reap(DomainId domain) {
    Record* record = find(domain);
    if (record == nullptr || !record->dying()) return;
    PinTable* pins = record->pins.as<PinTable>();
    if (any_pin(*pins, record->pinned_hint)) return;
    pins->state.store(kGone, std::memory_order_seq_cst);
    domains_.erase(domain);
    on_event_(DomainEvent::kDestroyed, domain);
}

std::vector<DomainId> Domains::forget(ClientId client) {
    for (auto port = ports_.begin(); port != ports_.end();) {
        port = port->second.client == client ? close(port) : std::next(port);
    }
    std::vector<DomainId> unpinned;
    std::vector<DomainId> orphans;
    for (auto& [domain, record] : domains_) {
        if (record.creator == client && !record.dying()) orphans.push_back(domain);
        const auto journal = record.journals.find(client);
        if (journal == record.journals.end()) continue;
        std::vector<const Journal*> others;
        for (const auto& [other, memory] : record.journals) {
            if (other != client) others.push_back(memory.as<Journal>());
        }
        forget_client(record.grants.as<GrantEntry>(), record.pins.as<PinTable>(),
                      *journal->second.as<Journal>(), client, others);
        record.journals.erase(journal);
        unpinned.push_back(domain);
    }
    for (const DomainId domain : orphans) destroy(domain);
    for (const DomainId domain : unpinned) reap(domain);
    return orphans;
}

Result<Port> Domains::free_port(DomainId domain) const {
    Port port = 1;  // the lowest free one, as Xen
    for (auto used = ports_.lower_bound({domain, 0}); used != ports_.end(); ++used, ++port) {
        if (used->first != PortKey{domain, port}) break;
    }
    if (port > kMaxPort)
        return xen_error(ENOSPC, "allocating an event channel of " + domain_name(domain));
    return port;
}

Result<BoundPort> Domains::alloc_unbound(DomainId self, ClientId client, DomainId remote) {
    const std::string what = "allocating an event channel of " + domain_name(self);
    const Record* record = find(self);
    if (record != nullptr && record->dying()) return xen_error(ESRCH, what);
    Result<Port> port = free_port(self);
    if (!port) return port.error();
    auto events = std::make_shared<EventPair>();
    events->allocator = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    events->binder = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!events->allocator || !events->binder) return xen_error(errno, what);
    ports_[{self, port.value()}] = PortRecord{client, remote, 0, true, events};
    return BoundPort{port.value(), std::move(events)};
}

Result<BoundPort> Domains::bind(DomainId self, ClientId client, DomainId remote, Port remote_port) {
    const std::string what =
        "binding to event channel " + std::to_string(remote_port) + " of " + domain_name(remote);
    const Record* record = find(remote);
    const auto peer = ports_.find({remote, remote_port});
    if (record == nullptr && remote != self) return xen_error(ESRCH, what);
    if (record != nullptr && record->dying()) return xen_error(EINVAL, what);
    if (peer == ports_.end() || !peer->second.allocated || peer->second.remote_port != 0 ||
        peer->second.remote != self) {
        return xen_error(EINVAL, what);
    }
    Result<Port> port = free_port(self);
    if (!port) return port.error();
    std::shared_ptr<EventPair> events = peer->second.events;
    // Xen leaves one event pending for the new end, since it cannot know whether one was lost. What
    // the peer sent while nobody was bound coalesces into it.
    const uint64_t one = 1;
    (void)!::write(events->binder.get(), &one, sizeof(one));
    peer->second.remote_port = port.value();
    ports_[{self, port.value()}] = PortRecord{client, remote, remote_port, false, events};
    return BoundPort{port.value(), std::move(events)};
}

int Domains::close(DomainId self, ClientId client, Port port) {
    const auto found = ports_.find({self, port});
    if (found == ports_.end() || found->second.client != client) return EINVAL;
    close(found);
    return 0;
}

std::map<Domains::PortKey, Domains::PortRecord>::iterator Domains::close(
    std::map<PortKey, PortRecord>::iterator port) {
    const auto peer = ports_.find({port->second.remote, port->second.remote_port});
    // The peer is not told: its port is unbound again, for us or our successor
    // (xen/common/event_channel.c).
    if (peer != ports_.end()) peer->second.remote_port = 0;
    return ports_.erase(port);
}

std::vector<DomainSummary> Domains::list() const {
    std::vector<DomainSummary> summaries;
    for (const auto& [domain, record] : domains_) {
        DomainSummary summary{domain, record.pages, record.dying(),
                              count_pins(*record.pins.as<PinTable>()), 0};
        for (auto port = ports_.lower_bound({domain, 0}); port != ports_.end(); ++port) {
            if (port->first.first != domain) break;
            if (port->second.remote_port != 0) ++summary.ports_bound;
        }
        summaries.push_back(summary);
    }
    return summaries;
}

}  // namespace vbd::xen::mock
