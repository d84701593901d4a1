// SyncQueue: a file without io_uring. What cannot block runs inside submit() (everything on tmpfs,
// reads that the page cache answers), all else on the device's Worker. On tmpfs a long discard goes
// on in steps, from poll() to poll().
//
// Used by its reactor's thread alone; the FileDevice that made it outlives it.
#pragma once

#include <span>

#include "block/file_backing.h"
#include "block/file_io.h"
#include "block/io_context.h"
#include "block/worker.h"

namespace vbd::block {

class SyncQueue final : public DeviceQueue {
  public:
    /// `worker` runs already, unless the backing is in memory.
    SyncQueue(IoContext& context, FileBacking& backing, Worker& worker);

    void submit(std::span<Io* const> batch) override;
    void resume(Io* io) override;

  private:
    IoContext& context_;
    FileBacking& backing_;
    Worker& worker_;
    InlineReads inline_reads_;
};

}  // namespace vbd::block
