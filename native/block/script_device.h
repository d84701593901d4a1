// ScriptDevice: a disk that a script serves, through a ScriptChannel. What the guest writes is copied
// to the slot's private memory before the script is told, what the script reads is copied from there
// after it has answered: it never sees memory that a guest can change. A slot holds zeroes before a
// read, so that what the script leaves out is no other request's data.
//
// An Io longer than a slot goes piece by piece, in one slot, one after the other.
#pragma once

#include <memory>
#include <vector>

#include "block/device.h"
#include "block/script_channel.h"

namespace vbd::block {

class ScriptDevice final : public Device {
  public:
    /// Errors: kInvalidArgument for a size or sectors that are no disk's.
    static Result<std::unique_ptr<Device>> create(const Geometry& geometry,
                                                  std::shared_ptr<ScriptChannel> channel);

    const Geometry& geometry() const override { return geometry_; }
    Result<std::unique_ptr<DeviceQueue>> open_queue(IoContext& context) override;

    /// The script has made the disk this long.
    const char* kind() const override { return "script"; }
    Status resize(uint64_t size_bytes) override;
    Result<uint64_t> refresh_size() override { return size_bytes(); }

  private:
    ScriptDevice() = default;

    std::shared_ptr<ScriptChannel> channel_;
    Geometry geometry_;
};

/// One ring's way to the script, on its reactor's thread. The ScriptDevice outlives it.
class ScriptQueue final : public ScriptClient {
  public:
    ScriptQueue(IoContext& context, ScriptChannel& channel);

    void identify(std::string_view client) override;
    void submit(std::span<Io* const> batch) override;
    void resume_list(Io* list) override;

  private:
    void take_answer(Io* io, int32_t error);
    void go(IoList& granted);
    void prepare(Io* io);

    ScriptChannel& channel_;
    std::vector<Io*> done_with_;  // answered; their slots are still theirs
    std::vector<ScriptChannel::Published> pieces_;
};

}  // namespace vbd::block
