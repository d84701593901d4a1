#include "stages/read_ahead.h"

#include <algorithm>
#include <array>

#include "base/clock.h"
#include "stages/piece_queue.h"

namespace vbd::stages {

using block::Io;
using block::IoOp;

namespace {

using Segment = ReadAheadTable::Segment;
constexpr uint64_t kSegmentBytes = ReadAheadTable::kSegmentBytes;
constexpr uint32_t kPieces = 64;
/// Reads in a row before anything is read ahead.
constexpr uint32_t kEnough = 2;

/// Somebody who reads in a row.
struct Stream {
    uint64_t next = 0;   // where the next read should begin
    uint64_t ahead = 0;  // how far has been read ahead
    uint64_t window = 0;
    uint32_t reads = 0;
    uint64_t used = 0;
};

class ReadAheadQueue final : public PieceQueue {
  public:
    ReadAheadQueue(block::IoContext& context, std::vector<std::unique_ptr<block::DeviceQueue>> bases,
                   const block::Device& device, ReadAheadTable& table,
                   const std::atomic<uint64_t>& window_bytes)
        : PieceQueue(context, std::move(bases), kPieces, 0),
          device_(device),
          sector_size_(device.geometry().sector_size),
          table_(table),
          window_bytes_(window_bytes) {}

    void submit(std::span<Io* const> batch) override {
        Stream* stream = nullptr;
        for (Io* io : batch) {
            if (io->op == IoOp::kRead) {
                Stream* found = note(*io);
                if (found && stream && found != stream) read_on(*stream);
                if (found) stream = found;
                // Most readers are not in a row, and are not held up.
                if (table_.empty()) {
                    pass(base(0), io);
                } else {
                    take(io);
                }
            } else {
                if (io->op != IoOp::kFlush) {
                    table_.begin_change(io->offset, io->offset + io->length);
                }
                pass(base(0), io);
            }
        }
        pump();
        if (stream) read_on(*stream);
        flush_batch();
    }

    void hurry() override {
        hurried_ = true;
        PieceQueue::hurry();
    }

    bool idle() const override { return loading_ == 0 && PieceQueue::idle(); }

  protected:
    Start start(Piece& piece) override {
        Segment* segment = nullptr;
        uint64_t until = 0;
        piece.target = &base(0);
        piece.io.offset = piece.offset;
        switch (table_.look(piece.offset, this, segment, until)) {
            case ReadAheadTable::Found::kNothing:
                piece.length = std::min(piece.length, until - piece.offset);
                use_guest_memory(piece, sector_size_);
                return Start::kDown;
            case ReadAheadTable::Found::kReady: {
                const uint64_t inside = piece.offset - segment->offset;
                piece.length = std::min(piece.length, segment->length - inside);
                piece.memory.copy_in(segment->buffer + inside, piece.length);
                table_.unpin(*segment, piece.offset, piece.length);
                return Start::kDone;
            }
            case ReadAheadTable::Found::kLoading:
                piece.length =
                    std::min(piece.length, segment->offset + segment->length - piece.offset);
                // Ready to go down by itself, should what it waits for be spoiled.
                use_guest_memory(piece, sector_size_);
                piece.next_free = static_cast<Piece*>(segment->held);
                segment->held = &piece;
                break;
        }
        return Start::kHeld;
    }

    Next finished(Piece&) override { return Next::kEnd; }

    void passed(Io* io) override {
        if (table_.contains(io)) return loaded(*static_cast<Segment*>(io->tag));
        if (io->op != IoOp::kRead && io->op != IoOp::kFlush) {
            table_.end_change(io->offset, io->offset + io->length);
        }
        PieceQueue::passed(io);
    }

  private:
    /// The stream that this read belongs to, once there is enough of it.
    Stream* note(const Io& io) {
        now_++;
        Stream* oldest = &streams_[0];
        for (Stream& each : streams_) {
            if (each.reads > 0 && io.offset == each.next) {
                each.next = io.offset + io.length;
                each.used = now_;
                return ++each.reads >= kEnough ? &each : nullptr;
            }
            if (each.used < oldest->used) oldest = &each;
        }
        *oldest = {.next = io.offset + io.length, .reads = 1, .used = now_};
        return nullptr;
    }

    void read_on(Stream& stream) {
        const uint64_t most = window_bytes_.load(std::memory_order_relaxed);
        if (hurried_ || most == 0) return;
        stream.window = std::min(std::max(stream.window * 2, kSegmentBytes), most);
        stream.ahead = std::max(stream.ahead, stream.next);
        const uint64_t end = std::min(stream.next + stream.window, device_.size_bytes());
        while (stream.ahead < end) {
            uint64_t length =
                std::min(kSegmentBytes, device_.size_bytes() - stream.ahead);
            Segment* segment = table_.begin_load(stream.ahead, length, this, monotonic_ns());
            if (!segment && length == 0) continue;
            if (!segment) return;
            stream.ahead += length;
            segment->part = {segment->buffer, length};
            segment->io = {.op = IoOp::kRead,
                           .iov_count = 1,
                           .iov = &segment->part,
                           .offset = segment->offset,
                           .length = length,
                           .tag = segment};
            loading_++;
            pass(base(0), &segment->io);
        }
    }

