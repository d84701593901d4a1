// The mock hypervisor's two contracts between processes: the messages on the broker's socket, and
// the layouts of the memory that domains, their peers and the broker share. Trivial types only;
// every shared word is an atomic.
//
//   client ── Request ──► broker        SOCK_SEQPACKET, one request outstanding per connection,
//   host byte order; client ◄── Reply + descriptors ──   both ends run the same build (checked by
//   kProtocolVersion)
//
//   memory of a domain              who maps it
//     pages     page × 4096         the guest (all of it), peers (all of it for copies, single
//     pages for maps) grants    GrantEntry[32768]   the guest and its peers: Xen's grant_entry_v1
//     pins      PinTable            peers and the broker: what Xen keeps in its own active entries
//   memory of one client towards one domain
//     journal   Journal             that client and the broker, which undoes the pins of a client
//     that is killed
//   memory of the mock
//     faults    FaultTable          everybody
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/units.h"

namespace vbd::xen::mock {

inline constexpr uint32_t kProtocolVersion = 2;
inline constexpr uint32_t kGrantEntries = 32768;     // 64 grant frames, Xen's default limit
inline constexpr uint32_t kFirstGrantRef = 8;        // the first eight are the toolstack's
inline constexpr uint32_t kMaxPages = 1u << 22;      // 16 GiB, sparse
inline constexpr uint32_t kMaxPort = 4095;           // the 2-level event channel ABI
inline constexpr uint32_t kMaxPins = 128;            // of one class on one grant
inline constexpr uint32_t kMaxMapCount = 64 * 1024;  // gntdev's limit of one map call

/// Names a connection to the broker while it lasts; it owns locks and pins. 0 is nobody.
using ClientId = uint16_t;
inline constexpr ClientId kBrokerClient = 0xffff;

// ---- grant table ----

inline constexpr uint32_t kGrantTypeMask = 3;
inline constexpr uint32_t kGrantPermitAccess = 1;
inline constexpr uint32_t kGrantReadOnly = 1u << 2;
inline constexpr uint32_t kGrantReading = 1u << 3;  // set by the hypervisor while pinned
inline constexpr uint32_t kGrantWriting = 1u << 4;  // set by the hypervisor while pinned writable

struct GrantEntry {
    std::atomic<uint32_t>
        access;  // flags in the low half, the domain it is granted to in the high half
    std::atomic<uint32_t> frame;
};
static_assert(sizeof(GrantEntry) == 8 && std::atomic<uint32_t>::is_always_lock_free);

inline constexpr uint32_t grant_access(uint32_t flags, DomainId domain) {
    return flags | (uint32_t{domain} << 16);
}

// ---- pins ----

enum DomainState : uint32_t { kAlive = 0, kDying = 1, kGone = 2 };

/// What one PinEntry word says. `owner` is the client that holds the entry's lock.
struct Pins {
    uint8_t readers = 0;
    uint8_t writers = 0;
    DomainId mapper = 0;  // the one domain that pins; meaningful while pinned
    ClientId owner = 0;

    uint32_t total() const { return uint32_t{readers} + writers; }
    uint64_t pack() const {
        return uint64_t{readers} | uint64_t{writers} << 8 | uint64_t{mapper} << 16 |
               uint64_t{owner} << 32;
    }
    static Pins unpack(uint64_t word) {
        return Pins{static_cast<uint8_t>(word), static_cast<uint8_t>(word >> 8),
                    static_cast<DomainId>(word >> 16), static_cast<ClientId>(word >> 32)};
    }
};

struct PinEntry {
    std::atomic<uint64_t> word;  // Pins
    std::atomic<uint32_t>
        frame;  // the page that is pinned, whatever the guest writes into its entry meanwhile
    uint32_t unused;
};
static_assert(sizeof(PinEntry) == 16 && std::atomic<uint64_t>::is_always_lock_free);

struct PinTable {
    std::atomic<uint32_t> state;  // DomainState; written by the broker only
    uint32_t unused[1023];
    PinEntry entries[kGrantEntries];
};

/// One client's share of the pins of one domain: readers in the low byte, writers in the next.
/// Changed only under the lock of the same reference's PinEntry, so that the sum over all journals
/// is the truth.
struct Journal {
    std::atomic<uint32_t> pins[kGrantEntries];
};

// ---- faults ----

enum class FaultCall : uint32_t { kNone, kMap, kUnmap, kCopy, kBind, kNotify, kAllocUnbound };
inline constexpr uint32_t kAny = 0xffffffff;
inline constexpr uint32_t kMaxFaults = 64;

struct FaultRule {
    std::atomic<uint32_t> call;    // FaultCall
    std::atomic<uint32_t> domain;  // or kAny
    std::atomic<uint32_t> ref;     // or kAny
    std::atomic<int32_t> errno_code;
    std::atomic<int32_t> status;
    std::atomic<uint32_t> skip;
    std::atomic<uint32_t> count;  // or kAny: for ever
    std::atomic<uint32_t> hits;
    std::atomic<uint32_t> delay_ms;
};

/// Two banks: the broker fills the idle one, then switches, so that no caller sees half of a new
/// set.
struct FaultTable {
    std::atomic<uint32_t> bank;
    struct Bank {
        std::atomic<uint32_t> rules;
        FaultRule rule[kMaxFaults];
    } banks[2];
};

// ---- messages ----

enum class Verb : uint32_t {
    kHello,  // domain: our own; a: kProtocolVersion; b: role; c: pages → value: pages | faults [,
             // pages, grants]
    kOpenDomain,    // domain → value: pages | pages, grants, pins, journal
    kAllocUnbound,  // domain: who may bind → value: port | ours, theirs
    kBind,          // domain, a: its port → value: local port | ours, theirs
    kClosePort,     // a: port
    kReap,          // domain; no reply: we unpinned something of a dying domain
};

enum class Role : uint32_t { kPeer, kGuest };

struct Request {
    Verb verb;
    uint32_t domain;
    uint32_t a;
    uint32_t b;
    uint32_t c;
};

struct Reply {
    int32_t errno_code;  // 0: done
    uint32_t value;
    uint32_t client;  // of kHello
};

inline constexpr size_t kMaxDescriptors = 4;

}  // namespace vbd::xen::mock
