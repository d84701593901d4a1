#include "stages/encrypt.h"

#include <algorithm>

#include "stages/piece_queue.h"
#include "stages/xts.h"

namespace vbd::stages {

using block::Io;
using block::IoOp;

namespace {

constexpr uint32_t kPieces = 64;
constexpr uint32_t kPieceBytes = 64 * 1024;  // some 20 µs of work

class EncryptQueue final : public PieceQueue {
  public:
    EncryptQueue(block::IoContext& context, std::vector<std::unique_ptr<block::DeviceQueue>> bases,
                 const EncryptOptions& options, bool discards, std::unique_ptr<Xts> encrypt,
                 std::unique_ptr<Xts> decrypt)
        : PieceQueue(context, std::move(bases), kPieces, kPieceBytes),
          unit_bytes_(options.unit_bytes),
          first_sector_(options.iv_offset_sectors),
          discards_(discards),
          encrypt_(std::move(encrypt)),
          decrypt_(std::move(decrypt)) {}

    void submit(std::span<Io* const> batch) override {
        for (Io* io : batch) {
            if (io->op == IoOp::kRead || io->op == IoOp::kWrite) {
                take(io);
            } else if (io->op == IoOp::kFlush || discards_) {
                pass(base(0), io);
            } else {
                complete(io, EOPNOTSUPP);
            }
        }
        flush_batch();
        pump();
    }

  protected:
    Start start(Piece& piece) override {
        piece.length = std::min<uint64_t>(piece.length, kPieceBytes);
        piece.target = &base(0);
        piece.io.offset = piece.offset;
        piece.io.fua = piece.parent->fua;
        use_buffer(piece);
        if (piece.io.op == IoOp::kRead) return Start::kDown;
        IovCursor from = piece.memory;
        from.copy_out(piece.buffer, piece.length);
        if (run(*encrypt_, piece)) return Start::kDown;
        piece.io.error = EIO;
        return Start::kDone;
    }

    Next finished(Piece& piece) override {
        if (piece.io.op != IoOp::kRead || piece.io.error) return Next::kEnd;
        if (run(*decrypt_, piece)) {
            piece.memory.copy_in(piece.buffer, piece.length);
        } else {
            piece.io.error = EIO;
        }
        return Next::kEnd;
    }

  private:
    bool run(Xts& xts, Piece& piece) const {
        return xts.run(piece.buffer, piece.length, first_sector_ + piece.offset / 512, unit_bytes_);
    }

    const uint32_t unit_bytes_;
    const uint64_t first_sector_;
    const bool discards_;
    std::unique_ptr<Xts> encrypt_;
    std::unique_ptr<Xts> decrypt_;
};

}  // namespace

Result<std::unique_ptr<block::Device>> Encrypt::open(const EncryptOptions& options,
                                                     std::unique_ptr<block::Device> base) {
    if (options.unit_bytes != 512 && options.unit_bytes != 4096) {
        return Error{ErrorKind::kInvalidArgument, 0, "sectors are encrypted by 512 or 4096 bytes"};
    }
    if (base->size_bytes() % options.unit_bytes != 0) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "the disk has no whole number of encrypted sectors of " +
                         std::to_string(options.unit_bytes) + " bytes"};
    }
    // Now, rather than with the first guest.
    auto tried = Xts::create(*options.key, Xts::Direction::kEncrypt);
    if (!tried) return tried.error();
    return std::unique_ptr<block::Device>(new Encrypt(options, std::move(base)));
}

Encrypt::Encrypt(const EncryptOptions& options, std::unique_ptr<block::Device> base)
    : StageDevice(std::move(base)), options_(options) {
    // A guest must not write less than is encrypted as one.
    geometry_.sector_size = std::max(geometry_.sector_size, options_.unit_bytes);
    geometry_.physical_sector_size =
        std::max(geometry_.physical_sector_size, geometry_.sector_size);
    geometry_.can_secure_discard = false;
    geometry_.fills_reads = true;
    if (!options_.discard) {
        geometry_.can_discard = false;
        geometry_.discard_granularity = geometry_.discard_alignment = 0;
    }
    describe("encrypt(aes-xts-plain64)");
}

Result<std::unique_ptr<block::DeviceQueue>> Encrypt::open_queue(block::IoContext& context) {
    std::vector<std::unique_ptr<block::DeviceQueue>> bases;
    auto base = base_->open_queue(context);
    if (!base) return base.error();
    bases.push_back(std::move(base).value());
    auto encrypt = Xts::create(*options_.key, Xts::Direction::kEncrypt);
    if (!encrypt) return encrypt.error();
    auto decrypt = Xts::create(*options_.key, Xts::Direction::kDecrypt);
    if (!decrypt) return decrypt.error();
    return std::unique_ptr<block::DeviceQueue>(
        new EncryptQueue(context, std::move(bases), options_, geometry_.can_discard,
                         std::move(encrypt).value(), std::move(decrypt).value()));
}

}  // namespace vbd::stages
