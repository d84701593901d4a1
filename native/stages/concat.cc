#include "stages/concat.h"

#include <algorithm>

#include "stages/piece_queue.h"

namespace vbd::stages {

using block::Device;
using block::Io;
using block::IoOp;

namespace {

constexpr uint32_t kPieces = 64;

class ConcatQueue final : public PieceQueue {
  public:
    ConcatQueue(block::IoContext& context, std::vector<std::unique_ptr<block::DeviceQueue>> bases,
                std::vector<Concat::Start> starts, uint32_t sector_size)
        : PieceQueue(context, std::move(bases), kPieces, 0),
          starts_(std::move(starts)),
          sector_size_(sector_size) {}

    void submit(std::span<Io* const> batch) override {
        for (Io* io : batch) {
            if (io->op == IoOp::kFlush) io->length = starts_.size();
            take(io);
        }
        pump();
    }

  protected:
    Start start(Piece& piece) override {
        if (piece.io.op == IoOp::kFlush) {
            // One piece a part: a flush's length counts them.
            piece.target = &base(piece.parent->done);
            piece.length = 1;
            return Start::kDown;
        }
        const size_t part = part_at(piece.offset);
        const uint64_t begin = starts_[part].offset;
        if (part + 1 < starts_.size()) {
            piece.length = std::min(piece.length, starts_[part + 1].offset - piece.offset);
        }
        piece.target = &base(part);
        piece.io.offset = piece.offset - begin;
        piece.io.fua = piece.parent->fua;
        if (piece.io.op == IoOp::kRead || piece.io.op == IoOp::kWrite) {
            use_guest_memory(piece, sector_size_);
        } else {
            piece.io.length = piece.length;
        }
        return Start::kDown;
    }

    Next finished(Piece&) override { return Next::kEnd; }

    void end(Io* io) override {
        if (io->op == IoOp::kFlush) io->length = 0;
        complete(io, io->error);
    }

  private:
    size_t part_at(uint64_t offset) const {
        size_t part = starts_.size() - 1;
        while (starts_[part].offset > offset) part--;
        return part;
    }

    const std::vector<Concat::Start> starts_;
    const uint32_t sector_size_;
};

/// What all of them can do, at the coarsest.
block::Geometry common(const std::vector<std::unique_ptr<Device>>& parts) {
    block::Geometry all = parts.front()->geometry();
    all.description.clear();
    for (const auto& part : parts) {
        const block::Geometry& one = part->geometry();
        all.physical_sector_size = std::max(all.physical_sector_size, one.physical_sector_size);
        all.read_only |= one.read_only;
        all.can_flush &= one.can_flush;
        all.can_discard &= one.can_discard;
        all.can_secure_discard &= one.can_secure_discard;
        all.fills_reads &= one.fills_reads;
        all.discard_granularity = std::max(all.discard_granularity, one.discard_granularity);
        all.description += (all.description.empty() ? "" : " + ") + one.description;
    }
    if (!all.can_discard) all.discard_granularity = 0;
    all.discard_alignment = 0;
    all.description += " → concat";
    return all;
}

}  // namespace

Result<std::unique_ptr<Device>> Concat::open(std::vector<std::unique_ptr<Device>> parts) {
    if (parts.size() < 2) {
        return Error{ErrorKind::kInvalidArgument, 0, "a concatenation has at least two disks"};
    }
    uint64_t total = 0;
    for (const auto& part : parts) {
        if (part->geometry().sector_size != parts.front()->geometry().sector_size) {
            return Error{ErrorKind::kInvalidArgument, 0,
                         "the disks of a concatenation have different sector sizes"};
        }
        if (__builtin_add_overflow(total, part->size_bytes(), &total) || total > INT64_MAX) {
            return Error{ErrorKind::kInvalidArgument, 0, "the disks of a concatenation are too long"};
        }
    }
    return std::unique_ptr<Device>(new Concat(std::move(parts)));
}

Concat::Concat(std::vector<std::unique_ptr<Device>> parts)
    : parts_(std::move(parts)), geometry_(common(parts_)) {
    uint64_t offset = 0;
    for (const auto& part : parts_) {
        starts_.push_back({offset, part.get()});
        offset += part->size_bytes();
    }
    set_size(offset);
}

void Concat::set_size(uint64_t size_bytes) {
    geometry_.size_bytes = size_bytes;
    size_bytes_.store(size_bytes, std::memory_order_release);
}

Result<std::unique_ptr<block::DeviceQueue>> Concat::open_queue(block::IoContext& context) {
    std::vector<std::unique_ptr<block::DeviceQueue>> queues;
    for (const auto& part : parts_) {
        auto queue = part->open_queue(context);
        if (!queue) return queue.error();
        queues.push_back(std::move(queue).value());
    }
    return std::unique_ptr<block::DeviceQueue>(
        new ConcatQueue(context, std::move(queues), starts_, geometry_.sector_size));
}

Status Concat::resize(uint64_t size_bytes) {
    if (Status s = block::check_disk_size(size_bytes, geometry_.sector_size); !s) return s;
    const Start& last = starts_.back();
    if (size_bytes <= last.offset) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "a concatenation cannot become shorter than what its last disk begins at, " +
                         std::to_string(last.offset) + " bytes"};
    }
    if (Status s = last.device->resize(size_bytes - last.offset); !s) return s;
    set_size(size_bytes);
    return {};
}

Result<uint64_t> Concat::refresh_size() {
    const Start& last = starts_.back();
    Result<uint64_t> size = last.device->refresh_size();
    if (!size) return size;
    set_size(last.offset + size.value());
    return size_bytes();
}

Status Concat::close() {
    Status first;
    for (const auto& part : parts_) {
        Status s = part->close();
        if (!s && first) first = std::move(s);
    }
    return first;
}

std::vector<Device*> Concat::below() const {
    std::vector<Device*> all;
    for (const auto& part : parts_) all.push_back(part.get());
    return all;
}

}  // namespace vbd::stages
