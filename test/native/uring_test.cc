// io_uring: waking, registered buffers, transfers that stop early, syncs that fail, kernels that
// refuse.
#include "block/uring.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cstddef>
#include <thread>

#include "block/uring_queue.h"
#include "disk_fixture.h"

using namespace disk_test;

namespace {

constexpr uint64_t kDisk = 4 << 20;

bool have_uring() {
    static const Status status = Uring::probe();
    if (!status) MESSAGE("skipped: ", status.error().message);
    return !!status;
}

/// A pipe in the place of a disk: transfers as short as one likes, and a sync that fails.
class PipeDisk {
  public:
    explicit PipeDisk(bool write_end, bool write_through = false) {
        int ends[2];
        REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
        Fd ours(ends[write_end]);
        other = Fd(ends[!write_end]);
        Geometry geometry;
        geometry.size_bytes = 1 << 30;
        geometry.can_discard = true;
        const FileOptions options{.path = "pipe", .write_through = write_through};
        disk = std::make_unique<Disk>(std::unique_ptr<Device>(new FileDevice(
            std::make_unique<FileBacking>(std::move(ours), options, geometry), IoChoice::kUring)));
    }
    std::unique_ptr<Disk> disk;
    Fd other;
};

}  // namespace

TEST_CASE("uring: a completion wakes a thread that sleeps in epoll, every time") {
    if (!have_uring()) return;
    TempFile file(kDisk);
    file.fill(kDisk);
    for (DirectChoice direct : {DirectChoice::kAuto, DirectChoice::kOff}) {
        Disk disk({.path = file.path(), .direct = direct, .io = IoChoice::kUring});
        Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
        epoll_event event{EPOLLIN, {}};
        REQUIRE(::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, disk.context().wake_fd(), &event) == 0);
        Pages page(4096);
        int woken = 0;
        for (int i = 0; i < 200; i++) {
            if (direct == DirectChoice::kOff) file.drop_cache();
            const uint64_t offset = static_cast<uint64_t>(i * 37 % 1000) * 4096;
            iovec part{page.data(), 4096};
            Io io{.iov_count = 1, .iov = &part, .offset = offset, .length = 4096};
            Io* one = &io;
            disk.queue().submit(std::span(&one, 1));
            disk.context().submit();
            disk.context().poll();
            while (!disk.queue().has_completions()) {
                if (disk.context().arm()) {
                    // The kernel may also interrupt the sleep to run what completes the Io.
                    const int ready = ::epoll_wait(epoll.get(), &event, 1, kTimeout_ms);
                    REQUIRE((ready == 1 || (ready < 0 && errno == EINTR)));
                    woken++;
                }
                disk.context().poll();
            }
            CHECK(disk.queue().reap() == &io);
            CHECK(io.error == 0);
            CHECK(page.has_pattern(offset));
            // Nothing is left, so nobody may be woken.
            REQUIRE(disk.context().arm());
            REQUIRE(::epoll_wait(epoll.get(), &event, 1, 0) == 0);
        }
        CHECK(woken > 0);
    }
}

TEST_CASE("uring: polling alone sees completions") {
    if (!have_uring()) return;
    TempFile file(kDisk);
    file.fill(kDisk);
    Disk disk({.path = file.path(), .io = IoChoice::kUring});
    Pages page(4096);
    iovec part{page.data(), 4096};
    Io io{.iov_count = 1, .iov = &part, .offset = 8192, .length = 4096};
    Io* one = &io;
    disk.queue().submit(std::span(&one, 1));
    disk.context().submit();
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kTimeout_ms);
    while (disk.context().poll() == 0) REQUIRE(std::chrono::steady_clock::now() < deadline);
    CHECK(disk.queue().reap() == &io);
    CHECK(page.has_pattern(8192));
    CHECK(disk.context().poll() == 0);
}

