#include "stages/overlay_queue.h"

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/units.h"

namespace vbd::stages {

using block::Io;
using block::IoOp;

namespace {

constexpr uint64_t kClaimRetryNs = 20'000;
constexpr uint64_t kDiscardBytes = 64ull << 20;

/// Piece::step.
enum Step : uint32_t { kPlain, kTaking, kCopying, kWritingCopy };

uint32_t pieces_for(uint64_t granule_bytes) {
    return static_cast<uint32_t>(std::clamp<uint64_t>((4ull << 20) / granule_bytes, 4, 64));
}

}  // namespace

OverlayQueue::OverlayQueue(block::IoContext& context,
                           std::vector<std::unique_ptr<block::DeviceQueue>> bases,
                           std::shared_ptr<Overlay::Shared> shared,
                           const block::Geometry& geometry)
    : PieceQueue(context, std::move(bases), pieces_for(shared->file->granule_bytes()),
                 shared->file->granule_bytes()),
      shared_(std::move(shared)),
      file_(*shared_->file),
      granule_bytes_(file_.granule_bytes()),
      sector_size_(geometry.sector_size),
      discards_(geometry.can_discard) {}

void OverlayQueue::submit(std::span<Io* const> batch) {
    for (Io* io : batch) {
        if (io->op == IoOp::kFlush) {
            flush(io);
        } else if (io->op == IoOp::kSecureDiscard || (io->op == IoOp::kDiscard && !discards_)) {
            complete(io, EOPNOTSUPP);
        } else if (io->op != IoOp::kRead && file_.failed()) {
            complete(io, EIO);
        } else {
            take(io);
        }
    }
    pump();
}

void OverlayQueue::flush(Io* io) {
    io->queue = this;
    context().note_started();
    shared_->writer.push(context(), io);
}

void OverlayQueue::end(Io* io) {
    if (io->op == IoOp::kWrite && io->fua && !io->error) return flush(io);
    complete(io, io->error);
}

PieceQueue::Start OverlayQueue::start(Piece& piece) {
    if (piece.io.op == IoOp::kRead) return read(piece);
    const uint64_t granule = piece.offset / granule_bytes_;
    const uint64_t inside = piece.offset % granule_bytes_;
    if (file_.allocated(granule)) return in_container(piece, granule, inside);
    const uint64_t whole = inside == 0 ? piece.length / granule_bytes_ : 0;
    const uint64_t most = piece.io.op == IoOp::kDiscard
                              ? kDiscardBytes / granule_bytes_
                              : std::max<uint64_t>(kParts * kPageSize / granule_bytes_, 1);
    const uint64_t count = whole > 0 ? file_.run(granule, std::min(whole, most)) : 1;
    if (!shared_->claims.take(granule, count)) {
        look_again(monotonic_ns() + kClaimRetryNs);
        return Start::kLater;
    }
    // Somebody may have taken them over between the look and the claim.
    if (file_.allocated(granule) || file_.run(granule, count) < count) {
        shared_->claims.give_back(granule);
        return start(piece);
    }
    piece.note = granule;
    return whole > 0 ? take_over(piece, granule, count) : copy_on_write(piece, granule);
}

PieceQueue::Start OverlayQueue::read(Piece& piece) {
    const uint64_t granule = piece.offset / granule_bytes_;
    const uint64_t inside = piece.offset % granule_bytes_;
    if (file_.allocated(granule)) return in_container(piece, granule, inside);
    const uint64_t granules = (inside + piece.length + granule_bytes_ - 1) / granule_bytes_;
    piece.length =
        std::min(piece.length, file_.run(granule, granules) * granule_bytes_ - inside);
    if (piece.offset >= file_.base_bytes()) {
        piece.memory.fill_zero(piece.length);
        return Start::kDone;
    }
    piece.length = std::min(piece.length, file_.base_bytes() - piece.offset);
    piece.target = &base(0);
    piece.io.offset = piece.offset;
    use_guest_memory(piece, sector_size_);
    return Start::kDown;
}

/// What the container has is read, written and discarded there.
PieceQueue::Start OverlayQueue::in_container(Piece& piece, uint64_t granule, uint64_t inside) {
    const uint64_t granules = (inside + piece.length + granule_bytes_ - 1) / granule_bytes_;
    piece.length =
        std::min(piece.length, file_.run(granule, granules) * granule_bytes_ - inside);
    piece.target = &base(1);
    piece.io.offset = file_.offset_of(granule) + inside;
    piece.step = kPlain;
    if (piece.io.op == IoOp::kDiscard) {
        piece.length = std::min(piece.length, kDiscardBytes);
        piece.io.length = piece.length;
    } else {
        use_guest_memory(piece, sector_size_);
    }
    return Start::kDown;
}

/// Whole granules, which nothing is kept of.
PieceQueue::Start OverlayQueue::take_over(Piece& piece, uint64_t granule, uint64_t count) {
    piece.length = count * granule_bytes_;
    piece.target = &base(1);
    piece.io.offset = file_.offset_of(granule);
    piece.step = kTaking;
    if (piece.io.op == IoOp::kDiscard) {
        piece.io.length = piece.length;
        return Start::kDown;
    }
    use_guest_memory(piece, static_cast<uint32_t>(granule_bytes_));
    if (piece.length > 0) return Start::kDown;
    // Its memory is in too many parts: through the buffer, like a part of a granule.
    piece.length = granule_bytes_;
    return copy_on_write(piece, granule);
}

/// One granule, of which a part is changed.
PieceQueue::Start OverlayQueue::copy_on_write(Piece& piece, uint64_t granule) {
    const uint64_t begin = granule * granule_bytes_;
    piece.length = std::min(piece.length, begin + granule_bytes_ - piece.offset);
    if (begin >= file_.base_bytes()) {
        std::memset(piece.buffer, 0, granule_bytes_);
        write_copy(piece);
        return Start::kDown;
    }
    const uint64_t below = std::min(granule_bytes_, file_.base_bytes() - begin);
    std::memset(piece.buffer + below, 0, granule_bytes_ - below);
    piece.step = kCopying;
    piece.target = &base(0);
    piece.io.op = IoOp::kRead;
    piece.io.offset = begin;
    piece.parts[0] = {piece.buffer, below};
    piece.io.iov = piece.parts;
    piece.io.iov_count = 1;
    piece.io.length = below;
    return Start::kDown;
}

void OverlayQueue::write_copy(Piece& piece) {
    const uint64_t inside = piece.offset % granule_bytes_;
    if (piece.parent->op == IoOp::kDiscard) {
        std::memset(piece.buffer + inside, 0, piece.length);
    } else {
        IovCursor from = piece.memory;
        from.copy_out(piece.buffer + inside, piece.length);
    }
    piece.step = kWritingCopy;
    piece.target = &base(1);
    piece.io.op = IoOp::kWrite;
    piece.io.offset = file_.offset_of(piece.note);
    piece.parts[0] = {piece.buffer, granule_bytes_};
    piece.io.iov = piece.parts;
    piece.io.iov_count = 1;
    piece.io.length = granule_bytes_;
}

PieceQueue::Next OverlayQueue::finished(Piece& piece) {
    if (piece.step == kPlain) return Next::kEnd;
    if (piece.step == kCopying && !piece.io.error) {
        write_copy(piece);
        return Next::kAgain;
    }
    if (!piece.io.error) {
        const uint64_t count = piece.step == kTaking ? piece.length / granule_bytes_ : 1;
        file_.mark(piece.note, count);
    }
    shared_->claims.give_back(piece.note);
    return Next::kEnd;
}

}  // namespace vbd::stages
