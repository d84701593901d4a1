#include "stages/slice.h"

#include <string>

namespace vbd::stages {

using block::Io;
using block::IoOp;

namespace {

class SliceQueue final : public StageQueue {
  public:
    SliceQueue(std::unique_ptr<block::DeviceQueue> base, uint64_t offset)
        : StageQueue(std::move(base)), offset_(offset) {}

    void submit(std::span<Io* const> batch) override {
        for (Io* io : batch) {
            if (io->op != IoOp::kFlush) io->offset += offset_;
        }
        base_->submit(batch);
    }

    Io* reap() override {
        Io* list = base_->reap();
        for (Io* io = list; io; io = io->next) {
            if (io->op != IoOp::kFlush) io->offset -= offset_;
        }
        return list;
    }

  private:
    const uint64_t offset_;
};

std::string bytes(uint64_t count) {
    return std::to_string(count) + " bytes";
}

}  // namespace

Result<std::unique_ptr<block::Device>> Slice::open(const SliceOptions& options,
                                                   std::unique_ptr<block::Device> base) {
    const uint64_t sector = base->geometry().sector_size;
    const uint64_t size = base->size_bytes();
    if (options.offset_bytes % sector != 0 || options.length_bytes % sector != 0) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "a slice begins and ends at whole sectors of the disk, of " + bytes(sector)};
    }
    if (options.offset_bytes >= size || options.length_bytes > size - options.offset_bytes) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "a slice at " + bytes(options.offset_bytes) +
                         (options.length_bytes ? " of " + bytes(options.length_bytes) : "") +
                         " is not inside a disk of " + bytes(size)};
    }
    return std::unique_ptr<block::Device>(new Slice(options, std::move(base)));
}

Slice::Slice(const SliceOptions& options, std::unique_ptr<block::Device> base)
    : StageDevice(std::move(base)), options_(options) {
    set_size(options_.length_bytes ? options_.length_bytes
                                   : base_->size_bytes() - options_.offset_bytes);
    // Where the base's granules begin, seen from here.
    if (const uint32_t granule = geometry_.discard_granularity) {
        const uint64_t shift = options_.offset_bytes % granule;
        geometry_.discard_alignment =
            static_cast<uint32_t>((geometry_.discard_alignment + granule - shift) % granule);
    }
    describe("slice(" + bytes(size_bytes()) + " at " + std::to_string(options_.offset_bytes) + ")");
}

Result<std::unique_ptr<block::DeviceQueue>> Slice::open_queue(block::IoContext& context) {
    auto base = base_->open_queue(context);
    if (!base) return base.error();
    return std::unique_ptr<block::DeviceQueue>(
        new SliceQueue(std::move(base).value(), options_.offset_bytes));
}

Status Slice::resize(uint64_t size_bytes) {
    if (Status s = block::check_disk_size(size_bytes, geometry_.sector_size); !s) return s;
    if (options_.length_bytes) {
        if (size_bytes == options_.length_bytes) return {};
        return Error{ErrorKind::kUnsupported, 0, "a slice of a given length cannot be resized"};
    }
    if (Status s = base_->resize(options_.offset_bytes + size_bytes); !s) return s;
    set_size(size_bytes);
    return {};
}

Result<uint64_t> Slice::refresh_size() {
    Result<uint64_t> size = base_->refresh_size();
    if (!size) return size;
    if (!options_.length_bytes && size.value() > options_.offset_bytes) {
        set_size(size.value() - options_.offset_bytes);
    }
    return this->size_bytes();
}

}  // namespace vbd::stages