TEST_CASE("uring: an idle device begins with the first four of a batch, whatever comes behind them") {
    if (!have_uring()) return;
    PipeDisk pipe(false);
    Pages page(4096);
    std::memset(page.data(), 9, 4096);
    REQUIRE(::write(pipe.other.get(), page.data(), 64) == 64);
    iovec parts[4];
    Io ios[4];
    Io* batch[4];
    for (int i = 0; i < 4; i++) {
        parts[i] = {page.data() + i, 1};
        ios[i] = {.iov_count = 1, .iov = &parts[i], .length = 1};
        batch[i] = &ios[i];
    }
    IoContext& context = pipe.disk->context();
    const auto completed = [&](uint32_t count, uint64_t within_ns) {
        const uint64_t end_ns = monotonic_ns() + within_ns;
        uint32_t done = 0;
        while (done < count && monotonic_ns() < end_ns) done += context.poll();
        while (Io* io = pipe.disk->queue().reap()) {
            for (; io; io = io->next) CHECK(io->error == 0);
        }
        return done;
    };
    pipe.disk->queue().submit(std::span(batch, 3));
    CHECK(completed(3, 10'000'000) == 0);
    context.submit();
    CHECK(completed(3, kTimeout_ms * 1'000'000ull) == 3);
    pipe.disk->queue().submit(batch);
    CHECK(completed(4, kTimeout_ms * 1'000'000ull) == 4);
}

TEST_CASE("uring: more Ios than the ring and its completions have room for") {
    if (!have_uring()) return;
    PipeDisk pipe(false);  // nothing completes before bytes come
    constexpr int kIos = 3000;
    Pages page(4096);
    std::vector<iovec> parts(kIos);
    std::vector<Io> ios(kIos);
    std::vector<Io*> batch;
    auto small = make_context({}, 2);
    auto queue = pipe.disk->device().open_queue(*small);
    REQUIRE(queue);
    for (int i = 0; i < kIos; i++) {
        parts[i] = {page.data() + i, 1};
        ios[i] = {.iov_count = 1, .iov = &parts[i], .length = 1};
        batch.push_back(&ios[i]);
    }
    queue.value()->submit(batch);
    small->submit();
    CHECK(small->in_flight() == kIos);
    CHECK(small->poll() == 0);
    Pages bytes(kIos);
    std::memset(bytes.data(), 9, kIos);
    REQUIRE(::write(pipe.other.get(), bytes.data(), kIos) == kIos);
    int done = 0, failed = 0;
    while (done < kIos) {
        REQUIRE(sleep_on(*small));
        small->poll();
        for (Io* io = queue.value()->reap(); io; io = io->next) {
            done++;
            failed += io->error != 0;
        }
    }
    CHECK(failed == 0);
    CHECK(std::memcmp(page.data(), bytes.data(), kIos) == 0);
}

TEST_CASE("uring: a transfer goes on where it stopped") {
    if (!have_uring()) return;
    PipeDisk pipe(false);
    Pages bytes(3 * 4096), to(3 * 4096);
    for (size_t i = 0; i < bytes.size(); i++) bytes.data()[i] = TempFile::pattern(i);
    iovec parts[] = {{to.data(), 1000},
                     {to.data() + 1000, 0},
                     {to.data() + 1000, 3096},
                     {to.data() + 4096, 8192}};
    Io io{.iov_count = 4, .iov = parts, .length = bytes.size()};
    Io* one = &io;
    pipe.disk->queue().submit(std::span(&one, 1));
    pipe.disk->context().submit();
    size_t sent = 0;
    for (size_t piece : {1u, 999u, 5u, 3500u, 7783u}) {
        CHECK_FALSE(pipe.disk->queue().has_completions());
        REQUIRE(::write(pipe.other.get(), bytes.data() + sent, piece) ==
                static_cast<ssize_t>(piece));
        sent += piece;
        REQUIRE(sleep_on(pipe.disk->context()));
        pipe.disk->context().poll();
    }
    REQUIRE(sent == bytes.size());
    CHECK(pipe.disk->wait() == &io);
    CHECK(io.error == 0);
    CHECK(std::memcmp(to.data(), bytes.data(), bytes.size()) == 0);
}

TEST_CASE("uring: more vectors than one call takes") {
    if (!have_uring()) return;
    TempFile file(kDisk);
    file.fill(kDisk);
    for (DirectChoice direct : {DirectChoice::kAuto, DirectChoice::kOff}) {
        Disk disk({.path = file.path(), .direct = direct, .io = IoChoice::kUring});
        Pages to(3000 * 512);
        std::vector<iovec> parts(3000);
        for (size_t i = 0; i < parts.size(); i++) parts[i] = {to.data() + i * 512, 512};
        CHECK(disk.run(
                  {.iov_count = 3000, .iov = parts.data(), .offset = 512, .length = to.size()}) ==
              0);
        CHECK(to.has_pattern(512));
    }
}

