#include "stages/cache_writer.h"

#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cstdlib>

#include "base/clock.h"
#include "base/units.h"

namespace vbd::stages {

using block::Io;
using block::IoContext;
using block::IoList;
using block::IoOp;
using block::Timer;

namespace {

constexpr uint64_t kRetryNs = 1'000'000'000;
constexpr uint64_t kPieceBytes = 32 * CacheStore::kBlockBytes;

}  // namespace

CacheWriter::CacheWriter(CacheStore& store, block::Device& below, uint64_t write_back_ns)
    : store_(store), below_(below), write_back_ns_(write_back_ns), buffers_(nullptr, std::free) {}

CacheWriter::~CacheWriter() {
    (void)stop();
}

Status CacheWriter::start() {
    wake_fd_ = Fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (!wake_fd_) return system_error(ErrorKind::kNoMemory, errno, "creating an eventfd");
    dirty_.reserve(std::min<uint64_t>(store_.capacity(), kMostDirty));
    below_ios_.resize(kMostDiscards);
    const block::Geometry& below = below_.geometry();
    flushes_below_ = below.can_flush && !below.read_only;
    Status running = thread_.start("vbd-cache", [this] { main(); });
    if (!running) return running;
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return outcome_.has_value(); });
    Status outcome = std::move(*outcome_);
    outcome_.reset();
    started_ = static_cast<bool>(outcome);
    if (!started_) {
        lock.unlock();
        thread_.join();
    }
    return outcome;
}

void CacheWriter::wake() {
    if (asleep_.load() && asleep_.exchange(false)) eventfd_write(wake_fd_.get(), 1);
}

void CacheWriter::push(IoContext& context, Io* io) {
    {
        const std::lock_guard lock(mutex_);
        io->scratch = reinterpret_cast<uintptr_t>(&context);
        (io->op == IoOp::kDiscard ? discards_ : flushes_).push(io);
        told_.store(true);
    }
    wake();
}

void CacheWriter::wait_for_room(IoContext& context, Io* waiter) {
    {
        const std::lock_guard lock(mutex_);
        waiter->scratch = reinterpret_cast<uintptr_t>(&context);
        waiters_.push(waiter);
        told_.store(true);
    }
    wake();
}

void CacheWriter::note_dirtied() {
    const uint64_t dirty = store_.dirty_blocks();
    // The first one sets the time; the one in the middle is when writing has to begin.
    if (dirty == 1 || dirty > store_.capacity() / 2) wake();
}

void CacheWriter::set_write_back_ns(uint64_t ns) {
    write_back_ns_.store(ns);
    wake();
}

Status CacheWriter::run(std::function<Status()> act) {
    std::unique_lock lock(mutex_);
    if (!started_) return Error{ErrorKind::kInvalidArgument, 0, "the cache is closed"};
    act_ = std::move(act);
    told_.store(true);
    wake();
    changed_.wait(lock, [this] { return outcome_.has_value(); });
    Status outcome = std::move(*outcome_);
    outcome_.reset();
    return outcome;
}

Status CacheWriter::stop() {
    std::unique_lock lock(mutex_);
    if (!started_) return {};
    started_ = false;
    stopping_ = true;
    told_.store(true);
    wake();
    lock.unlock();
    thread_.join();
    return std::move(*outcome_);
}

Status CacheWriter::open() {
    auto context = IoContext::create({}, kPieces * 2);
    if (!context) return context.error();
    context_ = std::move(context).value();
    auto queue = below_.open_queue(*context_);
    if (!queue) return queue.error();
    queue_ = std::move(queue).value();
    void* memory = std::aligned_alloc(kPageSize, kPieces * kPieceBytes);
    if (!memory) return Error{ErrorKind::kNoMemory, ENOMEM, "no memory to write a cache back"};
    buffers_.reset(static_cast<uint8_t*>(memory));
    for (size_t i = 0; i < kPieces; i++) pieces_[i].buffer = buffers_.get() + i * kPieceBytes;
    return {};
}

void CacheWriter::main() {
    Status opened = open();
    const bool ok = static_cast<bool>(opened);
    {
        const std::lock_guard lock(mutex_);
        outcome_ = std::move(opened);
        changed_.notify_all();
    }
    if (ok) serve();
    queue_.reset();
    context_.reset();
    if (!ok) return;
    const std::lock_guard lock(mutex_);
    outcome_ = Status{};
    if (last_error_ == 0) return;
    outcome_ = system_error(ErrorKind::kBacking, last_error_,
                            "writing a cache back: what was written since the last flush, " +
                                std::to_string(store_.dirty_blocks() * CacheStore::kBlockBytes) +
                                " bytes of it in the cache, is lost");
}

void CacheWriter::serve() {
    for (;;) {
        bool worked = job_ == Job::kNone && begin_job();
        while (job_ != Job::kNone && go_on()) worked = true;
        if (job_ == Job::kNone && ending_ && queue_->idle() && context_->in_flight() == 0) return;
        context_->submit();
        worked |= context_->poll() > 0;
        collect_finished();
        if (!worked) sleep();
    }
}

