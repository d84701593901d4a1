#include "block/uring.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace vbd::block {

namespace {

// The kernel's table of registered buffers has at most this many entries (IORING_MAX_REG_BUFFERS).
constexpr size_t kMaxBuffers = 1 << 14;
// A device that has nothing gets so many entries at once, and works while the rest of the batch is
// prepared: the kernel holds back what comes in one call until it has seen all of it.
constexpr uint32_t kFirstEntries = 4;

constexpr uint8_t kNeededOps[] = {IORING_OP_READV,       IORING_OP_WRITEV,   IORING_OP_READ,
                                  IORING_OP_WRITE,       IORING_OP_FSYNC,    IORING_OP_READ_FIXED,
                                  IORING_OP_WRITE_FIXED, IORING_OP_FALLOCATE};

bool has_needed_ops(io_uring* ring) {
    io_uring_probe* probe = io_uring_get_probe_ring(ring);
    if (!probe) return false;  // before Linux 5.6
    bool all = true;
    for (uint8_t op : kNeededOps) all = all && io_uring_opcode_supported(probe, op);
    io_uring_free_probe(probe);
    return all;
}

Error unavailable(int error) {
    const char* why = std::strerror(error);
    if (error == ENOSYS) why = "this kernel has none, or a filter hides it";
    if (error == EPERM || error == EACCES) {
        why = "it is forbidden here (sysctl kernel.io_uring_disabled, or a security policy)";
    }
    if (error == ENOMEM) why = "not enough memory that may be locked (RLIMIT_MEMLOCK)";
    if (error == EOPNOTSUPP) why = "this kernel's is too old (before Linux 5.6)";
    return Error{ErrorKind::kUnsupported, error, std::string("no io_uring: ") + why};
}

}  // namespace

Result<std::unique_ptr<Uring>> Uring::create(iovec arena, uint32_t entries, int wake_fd) {
    std::unique_ptr<Uring> uring(new Uring);
    int error = 0;
    if (!uring->set_up(entries, error)) return unavailable(error);
    if (!(uring->ring_.features & IORING_FEAT_NODROP) || !has_needed_ops(&uring->ring_)) {
        return unavailable(EOPNOTSUPP);
    }
    if (wake_fd >= 0) {
        const int result = io_uring_register_eventfd(&uring->ring_, wake_fd);
        if (result < 0) return unavailable(-result);
        uring->disarm();
    }
    uring->prepare_buffers(arena);
    return uring;
}

Status Uring::probe() {
    Result<std::unique_ptr<Uring>> made = create(iovec{}, 2, -1);
    return made ? Status() : Status(made.error());
}

Uring::~Uring() {
    if (open_) io_uring_queue_exit(&ring_);
}

/// Tries the best mode first. Completions that the kernel finishes only when this thread enters it
/// (DEFER_TASKRUN) cost no interrupt of the reactor; TASKRUN_FLAG tells poll() when entering is
/// worth it.
bool Uring::set_up(uint32_t entries, int& error) {
    constexpr uint32_t kModes[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
            IORING_SETUP_SUBMIT_ALL,                                                      // 6.1
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,  // 5.19
        0};
    for (uint32_t mode : kModes) {
        io_uring_params params{};
        params.flags = mode | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
        params.cq_entries = entries * 4;  // queues keep more in flight than they submit at once
        const int result = io_uring_queue_init_params(entries, &ring_, &params);
        if (result == 0) {
            open_ = true;
            setup_flags_ = mode;
            return true;
        }
        error = -result;
        if (error != EINVAL) break;
    }
    return false;
}

void Uring::prepare_buffers(iovec arena) {
    arena_ = arena;
    const size_t chunks = (arena.iov_len + kChunkBytes - 1) / kChunkBytes;
    if (chunks == 0) {
        buffers_reason_ = "no arena";
        return;
    }
    const size_t slots = std::min(chunks, kMaxBuffers);
    const int result = io_uring_register_buffers_sparse(&ring_, static_cast<unsigned>(slots));
    if (result < 0) {
        buffers_reason_ = std::strerror(-result);
        return;
    }
    registered_.assign(slots, false);
    may_register_ = true;
}

void Uring::start(Io* io) {
    io_uring_sqe* sqe = backlog_.empty() ? next_sqe() : nullptr;
    if (!sqe) {
        backlog_.push(io);
        return;
    }
    prepare(io, sqe);
    if (steps_ == kFirstEntries && io_uring_sq_ready(&ring_) == kFirstEntries) flush();
}

io_uring_sqe* Uring::next_sqe() {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (!sqe && flush()) sqe = io_uring_get_sqe(&ring_);
    return sqe;
}

void Uring::prepare(Io* io, io_uring_sqe* sqe) {
    static_cast<UringClient*>(io->queue)->prepare(io, sqe);
    io_uring_sqe_set_data(sqe, io);
    steps_++;
}

