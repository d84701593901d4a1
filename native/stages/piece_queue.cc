#include "stages/piece_queue.h"

#include <cstdlib>
#include <span>

#include "base/clock.h"
#include "base/units.h"

namespace vbd::stages {

using block::Io;
using block::IoOp;

namespace {

constexpr size_t kBatch = 64;

uint8_t* allocate(size_t bytes) {
    if (bytes == 0) return nullptr;
    void* memory = std::aligned_alloc(kPageSize, bytes);
    VBD_CHECK(memory);
    return static_cast<uint8_t*>(memory);
}

}  // namespace

PieceQueue::PieceQueue(block::IoContext& context,
                       std::vector<std::unique_ptr<block::DeviceQueue>> bases, uint32_t pieces,
                       uint32_t buffer_bytes)
    : context_(context),
      bases_(std::move(bases)),
      timer_(context, *this),
      buffers_(allocate(size_t{pieces} * buffer_bytes), std::free),
      pieces_(pieces) {
    for (size_t i = 0; i < pieces && buffer_bytes > 0; i++) {
        pieces_[i].buffer = buffers_.get() + i * buffer_bytes;
    }
    batch_.reserve(kBatch);
}

PieceQueue::~PieceQueue() = default;

void PieceQueue::take(Io* io) {
    io->done = 0;
    io->scratch = 0;
    io->error = 0;
    waiting_.push(io);
}

void PieceQueue::pump() {
    while (!waiting_.empty() && turn_bytes_ < kTurnBytes) {
        Io* parent = waiting_.front();
        Piece* piece = pieces_.take();
        if (!piece) break;
        piece->parent = parent;
        piece->offset = parent->offset + parent->done;
        piece->length = parent->length - parent->done;
        piece->step = 0;
        piece->memory = IovCursor(parent->iov);
        if (parent->op == IoOp::kRead || parent->op == IoOp::kWrite) {
            piece->memory.skip(parent->done);
        }
        piece->io = {};
        piece->io.op = parent->op;
        piece->io.tag = piece;
        const Start started = start(*piece);
        if (started == Start::kLater) {
            pieces_.give_back(piece);
            break;
        }
        parent->done += piece->length;
        turn_bytes_ += piece->length;
        if (parent->done >= parent->length) waiting_.pop();
        if (started == Start::kDown) {
            send(*piece);
        } else if (started == Start::kDone) {
            settle(piece);
        }
    }
    // Somebody else's turn; the reactor comes back for the rest before it sleeps.
    if (!waiting_.empty() && turn_bytes_ >= kTurnBytes) timer_.set(monotonic_ns());
    flush_batch();
}

void PieceQueue::send(Piece& piece) {
    pass(*piece.target, &piece.io);
}

void PieceQueue::pass(block::DeviceQueue& target, Io* io) {
    if (batch_target_ != &target || batch_.size() == kBatch) flush_batch();
    batch_target_ = &target;
    batch_.push_back(io);
}

void PieceQueue::flush_batch() {
    if (batch_.empty()) return;
    batch_target_->submit({batch_.data(), batch_.size()});
    batch_.clear();
}

void PieceQueue::settle(Piece* piece) {
    if (finished(*piece) == Next::kAgain) return send(*piece);
    Io* parent = piece->parent;
    if (piece->io.error && !parent->error) parent->error = piece->io.error;
    parent->scratch += piece->length;
    const bool last = parent->scratch >= parent->length;
    pieces_.give_back(piece);
    if (last) end(parent);
}

/// What came back from below. False: nothing.
bool PieceQueue::collect() {
    bool found = false;
    for (auto& each : bases_) {
        Io* next = nullptr;
        for (Io* io = each->reap(); io; io = next) {
            next = io->next;
            found = true;
            if (!pieces_.contains(io)) {
                passed(io);
                continue;
            }
            auto* piece = static_cast<Piece*>(io->tag);
            turn_bytes_ += piece->length;
            settle(piece);
        }
    }
    return found;
}

Io* PieceQueue::reap() {
    turn_bytes_ = 0;
    while (collect()) {
        pump();
        if (turn_bytes_ >= kTurnBytes) {
            timer_.set(monotonic_ns());
            break;
        }
    }
    flush_batch();
    return done_.take_all();
}

bool PieceQueue::has_completions() const {
    if (!done_.empty()) return true;
    for (const auto& each : bases_) {
        if (each->has_completions()) return true;
    }
    return false;
}

void PieceQueue::on_timer(uint64_t) {
    turn_bytes_ = 0;
    pump();
}

void PieceQueue::identify(std::string_view client) {
    for (auto& each : bases_) each->identify(client);
}

void PieceQueue::hurry() {
    for (auto& each : bases_) each->hurry();
}

bool PieceQueue::idle() const {
    for (const auto& each : bases_) {
        if (!each->idle()) return false;
    }
    return true;
}

void PieceQueue::use_guest_memory(Piece& piece, uint32_t unit) {
    IovCursor cursor = piece.memory;
    piece.length = cursor.cut(piece.length, unit, piece.parts, kParts, piece.io.iov_count);
    piece.io.iov = piece.parts;
    piece.io.length = piece.length;
}

void PieceQueue::use_buffer(Piece& piece) {
    piece.parts[0] = {piece.buffer, piece.length};
    piece.io.iov = piece.parts;
    piece.io.iov_count = 1;
    piece.io.length = piece.length;
}

}  // namespace vbd::stages
