// Worker: the one thread that a FileBacking may have, for system calls that block: all of them
// where there is no io_uring, BLKDISCARD where there is. Shared by the device's queues; each Io
// goes back to the reactor it came from.
//
// start() and push() are for any thread; owned by FileDevice, which outlives its queues and so
// every Io here.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "base/thread.h"
#include "block/file_backing.h"
#include "block/io_context.h"

namespace vbd::block {

class Worker {
  public:
    explicit Worker(FileBacking& backing) : backing_(backing) {}
    ~Worker();  // joins; nothing may be in flight
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    /// Starts the thread if it does not run. Returns 0 or an errno.
    int start();

    /// Hands over a list of Ios (Io::next) of the running thread's; each must count as in flight of
    /// `context`, whose complete_from_thread() gets it.
    void push(IoContext& context, Io* list);

  private:
    void run();

    FileBacking& backing_;
    std::mutex mutex_;  // guards all below
    std::condition_variable changed_;
    IoList work_;
    bool stopping_ = false;
    Thread thread_;
};

}  // namespace vbd::block
