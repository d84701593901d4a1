// Reads through a bare io_uring, one at a time: what depth 1 costs before there is a ring of a
// guest's. The flags are those of block/uring.cc.
#include <liburing.h>

#include "bench/read_file.h"

namespace vbd::bench {

namespace {

constexpr unsigned kEntries = 8;
// Spelled out: older headers than the kernel lack them.
constexpr unsigned kSingleIssuer = 1u << 12;
constexpr unsigned kDeferTaskrun = 1u << 13;

class UringReads final : public Benchmark {
  public:
    explicit UringReads(ReadFile file) : file_(std::move(file)) {}
    ~UringReads() override {
        if (ready_) ::io_uring_queue_exit(&ring_);
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
        repeat_timed(duration_ns, sample, [&] {
            io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_);
            ::io_uring_prep_read(sqe, file_.fd(), file_.buffer(), file_.block(), file_.offset());
            io_uring_cqe* cqe = nullptr;
            if (::io_uring_submit_and_wait(&ring_, 1) < 0 || ::io_uring_peek_cqe(&ring_, &cqe)) {
                return false;
            }
            const bool whole = cqe->res == static_cast<int>(file_.block());
            ::io_uring_cqe_seen(&ring_, cqe);
            return whole;
        });
        return {};
    }

  private:
    ReadFile file_;
    io_uring ring_{};
    bool ready_ = false;
};

}  // namespace

Made make_uring_reads(Arguments& arguments) {
    Result<ReadFile> file = ReadFile::open(arguments);
    if (!file) return file.error();
    auto self = std::make_unique<UringReads>(std::move(file).value());
    if (Status ready = self->set_up(); !ready) return ready.error();
    return std::unique_ptr<Benchmark>(std::move(self));
}

}  // namespace vbd::bench