TEST_CASE("uring: a file cut off behind our back is EIO, whatever the way") {
    for (IoChoice io : {IoChoice::kAuto, IoChoice::kSync}) {
        for (DirectChoice direct : {DirectChoice::kAuto, DirectChoice::kOff}) {
            TempFile file(kDisk);
            file.fill(kDisk);
            Disk disk({.path = file.path(), .direct = direct, .io = io});
            REQUIRE(::ftruncate(file.fd(), 64 * 1024 + 700) == 0);
            Pages page(4096), much(256 * 1024);
            CHECK(disk.read(60 * 1024, page) == 0);
            CHECK(page.has_pattern(60 * 1024));
            CHECK(disk.read(64 * 1024, page) == EIO);
            CHECK(disk.read(62 * 1024, page) == EIO);
            CHECK(disk.read(kDisk - 4096, page) == EIO);
            CHECK(disk.read(0, much) == EIO);
        }
    }
}

TEST_CASE("uring: a read that the cache answers in part is finished from the disk") {
    TempFile file(kDisk);
    file.fill(kDisk);
    for (IoChoice io : {IoChoice::kAuto, IoChoice::kSync}) {
        Disk disk({.path = file.path(), .direct = DirectChoice::kOff, .io = io});
        for (uint64_t at = 0; at < kDisk; at += 64 * 1024) {
            file.drop_cache();
            Pages half(16 * 1024), all(64 * 1024);
            REQUIRE(::pread(file.fd(), half.data(), half.size(), static_cast<off_t>(at)) > 0);
            REQUIRE(::posix_fadvise(file.fd(), static_cast<off_t>(at + 16 * 1024), 0,
                                    POSIX_FADV_DONTNEED) == 0);
            CHECK(disk.read(at, all) == 0);
            CHECK(all.has_pattern(at));
        }
    }
}

TEST_CASE("uring: a sync that failed fails every later flush and write") {
    if (!have_uring()) return;
    PipeDisk pipe(true);
    Disk& disk = *pipe.disk;
    Pages page(512);
    CHECK(disk.write(0, page) == 0);
    std::vector<Io> flushes(16, Io{.op = IoOp::kFlush});
    std::vector<Io*> batch;
    for (Io& io : flushes) batch.push_back(&io);
    disk.run(batch);
    for (const Io& io : flushes) CHECK(io.error == EINVAL);
    CHECK(disk.flush() == EIO);
    CHECK(disk.write(0, page) == EIO);
    CHECK(disk.discard(0, 512) == EIO);

    // Of another queue too.
    auto context = make_context();
    auto queue = disk.device().open_queue(*context);
    REQUIRE(queue);
    Io io{.op = IoOp::kFlush};
    Io* one = &io;
    queue.value()->submit(std::span(&one, 1));
    CHECK(queue.value()->reap() == &io);
    CHECK(io.error == EIO);
}

TEST_CASE("uring: a durable write is answered by its sync") {
    if (!have_uring()) return;
    for (bool write_through : {false, true}) {
        PipeDisk pipe(true, write_through);
        Pages page(512);
        CHECK(pipe.disk->write(0, page, !write_through) == EINVAL);
        CHECK(pipe.disk->write(0, page) == EIO);
        Pages got(1024);
        CHECK(::read(pipe.other.get(), got.data(), 1024) == 512);
    }
}