CacheWriter::Job CacheWriter::next_job() {
    if (act_) return Job::kAct;
    const bool discard_first = last_job_ == Job::kFlush || flushes_.empty();
    if (!discards_.empty() && discard_first) return Job::kDiscard;
    if (!flushes_.empty()) return Job::kFlush;
    if (stopping_ && !ending_) {
        ending_ = true;
        return Job::kFlush;
    }
    return !ending_ && wants_write_back() ? Job::kWriteBack : Job::kNone;
}

bool CacheWriter::begin_job() {
    {
        const std::lock_guard lock(mutex_);
        told_.store(false);
        job_ = next_job();
        if (job_ == Job::kFlush) job_ios_.splice(flushes_);
        for (uint32_t i = 0; job_ == Job::kDiscard && i < kMostDiscards; i++) {
            if (Io* io = discards_.pop()) job_ios_.push(io);
        }
    }
    if (ending_) queue_->hurry();
    if (job_ == Job::kNone) {
        give_rooms_back();
        return false;
    }
    last_job_ = job_;
    job_error_ = 0;
    sent_below_ = false;
    job_epoch_ = store_.next_epoch();
    dirty_.clear();
    next_dirty_ = 0;
    return true;
}

/// True: it did something, and can go on at once. False: it waits for the disk below, or has ended.
bool CacheWriter::go_on() {
    switch (job_) {
        case Job::kNone:
            return false;
        case Job::kAct: {
            std::unique_lock lock(mutex_);
            auto act = std::move(act_);
            act_ = nullptr;
            lock.unlock();
            Status outcome = act();
            lock.lock();
            outcome_ = std::move(outcome);
            changed_.notify_all();
            lock.unlock();
            end_job(0);
            return true;
        }
        case Job::kDiscard:
            if (!sent_below_) return send_below(), true;
            break;
        case Job::kFlush:
            if (flush_failed()) {
                end_job(EIO);
                return true;
            }
            [[fallthrough]];
        case Job::kWriteBack:
            if (sent_below_) break;
            if (write_round()) return true;
            if (in_flight_ > 0) return false;
            if (job_ == Job::kFlush && !job_error_ && flushes_below_) return send_below(), true;
            end_job(job_error_);
            return true;
    }
    if (in_flight_ > 0) return false;
    end_job(job_error_);
    return true;
}

/// Sends down what is dirty, as much as there are free pieces. False: there is nothing to send, or a
/// round has to end before the next one, so that nothing overtakes itself.
bool CacheWriter::write_round() {
    if (next_dirty_ == dirty_.size()) {
        if (in_flight_ > 0 || job_error_) return false;
        dirty_.clear();
        next_dirty_ = 0;
        store_.collect(job_epoch_, dirty_);
        if (dirty_.empty()) return false;
        std::sort(dirty_.begin(), dirty_.end(),
                  [](const auto& a, const auto& b) { return a.block < b.block; });
    }
    bool sent = false;
    while (next_dirty_ < dirty_.size() && !pieces_.none_free()) sent |= write_piece();
    // A round of blocks that somebody else has cleaned is a round, too.
    return sent || (next_dirty_ == dirty_.size() && in_flight_ == 0);
}

/// The next run of dirty sectors, over as many blocks as they are in a row.
bool CacheWriter::write_piece() {
    Piece* piece = pieces_.take();
    const uint64_t disk_bytes = below_.size_bytes();
    const uint32_t sector = store_.sector_size();
    uint64_t begin = 0, end = 0;
    piece->blocks = 0;
    while (next_dirty_ < dirty_.size() && piece->blocks < kPieceBlocks) {
        const CacheStore::Dirty& dirty = dirty_[next_dirty_];
        const uint64_t block_begin = dirty.block * CacheStore::kBlockBytes;
        if (piece->blocks > 0 && end != block_begin) break;
        const auto run = store_.begin_write_back(dirty, piece->blocks > 0, disk_bytes,
                                                 piece->buffer + (end - begin));
        if (run.count == 0 && piece->blocks > 0) break;
        next_dirty_++;
        if (run.count == 0) continue;
        if (piece->blocks == 0) begin = end = block_begin + run.first * sector;
        end += run.count * sector;
        piece->entries[piece->blocks] = dirty.entry;
        piece->runs[piece->blocks++] = run;
    }
    if (piece->blocks == 0) {
        pieces_.give_back(piece);
        return false;
    }
    piece->part = {piece->buffer, end - begin};
    piece->io = {.op = IoOp::kWrite,
                 .iov_count = 1,
                 .iov = &piece->part,
                 .offset = begin,
                 .length = end - begin,
                 .tag = piece};
    in_flight_++;
    Io* io = &piece->io;
    queue_->submit({&io, 1});
    return true;
}

