#include "stages/verify.h"

#include <algorithm>
#include <bit>

#include "base/crc32c.h"
#include "stages/piece_queue.h"

namespace vbd::stages {

using block::Io;
using block::IoOp;

namespace {

constexpr uint64_t kWriter = 1ull << 40;
constexpr uint64_t kTainted = 1ull << 32;
constexpr uint64_t kChecksum = 0xffffffff;

constexpr uint32_t kPieces = 64;
constexpr uint32_t kPieceBytes = 64 * 1024;
constexpr uint64_t kDiscardBytes = 64ull << 20;  // a look at 16384 entries

uint64_t load(const uint64_t& entry) {
    return __atomic_load_n(&entry, __ATOMIC_ACQUIRE);
}

bool exchange(uint64_t& entry, uint64_t& expected, uint64_t wanted) {
    return __atomic_compare_exchange_n(&entry, &expected, wanted, true, __ATOMIC_ACQ_REL,
                                       __ATOMIC_ACQUIRE);
}

/// A checksum is never 0, which stands for none.
uint32_t checksum_of(const uint8_t* data, size_t bytes) {
    const uint32_t crc = crc32c(data, bytes);
    return crc ? crc : 1;
}

class VerifyQueue final : public PieceQueue {
  public:
    VerifyQueue(block::IoContext& context, std::vector<std::unique_ptr<block::DeviceQueue>> bases,
                const VerifyOptions& options, std::shared_ptr<ChecksumTable> table)
        : PieceQueue(context, std::move(bases), kPieces, kPieceBytes),
          block_bytes_(options.block_bytes),
          report_only_(options.report_only),
          table_(std::move(table)),
          looked_(kPieces * (kPieceBytes / options.block_bytes + 2)) {}

    void submit(std::span<Io* const> batch) override {
        for (Io* io : batch) {
            if (io->op == IoOp::kFlush) {
                pass(base(0), io);
            } else {
                take(io);
            }
        }
        flush_batch();
        pump();
    }

  protected:
    Start start(Piece& piece) override {
        piece.target = &base(0);
        piece.io.offset = piece.offset;
        piece.io.fua = piece.parent->fua;
        const bool moves = piece.io.op == IoOp::kRead || piece.io.op == IoOp::kWrite;
        if (!moves) {
            piece.length = std::min(piece.length, kDiscardBytes);
            piece.io.length = piece.length;
            table_->begin_discard();
            each_block(piece, [&](uint64_t block, size_t) { table_->forget(block); });
            return Start::kDown;
        }
        // Pieces end at blocks: none is at work on a part of another one's.
        const uint64_t limit = kPieceBytes - piece.offset % block_bytes_;
        piece.length = std::min(piece.length, limit);
        use_buffer(piece);
        if (piece.io.op == IoOp::kWrite) {
            IovCursor from = piece.memory;
            from.copy_out(piece.buffer, piece.length);
            each_block(piece, [&](uint64_t block, size_t) { table_->begin_write(block); });
        } else {
            uint64_t* looked = looked_of(piece);
            piece.note = table_->discards();
            each_block(piece, [&](uint64_t block, size_t i) { looked[i] = table_->look(block); });
        }
        return Start::kDown;
    }

    Next finished(Piece& piece) override {
        if (piece.io.op == IoOp::kRead) {
            finish_read(piece);
        } else if (piece.io.op != IoOp::kWrite) {
            each_block(piece, [&](uint64_t block, size_t) { table_->forget(block); });
            table_->end_discard();
        } else {
            const bool known = !piece.io.error;
            each_block(piece, [&](uint64_t block, size_t) {
                table_->end_write(block, known ? checksum_in(piece, block) : 0);
            });
        }
        return Next::kEnd;
    }

  private:
    template <typename Act>
    void each_block(const Piece& piece, Act act) {
        const uint64_t first = piece.offset / block_bytes_;
        const uint64_t last = (piece.offset + piece.length - 1) / block_bytes_;
        for (uint64_t block = first; piece.length > 0 && block <= last; block++) {
            act(block, static_cast<size_t>(block - first));
        }
    }

    /// Of the block where all of it is in the piece, else 0.
    uint32_t checksum_in(const Piece& piece, uint64_t block) const {
        const uint64_t begin = block * block_bytes_;
        if (begin < piece.offset || begin + block_bytes_ > piece.offset + piece.length) return 0;
        return checksum_of(piece.buffer + (begin - piece.offset), block_bytes_);
    }

    void finish_read(Piece& piece) {
        if (piece.io.error) return;
        const uint64_t* looked = looked_of(piece);
        each_block(piece, [&](uint64_t block, size_t i) {
            const uint32_t checksum = checksum_in(piece, block);
            if (checksum == 0 || table_->check(block, looked[i], checksum, piece.note)) return;
            table_->mismatches.fetch_add(1, std::memory_order_relaxed);
            table_->last_mismatch_offset = block * block_bytes_;
            if (!report_only_) piece.io.error = EIO;
        });
        if (!piece.io.error) piece.memory.copy_in(piece.buffer, piece.length);
    }

    uint64_t* looked_of(const Piece& piece) {
        return &looked_[slot_of(piece) * (kPieceBytes / block_bytes_ + 2)];
    }

