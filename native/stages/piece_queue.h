// PieceQueue: for stages that cannot hand an Io down as it is. It cuts Ios into pieces, each with an
// Io of its own that goes to a disk below, and completes the guest's Io when all its pieces are done.
// Pieces are made once, with the queue: while none is free, Ios wait in order.
//
//   take(io) ─► waiting ─► start(piece) ─► disk below ─► finished(piece) ─► end(io)
//                  ▲            │ kLater: it cannot go now        │ kAgain: another step
//                  └── pump() ◄─┤                                 └─► disk below
//                               └ kHeld: the stage has it, and calls send() or settle()
//
// The stage decides in start() how long a piece is, where it goes and what its memory is, and in
// finished() what is left to do. While its pieces are at work the guest's Io is the stage's:
// Io::done counts the bytes that pieces were made for, Io::scratch those that are finished.
#pragma once

#include <cstdint>
#include <vector>

#include "block/io_context.h"
#include "stages/iov_cursor.h"
#include "stages/slots.h"
#include "stages/stage.h"

namespace vbd::stages {

class PieceQueue : public block::DeviceQueue {
  public:
    /// Parts of a piece's memory, at most; enough for a page-aligned 256 KiB.
    static constexpr uint32_t kParts = 64;

    block::Io* reap() override;
    bool has_completions() const override;
    void on_timer(uint64_t now_ns) override;
    void identify(std::string_view client) override;
    void hurry() override;
    bool idle() const override;

  protected:
    struct Piece {
        block::Io io;                          // what goes down
        block::Io* parent = nullptr;           // what it is a piece of
        block::DeviceQueue* target = nullptr;  // where it goes
        IovCursor memory;                      // the parent's memory, where this piece begins
        uint64_t offset = 0;                   // of the parent's disk
        uint64_t length = 0;                   // start() may make it shorter, never 0
        uint64_t note = 0;                     // the stage's
        uint32_t step = 0;                     // the stage's
        uint8_t* buffer = nullptr;             // buffer_bytes of it
        Piece* next_free = nullptr;
        iovec parts[kParts];
    };

    /// kDown: io and target are filled in; kDone: nothing has to go down, io.error is the result;
    /// kLater: not now, look again when something has changed or look_again() is due; kHeld: the stage
    /// keeps the piece, whose length stays, and calls send() or settle() later.
    enum class Start { kDown, kDone, kLater, kHeld };
    enum class Next { kEnd, kAgain };

    /// `buffer_bytes` 0: pieces have no memory of their own.
    PieceQueue(block::IoContext& context, std::vector<std::unique_ptr<block::DeviceQueue>> bases,
               uint32_t pieces, uint32_t buffer_bytes);
    ~PieceQueue() override;

    /// Starts a piece of an Io: of as much as is left, or less.
    virtual Start start(Piece& piece) = 0;
    /// piece.io came back, or start() said kDone: kEnd with the result in piece.io.error, or kAgain
    /// with io and target filled in anew.
    virtual Next finished(Piece& piece) = 0;
    /// All pieces of an Io are done; its result is in io->error.
    virtual void end(block::Io* io) { complete(io, io->error); }

    /// An Io that is no piece's came back from below.
    virtual void passed(block::Io* io) { done_.push(io); }

    /// Of a piece that was held: hands it down, or takes it for finished.
    void send(Piece& piece);
    void settle(Piece* piece);

    /// Takes an Io in; pump() or reap() start it.
    void take(block::Io* io);
    void pump();
    /// Hands `io` down as it is; it comes back from reap().
    void pass(block::DeviceQueue& target, block::Io* io);
    void flush_batch();

    /// Fills piece.io: the guest's own memory, as much of piece.length as has room, which becomes
    /// piece.length.
    void use_guest_memory(Piece& piece, uint32_t unit);
    /// Fills piece.io: piece.buffer.
    void use_buffer(Piece& piece);

    /// 0 to the number of pieces, for what a stage keeps beside them.
    size_t slot_of(const Piece& piece) const { return pieces_.index_of(&piece); }

    block::DeviceQueue& base(size_t i) { return *bases_[i]; }
    block::IoContext& context() { return context_; }
    /// Calls pump() at that time.
    void look_again(uint64_t at_ns) { timer_.set(at_ns); }

    /// What is worked on in one go, before other rings have their turn.
    static constexpr uint64_t kTurnBytes = 512 * 1024;

  private:
    bool collect();

    block::IoContext& context_;
    std::vector<std::unique_ptr<block::DeviceQueue>> bases_;
    block::Timer timer_;
    std::unique_ptr<uint8_t[], void (*)(void*)> buffers_;
    Slots<Piece> pieces_;
    block::IoList waiting_;
    std::vector<block::Io*> batch_;
    block::DeviceQueue* batch_target_ = nullptr;
    uint64_t turn_bytes_ = 0;  // worked on since the caller last had control
};

}  // namespace vbd::stages
