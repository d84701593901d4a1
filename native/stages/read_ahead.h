// ReadAhead: notices who reads in a row, and reads on before it is asked to, further with every step up
// to a window. What it has read is thrown away as soon as somebody changes the disk there
// (read_ahead_table.h). Reads that are not in a row, writes, flushes and discards pass as they are.
#pragma once

#include <memory>

#include "stages/disk_spec.h"
#include "stages/read_ahead_table.h"
#include "stages/stage.h"

namespace vbd::stages {

class ReadAhead final : public StageDevice {
  public:
    static constexpr uint64_t kLeastBytes = 1ull << 20;
    static constexpr uint64_t kMostBytes = 64ull << 20;

    /// Errors: kInvalidArgument for memory of less than 1 MiB or more than 64 MiB, or a window of less than
    /// a segment or more than half of that; kNoMemory.
    static Result<std::unique_ptr<block::Device>> open(const ReadAheadOptions& options,
                                                       std::unique_ptr<block::Device> base);

    Result<std::unique_ptr<block::DeviceQueue>> open_queue(block::IoContext& context) override;
    Status resize(uint64_t size_bytes) override;
    Result<uint64_t> refresh_size() override;
    const char* kind() const override { return "readAhead"; }
    void report(const Tell& tell) const override;
    /// `windowBytes`: 0 (off) to half of the memory.
    Status tune(std::string_view setting, double value) override;

  private:
    ReadAhead(const ReadAheadOptions& options, std::unique_ptr<ReadAheadTable> table,
              std::unique_ptr<block::Device> base);

    std::unique_ptr<ReadAheadTable> table_;
    std::atomic<uint64_t> window_bytes_;
};

}  // namespace vbd::stages
