// UringQueue: a file or block device through its reactor's io_uring. Small reads that the page
// cache answers never get there.
//
//   read           inline try ─► READ (FIXED, V), again from where it stopped
//   write          WRITE (FIXED, V); durable ones: with RWF_DSYNC if O_DIRECT, else followed by a
//   sync flush          a sync discard        FALLOCATE in steps; of a block device: BLKDISCARD in
//   steps on the device's Worker
//
// One sync at a time, on a file description of this queue's own, and all that ask meanwhile share
// the next one: of two at a time one could take the news of a lost write while the other reports
// success, and gets answered first.
//
// Used by its reactor's thread alone; the FileDevice that made it outlives it.
#pragma once

#include <span>

#include "base/fd.h"
#include "block/file_backing.h"
#include "block/file_io.h"
#include "block/io_context.h"
#include "block/uring.h"
#include "block/worker.h"

namespace vbd::block {

class UringQueue final : public UringClient {
  public:
    /// `fd`: FileBacking::reopen()'s.
    UringQueue(IoContext& context, Uring& uring, FileBacking& backing, Worker& worker, Fd fd);

    void submit(std::span<Io* const> batch) override;
    void prepare(Io* io, io_uring_sqe* sqe) override;
    void on_result(Io* io, int32_t result) override;

  private:
    void begin(Io* io);
    void begin_discard(Io* io);
    void prepare_transfer(Io* io, io_uring_sqe* sqe);
    void moved(Io* io, uint64_t bytes);
    void fail_step(Io* io, int32_t error);
    void want_sync(Io* io) { sync_waiting_.push(io); }
    void start_sync();
    void finish_sync(int32_t result);
    void finish(Io* io, int32_t error);
    bool durable(const Io& io) const { return io.fua || backing_.write_through(); }

    IoContext& context_;
    Uring& uring_;
    FileBacking& backing_;
    Worker& worker_;
    Fd fd_;
    InlineReads inline_reads_;
    IoList sync_waiting_;    // for the next sync
    IoList sync_group_;      // answered by the sync that is under way, besides
    Io* syncing_ = nullptr;  // its carrier; null: none is under way
};

}  // namespace vbd::block