/// False when the kernel left some. What it left stays in the ring.
bool Uring::flush() {
    while (io_uring_sq_ready(&ring_) > 0) {
        const int result = io_uring_submit(&ring_);
        if (result <= 0 && result != -EINTR) return false;
    }
    return true;
}

void Uring::submit() {
    for (;;) {
        stalled_ = !flush();
        if (stalled_ || backlog_.empty()) return;
        while (!backlog_.empty()) {
            io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
            if (!sqe) break;
            prepare(backlog_.pop(), sqe);
        }
    }
}

void Uring::poll() {
    if (steps_ > 0) {
        const uint32_t flags = __atomic_load_n(ring_.sq.kflags, __ATOMIC_RELAXED);
        if (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) io_uring_get_events(&ring_);
    }
    const uint32_t queued = io_uring_sq_ready(&ring_);
    uint32_t seen = 0;
    unsigned head;
    io_uring_cqe* cqe;
    io_uring_for_each_cqe(&ring_, head, cqe) {
        Io* io = static_cast<Io*>(io_uring_cqe_get_data(cqe));
        const int32_t result = cqe->res;
        seen++;
        steps_--;
        static_cast<UringClient*>(io->queue)->on_result(io, result);
    }
    if (seen > 0) io_uring_cq_advance(&ring_, seen);
    // Next steps must not wait for a submit() that the caller has no reason to make.
    if (stalled_ || (seen > 0 && (io_uring_sq_ready(&ring_) != queued || !backlog_.empty()))) {
        submit();
    }
}

bool Uring::arm() {
    io_uring_cq_eventfd_toggle(&ring_, true);
    // The kernel publishes a completion, then looks whether to write; here it is the other way
    // round. (GCC warns of the standard's fence under ThreadSanitizer, which cannot see the
    // kernel.)
    __sync_synchronize();
    const uint32_t flags = __atomic_load_n(ring_.sq.kflags, __ATOMIC_RELAXED);
    return !(flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) &&
           io_uring_cq_ready(&ring_) == 0 && io_uring_sq_ready(&ring_) == 0 && backlog_.empty();
}

int Uring::buffer_index(const iovec& memory) {
    const uintptr_t offset =
        reinterpret_cast<uintptr_t>(memory.iov_base) - reinterpret_cast<uintptr_t>(arena_.iov_base);
    if (offset >= arena_.iov_len || memory.iov_len == 0) return -1;
    const size_t chunk = offset / kChunkBytes;
    if (chunk >= registered_.size() || memory.iov_len > arena_.iov_len - offset ||
        (offset + memory.iov_len - 1) / kChunkBytes != chunk) {
        return -1;
    }
    return registered_[chunk] || register_chunk(chunk) ? static_cast<int>(chunk) : -1;
}

bool Uring::register_chunk(size_t chunk) {
    if (!may_register_) return false;
    const size_t offset = chunk * kChunkBytes;
    const iovec memory{static_cast<char*>(arena_.iov_base) + offset,
                       std::min(kChunkBytes, arena_.iov_len - offset)};
    const int result = io_uring_register_buffers_update_tag(&ring_, static_cast<unsigned>(chunk),
                                                            &memory, nullptr, 1);
    if (result < 0) {
        // Mostly RLIMIT_MEMLOCK. Each try pins and unpins, so one is enough.
        may_register_ = false;
        buffers_reason_ = std::strerror(-result);
        return false;
    }
    registered_[chunk] = true;
    registered_count_++;
    return true;
}

void Uring::forget_buffers(const void* begin, size_t length) {
    const uintptr_t arena = reinterpret_cast<uintptr_t>(arena_.iov_base);
    const uintptr_t from = std::max(reinterpret_cast<uintptr_t>(begin), arena);
    const uintptr_t to = std::min(reinterpret_cast<uintptr_t>(begin) + length,
                                  arena + registered_.size() * kChunkBytes);
    if (from >= to) return;
    // What is queued already names these buffers by their index, and the kernel resolves it when it
    // takes the entry.
    flush();
    for (size_t chunk = (from - arena) / kChunkBytes; chunk * kChunkBytes < to - arena; chunk++) {
        if (!registered_[chunk]) continue;
        const iovec none{nullptr, 0};
        const int result = io_uring_register_buffers_update_tag(
            &ring_, static_cast<unsigned>(chunk), &none, nullptr, 1);
        // A buffer that stayed registered would take reads meant for the pages that follow it.
        VBD_CHECK(result >= 0);
        registered_[chunk] = false;
        registered_count_--;
    }
}

std::string Uring::status() const {
    std::string text = "io_uring";
    if (setup_flags_ & IORING_SETUP_DEFER_TASKRUN) {
        text += ", deferred completions";
    } else if (setup_flags_ & IORING_SETUP_COOP_TASKRUN) {
        text += ", cooperative completions";
    }
    text += ", " + std::to_string(registered_count_) + " MiB of buffers registered";
    if (!may_register_) text += " (" + buffers_reason_ + ")";
    return text;
}

}  // namespace vbd::block
