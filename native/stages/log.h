// Log: keeps a record of every request and its latency, for whoever takes them. Each queue writes
// into a ring of its own, the control thread reads it: no lock, and never a wait. A record that finds
// no room is lost and counted.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "stages/disk_spec.h"
#include "stages/stage.h"

namespace vbd::stages {

/// Records from one thread to one other.
class RecordRing {
  public:
    explicit RecordRing(uint32_t records) : records_(records), mask_(records - 1) {}

    void put(const block::IoRecord& record);
    void take_all(std::vector<block::IoRecord>& to);
    uint64_t take_lost() { return lost_.exchange(0, std::memory_order_relaxed); }

  private:
    std::vector<block::IoRecord> records_;
    const uint32_t mask_;
    alignas(64) std::atomic<uint32_t> head_{0};  // the writer's
    alignas(64) std::atomic<uint32_t> tail_{0};  // the reader's
    std::atomic<uint64_t> lost_{0};
};

class Log final : public StageDevice {
  public:
    /// Errors: kInvalidArgument for a number of records that is no power of two of 64 to 2^20.
    static Result<std::unique_ptr<block::Device>> open(const LogOptions& options,
                                                       std::unique_ptr<block::Device> base);

    Result<std::unique_ptr<block::DeviceQueue>> open_queue(block::IoContext& context) override;
    const char* kind() const override { return "log"; }
    uint64_t take_records(std::vector<block::IoRecord>& records) override;

  private:
    Log(const LogOptions& options, std::unique_ptr<block::Device> base);

    const LogOptions options_;
    std::mutex mutex_;  // guards the list, which changes when queues come
    std::vector<std::shared_ptr<RecordRing>> rings_;
};

}  // namespace vbd::stages
