// StageDevice, StageQueue: what stages that stand on one disk have alike. A stage is a Device over a
// Device, with one queue over one queue of the disk below for each reactor: batch in, batch out.
// Nothing is allocated and no lock is taken for an Io.
//
//   submit() ──► the stage ──► base submit()
//   reap()   ◄── the stage ◄── base reap()        what the stage itself finished is in done_
//
// An Io that is handed down belongs to the disk below until it comes back: its `iov`, `done`,
// `scratch` and `queue` are then that one's. A stage that has to remember more of an Io sends one of
// its own down instead.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "block/device.h"

namespace vbd::stages {

class StageDevice : public block::Device {
  public:
    explicit StageDevice(std::unique_ptr<block::Device> base)
        : base_(std::move(base)), geometry_(base_->geometry()) {
        set_size(base_->size_bytes());
    }

    const block::Geometry& geometry() const override { return geometry_; }

    Status resize(uint64_t size_bytes) override {
        if (Status s = base_->resize(size_bytes); !s) return s;
        set_size(size_bytes);
        return {};
    }
    Result<uint64_t> refresh_size() override {
        Result<uint64_t> size = base_->refresh_size();
        if (size) set_size(size.value());
        return size;
    }

    Status close() override { return base_->close(); }
    std::vector<block::Device*> below() const override { return {base_.get()}; }

  protected:
    void set_size(uint64_t size_bytes) {
        geometry_.size_bytes = size_bytes;
        size_bytes_.store(size_bytes, std::memory_order_release);
    }
    /// "file(/srv/a.raw) → throttle(500 iops)"
    void describe(const std::string& label) {
        geometry_.description = base_->geometry().description + " → " + label;
    }

    std::unique_ptr<block::Device> base_;
    block::Geometry geometry_;
};

/// Hands everything through; what is overridden looks at it on its way.
class StageQueue : public block::DeviceQueue {
  public:
    explicit StageQueue(std::unique_ptr<block::DeviceQueue> base) : base_(std::move(base)) {}

    void submit(std::span<block::Io* const> batch) override { base_->submit(batch); }

    block::Io* reap() override {
        if (done_.empty()) return base_->reap();
        block::Io* next = nullptr;
        for (block::Io* io = base_->reap(); io; io = next) {
            next = io->next;
            done_.push(io);
        }
        return done_.take_all();
    }

    bool has_completions() const override { return !done_.empty() || base_->has_completions(); }
    void identify(std::string_view client) override { base_->identify(client); }
    void hurry() override { base_->hurry(); }
    bool idle() const override { return base_->idle(); }

  protected:
    std::unique_ptr<block::DeviceQueue> base_;
};

}  // namespace vbd::stages
