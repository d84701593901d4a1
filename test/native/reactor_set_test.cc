// Whose reactors serve a guest, and what a grant call that sleeps in the kernel holds up.
#include "engine/reactor_set.h"

#include <doctest/doctest.h>

#include <future>
#include <set>

#include "support/engine_rig.h"

namespace vbd::test {
namespace {

using engine::Placement;
using engine::ReactorSet;

ReactorSet start(Placement placement, uint32_t count) {
    ReactorSet::Options options;
    options.name = "set";
    options.placement = placement;
    options.count = count;
    options.poll_us = 20;
    auto set = ReactorSet::start(options);
    REQUIRE(set);
    return std::move(set).value();
}

std::vector<engine::Reactor*> of_guest(ReactorSet& set, DomainId domain, size_t rings,
                                       bool apart = false) {
    auto found = set.of_guest(domain, rings, apart);
    REQUIRE(found);
    return std::move(found).value();
}

RigOptions copying() {
    RigOptions options;
    options.reactors = 0;
    options.transfer = engine::TransferChoice::kCopy;
    options.data_pages = 8;
    return options;
}

/// A guest whose first copy sleeps until wake().
struct Sleeper {
    explicit Sleeper(std::vector<engine::Reactor*> lent) : rig(memory_disk(1 << 20), copying()) {
        rig.lent = std::move(lent);
        rig.xen->on_copy = [this] {
            if (asleep_said_) return;
            asleep_said_ = true;
            asleep.set_value();
            woken_.wait();
        };
        REQUIRE(rig.connect());
    }
    ~Sleeper() { wake(); }
    void fall_asleep() {
        rig.fronts[0].write_data(Operation::kWrite, 1, 0, std::vector{rig.segment(0)});
        rig.push();
        REQUIRE(asleep.get_future().wait_for(10s) == std::future_status::ready);
    }
    void wake() {
        if (!woken_said_) wake_.set_value();
        woken_said_ = true;
    }

  private:
    std::promise<void> wake_;
    std::shared_future<void> woken_{wake_.get_future()};
    bool asleep_said_ = false;  // the reactor's
    bool woken_said_ = false;

  public:
    std::promise<void> asleep;
    EngineRig rig;  // the last: its end waits for the reactor, which uses all of the above
};

TEST_CASE("reactor set: a grant call that sleeps holds up no other guest") {
    ReactorSet set = start(Placement::kGuest, 2);
    Sleeper sleeper(of_guest(set, 5, 1));
    EngineRig other(memory_disk(1 << 20), copying());
    other.lent = of_guest(set, 6, 1);
    REQUIRE(other.connect());
    sleeper.fall_asleep();
    engine::Reactor& held_up = *sleeper.rig.lent[0];
    CHECK(held_up.in_guest_call());
    const uint64_t beats = held_up.heartbeat();
    for (uint32_t i = 0; i < 100; i++) {
        CHECK(other.transact(Operation::kWrite, i, {other.segment(i % 8, 0, 0)}) == 0);
    }
    held_up.mailbox().wake();
    CHECK(held_up.heartbeat() == beats);
    CHECK(held_up.in_guest_call());
    CHECK_FALSE(other.lent[0]->in_guest_call());
    sleeper.wake();
    CHECK(sleeper.rig.collect(1)[0].status == 0);
    while (held_up.heartbeat() == beats) std::this_thread::yield();
    while (held_up.in_guest_call()) std::this_thread::yield();
}

TEST_CASE("reactor set: where guests share a reactor, one that sleeps holds up the others") {
    ReactorSet set = start(Placement::kShared, 1);
    Sleeper sleeper(of_guest(set, 5, 1));
    EngineRig other(memory_disk(1 << 20), copying());
    other.lent = of_guest(set, 6, 1);
    REQUIRE(other.connect());
    sleeper.fall_asleep();
    other.fronts[0].write_data(Operation::kWrite, 1, 0, std::vector{other.segment(0)});
    other.push();
    CHECK(other.silent());
    sleeper.wake();
    CHECK(other.collect(1)[0].status == 0);
}

TEST_CASE("reactor set: a guest has as many as it has rings, up to the bound, for as long") {
    ReactorSet set = start(Placement::kGuest, 3);
    CHECK(set.size() == 0);
    CHECK(of_guest(set, 5, 1).size() == 1);
    set.drop_idle();
    CHECK(set.size() == 0);

    RigOptions two = copying();
    two.rings = 2;
    auto first = std::make_unique<EngineRig>(memory_disk(1 << 20), two);
    first->lent = of_guest(set, 5, 2);
    CHECK(first->lent.size() == 2);
    REQUIRE(first->connect());
    auto second = std::make_unique<EngineRig>(memory_disk(1 << 20), two);
    second->lent = of_guest(set, 5, 2);
    CHECK(second->lent.size() == 3);
    REQUIRE(second->connect());
    CHECK(of_guest(set, 6, 1).size() == 1);  // the idle one of guest 6 goes with the next look
    std::set<uint64_t> ids;
    set.each([&](const ReactorSet::Member& member) { ids.insert(member.id); });
    CHECK(ids.size() == 4);
    set.drop_idle();
    CHECK(set.size() == 3);
    first.reset();
    set.drop_idle();
    CHECK(set.size() == 3);  // all of a guest's stay while it has a ring
    second.reset();
    set.drop_idle();
    CHECK(set.size() == 0);
}

TEST_CASE("reactor set: a guest of a shared set can be served apart") {
    ReactorSet set = start(Placement::kShared, 2);
    CHECK(set.size() == 2);
    const auto shared = of_guest(set, 5, 4);
    CHECK(shared.size() == 2);
    CHECK(of_guest(set, 6, 1) == shared);
    const auto own = of_guest(set, 5, 1, true);
    CHECK(own.size() == 1);
    CHECK(std::find(shared.begin(), shared.end(), own[0]) == shared.end());
    CHECK(own[0]->name() == "vbdkit-dom5");
    set.stop();
    CHECK(set.stopped());
    CHECK(set.size() == 0);
}

}  // namespace
}  // namespace vbd::test
