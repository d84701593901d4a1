// XenbusDevice: /dev/xen/xenbus as a byte stream in and a packet stream out, for a domain where no
// xenstored runs. Two threads: a write of a WATCH lasts until the daemon has answered, and reading
// must go on meanwhile.
//
//   JavaScript ── write() ──► queue ──► writer ── one write(2) a packet ──► the device
//   JavaScript ◄── take() ◄── at most kMaxPending bytes ◄── reader ◄── poll(2), read(2)
//
// The device executes a packet in its write, and refuses it by the write's errno, without an
// answer. Nothing is read while kMaxPending bytes wait: then the kernel keeps them.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "base/thread.h"

namespace vbd::node {

class XenbusDevice {
  public:
    using Bytes = std::vector<uint8_t>;
    static constexpr size_t kMaxPending = 1 << 20;

    /// Each is called on a thread of the device, and may be called until the destructor returns;
    /// after it, only by a write that the daemon still holds up.
    struct Callbacks {
        std::function<void()> on_data;  // there is something to take(), which was empty
        std::function<void(Bytes packet, int errno_code)> on_refused;
        std::function<void(int errno_code)> on_lost;  // once; 0: end of file
    };

    /// Errors: kXen with ENOENT (no Xen here, or no xenstore yet), EACCES, EMFILE.
    static Result<std::unique_ptr<XenbusDevice>> open(const std::string& path, Callbacks callbacks);

    /// Drops what is not written. Waits for the threads, but not for a write that the daemon holds
    /// up.
    ~XenbusDevice();

    /// Queues one whole packet.
    void write(Bytes packet);

    /// All that was read.
    Bytes take();

  private:
    /// What the threads need; a writer that is held up keeps it.
    struct Shared {
        Callbacks callbacks;
        Fd device;
        Fd wake;  // eventfd: the reader looks at `stopping` and at `pending` again
        std::mutex mutex;
        std::condition_variable changed;
        bool stopping = false;
        bool writer_done = false;
        std::deque<Bytes> queue;
        Bytes pending;

        void read_all();
        bool read_once();
        void write_all();
        void ring();
    };

    XenbusDevice() = default;

    std::shared_ptr<Shared> shared_;
    Thread reader_;
    Thread writer_;
};

}  // namespace vbd::node