    void loaded(Segment& segment) {
        loading_--;
        auto* piece = static_cast<Piece*>(std::exchange(segment.held, nullptr));
        // Those who wait keep it: it is not gone before the last has its part.
        const uint64_t begin = segment.offset;
        const bool good = table_.end_load(segment, monotonic_ns(), count(piece));
        while (piece) {
            Piece* next = piece->next_free;
            if (good) {
                piece->memory.copy_in(segment.buffer + (piece->offset - begin), piece->length);
                const uint64_t offset = piece->offset, length = piece->length;
                settle(piece);
                table_.unpin(segment, offset, length);
            } else {
                send(*piece);
            }
            piece = next;
        }
    }

    static uint32_t count(const Piece* piece) {
        uint32_t pieces = 0;
        for (; piece; piece = piece->next_free) pieces++;
        return pieces;
    }

    const block::Device& device_;
    const uint32_t sector_size_;
    ReadAheadTable& table_;
    const std::atomic<uint64_t>& window_bytes_;
    std::array<Stream, 16> streams_;
    uint64_t now_ = 0;
    uint32_t loading_ = 0;
    bool hurried_ = false;
};

Error bad_memory() {
    return Error{ErrorKind::kInvalidArgument, 0, "reading ahead takes 1 MiB to 64 MiB of memory"};
}

Error bad_window() {
    return Error{ErrorKind::kInvalidArgument, 0,
                 "the window of reading ahead is 128 KiB to half of its memory"};
}

}  // namespace

Result<std::unique_ptr<block::Device>> ReadAhead::open(const ReadAheadOptions& options,
                                                       std::unique_ptr<block::Device> base) {
    if (options.memory_bytes < kLeastBytes || options.memory_bytes > kMostBytes) return bad_memory();
    if (options.window_bytes < kSegmentBytes || options.window_bytes > options.memory_bytes / 2) {
        return bad_window();
    }
    auto table = ReadAheadTable::create(options.memory_bytes);
    if (!table) return table.error();
    return std::unique_ptr<block::Device>(
        new ReadAhead(options, std::move(table).value(), std::move(base)));
}

ReadAhead::ReadAhead(const ReadAheadOptions& options, std::unique_ptr<ReadAheadTable> table,
                     std::unique_ptr<block::Device> base)
    : StageDevice(std::move(base)),
      table_(std::move(table)),
      window_bytes_(options.window_bytes) {
    describe("readAhead(" + std::to_string(options.window_bytes >> 10) + "KiB)");
}

Result<std::unique_ptr<block::DeviceQueue>> ReadAhead::open_queue(block::IoContext& context) {
    std::vector<std::unique_ptr<block::DeviceQueue>> bases;
    auto base = base_->open_queue(context);
    if (!base) return base.error();
    bases.push_back(std::move(base).value());
    return std::unique_ptr<block::DeviceQueue>(
        new ReadAheadQueue(context, std::move(bases), *this, *table_, window_bytes_));
}

Status ReadAhead::resize(uint64_t size_bytes) {
    Status done = StageDevice::resize(size_bytes);
    table_->spoil(0, UINT64_MAX);
    return done;
}

Result<uint64_t> ReadAhead::refresh_size() {
    Result<uint64_t> size = StageDevice::refresh_size();
    table_->spoil(0, UINT64_MAX);
    return size;
}

void ReadAhead::report(const Tell& tell) const {
    const auto number = [](uint64_t value) { return static_cast<double>(value); };
    tell("memoryBytes", number(table_->capacity_bytes()));
    tell("windowBytes", number(window_bytes_.load()));
    tell("readAheadBytes", number(table_->read_ahead_bytes.load()));
    tell("hitBytes", number(table_->hit_bytes.load()));
    tell("wastedBytes", number(table_->wasted_bytes.load()));
}

Status ReadAhead::tune(std::string_view setting, double value) {
    if (setting != "windowBytes") return StageDevice::tune(setting, value);
    if (value == 0) {
        window_bytes_ = 0;
        return {};
    }
    if (!(value >= static_cast<double>(kSegmentBytes) &&
          value <= static_cast<double>(table_->capacity_bytes()) / 2)) {
        return bad_window();
    }
    window_bytes_ = static_cast<uint64_t>(value);
    return {};
}

}  // namespace vbd::stages
