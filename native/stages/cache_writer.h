// CacheWriter: the thread that brings what a cache holds to the disk below, with a queue of that disk of
// its own. It does one job at a time:
//
//   flush       write everything back that was dirty when it began, then flush the disk below
//   write back  the same without the flush: when half of the cache is dirty, when something has been
//               dirty for long, when a write finds no room
//   discard     have the disk below discard, then forget what was cached of it; nothing is on its way
//               down meanwhile, so nothing that is discarded comes back
//   act         what the control thread wants done while nothing is on its way down
//
// What could not be written stays dirty, and is tried again: by the next flush, and once a second. A
// flush is answered with its error. Once the disk below failed a flush, nobody knows what of it is
// durable: every later flush fails, and so does every write.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "base/fd.h"
#include "base/thread.h"
#include "block/io_context.h"
#include "stages/cache_store.h"
#include "stages/slots.h"

namespace vbd::stages {

class CacheWriter {
  public:
    /// `write_back_ns`: for how long something may be dirty while nobody flushes.
    CacheWriter(CacheStore& store, block::Device& below, uint64_t write_back_ns);
    ~CacheWriter();

    Status start();

    // Reactors.

    /// Has a flush or a discard done: `io` comes back through `context`, in which it counts as in flight.
    void push(block::IoContext& context, block::Io* io);
    /// Hands `waiter` back through resume_list() once a write may find room, or never will: then error()
    /// is set.
    void wait_for_room(block::IoContext& context, block::Io* waiter);
    /// A block became dirty.
    void note_dirtied();
    /// Why nothing can be written back now, an errno; 0: it can.
    int32_t error() const { return error_.load(std::memory_order_acquire); }
    bool flush_failed() const { return flush_failed_.load(std::memory_order_acquire); }

    // The control thread.

    /// Runs `act` on the thread, and waits for it.
    Status run(std::function<Status()> act);
    void set_write_back_ns(uint64_t ns);
    uint64_t write_back_ns() const { return write_back_ns_.load(); }
    /// Writes everything back, and ends the thread. Error: what is lost with it.
    Status stop();

    std::atomic<uint64_t> written_bytes{0};
    std::atomic<uint64_t> failed_writes{0};

  private:
    static constexpr uint32_t kPieces = 32;
    static constexpr uint32_t kPieceBlocks = 32;
    static constexpr uint32_t kMostDiscards = 32;
    static constexpr uint32_t kMostDirty = 32768;  // of one round

    enum class Job { kNone, kFlush, kWriteBack, kDiscard, kAct };

    /// A run of dirty sectors on its way down.
    struct Piece {
        block::Io io;
        iovec part;
        uint8_t* buffer;
        uint32_t blocks;
        uint32_t entries[kPieceBlocks];
        CacheStore::Run runs[kPieceBlocks];
        Piece* next_free;
    };

    Status open();
    void main();
    void serve();
    bool begin_job();
    Job next_job();
    bool go_on();
    bool write_round();
    bool write_piece();
    void send_below();
    void collect_finished();
    void finish_piece(Piece& piece);
    void end_job(int32_t error);
    void give_rooms_back();
    bool wants_write_back();
    void wake();
    void sleep();
    uint64_t due_ns();

    CacheStore& store_;
    block::Device& below_;
    std::atomic<uint64_t> write_back_ns_;
    Thread thread_;
    Fd wake_fd_;
    std::atomic<bool> asleep_{false};
    std::atomic<bool> told_{false};  // something is in what the mutex guards
    std::atomic<int32_t> error_{0};
    std::atomic<bool> flush_failed_{false};

    std::mutex mutex_;  // guards these
    std::condition_variable changed_;
    block::IoList flushes_;
    block::IoList discards_;
    block::IoList waiters_;
    std::function<Status()> act_;
    std::optional<Status> outcome_;  // of start, of act_, or of the end
    bool started_ = false;
    bool stopping_ = false;

    // The thread's own.
    std::unique_ptr<block::IoContext> context_;
    std::unique_ptr<block::DeviceQueue> queue_;
    std::unique_ptr<uint8_t[], void (*)(void*)> buffers_;
    Slots<Piece> pieces_{kPieces};
    std::vector<CacheStore::Dirty> dirty_;  // of this round, in order
    size_t next_dirty_ = 0;
    std::vector<block::Io> below_ios_;  // the flush, or discards
    Job job_ = Job::kNone;
    Job last_job_ = Job::kNone;
    bool flushes_below_ = false;
    bool sent_below_ = false;  // the job's own requests
    block::IoList job_ios_;
    uint32_t job_epoch_ = 0;
    int32_t job_error_ = 0;
    uint32_t in_flight_ = 0;
    uint64_t dirty_since_ns_ = 0;
    uint64_t retry_ns_ = 0;
    bool ending_ = false;  // this flush is the last
    int32_t last_error_ = 0;
};

}  // namespace vbd::stages
