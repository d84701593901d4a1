#include "xen/mock_pins.h"

#include <sched.h>

#include <chrono>

namespace vbd::xen::mock {
namespace {

/// The lock is held for some tens of nanoseconds. An owner that was killed is cleaned up by the
/// broker; only when the broker is dead as well does nobody release it, and then waiting ends after
/// this long.
constexpr auto kLockPatience = std::chrono::seconds(10);
constexpr int kSpinsBeforeYield = 64;

/// Takes the entry's lock. False: it could not be had.
bool lock_entry(PinEntry& entry, ClientId client, Pins& pins) {
    std::chrono::steady_clock::time_point deadline;
    for (uint32_t tries = 0;; ++tries) {
        uint64_t word = entry.word.load(std::memory_order_relaxed);
        pins = Pins::unpack(word);
        if (pins.owner == 0) {
            Pins locked = pins;
            locked.owner = client;
            if (entry.word.compare_exchange_weak(word, locked.pack(), std::memory_order_seq_cst))
                return true;
            continue;
        }
        if (tries < kSpinsBeforeYield) continue;
        if (tries == kSpinsBeforeYield) deadline = std::chrono::steady_clock::now() + kLockPatience;
        if (tries % 1024 == 0 && std::chrono::steady_clock::now() > deadline) return false;
        ::sched_yield();
    }
}

/// Releases the lock and publishes `pins` in one store. Sequentially consistent, as is the broker's
/// store of kDying: either the broker's scan sees the last pin gone, or whoever unpinned it sees
/// the domain dying and tells the broker.
void unlock_entry(PinEntry& entry, Pins pins) {
    pins.owner = 0;
    entry.word.store(pins.pack(), std::memory_order_seq_cst);
}

int16_t set_status(GrantEntry& entry, DomainId domain, bool write) {
    uint32_t seen = entry.access.load(std::memory_order_acquire);
    for (int tries = 0; tries < 5; ++tries) {
        if ((seen & kGrantTypeMask) != kGrantPermitAccess || seen >> 16 != domain)
            return kGrantGeneralError;
        if (write && (seen & kGrantReadOnly) != 0) return kGrantGeneralError;
        const uint32_t next = seen | kGrantReading | (write ? kGrantWriting : 0);
        if (entry.access.compare_exchange_strong(seen, next, std::memory_order_acq_rel))
            return kGrantOkay;
    }
    return kGrantGeneralError;  // a guest that keeps changing its entry gets no further attention
}

void clear_status(GrantEntry& entry, const Pins& pins) {
    uint32_t gone = 0;
    if (pins.writers == 0) gone |= kGrantWriting;
    if (pins.total() == 0) gone |= kGrantReading;
    if (gone != 0) entry.access.fetch_and(~gone, std::memory_order_acq_rel);
}

/// With the lock held: checks everything and counts the pin into `pins`.
Pinned pin_locked(const PinSpace& space, GrantRef ref, bool write, Pins& pins) {
    PinEntry& entry = space.pins->entries[ref];
    GrantEntry& grant = space.grants[ref];
    const uint32_t state = space.pins->state.load(std::memory_order_seq_cst);
    if (state == kGone) return {kGrantBadDomain, 0};
    const bool first = pins.total() == 0;
    if (first && state == kDying) return {kGrantBadPage, 0};  // its pages are given back already
    if (!first && pins.mapper != space.domain) return {kGrantGeneralError, 0};
    if ((write ? pins.writers : pins.readers) >= kMaxPins) return {kGrantGeneralError, 0};
    if (first || (write && pins.writers == 0)) {
        if (const int16_t status = set_status(grant, space.domain, write); status != kGrantOkay)
            return {status, 0};
    }
    const uint32_t frame = (first ? grant.frame : entry.frame).load(std::memory_order_acquire);
    if (frame >= space.pages) {
        clear_status(grant, pins);
        return {kGrantBadPage, 0};
    }
    entry.frame.store(frame, std::memory_order_release);
    pins.mapper = space.domain;
    ++(write ? pins.writers : pins.readers);
    space.journal->pins[ref].fetch_add(write ? 0x100 : 1, std::memory_order_relaxed);
    return {kGrantOkay, frame};
}

}  // namespace

Pinned pin_grant(const PinSpace& space, GrantRef ref, Access access) {
    if (ref >= kGrantEntries) return {kGrantBadRef, 0};
    Pins pins;
    if (!lock_entry(space.pins->entries[ref], space.client, pins)) return {kGrantGeneralError, 0};
    const Pinned result = pin_locked(space, ref, access == Access::kReadWrite, pins);
    unlock_entry(space.pins->entries[ref], pins);
    return result;
}

void unpin_grant(const PinSpace& space, GrantRef ref, Access access) {
    VBD_CHECK(ref < kGrantEntries);
    PinEntry& entry = space.pins->entries[ref];
    const bool write = access == Access::kReadWrite;
    Pins pins;
    if (!lock_entry(entry, space.client, pins))
        return;  // broker and lock owner are dead: nobody counts any more
    const uint32_t ours = space.journal->pins[ref].load(std::memory_order_relaxed);
    if ((write ? ours >> 8 : ours & 0xff) !=
        0) {  // 0 only after the broker wrote this connection off
        --(write ? pins.writers : pins.readers);
        space.journal->pins[ref].fetch_sub(write ? 0x100 : 1, std::memory_order_relaxed);
    }
    clear_status(space.grants[ref], pins);
    unlock_entry(entry, pins);
}

void forget_client(GrantEntry* grants, PinTable* pins, Journal& dead_journal, ClientId dead,
                   std::span<const Journal* const> others) {
    for (GrantRef ref = 0; ref < kGrantEntries; ++ref) {
        PinEntry& entry = pins->entries[ref];
        Pins now = Pins::unpack(entry.word.load(std::memory_order_acquire));
        if (now.owner != dead) {
            if (dead_journal.pins[ref].load(std::memory_order_relaxed) == 0) continue;
            if (!lock_entry(entry, kBrokerClient, now)) continue;
        }
        dead_journal.pins[ref].store(0, std::memory_order_relaxed);
        uint32_t readers = 0;
        uint32_t writers = 0;
        for (const Journal* journal : others) {
            const uint32_t held = journal->pins[ref].load(std::memory_order_relaxed);
            readers += held & 0xff;
            writers += held >> 8;
        }
        now.readers = static_cast<uint8_t>(readers);
        now.writers = static_cast<uint8_t>(writers);
        clear_status(grants[ref], now);
        unlock_entry(entry, now);
    }
}

uint32_t count_pins(const PinTable& pins) {
    uint32_t total = 0;
    for (const PinEntry& entry : pins.entries) {
        total += Pins::unpack(entry.word.load(std::memory_order_relaxed)).total();
    }
    return total;
}

bool any_pin(const PinTable& pins, GrantRef& hint) {
    const auto held = [&pins](GrantRef ref) {
        const Pins now = Pins::unpack(pins.entries[ref].word.load(std::memory_order_seq_cst));
        return now.total() != 0 || now.owner != 0;
    };
    if (held(hint)) return true;
    for (GrantRef ref = 0; ref < kGrantEntries; ++ref) {
        if (held(ref)) {
            hint = ref;
            return true;
        }
    }
    return false;
}

}  // namespace vbd::xen::mock
