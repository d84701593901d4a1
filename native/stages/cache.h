// Cache: keeps blocks of the disk below in memory, and what is written there until it is written back:
// at a flush, when half of the memory is dirty, or after a while. The guest's writes are answered when
// they are in memory; its flushes, and writes that have to be durable, when all of that is below and the
// disk below has flushed. What a crash of this process takes is what a disk's own volatile cache loses
// with the power: everything since the last flush.
//
//   cache_store.h    the blocks, for any thread
//   cache_writer.h   the thread that writes back, flushes and discards
#pragma once

#include <memory>

#include "stages/cache_writer.h"
#include "stages/disk_spec.h"
#include "stages/stage.h"

namespace vbd::stages {

class Cache final : public StageDevice {
  public:
    static constexpr uint64_t kLeastBytes = 1ull << 20;
    static constexpr uint64_t kMostBytes = 64ull << 30;
    static constexpr uint64_t kLongestNs = 3600ull * 1'000'000'000;

    /// Errors: kInvalidArgument for memory of less than 1 MiB or more than 64 GiB, or a time above an
    /// hour; kNoMemory.
    static Result<std::unique_ptr<block::Device>> open(const CacheOptions& options,
                                                       std::unique_ptr<block::Device> base);
    ~Cache() override;

    Result<std::unique_ptr<block::DeviceQueue>> open_queue(block::IoContext& context) override;
    Status resize(uint64_t size_bytes) override;
    Result<uint64_t> refresh_size() override;
    /// Writes everything back. Error: kBacking where that failed, with how much is lost.
    Status close() override;
    const char* kind() const override { return "cache"; }
    void report(const Tell& tell) const override;
    /// `writeBackMs`: 0..3,600,000.
    Status tune(std::string_view setting, double value) override;

    /// What its queues share.
    struct Shared {
        Shared(std::unique_ptr<CacheStore> opened, block::Device& below, uint64_t write_back_ns)
            : store(std::move(opened)), writer(*store, below, write_back_ns) {}
        std::unique_ptr<CacheStore> store;
        CacheWriter writer;
    };

  private:
    Cache(const CacheOptions& options, std::unique_ptr<CacheStore> store,
          std::unique_ptr<block::Device> base);

    std::unique_ptr<Shared> shared_;
};

}  // namespace vbd::stages
