// Pins: what remains of a client that is killed at each step of taking or giving back a pin.
#include "xen/mock_pins.h"

#include <doctest/doctest.h>

#include <memory>
#include <thread>
#include <vector>

#include "base/result.h"

namespace vbd::xen::mock {
namespace {

constexpr GrantRef kRef = 9;
constexpr ClientId kVictim = 4;

/// One domain of eight pages with grant 9, page 3, for domain 0; and two clients of domain 0.
struct Domain {
    Domain() {
        victim = {grants.get(), pins.get(), &journals[0], 8, kVictim, 0};
        other = {grants.get(), pins.get(), &journals[1], 8, 5, 0};
        grants[kRef].frame.store(3);
        grants[kRef].access.store(grant_access(kGrantPermitAccess, 0));
    }
    uint32_t flags() const { return grants[kRef].access.load() & (kGrantReading | kGrantWriting); }
    Pins now() const { return Pins::unpack(pins->entries[kRef].word.load()); }
    /// Leaves the entry as a client does that was stopped while it held the lock.
    void lock_as_victim() {
        Pins locked = now();
        locked.owner = kVictim;
        pins->entries[kRef].word.store(locked.pack());
    }
    void forget_victim() {
        const std::vector<const Journal*> others = {&journals[1]};
        forget_client(grants.get(), pins.get(), journals[0], kVictim, others);
    }

    std::unique_ptr<GrantEntry[]> grants = std::make_unique<GrantEntry[]>(kGrantEntries);
    std::unique_ptr<PinTable> pins = std::make_unique<PinTable>();
    std::unique_ptr<Journal[]> journals = std::make_unique<Journal[]>(2);
    PinSpace victim;
    PinSpace other;
};

/// What a client may have done when it is killed.
const std::vector<void (*)(Domain&)> kLastActs = {
    [](Domain& domain) { domain.lock_as_victim(); },
    [](Domain& domain) {  // the guest's entry is marked
        domain.lock_as_victim();
        domain.grants[kRef].access.fetch_or(kGrantReading | kGrantWriting);
    },
    [](Domain& domain) {  // and its own journal written
        domain.lock_as_victim();
        domain.grants[kRef].access.fetch_or(kGrantReading | kGrantWriting);
        domain.journals[0].pins[kRef].store(0x100);
    },
    [](Domain& domain) {
        REQUIRE(pin_grant(domain.victim, kRef, Access::kReadWrite).status == kGrantOkay);
    },
    [](Domain& domain) {  // about to give the pin back
        REQUIRE(pin_grant(domain.victim, kRef, Access::kReadWrite).status == kGrantOkay);
        domain.lock_as_victim();
        domain.journals[0].pins[kRef].store(0);
    },
};

TEST_CASE("mock pins: a client killed at any step of pinning leaves nothing of its own") {
    for (size_t act = 0; act < kLastActs.size() * 2; ++act) {
        CAPTURE(act);
        const bool other_reads = act % 2 != 0;
        Domain domain;
        if (other_reads) REQUIRE(pin_grant(domain.other, kRef, Access::kRead).status == kGrantOkay);
        kLastActs[act / 2](domain);
        domain.forget_victim();
        CHECK(domain.now().owner == 0);
        CHECK(domain.now().readers == (other_reads ? 1 : 0));
        CHECK(domain.now().writers == 0);
        CHECK(domain.flags() == (other_reads ? kGrantReading : 0));
        CHECK(domain.journals[0].pins[kRef].load() == 0);
        if (other_reads) unpin_grant(domain.other, kRef, Access::kRead);
        CHECK(domain.now().total() == 0);
        CHECK(domain.flags() == 0);
    }
}

TEST_CASE("mock pins: a client waits for a lock until the broker breaks it") {
    Domain domain;
    domain.lock_as_victim();
    Pinned pinned;
    std::thread waiter([&] { pinned = pin_grant(domain.other, kRef, Access::kRead); });
    domain.forget_victim();
    waiter.join();
    CHECK(pinned.status == kGrantOkay);
    CHECK(pinned.frame == 3);
}

TEST_CASE("mock pins: a client that was written off gives nothing back twice") {
    Domain domain;
    REQUIRE(pin_grant(domain.victim, kRef, Access::kRead).status == kGrantOkay);
    REQUIRE(pin_grant(domain.other, kRef, Access::kRead).status == kGrantOkay);
    domain.forget_victim();
    unpin_grant(domain.victim, kRef, Access::kRead);
    CHECK(domain.now().readers == 1);
    CHECK(domain.flags() == kGrantReading);
}

TEST_CASE("mock pins: the frame is fixed by the first pin, whatever the guest writes meanwhile") {
    Domain domain;
    REQUIRE(pin_grant(domain.victim, kRef, Access::kRead).frame == 3);
    domain.grants[kRef].frame.store(5);
    CHECK(pin_grant(domain.victim, kRef, Access::kRead).frame == 3);
    domain.grants[kRef].access.store(0);  // a guest that revokes what it promised not to
    CHECK(pin_grant(domain.victim, kRef, Access::kRead).status == kGrantOkay);
    CHECK(pin_grant(domain.victim, kRef, Access::kReadWrite).status == kGrantGeneralError);
    for (int i = 0; i < 3; ++i) unpin_grant(domain.victim, kRef, Access::kRead);
    CHECK(pin_grant(domain.victim, kRef, Access::kRead).status == kGrantGeneralError);
}

TEST_CASE("mock pins: what an entry must say") {
    Domain domain;
    GrantEntry& entry = domain.grants[kRef];
    const auto pin = [&](Access access) { return pin_grant(domain.victim, kRef, access).status; };
    entry.access.store(grant_access(kGrantPermitAccess, 3));
    CHECK(pin(Access::kRead) == kGrantGeneralError);
    for (const uint32_t type : {0u, 2u, 3u}) {
        entry.access.store(grant_access(type, 0));
        CHECK(pin(Access::kRead) == kGrantGeneralError);
    }
    entry.access.store(grant_access(kGrantPermitAccess | kGrantReadOnly, 0));
    CHECK(pin(Access::kReadWrite) == kGrantGeneralError);
    entry.access.store(grant_access(kGrantPermitAccess, 0));
    entry.frame.store(8);
    CHECK(pin(Access::kReadWrite) == kGrantBadPage);
    entry.frame.store(0xffffffff);
    CHECK(pin(Access::kRead) == kGrantBadPage);
    CHECK(domain.flags() == 0);
    CHECK(pin_grant(domain.victim, kGrantEntries, Access::kRead).status == kGrantBadRef);
    CHECK(pin_grant(domain.victim, kAny, Access::kRead).status == kGrantBadRef);
    PinSpace stranger = domain.victim;
    stranger.domain = 3;
    entry.frame.store(1);
    REQUIRE(pin(Access::kRead) == kGrantOkay);
    entry.access.store(grant_access(kGrantPermitAccess, 3));
    CHECK(pin_grant(stranger, kRef, Access::kRead).status ==
          kGrantGeneralError);  // one domain at a time
}

}  // namespace
}  // namespace vbd::xen::mock
