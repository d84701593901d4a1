// Reads through a bare io_uring, one at a time: what depth 1 costs before there is a ring of a
// guest's. The flags are those of block/uring.cc.
#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "bench/benchmark.h"

namespace vbd::bench {

namespace {

constexpr unsigned kEntries = 8;
// Spelled out: older headers than the kernel lack them.
constexpr unsigned kSingleIssuer = 1u << 12;
constexpr unsigned kDeferTaskrun = 1u << 13;

class UringReads final : public Benchmark {
  public:
    UringReads(Fd fd, uint64_t blocks, uint32_t block, void* buffer)
        : fd_(std::move(fd)), blocks_(blocks), block_(block), buffer_(buffer) {}
    ~UringReads() override {
        if (ready_) ::io_uring_queue_exit(&ring_);
        ::munmap(buffer_, block_);
    }

    Status set_up() {
        io_uring_params params{};
        params.flags = kSingleIssuer | kDeferTaskrun;
        const int error = ::io_uring_queue_init_params(kEntries, &ring_, &params);
        if (error != 0) return system_error(ErrorKind::kUnsupported, -error, "making an io_uring");
        ready_ = true;
        (void)!::io_uring_register_ring_fd(&ring_);
        return {};
    }

    Status run(uint64_t duration_ns, Sample& sample) override {
        uint64_t last_ns = monotonic_ns();
        repeat(duration_ns, 1, sample, [&] {
            io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_);
            ::io_uring_prep_read(sqe, fd_.get(), buffer_, block_, random_.below(blocks_) * block_);
            io_uring_cqe* cqe = nullptr;
            if (::io_uring_submit_and_wait(&ring_, 1) < 0 || ::io_uring_peek_cqe(&ring_, &cqe)) {
                sample.errors++;
                return;
            }
            sample.errors += cqe->res != static_cast<int>(block_);
            ::io_uring_cqe_seen(&ring_, cqe);
            const uint64_t now_ns = monotonic_ns();
            sample.latency_ns.record(now_ns - last_ns);
            last_ns = now_ns;
        });
        return {};
    }

  private:
    Fd fd_;
    const uint64_t blocks_;
    const uint32_t block_;
    void* const buffer_;
    io_uring ring_{};
    bool ready_ = false;
    Random random_{1};
};

}  // namespace

Made make_uring_reads(Arguments& arguments) {
    const std::string path = arguments.text("path", "");
    const auto block = static_cast<uint32_t>(arguments.number("block", 4096));
    const int direct = arguments.number("direct", 0) != 0 ? O_DIRECT : 0;
    if (Status pinned = pin_to(static_cast<int>(arguments.number("cpu", 0))); !pinned) {
        return pinned.error();
    }
    Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | direct));
    struct stat stats{};
    if (!fd || ::fstat(fd.get(), &stats) != 0) {
        return system_error(ErrorKind::kBacking, errno, "opening " + path);
    }
    void* buffer = ::mmap(nullptr, block, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (buffer == MAP_FAILED) return system_error(ErrorKind::kNoMemory, errno, "a buffer");
    const uint64_t blocks = static_cast<uint64_t>(stats.st_size) / block;
    auto reads = std::make_unique<UringReads>(std::move(fd), blocks, block, buffer);
    if (Status ready = reads->set_up(); !ready) return ready.error();
    return std::unique_ptr<Benchmark>(std::move(reads));
}

}  // namespace vbd::bench
