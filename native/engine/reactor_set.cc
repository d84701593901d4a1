// ReactorSet: starting, finding and ending reactors.
#include "engine/reactor_set.h"

#include <algorithm>

namespace vbd::engine {

Result<ReactorSet> ReactorSet::start(const Options& options) {
    ReactorSet set(options);
    if (options.placement == Placement::kGuest) return set;
    for (uint32_t i = 0; i < options.count; i++) {
        Status added = set.add(set.shared_, options.name + "-" + std::to_string(i));
        if (!added) return added.error();
    }
    return set;
}

Status ReactorSet::add(std::vector<Member>& members, const std::string& name) {
    auto reactor = Reactor::start({name, options_.poll_us, options_.max_buffer_pages});
    if (!reactor) return reactor.error();
    members.push_back({next_id_++, std::move(reactor).value()});
    return {};
}

Result<std::vector<Reactor*>> ReactorSet::of_guest(DomainId domain, size_t rings, bool apart) {
    drop_idle();
    std::vector<Member>* members = &shared_;
    if (apart || options_.placement == Placement::kGuest) {
        members = &own_[domain];
        size_t wanted = rings;
        for (const Member& member : *members) wanted += member.reactor->ring_count();
        wanted = std::clamp<size_t>(wanted, 1, options_.count);
        const std::string name = "vbdkit-dom" + std::to_string(domain);
        while (members->size() < wanted) {
            Status added = add(*members, name);
            if (!added) return added.error();
        }
    }
    std::vector<Reactor*> reactors;
    for (const Member& member : *members) reactors.push_back(member.reactor.get());
    return reactors;
}

// All of a guest's at once: its vbds' rings write to each other's reactors.
void ReactorSet::drop_idle() {
    std::erase_if(own_, [](auto& entry) {
        const bool idle = std::all_of(
            entry.second.begin(), entry.second.end(),
            [](const Member& member) { return member.reactor->ring_count() == 0; });
        if (!idle) return false;
        std::vector<Reactor*> reactors;
        for (const Member& member : entry.second) reactors.push_back(member.reactor.get());
        Reactor::stop_all(reactors);
        return true;
    });
}

void ReactorSet::stop() {
    stopped_ = true;
    std::vector<Reactor*> all;
    each([&all](const Member& member) { all.push_back(member.reactor.get()); });
    Reactor::stop_all(all);
    shared_.clear();
    own_.clear();
}

void ReactorSet::set_poll_us(uint32_t poll_us) {
    options_.poll_us = poll_us;
    each([poll_us](const Member& member) { member.reactor->set_poll_us(poll_us); });
}

void ReactorSet::set_max_buffer_pages(uint32_t pages) {
    options_.max_buffer_pages = pages;
    each([pages](const Member& member) { member.reactor->set_max_buffer_pages(pages); });
}

size_t ReactorSet::size() const {
    size_t count = 0;
    each([&count](const Member&) { count++; });
    return count;
}

}  // namespace vbd::engine
