// Pinning grants: the hypervisor's side of a grant table, played by every peer itself on memory
// that all peers share.
//
// A pin is taken and given back under the lock of the reference's PinEntry, a word that also names
// the lock's owner. Each client writes its share into its own Journal under the same lock, so the
// pins of a client that was killed at any instruction can be computed away: what remains is the sum
// over the other clients' journals.
//
// The rules are Xen's (xen/common/grant_table.c, version 1 entries): the flags GTF_reading and
// GTF_writing are set in the guest's own entry by compare-and-exchange, five tries, and drop with
// the last pin of their class; one domain at a time pins a grant; the frame is fixed by the first
// pin; a pinned grant of a dying domain can be pinned again, no other.
#pragma once

#include <cstdint>
#include <span>

#include "xen/grant_table.h"
#include "xen/mock_protocol.h"

namespace vbd::xen::mock {

/// The memory that pinning works on. All of it outlives the user.
struct PinSpace {
    GrantEntry* grants = nullptr;
    PinTable* pins = nullptr;
    Journal* journal = nullptr;  // ours
    uint32_t pages = 0;          // of the domain
    ClientId client = 0;         // we
    DomainId domain = 0;         // our domain
};

struct Pinned {
    int16_t status = kGrantGeneralError;
    uint32_t frame = 0;
};

/// Pins one grant. Any thread. Status: bad_gntref, bad_page, bad_domain (the domain is gone),
/// general_error.
Pinned pin_grant(const PinSpace& space, GrantRef ref, Access access);

/// Gives one pin back that pin_grant() gave with the same access.
void unpin_grant(const PinSpace& space, GrantRef ref, Access access);

/// Broker: undoes everything that client `dead` holds in one domain, and empties its journal, so
/// that a client which was only cut off gives nothing back twice. `others` are the journals of all
/// living clients.
void forget_client(GrantEntry* grants, PinTable* pins, Journal& dead_journal, ClientId dead,
                   std::span<const Journal* const> others);

/// The pins of all clients on one domain, those of taken locks included.
uint32_t count_pins(const PinTable& pins);

/// Whether anything of the domain is pinned or being pinned; looks at `hint` first and leaves there
/// what it found.
bool any_pin(const PinTable& pins, GrantRef& hint);

}  // namespace vbd::xen::mock
