// The limits of this machine: copying memory, reading a file without a ring, and the two ways in
// which two processors can tell each other something.
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>

#include "base/fd.h"
#include "base/reserved.h"
#include "base/units.h"
#include "bench/read_file.h"

namespace vbd::bench {

namespace {

constexpr uint64_t kBatch = 64;

/// Random pages of a large area, copied to a few: what a memory disk does for a guest that reads.
class MemoryCopy final : public Benchmark {
  public:
    MemoryCopy(ReservedArray<uint8_t> from, ReservedArray<uint8_t> to)
        : from_(std::move(from)), to_(std::move(to)) {
        std::memset(from_.data(), 1, from_.size());
        std::memset(to_.data(), 2, to_.size());
    }

    Status run(uint64_t duration_ns, Sample& sample) override {
        const uint64_t pages = from_.size() / kPageSize;
        const uint64_t hot = to_.size() / kPageSize;
        uint64_t next = 0;
        repeat(duration_ns, kBatch, sample, [&] {
            for (uint64_t i = 0; i < kBatch; i++) {
                uint8_t* to = to_.data() + next * kPageSize;
                std::memcpy(to, from_.data() + random_.below(pages) * kPageSize, kPageSize);
                keep(to);
                next = next + 1 == hot ? 0 : next + 1;
            }
        });
        return {};
    }

  private:
    ReservedArray<uint8_t> from_;
    ReservedArray<uint8_t> to_;
    Random random_{1};
};

/// One read after the other with a plain system call: depth 1 without a ring.
class FileReads final : public Benchmark {
  public:
    explicit FileReads(ReadFile file) : file_(std::move(file)) {}

    Status run(uint64_t duration_ns, Sample& sample) override {
        repeat_timed(duration_ns, sample, [&] {
            iovec into{file_.buffer(), file_.block()};
            const auto offset = static_cast<off_t>(file_.offset());
            return ::preadv2(file_.fd(), &into, 1, offset, 0) == static_cast<ssize_t>(file_.block());
        });
        return {};
    }

  private:
    ReadFile file_;
};

/// Two processes that answer each other, through a cache line that both poll or through eventfds on
/// which both sleep.
class PingPong final : public Benchmark {
  public:
    struct Lines {
        alignas(128) std::atomic<uint64_t> ping{0};
        alignas(128) std::atomic<uint64_t> pong{0};
    };

    static Made make(bool by_line, int cpu, int peer_cpu) {
        auto self = std::unique_ptr<PingPong>(new PingPong(by_line));
        void* shared = ::mmap(nullptr, sizeof(Lines), PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (shared == MAP_FAILED) return system_error(ErrorKind::kNoMemory, errno, "sharing a page");
        self->lines_ = new (shared) Lines;
        self->ping_ = Fd(::eventfd(0, EFD_CLOEXEC));
        self->pong_ = Fd(::eventfd(0, EFD_CLOEXEC));
        if (!self->ping_ || !self->pong_) {
            return system_error(ErrorKind::kNoMemory, errno, "creating an eventfd");
        }
        self->peer_ = ::fork();
        if (self->peer_ < 0) return system_error(ErrorKind::kNoMemory, errno, "forking");
        if (self->peer_ == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (!pin_to(peer_cpu)) ::_exit(1);
            self->answer();
        }
        if (Status pinned = pin_to(cpu); !pinned) return pinned.error();
        return std::unique_ptr<Benchmark>(std::move(self));
    }

    ~PingPong() override {
        if (peer_ <= 0) return;
        ::kill(peer_, SIGKILL);
        ::waitpid(peer_, nullptr, 0);
    }

    Status run(uint64_t duration_ns, Sample& sample) override {
        if (by_line_) {
            // The peer sleeps between runs. It must not find kRest any more when it wakes.
            lines_->ping.store(++round_, std::memory_order_release);
            send();
            while (lines_->pong.load(std::memory_order_acquire) != round_) relax();
            repeat(duration_ns, kBatch, sample, [&] {
                for (uint64_t i = 0; i < kBatch; i++) {
                    lines_->ping.store(++round_, std::memory_order_release);
                    while (lines_->pong.load(std::memory_order_acquire) != round_) relax();
                }
            });
            lines_->ping.store(kRest, std::memory_order_release);
            return {};
        }
        repeat_timed(duration_ns, sample, [&] {
            send();
            wait(pong_);
            return true;
        });
        return {};
    }

  private:
    static constexpr uint64_t kRest = UINT64_MAX;

    explicit PingPong(bool by_line) : by_line_(by_line) {}

    void send() const { ring(ping_); }
    static void ring(const Fd& fd) {
        const uint64_t one = 1;
        VBD_CHECK(::write(fd.get(), &one, sizeof one) == sizeof one);
    }
    static void wait(const Fd& fd) {
        uint64_t count = 0;
        VBD_CHECK(::read(fd.get(), &count, sizeof count) == sizeof count);
    }

    [[noreturn]] void answer() {
        for (;;) {
            wait(ping_);
            if (by_line_) {
                echo();
            } else {
                ring(pong_);
            }
        }
    }

    void echo() {
        for (;;) {
            const uint64_t seen = lines_->ping.load(std::memory_order_acquire);
            if (seen == kRest) break;
            lines_->pong.store(seen, std::memory_order_release);
            relax();
        }
    }

    const bool by_line_;
    Lines* lines_ = nullptr;
    Fd ping_;
    Fd pong_;
    pid_t peer_ = -1;
    uint64_t round_ = 0;
};

}  // namespace

Made make_memory_copy(Arguments& arguments) {
    const uint64_t bytes = arguments.number("bytes", 1u << 30);
    const uint64_t hot = arguments.number("hot", 32);
    if (Status pinned = pin_to(static_cast<int>(arguments.number("cpu", 0))); !pinned) {
        return pinned.error();
    }
    auto from = ReservedArray<uint8_t>::create(bytes);
    if (!from) return from.error();
    auto to = ReservedArray<uint8_t>::create(hot * kPageSize);
    if (!to) return to.error();
    return std::unique_ptr<Benchmark>(
        new MemoryCopy(std::move(from).value(), std::move(to).value()));
}

Made make_file_reads(Arguments& arguments) {
    Result<ReadFile> file = ReadFile::open(arguments);
    if (!file) return file.error();
    return std::unique_ptr<Benchmark>(new FileReads(std::move(file).value()));
}

Made make_ping_pong(Arguments& arguments) {
    const std::string kind = arguments.text("kind", "line");
    const int cpu = static_cast<int>(arguments.number("cpu", 0));
    const int peer_cpu = static_cast<int>(arguments.number("peer-cpu", 1));
    if (kind != "line" && kind != "eventfd") {
        return Error{ErrorKind::kInvalidArgument, 0, "kind= is line or eventfd"};
    }
    return PingPong::make(kind == "line", cpu, peer_cpu);
}

}  // namespace vbd::bench