TEST_CASE("uring: buffers of the arena are registered, and forgotten before their pages change") {
    if (!have_uring()) return;
    TempFile file(kDisk);
    file.fill(kDisk);
    constexpr size_t kArena = 3 * Uring::kChunkBytes + 4096;
    void* memory =
        ::mmap(nullptr, kArena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    auto* arena = static_cast<uint8_t*>(memory);
    {
        Disk disk({.path = file.path(), .io = IoChoice::kUring}, {arena, kArena});
        auto read_right = [&](size_t at, size_t length, uint64_t offset) {
            std::memset(arena + at, 0, length);
            CHECK(disk.move(IoOp::kRead, offset, arena + at, length) == 0);
            for (size_t i = 0; i < length; i++) {
                if (arena[at + i] != TempFile::pattern(offset + i)) return false;
            }
            return true;
        };
        CHECK(disk.context().status().find(" 0 MiB of buffers registered") != std::string::npos);
        CHECK(read_right(4096, 4096, 0));
        CHECK(disk.context().status().find(" 1 MiB of buffers registered") != std::string::npos);
        CHECK(read_right(8192, 65536, 4096));
        CHECK(read_right(Uring::kChunkBytes - 4096, 8192, 512));  // over the edge of two chunks
        CHECK(disk.context().status().find(" 1 MiB of buffers registered") != std::string::npos);
        CHECK(read_right(3 * Uring::kChunkBytes, 4096, 512));  // the last, smaller one
        CHECK(disk.context().status().find(" 2 MiB of buffers registered") != std::string::npos);

        disk.context().forget_buffers(arena, 8192);
        REQUIRE(::madvise(arena, 8192, MADV_DONTNEED) == 0);
        CHECK(disk.context().status().find(" 1 MiB of buffers registered") != std::string::npos);
        CHECK(read_right(4096, 4096, 8192));
        CHECK(disk.move(IoOp::kWrite, 0, arena + 4096, 4096) == 0);
        CHECK(read_right(Uring::kChunkBytes + 512, 4096, 8192));
        // Queued with a registered buffer, not submitted yet when that buffer is forgotten.
        iovec part{arena + 8192, 4096};
        Io queued{.op = IoOp::kWrite, .iov_count = 1, .iov = &part, .offset = 0, .length = 4096};
        Io* batch = &queued;
        disk.queue().submit(std::span(&batch, 1));
        disk.context().forget_buffers(arena, kArena);
        CHECK(disk.context().status().find(" 0 MiB of buffers registered") != std::string::npos);
        CHECK(disk.wait()->error == 0);
    }
    ::munmap(memory, kArena);
}

TEST_CASE("uring: buffers that cannot be registered are used all the same") {
    if (!have_uring()) return;
    TempFile file(kDisk);
    void* memory = ::mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    {
        Disk disk({.path = file.path(), .io = IoChoice::kUring}, {memory, 4096});
        CHECK(disk.move(IoOp::kWrite, 0, memory, 4096) == 0);
        CHECK(disk.context().status().find(" 0 MiB of buffers registered (Bad address)") !=
              std::string::npos);
    }
    ::munmap(memory, 4096);
}

TEST_CASE("uring: a long discard of a file goes in steps and reads as zeros") {
    for (IoChoice io : {IoChoice::kAuto, IoChoice::kSync}) {
        for (const std::string& folder : {scratch_folder(), std::string("/dev/shm")}) {
            constexpr uint64_t kLong = 300ull << 20;  // sparse
            TempFile file(kLong, folder);
            file.fill(1 << 20);
            Disk disk({.path = file.path(), .io = io});
            if (!disk.geometry().can_discard) {
                MESSAGE("skipped: no holes can be punched in ", folder);
                continue;
            }
            Pages page(4096);
            CHECK(disk.write(kLong - 4096, page) == 0);
            CHECK(disk.discard(512, kLong - 512) == 0);
            struct stat info {};
            REQUIRE(::fstat(file.fd(), &info) == 0);
            CHECK(info.st_blocks <= 16);
            CHECK(info.st_size == kLong);
            CHECK(disk.read(4096, page) == 0);
            CHECK(page.all(0));
            Pages first(512);
            CHECK(disk.read(0, first) == 0);
            CHECK(first.has_pattern(0));
        }
    }
}

TEST_CASE("uring: where the kernel refuses, the reason is told and plain calls do the work") {
    // A filter on system calls stays with its thread.
    std::string reason, refused, description;
    int32_t result = -1;
    bool filtered = false;
    TempFile file(kDisk);
    file.fill(kDisk);
    std::thread([&] {
        sock_filter rules[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        sock_fprog program{4, rules};
        filtered = ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
                   ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
        if (!filtered) return;
        auto wanted = open_device({.path = file.path(), .io = IoChoice::kUring});
        if (!wanted) refused = wanted.error().message;
        Disk disk({.path = file.path()});
        Pages page(4096);
        result = disk.read(4096, page);
        if (!page.has_pattern(4096)) result = -2;
        reason = disk.context().status();
        description = disk.geometry().description;
    }).join();
    if (!filtered) {
        MESSAGE("skipped: no filters on system calls here");
        return;
    }
    CHECK(result == 0);
    CHECK(refused.find("forbidden here") != std::string::npos);
    CHECK(reason.find("no io_uring: it is forbidden here") != std::string::npos);
    CHECK(description.find(", sync, ") != std::string::npos);
}
