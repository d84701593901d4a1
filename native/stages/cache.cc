#include "stages/cache.h"

#include <algorithm>

#include "base/clock.h"
#include "stages/piece_queue.h"

namespace vbd::stages {

using block::Io;
using block::IoOp;

namespace {

constexpr uint64_t kBlockBytes = CacheStore::kBlockBytes;
constexpr uint32_t kPieces = 64;
constexpr uint32_t kPieceBlocks = 16;
constexpr uint64_t kRoomRetryNs = 200'000;

class CacheQueue final : public PieceQueue {
  public:
    CacheQueue(block::IoContext& context, std::vector<std::unique_ptr<block::DeviceQueue>> bases,
               Cache::Shared& shared, const block::Device& device)
        : PieceQueue(context, std::move(bases), kPieces, kPieceBlocks * kBlockBytes),
          store_(*shared.store),
          writer_(shared.writer),
          device_(device),
          fills_(kPieces * kPieceBlocks) {
        room_.queue = this;
    }

    void submit(std::span<Io* const> batch) override {
        for (Io* io : batch) {
            switch (io->op) {
                case IoOp::kRead:
                    take(io);
                    break;
                case IoOp::kWrite:
                    if (writer_.flush_failed()) {
                        complete(io, EIO);
                    } else {
                        take(io);
                    }
                    break;
                case IoOp::kFlush:
                    hand_over(io);
                    break;
                case IoOp::kDiscard:
                    if (!device_.geometry().can_discard) {
                        complete(io, EOPNOTSUPP);
                    } else if (writer_.flush_failed()) {
                        complete(io, EIO);
                    } else {
                        hand_over(io);
                    }
                    break;
                case IoOp::kSecureDiscard:
                    complete(io, EOPNOTSUPP);
                    break;
            }
        }
        pump();
    }

    /// There may be room.
    void resume_list(Io*) override {
        waits_for_room_ = false;
        resumed_ = true;
        pump();
        resumed_ = false;
    }

    bool idle() const override { return !waits_for_room_ && PieceQueue::idle(); }

  protected:
    Start start(Piece& piece) override {
        return piece.io.op == IoOp::kRead ? start_read(piece) : start_write(piece);
    }

    Next finished(Piece& piece) override {
        if (piece.step == 0) return Next::kEnd;
        const uint8_t* data = piece.io.error ? nullptr : piece.buffer;
        const uint64_t begin = piece.io.offset;
        const uint64_t disk_end = begin + piece.io.length;
        for (uint32_t i = 0; i < piece.step; i++) {
            const uint64_t at = begin + i * kBlockBytes;
            const uint64_t from = std::max(at, piece.offset);
            const uint64_t to = std::min(at + kBlockBytes, piece.offset + piece.length);
            store_.end_fill(fills_of(piece)[i], data ? data + i * kBlockBytes : nullptr,
                            static_cast<uint32_t>(std::min(disk_end - at, kBlockBytes)),
                            static_cast<uint32_t>(from - at), static_cast<uint32_t>(to - from),
                            piece.memory);
        }
        return Next::kEnd;
    }

    void end(Io* io) override {
        if (io->op == IoOp::kWrite && io->fua && !io->error) return hand_over(io);
        complete(io, io->error);
    }

  private:
    /// What the writer has to do: it comes back when that is done.
    void hand_over(Io* io) {
        io->queue = this;
        context().note_started();
        writer_.push(context(), io);
    }

    /// Calls `act(block, inside, bytes)` from the piece's beginning on while it returns true; how far that
    /// got.
    template <typename Act>
    static uint64_t each_block(const Piece& piece, Act act) {
        uint64_t done = 0;
        while (done < piece.length && done < kTurnBytes) {
            const uint64_t at = piece.offset + done;
            const uint64_t bytes = std::min(kBlockBytes - at % kBlockBytes, piece.length - done);
            if (!act(at / kBlockBytes, static_cast<uint32_t>(at % kBlockBytes),
                     static_cast<uint32_t>(bytes))) {
                break;
            }
            done += bytes;
        }
        return done;
    }

    Start start_read(Piece& piece) {
        IovCursor to = piece.memory;
        const uint64_t found =
            each_block(piece, [&](uint64_t block, uint32_t inside, uint32_t bytes) {
                return store_.read(block, inside, bytes, to);
            });
        if (found > 0) {
            piece.length = found;
            return Start::kDone;
        }
        return fill(piece);
    }

    /// Blocks in a row that are not here, whole: as many as there are, and the piece has room for.
    Start fill(Piece& piece) {
        uint32_t* fills = fills_of(piece);
        const uint64_t wanted =
            each_block(piece, [&](uint64_t block, uint32_t inside, uint32_t bytes) {
                if (piece.step == kPieceBlocks) return false;
                if (store_.begin_fill(block, inside, bytes, fills[piece.step]) ==
                    CacheStore::Fill::kHit) {
                    return false;
                }
                piece.step++;
                return true;
            });
        // Somebody has brought it since the look.
        if (wanted == 0) return start_read(piece);
        piece.length = wanted;
        piece.target = &base(0);
        piece.io.offset = piece.offset / kBlockBytes * kBlockBytes;
        piece.io.length =
            std::min(piece.step * kBlockBytes, device_.size_bytes() - piece.io.offset);
        if (piece.io.offset + piece.io.length < piece.offset + piece.length) {
            // The disk has become shorter under it.
            piece.io.length = piece.offset + piece.length - piece.io.offset;
        }
        piece.parts[0] = {piece.buffer, piece.io.length};
        piece.io.iov = piece.parts;
        piece.io.iov_count = 1;
        return Start::kDown;
    }