    const uint32_t block_bytes_;
    const bool report_only_;
    std::shared_ptr<ChecksumTable> table_;
    std::vector<uint64_t> looked_;  // for each piece, the entries of its blocks before the read
};

}  // namespace

Result<std::unique_ptr<ChecksumTable>> ChecksumTable::create(uint64_t blocks) {
    auto entries = ReservedArray<uint64_t>::create(blocks);
    if (!entries) return entries.error();
    auto table = std::make_unique<ChecksumTable>();
    table->entries_ = std::move(entries).value();
    return table;
}

void ChecksumTable::begin_write(uint64_t block) {
    uint64_t& entry = entries_[block];
    uint64_t seen = load(entry);
    while (!exchange(entry, seen,
                     ((seen & ~kChecksum) | (seen >= kWriter ? kTainted : 0)) + kWriter)) {
    }
}

void ChecksumTable::end_write(uint64_t block, uint32_t checksum) {
    uint64_t& entry = entries_[block];
    uint64_t seen = load(entry);
    uint64_t left;
    do {
        left = seen - kWriter;
        if (left >= kWriter) {
            left |= kTainted;
        } else if (left & kTainted) {
            left = 0;
        } else {
            left = checksum;
        }
    } while (!exchange(entry, seen, left));
}

uint64_t ChecksumTable::look(uint64_t block) const {
    return load(entries_[block]);
}

void ChecksumTable::forget(uint64_t block) {
    uint64_t& entry = entries_[block];
    uint64_t seen = load(entry);
    // An entry that is 0 stays untouched, and takes no memory.
    while (seen != 0 && !exchange(entry, seen, seen >= kWriter ? seen | kTainted : 0)) {
    }
}

bool ChecksumTable::check(uint64_t block, uint64_t looked, uint32_t checksum,
                          uint64_t discards_before) {
    uint64_t& entry = entries_[block];
    uint64_t now = load(entry);
    if (now != looked || now >= kWriter) return true;
    if (now != 0) {
        compared.fetch_add(1, std::memory_order_relaxed);
        return now == checksum;
    }
    // Read for the first time: from now on it has to stay so. Unless a discard came between, which
    // leaves no trace in an entry that is 0.
    if (discards_before != discards() || discards_running_ != 0) return true;
    __atomic_compare_exchange_n(&entry, &now, uint64_t{checksum}, false, __ATOMIC_ACQ_REL,
                                __ATOMIC_ACQUIRE);
    return true;
}

Result<std::unique_ptr<block::Device>> Verify::open(const VerifyOptions& options,
                                                    std::unique_ptr<block::Device> base) {
    if (options.block_bytes < base->geometry().sector_size || options.block_bytes > kPieceBytes ||
        !std::has_single_bit(options.block_bytes)) {
        return Error{ErrorKind::kInvalidArgument, 0,
                     "a block of verify is a power of two of a sector to " +
                         std::to_string(kPieceBytes) + " bytes"};
    }
    // Memory is taken where it is touched, and the disk may grow.
    const uint64_t blocks = std::max<uint64_t>(base->size_bytes() / options.block_bytes + 1, 1) * 4;
    auto table = ChecksumTable::create(blocks);
    if (!table) return table.error();
    return std::unique_ptr<block::Device>(
        new Verify(options, std::move(table).value(), std::move(base)));
}

Verify::Verify(const VerifyOptions& options, std::unique_ptr<ChecksumTable> table,
               std::unique_ptr<block::Device> base)
    : StageDevice(std::move(base)), options_(options), table_(std::move(table)) {
    geometry_.fills_reads = true;
    describe(std::string("verify(") + std::to_string(options_.block_bytes) + " bytes a block" +
             (options_.report_only ? ", report only" : "") + ")");
}

Result<std::unique_ptr<block::DeviceQueue>> Verify::open_queue(block::IoContext& context) {
    std::vector<std::unique_ptr<block::DeviceQueue>> bases;
    auto base = base_->open_queue(context);
    if (!base) return base.error();
    bases.push_back(std::move(base).value());
    return std::unique_ptr<block::DeviceQueue>(
        new VerifyQueue(context, std::move(bases), options_, table_));
}

Status Verify::check_size(uint64_t size_bytes) const {
    if (size_bytes / options_.block_bytes < table_->blocks()) return {};
    return Error{ErrorKind::kUnsupported, 0,
                 "a disk behind verify grows to four times its size at most; serve it anew"};
}

void Verify::forget_beyond(uint64_t size_bytes) {
    const uint64_t block_bytes = options_.block_bytes;
    const uint64_t end = (this->size_bytes() + block_bytes - 1) / block_bytes;
    for (uint64_t block = size_bytes / block_bytes; block < end; block++) table_->forget(block);
}

/// The end of the disk goes as by a discard: what is read meanwhile is not learnt.
Status Verify::resize(uint64_t size_bytes) {
    if (Status s = check_size(size_bytes); !s) return s;
    table_->begin_discard();
    Status done = base_->resize(size_bytes);
    if (done) forget_beyond(size_bytes);
    table_->end_discard();
    if (done) set_size(size_bytes);
    return done;
}

Result<uint64_t> Verify::refresh_size() {
    Result<uint64_t> size = base_->refresh_size();
    if (!size) return size;
    if (Status s = check_size(size.value()); !s) return s.error();
    table_->begin_discard();
    forget_beyond(size.value());
    table_->end_discard();
    set_size(size.value());
    return size;
}

void Verify::report(const Tell& tell) const {
    tell("compared", static_cast<double>(table_->compared.load()));
    tell("mismatches", static_cast<double>(table_->mismatches.load()));
    tell("lastMismatchOffset", static_cast<double>(table_->last_mismatch_offset.load()));
}

}  // namespace vbd::stages