/// The job's own requests: a flush, or one discard for each that was asked for.
void CacheWriter::send_below() {
    sent_below_ = true;
    if (job_ == Job::kFlush) {
        below_ios_[0] = {.op = IoOp::kFlush};
        Io* io = &below_ios_[0];
        in_flight_++;
        return queue_->submit({&io, 1});
    }
    size_t count = 0;
    for (Io* asked = job_ios_.front(); asked; asked = asked->next) {
        Io& io = below_ios_[count++];
        io = {.op = IoOp::kDiscard, .offset = asked->offset, .length = asked->length, .tag = asked};
        Io* one = &io;
        in_flight_++;
        queue_->submit({&one, 1});
    }
}

void CacheWriter::collect_finished() {
    Io* next = nullptr;
    for (Io* io = queue_->reap(); io; io = next) {
        next = io->next;
        in_flight_--;
        if (pieces_.contains(io)) {
            finish_piece(*static_cast<Piece*>(io->tag));
        } else if (io->op == IoOp::kDiscard) {
            if (!io->error) store_.drop(io->offset, io->offset + io->length);
            static_cast<Io*>(io->tag)->error = io->error;
        } else if (io->error) {
            job_error_ = io->error;
            flush_failed_.store(true, std::memory_order_release);
        }
    }
}

void CacheWriter::finish_piece(Piece& piece) {
    const bool written = piece.io.error == 0;
    for (uint32_t i = 0; i < piece.blocks; i++) {
        store_.end_write_back(piece.entries[i], piece.runs[i], written);
    }
    if (written) {
        written_bytes.fetch_add(piece.io.length, std::memory_order_relaxed);
    } else {
        failed_writes.fetch_add(1, std::memory_order_relaxed);
        job_error_ = piece.io.error;
    }
    pieces_.give_back(&piece);
    if (written) give_rooms_back();
}

void CacheWriter::end_job(int32_t error) {
    const bool writes = job_ == Job::kFlush || job_ == Job::kWriteBack;
    if (writes) {
        last_error_ = error;
        error_.store(error, std::memory_order_release);
        retry_ns_ = error ? monotonic_ns() + kRetryNs : 0;
        dirty_since_ns_ = 0;
    }
    while (Io* io = job_ios_.pop()) {
        if (job_ == Job::kFlush) io->error = error;
        reinterpret_cast<IoContext*>(io->scratch)->complete_from_thread(io);
    }
    job_ = Job::kNone;
    if (writes) give_rooms_back();
}

void CacheWriter::give_rooms_back() {
    const std::lock_guard lock(mutex_);
    while (Io* io = waiters_.pop()) {
        IoList one;
        auto* context = reinterpret_cast<IoContext*>(io->scratch);
        one.push(io);
        context->resume_from_thread(one);
    }
}

/// With the mutex.
bool CacheWriter::wants_write_back() {
    const uint64_t dirty = store_.dirty_blocks();
    if (dirty == 0) return false;
    const uint64_t now_ns = monotonic_ns();
    if (dirty_since_ns_ == 0) dirty_since_ns_ = now_ns;
    if (now_ns < retry_ns_) return false;
    return !waiters_.empty() || dirty > store_.capacity() / 2 ||
           now_ns - dirty_since_ns_ >= write_back_ns_.load();
}

/// When it has something to do by itself.
uint64_t CacheWriter::due_ns() {
    uint64_t due = context_->next_due_ns();
    if (job_ != Job::kNone || dirty_since_ns_ == 0 || store_.dirty_blocks() == 0) return due;
    return std::min(due, std::max(retry_ns_, dirty_since_ns_ + write_back_ns_.load()));
}

void CacheWriter::sleep() {
    asleep_.store(true);
    // Whoever brings something from here on sees that it sleeps.
    const bool idle = job_ == Job::kNone;
    const uint64_t dirty = store_.dirty_blocks();
    const bool first = dirty > 0 && dirty_since_ns_ == 0;
    const bool half = dirty > store_.capacity() / 2 && monotonic_ns() >= retry_ns_;
    if (!(idle && (told_.load() || first || half)) && context_->arm()) {
        pollfd fds[] = {{wake_fd_.get(), POLLIN, 0}, {context_->wake_fd(), POLLIN, 0}};
        const uint64_t now_ns = monotonic_ns(), due = due_ns();
        const uint64_t wait_ns = due > now_ns ? due - now_ns : 0;
        const timespec timeout{static_cast<time_t>(wait_ns / 1'000'000'000),
                               static_cast<long>(wait_ns % 1'000'000'000)};
        ::ppoll(fds, 2, due == Timer::kNever ? nullptr : &timeout, nullptr);
    }
    asleep_.store(false);
    eventfd_t ignored;
    eventfd_read(wake_fd_.get(), &ignored);
}

}  // namespace vbd::stages
