// EventChannel: one interdomain event channel port bound on its own descriptor. One handle belongs
// to one thread, but notify() may be called from any.
//
// The semantics are /dev/xen/evtchn's: a delivered event stays masked until unmask(), further
// notifications coalesce into one pending event that fires again at the unmask; binding leaves one
// event pending; a peer that closes or dies sends nothing, and notify() towards it is silently
// dropped.
#pragma once

#include "base/result.h"
#include "base/units.h"

namespace vbd::xen {

class EventChannel {
  public:
    virtual ~EventChannel() = default;  // unbinds

    /// Pollable: readable while an event is pending and not masked.
    virtual int fd() const = 0;

    /// Takes the pending event, if there is one; it is then masked. Never blocks.
    virtual bool take_pending() = 0;

    /// Lets the next event through. Only after the ring was drained.
    virtual void unmask() = 0;

    virtual void notify() = 0;

    virtual Port local_port() const = 0;
};

}  // namespace vbd::xen
