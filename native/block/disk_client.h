// DiskClient: a Device for a script to read and write, as reactors do for guests. The script puts
// requests on one ring and finds answers on another; a thread of the client's own has an IoContext
// and a queue of the device, and moves them. The same idea as a ScriptChannel, the other way round.
//
//   script ── submissions ─► kick(), if the thread has armed itself ─► the thread ─► DeviceQueue
//     ▲                                                                   │
//     └────── bell, if the script has armed itself ◄── answers ◄──────────┘
//
// A request has a slot: its descriptor and its memory, which is the device's while it is at work.
// Requests are checked again here: what a script gets wrong must not become the device's problem.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "base/thread.h"
#include "block/device.h"
#include "block/io_context.h"
#include "block/script_ring.h"

namespace vbd::block {

class DiskClient {
  public:
    /// Starts the thread. `slots`: 1..kScriptMaxSlots. `bell` is called on the thread. Errors:
    /// kInvalidArgument, kNoMemory, those of open_queue().
    static Result<std::shared_ptr<DiskClient>> open(std::shared_ptr<Device> device, uint32_t slots,
                                                    std::function<void()> bell);
    ~DiskClient();
    DiskClient(const DiskClient&) = delete;
    DiskClient& operator=(const DiskClient&) = delete;

    /// The script's thread: there are submissions.
    void kick();

    /// The script's thread: takes no more, waits for what is at the device up to two seconds, and
    /// lets go of it. No bell after it. Idempotent.
    void stop();

    uint32_t slots() const { return static_cast<uint32_t>(requests_.size()); }
    uint32_t entries() const { return entries_; }
    /// ClientIndices, submissions, answers, descriptors: one after the other.
    iovec control() const { return control_; }
    iovec pool() const { return pool_; }

  private:
    struct Request {
        Io io;
        iovec memory;
        bool busy = false;
    };

    DiskClient() = default;
    Status set_up();
    void run(const std::function<void(Status)>& started);
    bool take();
    void begin(uint32_t slot);
    bool bring_back();
    void ring();
    void answer(uint32_t slot, int32_t error);
    bool quiet() const;
    void sleep(uint64_t give_up_ns);
    bool valid(const ScriptDescriptor& descriptor) const;

    iovec control_{};
    iovec pool_{};
    uint32_t entries_ = 0;
    ClientIndices* indices_ = nullptr;
    uint32_t* submissions_ = nullptr;
    ScriptAnswer* answers_ = nullptr;
    ScriptDescriptor* descriptors_ = nullptr;
    std::shared_ptr<Device> device_;
    std::function<void()> bell_;
    Fd wake_fd_;
    std::atomic<bool> stopping_{false};
    Thread thread_;

    // The thread's own.
    std::unique_ptr<IoContext> context_;
    std::unique_ptr<DeviceQueue> queue_;
    std::vector<Request> requests_;
    std::vector<Io*> batch_;
    uint32_t at_device_ = 0;
    bool to_tell_ = false;  // there are answers since the last bell
};

}  // namespace vbd::block
