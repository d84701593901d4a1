// VbdShared: what the rings of one vbd share, on whatever reactors they live. Immutable, or atomic.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/units.h"
#include "blkif/wire.h"
#include "block/device.h"
#include "engine/counters.h"
#include "engine/trace_ring.h"
#include "memory/transfer.h"

namespace vbd::engine {

class Mailbox;
class Queue;

enum class TransferChoice : uint8_t { kAuto, kPersistent, kCopy, kMap };

/// What the vbd offers; constant.
struct Features {
    TransferChoice transfer = TransferChoice::kAuto;
    uint32_t max_indirect_segments = 256;
    bool flush = true;
    bool barrier = true;
    bool discard = false;
    bool secure_discard = false;
    bool read_only = false;  // for this guest, whatever the disk allows
};

/// Settings that may change at any time; read once per pass.
struct Tunables {
    std::atomic<uint32_t> max_persistent_grants{1056};
    std::atomic<uint32_t> persistent_idle_ms{60'000};
    std::atomic<uint64_t> max_in_flight_bytes{64u << 20};
};

struct Event {
    enum class Type : uint8_t { kRingCorrupt, kFlushFailed };
    Type type;
    uint32_t queue;
    std::string message;
};

/// One ring's place in the barrier protocol and its doorbell.
struct QueueSlot {
    std::atomic<bool> busy{false};    // may have requests at the device
    std::atomic<bool> kicked{false};  // another ring changed something this one waits for
    Mailbox* mailbox = nullptr;       // of its reactor; set before the queues start
};

struct VbdShared {
    std::string name;  // "1:51712"
    block::Device* device = nullptr;  // changes only while there are no queues
    std::shared_ptr<block::Device> device_owner;
    Features features;
    Tunables tunables;
    std::function<void(Event)> on_event;  // called on reactor threads

    /// A flush failed: no write is trusted to become durable any more.
    std::atomic<bool> flush_failed{false};

    /// Requests of the last connection that were taken and never answered, and one more for each
    /// ring that broke: whole once its queues are gone.
    std::atomic<uint32_t> unanswered{0};

    /// A barrier holds the gate from the moment it waits for the others' requests until it is done.
    /// Dekker's protocol: a ring sets busy, then reads the gate; the barrier sets the gate, then
    /// reads every busy.
    std::atomic<Queue*> barrier_owner{nullptr};
    std::vector<std::unique_ptr<QueueSlot>>
        slots;  // of the present connection; constant while queues exist

    /// One per ring index, kept over connections.
    std::vector<std::unique_ptr<QueueCounters>> counters;
    std::vector<std::unique_ptr<TraceRing>> traces;
    bool tracing = false;  // the control thread's: of rings to come

    void kick_others(uint32_t self);
};

}  // namespace vbd::engine
