// ScriptChannel: hands a disk's requests to a script on another thread and takes its answers back, in
// batches both ways. Knows nothing of JavaScript: the script's end is whoever reads the rings
// (script_ring.h), rings are rung through a function.
//
//   reactors ── admit ─► granted: the Io has a slot and its memory ── publish ─► the script
//       ▲         └────► waiting_: `concurrency` others are at the script             │
//       └──── IoContext::resume_from_thread ◄── kick(): answers, one lock a batch ◄───┘
//
// A slot is a request's place at the script: its descriptor and its private memory, which no guest
// can reach. A request that passes its deadline fails and leaves its slot behind (kAbandoned) until
// the script answers, however late: what it then writes is nobody else's memory.
//
// Threads: reactors call admit, publish and release; the script's thread attach, kick and detach;
// the watchdog of the channel looks for deadlines. One mutex guards it all, taken once a batch.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/thread.h"
#include "block/device.h"
#include "block/io_context.h"
#include "block/script_ring.h"

namespace vbd::block {

/// What the channel has to know of the queue that an Io is from (Io::queue).
class ScriptClient : public DeviceQueue {
  public:
    ScriptClient(IoContext& context, uint32_t client) : context_(context), client_(client) {}
    IoContext& context() const { return context_; }
    uint32_t client() const { return client_; }

  protected:
    IoContext& context_;
    uint32_t client_;
};

class ScriptChannel {
  public:
    struct Options {
        uint32_t concurrency = 32;              // 1..kScriptMaxSlots requests at the script
        uint64_t deadline_ns = 30'000'000'000;  // for each
    };

    /// A request that the script did not answer in time.
    struct Overdue {
        IoOp op;
        uint64_t offset;
        uint64_t length;
        std::string client;
    };

    /// `on_overdue` is called on the watchdog's thread. Errors: kInvalidArgument, kNoMemory.
    static Result<std::shared_ptr<ScriptChannel>> create(
        const Options& options, std::function<void(const Overdue&)> on_overdue);
    ~ScriptChannel();  // nothing is in flight
    ScriptChannel(const ScriptChannel&) = delete;
    ScriptChannel& operator=(const ScriptChannel&) = delete;

    // ---- the script's thread

    /// From now on `bell` is called, under the lock and on any thread, when there is something to
    /// take and the script had armed itself. False: the channel has had its script already.
    bool attach(std::function<void()> bell);

    /// Takes the answers that are on the ring.
    void kick();

    /// The script is gone and cannot touch its memory any more: everything it has fails with EIO,
    /// and so does all that comes. Idempotent.
    void detach();

    std::string client_name(uint32_t client);
    uint32_t slots() const { return static_cast<uint32_t>(slots_.size()); }
    uint32_t submission_entries() const { return submission_entries_; }
    uint32_t answer_entries() const { return answer_entries_; }
    /// ScriptIndices, submissions, answers, descriptors: one after the other.
    iovec control() const { return control_; }
    /// slots() times kScriptSlotBytes.
    iovec pool() const { return pool_; }

    // ---- reactors, through a ScriptQueue

    /// The number by which the script learns whose request it is; one for each name.
    uint32_t client(std::string_view name);

    /// Gives each Io of the list a slot, and moves it to `granted`; those for which there is none
    /// wait. Io::queue is set, a ScriptClient. Ios of a script that is gone are in `granted`
    /// without a slot, failed.
    void admit(IoList& ios, IoList& granted);

    /// False: the Io failed with Io::error.
    static bool has_slot(const Io& io) { return io.scratch != 0; }

    /// Of the Io's slot: kScriptSlotBytes.
    uint8_t* memory(const Io& io) const {
        return static_cast<uint8_t*>(pool_.iov_base) + (io.scratch - 1) * kScriptSlotBytes;
    }

    /// True: the Io comes back from the script, with this answer. False: it got its slot just now.
    bool is_answered(const Io& io, int32_t& error) const {
        const Slot& slot = slots_[io.scratch - 1];
        error = static_cast<int32_t>(slot.error);
        return slot.state.load(std::memory_order_relaxed) == State::kAnswered;
    }

    /// A piece of an Io, whose slot's memory is ready.
    struct Published {
        Io* io;
        uint64_t offset;  // bytes
        uint64_t length;  // bytes
        uint32_t client;
    };

    /// Takes back the slots of `done`, submits `pieces`, and grants the slots that are free to
    /// whoever waits: those of `context` are in `granted` then, as in admit(), and so is every piece
    /// that the script is not there for any more.
    void turn(std::span<Io* const> done, std::span<const Published> pieces, IoContext& context,
              IoList& granted);

  private:
    enum class State : uint8_t {
        kFree,
        kGranted,    // an Io's, on its reactor
        kRunning,    // the script's
        kAnswered,   // an Io's, on its reactor
        kAbandoned,  // the script's, and nobody waits for it
    };
    struct Slot {
        Io* io = nullptr;
        uint64_t deadline_ns = 0;
        uint32_t error = 0;
        uint32_t client = 0;
        std::atomic<State> state{State::kFree};  // the reactor that has it looks without the lock
    };
    /// Ios to hand over, by the context that they are of.
    struct Outbox {
        IoContext* context;
        IoList ios;
    };

    ScriptChannel() = default;
    ScriptIndices& indices() const { return *static_cast<ScriptIndices*>(control_.iov_base); }

    // Under the lock.
    void grant(Io* io);
    Io* grant_next();
    void give_back(uint32_t index);
    void submit(uint32_t entry);
    void ring();
    void fail(Io* io, int32_t error);
    void put(Io* io);
    void send();
    void wake_watchdog();
    void fail_overdue(uint64_t now_ns, std::vector<Overdue>& found);

    void watch();

    iovec control_{};
    iovec pool_{};
    uint32_t submission_entries_ = 0;
    uint32_t answer_entries_ = 0;
    uint32_t* submissions_ = nullptr;
    ScriptAnswer* answers_ = nullptr;
    ScriptDescriptor* descriptors_ = nullptr;
    uint64_t deadline_ns_ = 0;
    std::function<void(const Overdue&)> on_overdue_;

    std::mutex mutex_;  // guards all below; a slot only while it is the script's or free
    std::vector<Slot> slots_;
    std::vector<uint32_t> free_;  // last in, first out: their memory is warm
    IoList waiting_;              // Io::scratch: its deadline
    std::vector<Outbox> outbox_;  // empty but within a call
    std::vector<std::string> clients_;
    std::function<void()> bell_;
    uint32_t at_script_ = 0;  // slots kRunning
    uint32_t abandoned_ = 0;  // slots kAbandoned
    uint32_t tag_ = 0;
    bool attached_ = false;
    bool detached_ = false;
    bool stopping_ = false;
    bool watchdog_idle_ = true;
    std::condition_variable watchdog_wakes_;
    Thread watchdog_;
};

}  // namespace vbd::block