    Start start_write(Piece& piece) {
        if (waits_for_room_) return Start::kLater;
        IovCursor from = piece.memory;
        const uint64_t kept =
            each_block(piece, [&](uint64_t block, uint32_t inside, uint32_t bytes) {
                const auto written = store_.write(block, inside, bytes, from);
                if (written == CacheStore::Written::kDirtied) writer_.note_dirtied();
                return written != CacheStore::Written::kNoRoom;
            });
        if (kept > 0) {
            piece.length = kept;
            return Start::kDone;
        }
        if (int32_t error = writer_.error()) {
            piece.io.error = error;
            return Start::kDone;
        }
        if (resumed_) {
            // What holds the room is on its way up, not down.
            look_again(monotonic_ns() + kRoomRetryNs);
        } else {
            waits_for_room_ = true;
            context().note_started();
            writer_.wait_for_room(context(), &room_);
        }
        return Start::kLater;
    }

    uint32_t* fills_of(const Piece& piece) { return &fills_[slot_of(piece) * kPieceBlocks]; }

    CacheStore& store_;
    CacheWriter& writer_;
    const block::Device& device_;
    std::vector<uint32_t> fills_;  // for each piece, the entries of its blocks; Piece::step of them
    Io room_{};                    // what the writer hands back
    bool waits_for_room_ = false;
    bool resumed_ = false;
};

std::string label_of(uint64_t bytes) {
    return "cache(" + std::to_string(bytes >> 20) + "MiB)";
}

}  // namespace

Result<std::unique_ptr<block::Device>> Cache::open(const CacheOptions& options,
                                                   std::unique_ptr<block::Device> base) {
    if (options.memory_bytes < kLeastBytes || options.memory_bytes > kMostBytes) {
        return Error{ErrorKind::kInvalidArgument, 0, "a cache has 1 MiB to 64 GiB of memory"};
    }
    if (options.write_back_ns > kLongestNs) {
        return Error{ErrorKind::kInvalidArgument, 0, "a cache writes back after an hour at most"};
    }
    auto store = CacheStore::create(options.memory_bytes, base->geometry().sector_size);
    if (!store) return store.error();
    std::unique_ptr<Cache> cache(new Cache(options, std::move(store).value(), std::move(base)));
    if (Status s = cache->shared_->writer.start(); !s) return s.error();
    return std::unique_ptr<block::Device>(std::move(cache));
}

Cache::Cache(const CacheOptions& options, std::unique_ptr<CacheStore> store,
             std::unique_ptr<block::Device> base)
    : StageDevice(std::move(base)),
      shared_(std::make_unique<Shared>(std::move(store), *base_, options.write_back_ns)) {
    // It has something to flush, whatever is below.
    geometry_.can_flush = true;
    geometry_.can_secure_discard = false;
    geometry_.fills_reads = true;
    describe(label_of(options.memory_bytes));
}

Cache::~Cache() {
    (void)close();
}

Result<std::unique_ptr<block::DeviceQueue>> Cache::open_queue(block::IoContext& context) {
    std::vector<std::unique_ptr<block::DeviceQueue>> bases;
    auto base = base_->open_queue(context);
    if (!base) return base.error();
    bases.push_back(std::move(base).value());
    return std::unique_ptr<block::DeviceQueue>(
        new CacheQueue(context, std::move(bases), *shared_, *this));
}

Status Cache::resize(uint64_t size_bytes) {
    Status done = shared_->writer.run([&]() -> Status {
        if (Status s = base_->resize(size_bytes); !s) return s;
        shared_->store->drop(size_bytes, UINT64_MAX);
        return {};
    });
    if (done) set_size(size_bytes);
    return done;
}

Result<uint64_t> Cache::refresh_size() {
    Result<uint64_t> size = base_->refresh_size();
    if (!size || size.value() == size_bytes()) return size;
    Status done = shared_->writer.run([&]() -> Status {
        shared_->store->drop(size.value(), UINT64_MAX);
        return {};
    });
    if (!done) return done.error();
    set_size(size.value());
    return size;
}

Status Cache::close() {
    Status own = shared_->writer.stop();
    Status below = base_->close();
    return own ? below : own;
}

void Cache::report(const Tell& tell) const {
    const CacheStore& store = *shared_->store;
    const CacheWriter& writer = shared_->writer;
    const auto number = [](uint64_t value) { return static_cast<double>(value); };
    tell("memoryBytes", number(store.capacity_bytes()));
    tell("hits", number(store.hits.load()));
    tell("misses", number(store.misses.load()));
    tell("dirtyBytes", number(store.dirty_blocks() * kBlockBytes));
    tell("writtenBackBytes", number(writer.written_bytes.load()));
    tell("failedWriteBacks", number(writer.failed_writes.load()));
    tell("writeBackMs", number(writer.write_back_ns()) / 1e6);
}

Status Cache::tune(std::string_view setting, double value) {
    if (setting != "writeBackMs") return StageDevice::tune(setting, value);
    if (!(value >= 0 && value <= static_cast<double>(kLongestNs) / 1e6)) {
        return Error{ErrorKind::kInvalidArgument, 0, "a cache writes back after an hour at most"};
    }
    shared_->writer.set_write_back_ns(static_cast<uint64_t>(value * 1e6));
    return {};
}

}  // namespace vbd::stages
