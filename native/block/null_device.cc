#include "block/null_device.h"

#include <cerrno>
#include <cstring>
#include <span>
#include <string>

namespace vbd::block {

namespace {

class NullQueue final : public DeviceQueue {
  public:
    explicit NullQueue(bool no_fill) : no_fill_(no_fill) {}

    void submit(std::span<Io* const> batch) override {
        for (Io* io : batch) {
            if (io->op == IoOp::kRead && !no_fill_) {
                for (const iovec& part : std::span(io->iov, io->iov_count)) {
                    std::memset(part.iov_base, 0, part.iov_len);
                }
            }
            complete(io, io->op == IoOp::kSecureDiscard ? EOPNOTSUPP : 0);
        }
    }

  private:
    const bool no_fill_;
};

}  // namespace

Result<std::unique_ptr<Device>> NullDevice::create(uint64_t size_bytes, uint32_t sector_size,
                                                   bool no_fill) {
    if (Status s = check_disk_size(size_bytes, sector_size); !s) return s.error();
    auto device = std::unique_ptr<NullDevice>(new NullDevice);
    device->no_fill_ = no_fill;
    Geometry& geometry = device->geometry_;
    geometry.size_bytes = size_bytes;
    geometry.sector_size = geometry.physical_sector_size = sector_size;
    geometry.can_discard = true;
    geometry.discard_granularity = sector_size;
    geometry.fills_reads = !no_fill;
    geometry.description = "null(" + std::to_string(size_bytes) + " bytes" +
                           (no_fill ? ", reads leave buffers as they are)" : ")");
    device->size_bytes_.store(size_bytes, std::memory_order_release);
    return std::unique_ptr<Device>(std::move(device));
}

Result<std::unique_ptr<DeviceQueue>> NullDevice::open_queue(IoContext&) {
    return std::unique_ptr<DeviceQueue>(new NullQueue(no_fill_));
}

Status NullDevice::resize(uint64_t size_bytes) {
    if (Status s = check_disk_size(size_bytes, geometry_.sector_size); !s) return s;
    geometry_.size_bytes = size_bytes;
    size_bytes_.store(size_bytes, std::memory_order_release);
    return {};
}

}  // namespace vbd::block
