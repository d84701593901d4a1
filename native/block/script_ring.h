// The memory that a script channel shares with its script: two rings of slot numbers, and a table of
// descriptors. The script's end (lib/engine/script/ring.ts) has the same numbers.
//
//   native ─► submissions (slot, or slot | kAbort) ─► script ─► answers (slot, error) ─► native
//
// Each index runs freely and has one writer; a ring is longer than everything that can be on it, so
// that neither end ever waits. `armed` is the script's "ring me before you sleep on it", the same
// idea as a Xen ring's req_event: it is set by the script, and taken back by whoever rings.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace vbd::block {

/// One cache line for each index, so that the two ends do not fight over them.
struct alignas(64) ScriptIndex {
    std::atomic<uint32_t> value{0};
};

struct ScriptIndices {
    ScriptIndex submitted;  // written by native
    ScriptIndex taken;      // written by the script
    ScriptIndex answered;   // written by the script
    ScriptIndex consumed;   // written by native
    ScriptIndex armed;      // 1: the script wants its doorbell rung
};
static_assert(sizeof(ScriptIndices) == 320);

/// The same of a DiskClient, where the script is the one that submits.
struct ClientIndices {
    ScriptIndex submitted;     // written by the script
    ScriptIndex taken;         // written by native
    ScriptIndex answered;      // written by native
    ScriptIndex consumed;      // written by the script
    ScriptIndex script_armed;  // 1: the script wants its doorbell rung
    ScriptIndex native_armed;  // 1: the client's thread wants to be kicked
};
static_assert(sizeof(ClientIndices) == 384);

/// One request, as the script sees it. Written by native before its slot is submitted, constant
/// until the slot is answered.
struct ScriptDescriptor {
    uint32_t op;      // IoOp
    uint32_t flags;   // kScriptFua
    double offset;    // bytes; doubles are what JavaScript reads without a detour
    double length;    // bytes
    uint32_t client;  // ScriptChannel::client_name
    uint32_t tag;     // counts up
    uint32_t reserved[8];
};
static_assert(sizeof(ScriptDescriptor) == 64);
static_assert(offsetof(ScriptDescriptor, offset) == 8 && offsetof(ScriptDescriptor, client) == 24);

struct ScriptAnswer {
    uint32_t slot;
    uint32_t error;  // 0 or an errno
};

inline constexpr uint32_t kScriptFua = 1;
/// In a submission: the answer is no longer wanted.
inline constexpr uint32_t kScriptAbort = 0x8000'0000;
/// Of memory that a request may have in one piece; longer ones are cut.
inline constexpr uint32_t kScriptSlotBytes = 1u << 20;
inline constexpr uint32_t kScriptMaxSlots = 256;

}  // namespace vbd::block
