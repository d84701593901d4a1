// Queue: one ring's pipeline, from the guest's slot to its response. Lives on one reactor's thread
// and owns all that the ring needs: its mapping, event channel, grant handle, in-flight table,
// transfer and the device's queue.
//
//   pass():  reap the device ─► finish ─► respond
//            consume ─► parse ─► prepare (one grant call) ─► submit (one device call)
//            publish once, notify at most once
//
//   A request waits in one of these places and nowhere else:
//     resumed_       taken by a process that died, and not begun here
//     the ring       not consumed: no room in the in-flight budget, or a barrier is under way
//     stalled_       consumed, but over the budget; nothing else is consumed meanwhile
//     barrier_       a barrier that waits for everything before it
//     the device     counted by at_device_
//     a map group    done, waiting for the unmap that others' requests delay
//     nowhere        a flush that failed: it is never answered
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "blkif/ring.h"
#include "engine/guest_call.h"
#include "engine/journal.h"
#include "engine/vbd_shared.h"
#include "memory/in_flight.h"
#include "memory/page_pool.h"
#include "memory/transfer.h"
#include "xen/xen.h"

namespace vbd::engine {

/// What a reactor lends to its queues.
struct ReactorServices {
    block::IoContext* io = nullptr;
    memory::PagePool* pool = nullptr;
    memory::TransferScratch* scratch = nullptr;
    GuestCall* guest_call = nullptr;
};

/// What became of the backend that served these rings before us, in another process. kDrained: it
/// answered all that it took. kIdle: it may have died at any moment, so that only a ring without
/// requests can be gone on with: what it took and did not answer cannot be told from the rest.
/// kJournaled: likewise, but it noted that in a journal.
enum class TakeOver : uint8_t { kNone, kDrained, kIdle, kJournaled };

class Queue {
  public:
    struct Options {
        uint32_t index = 0;
        DomainId domain = 0;
        blkif::Protocol protocol = blkif::Protocol::kNative;
        std::vector<GrantRef> ring_refs;
        Port remote_port = 0;
        memory::Strategy strategy = memory::Strategy::kCopy;
        TakeOver take_over = TakeOver::kNone;
        /// Where to note what is taken and not answered, and the rings' name in it; "": nowhere.
        std::string journal;
        std::string journal_rings;
    };

    /// Maps the ring, binds the port, opens the device's queue; on the reactor's thread. On an
    /// Error nothing stays mapped or bound. Does not touch the ring before start().
    static Result<std::unique_ptr<Queue>> open(const Options& options,
                                               std::shared_ptr<VbdShared> shared, xen::Xen& xen,
                                               const ReactorServices& services);
    ~Queue();

    void start();

    /// One turn, bounded by the ring's size. `alone`: no other ring of this reactor is busy. True:
    /// something was done.
    bool pass(uint64_t now_ns, bool alone);

    /// True when finished I/O waits for a pass().
    bool has_completions() const { return device_->has_completions(); }

    /// Before sleeping: lets the next event through and asks the frontend for it. False: there is
    /// work, poll on. An armed queue needs no pass() until wake().
    bool arm(uint64_t now_ns);
    bool armed() const { return armed_; }
    void wake() {
        if (!armed_) return;
        armed_ = false;
        counters_.wakeups.add();
    }

    /// The event descriptor became readable.
    void on_event();

    /// When a delayed unmask is due, or another look at an empty pool; UINT64_MAX: neither.
    /// Then end_unmask_delay(), and a pass.
    uint64_t unmask_due_ns() const { return unmask_due_ns_; }
    void end_unmask_delay();

    /// Persistent grants are held: tick() is wanted every 100 ms.
    bool wants_ticks() const { return transfer_->persistent_grants() > 0; }
    void tick(uint64_t now_ns);

    /// Stops taking requests. Once drained() everything taken was answered (but failed flushes),
    /// and the queue may go.
    void begin_close() {
        closing_ = true;
        device_->hurry();
    }
    bool closing() const { return closing_; }
    bool drained() const {
        return at_device_ == 0 && !stalled_ && !barrier_ && !resuming() && device_->idle();
    }

    int event_fd() const { return channel_->fd(); }
    QueueSlot& slot() { return *shared_->slots[options_.index]; }
    uint64_t last_work_ns() const { return last_work_ns_; }
    bool corrupt() const { return corrupt_; }

  private:
    Queue(const Options& options, std::shared_ptr<VbdShared> shared);

    Status open_journal();
    bool resuming() const { return !resumed_.empty() && !corrupt_; }
    bool take_slot(blkif::RawSlot& slot, uint32_t& journal_entry);
    void respond(memory::InFlight* item, int16_t status);
    bool reap(uint64_t now_ns);
    bool consume(uint64_t now_ns);
    bool may_consume();
    uint32_t take_requests(const blkif::Limits& limits, uint64_t now_ns);
    bool admit(memory::InFlight* item);
    void start_batch(uint32_t count, const blkif::Limits& limits, uint64_t now_ns);
    void issue(memory::InFlight* item);
    void submit_issued();
    void advance(memory::InFlight* item);
    void refuse(memory::InFlight* item, blkif::Reject reject);
    void answer(memory::InFlight* item, uint64_t now_ns);
    void account(const memory::InFlight* item, int16_t status, uint64_t now_ns);
    void trace(const memory::InFlight* item, int16_t status, uint64_t now_ns);
    void publish();
    void hold_flush(memory::InFlight* item);
    void refuse_after_failed_flush(memory::InFlight* item);
    /// Nothing but reads is begun, and no flush trusted, once one has failed.
    bool flush_failed() const { return shared_->flush_failed.load(std::memory_order_relaxed); }
    bool run_barrier(uint64_t now_ns);
    bool others_quiet() const;
    bool gate_closed() const;
    void release_barrier();
    void set_busy(bool busy);
    blkif::Limits limits() const;

    const Options options_;
    std::shared_ptr<VbdShared> shared_;
    QueueCounters& counters_;
    TraceRing& trace_;
    ReactorServices services_;
    std::unique_ptr<xen::GrantTable> grants_;
    void* ring_address_ = nullptr;
    std::unique_ptr<xen::EventChannel> channel_;
    std::unique_ptr<block::DeviceQueue> device_;
    std::unique_ptr<memory::Transfer> transfer_;
    blkif::BackRing ring_;
    memory::InFlightTable table_;
    Journal journal_;
    std::vector<uint32_t> resumed_;  // entries of it that a dead process had taken, last first
    bool several_rings_ = false;
    uint32_t batch_limit_ = 0;  // requests that this pass takes

    std::vector<memory::InFlight*> batch_;
    std::vector<block::Io*> issued_;
    memory::InFlightList done_;
    memory::InFlight* stalled_ = nullptr;
    memory::InFlight* barrier_ = nullptr;
    bool barrier_running_ = false;
    bool started_ = false;
    bool closing_ = false;
    bool corrupt_ = false;
    bool busy_ = false;
    uint32_t at_device_ = 0;  // requests started and not answered
    uint64_t in_flight_bytes_ = 0;
    uint64_t pass_pages_ = 0;  // pool pages promised to the batch being taken
    bool starved_ = false;     // the pool had no pages for the request that waits

    bool armed_ = false;
    bool event_taken_ = false;  // the port is masked until unmask
    bool work_since_event_ = false;
    uint32_t spurious_in_row_ = 0;
    uint64_t unmask_due_ns_ = UINT64_MAX;
    uint64_t last_work_ns_ = 0;
};

}  // namespace vbd::engine
