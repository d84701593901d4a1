// What the tests of native/block share: scratch files and devices, and a Disk that drives one queue
// as a reactor does.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "block/io_context.h"
#include "block/open_device.h"

namespace disk_test {

using namespace vbd;
using namespace vbd::block;

inline constexpr int kTimeout_ms = 20'000;

inline std::string scratch_folder() {
    const char* folder = std::getenv("TMPDIR");
    return folder && *folder ? folder : "/tmp";
}

/// A file that goes with its scope.
class TempFile {
  public:
    explicit TempFile(uint64_t size, const std::string& folder = scratch_folder()) {
        path_ = folder + "/vbd-disk-XXXXXX";
        fd_ = Fd(::mkstemp(path_.data()));
        REQUIRE(fd_);
        REQUIRE(::ftruncate(fd_.get(), static_cast<off_t>(size)) == 0);
    }
    ~TempFile() { ::unlink(path_.c_str()); }
    const std::string& path() const { return path_; }
    int fd() const { return fd_.get(); }

    /// Every byte tells its place.
    void fill(uint64_t size) {
        std::vector<uint8_t> bytes(size);
        for (uint64_t i = 0; i < size; i++) bytes[i] = pattern(i);
        REQUIRE(::pwrite(fd(), bytes.data(), size, 0) == static_cast<ssize_t>(size));
        REQUIRE(::fsync(fd()) == 0);
    }
    void drop_cache() { REQUIRE(::posix_fadvise(fd(), 0, 0, POSIX_FADV_DONTNEED) == 0); }
    static uint8_t pattern(uint64_t offset) {
        return static_cast<uint8_t>((offset * 0x9e3779b97f4a7c15ull) >> 56);
    }

  private:
    std::string path_;
    Fd fd_;
};

/// Page-aligned memory, as guests' pages are.
class Pages {
  public:
    explicit Pages(size_t bytes) : bytes_(bytes) {
        memory_ = static_cast<uint8_t*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096));
        std::memset(memory_, 0, bytes);
    }
    ~Pages() { std::free(memory_); }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    uint8_t* data() { return memory_; }
    size_t size() const { return bytes_; }
    bool all(uint8_t value) const {
        for (size_t i = 0; i < bytes_; i++) {
            if (memory_[i] != value) return false;
        }
        return true;
    }
    bool has_pattern(uint64_t offset) const {
        for (size_t i = 0; i < bytes_; i++) {
            if (memory_[i] != TempFile::pattern(offset + i)) return false;
        }
        return true;
    }

  private:
    size_t bytes_;
    uint8_t* memory_;
};

inline std::unique_ptr<IoContext> make_context(iovec arena = {},
                                               uint32_t entries = IoContext::kRingEntries) {
    auto context = IoContext::create(arena, entries);
    REQUIRE(context);
    return std::move(context).value();
}

/// Sleeps until the context has something, as a reactor does. False: the time is up.
inline bool sleep_on(IoContext& context, int timeout_ms = kTimeout_ms) {
    if (!context.arm()) return true;
    pollfd wake{context.wake_fd(), POLLIN, 0};
    const uint64_t now_ns = monotonic_ns(), due_ns = context.next_due_ns();
    const bool timed = due_ns < now_ns + static_cast<uint64_t>(timeout_ms) * 1'000'000;
    const uint64_t wait_ns = !timed ? static_cast<uint64_t>(timeout_ms) * 1'000'000
                             : due_ns > now_ns ? due_ns - now_ns
                                               : 0;
    const timespec timeout{static_cast<time_t>(wait_ns / 1'000'000'000),
                           static_cast<long>(wait_ns % 1'000'000'000)};
    int ready;
    do {
        ready = ::ppoll(&wake, 1, &timeout, nullptr);
    } while (ready < 0 && errno == EINTR);
    return ready > 0 || timed;
}

/// One device, one context, one queue.
class Disk {
  public:
    explicit Disk(const DeviceOptions& options, iovec arena = {},
                  uint32_t entries = IoContext::kRingEntries)
        : context_(make_context(arena, entries)) {
        auto device = open_device(options);
        if (!device) FAIL(device.error().message);
        use(std::move(device).value());
    }
    Disk(std::unique_ptr<Device> device, uint32_t entries = IoContext::kRingEntries)
        : context_(make_context({}, entries)) {
        use(std::move(device));
    }

    /// What is under way that nobody asked for ends first, as with a reactor.
    ~Disk() {
        if (!queue_) return;
        queue_->hurry();
        while (!queue_->idle()) step();
    }

    /// Until nothing is under way that nobody asked for.
    void settle() {
        while (!queue_->idle()) step();
    }

    Device& device() { return *device_; }
    IoContext& context() { return *context_; }
    DeviceQueue& queue() { return *queue_; }
    const Geometry& geometry() { return device_->geometry(); }

    /// Waits for the next completions: a list, never null.
    Io* wait() {
        const auto deadline =
            std::chrono::steady_clock::now() + std::chrono::milliseconds(kTimeout_ms);
        for (;;) {
            context_->submit();
            context_->poll();
            if (Io* io = queue_->reap()) return io;
            REQUIRE(std::chrono::steady_clock::now() < deadline);
            REQUIRE(sleep_on(*context_));
        }
    }

    /// Submits a batch and waits for all of it.
    void run(std::span<Io* const> batch) {
        queue_->submit(batch);
        for (size_t left = batch.size(); left > 0;) {
            for (Io* io = wait(); io; io = io->next) left--;
        }
        if (queue_->idle()) CHECK(context_->in_flight() == 0);
    }
    int32_t run(Io io) {
        Io* one = &io;
        run(std::span(&one, 1));
        return io.error;
    }
    int32_t move(IoOp op, uint64_t offset, void* memory, size_t length, bool fua = false) {
        iovec part{memory, length};
        return run({.op = op,
                    .fua = fua,
                    .iov_count = 1,
                    .iov = &part,
                    .offset = offset,
                    .length = length});
    }
    int32_t read(uint64_t offset, Pages& to) {
        return move(IoOp::kRead, offset, to.data(), to.size());
    }
    int32_t write(uint64_t offset, Pages& from, bool fua = false) {
        return move(IoOp::kWrite, offset, from.data(), from.size(), fua);
    }
    int32_t flush() { return run({.op = IoOp::kFlush}); }
    int32_t discard(uint64_t offset, uint64_t length) {
        return run({.op = IoOp::kDiscard, .offset = offset, .length = length});
    }

  private:
    void step() {
        context_->submit();
        if (context_->poll() == 0 && !queue_->has_completions()) sleep_on(*context_, 1000);
        CHECK(queue_->reap() == nullptr);
    }

    void use(std::unique_ptr<Device> device) {
        device_ = std::move(device);
        auto queue = device_->open_queue(*context_);
        if (!queue) FAIL(queue.error().message);
        queue_ = std::move(queue).value();
    }

    std::unique_ptr<IoContext> context_;
    std::unique_ptr<Device> device_;
    std::unique_ptr<DeviceQueue> queue_;
};

/// A tmpfs of a few bytes, mounted for a scope. `ok` is false where that is not allowed; the reason
/// was printed.
class SmallTmpfs {
  public:
    explicit SmallTmpfs(const std::string& size) {
        path_ = scratch_folder() + "/vbd-tmpfs-XXXXXX";
        REQUIRE(::mkdtemp(path_.data()));
        ok = ::mount("vbd-test", path_.c_str(), "tmpfs", 0, ("size=" + size).c_str()) == 0;
        if (!ok) MESSAGE("skipped: cannot mount a tmpfs here: ", std::string(std::strerror(errno)));
    }
    ~SmallTmpfs() {
        if (ok) ::umount2(path_.c_str(), MNT_DETACH);
        ::rmdir(path_.c_str());
    }
    const std::string& path() const { return path_; }
    bool ok = false;

  private:
    std::string path_;
};

/// A loop device over a file, for a scope. `path` is empty where there is none; the reason was
/// printed.
class LoopDevice {
  public:
    explicit LoopDevice(const std::string& file, const std::string& options = "") {
        const std::string command = "losetup " + options + " -f --show " + file + " 2>&1";
        FILE* output = ::popen(command.c_str(), "r");
        REQUIRE(output);
        char line[256]{};
        if (!std::fgets(line, sizeof line, output)) line[0] = 0;
        const int status = ::pclose(output);
        line[std::strcspn(line, "\n")] = 0;
        if (status == 0) {
            path = line;
        } else {
            MESSAGE("skipped: no loop device here: ", std::string(line));
        }
    }
    ~LoopDevice() {
        if (path.empty()) return;
        const std::string command = "losetup -d " + path;
        if (std::system(command.c_str()) != 0) std::fprintf(stderr, "%s failed\n", command.c_str());
    }
    std::string path;
};

inline bool is_tmpfs(const std::string& folder) {
    TempFile file(4096, folder);
    auto device = open_device({.path = file.path()});
    REQUIRE(device);
    return device.value()->geometry().description.find("inline") != std::string::npos;
}

/// Random reads, writes, flushes and discards, up to 32 at a time on ranges that do not overlap,
/// against a copy in memory.
inline void compare_with_shadow(Disk& disk, uint64_t disk_bytes, int operations, uint32_t seed,
                                bool discards = true) {
    struct Running {
        Io io;
        Pages pages{64 * 1024};
        std::vector<iovec> parts;
        uint64_t begin = 0, end = 0;  // the Io itself is the device's while it is busy
        bool busy = false;
    };
    constexpr size_t kDepth = 32;
    std::mt19937 random(seed);
    auto below = [&](uint64_t n) {
        return std::uniform_int_distribution<uint64_t>(0, n - 1)(random);
    };
    std::vector<uint8_t> shadow(disk_bytes);
    std::vector<Running> running(kDepth);
    const uint64_t sector = disk.geometry().sector_size;
    int wrong = 0, failed = 0, busy = 0;

    auto overlaps = [&](uint64_t begin, uint64_t end) {
        for (const Running& r : running) {
            if (r.busy && begin < r.end && r.begin < end) return true;
        }
        return false;
    };
    auto settle = [&](Io* io) {
        for (; io; io = io->next) {
            auto& r = *static_cast<Running*>(io->tag);
            r.busy = false;
            busy--;
            failed += io->error != 0;
            if (io->op == IoOp::kRead) {
                wrong += std::memcmp(r.pages.data(), &shadow[io->offset], io->length) != 0;
            }
        }
    };
    for (int i = 0; i < operations; i++) {
        std::vector<Io*> batch;
        for (Running& r : running) {
            if (r.busy || below(3) == 0) continue;
            const uint64_t sectors = 1 + below(64 * 1024 / sector);
            const uint64_t begin = below(disk_bytes / sector - sectors) * sector;
            const uint64_t length = sectors * sector;
            if (overlaps(begin, begin + length)) continue;
            const uint64_t kind = below(20);
            r.io = {};
            r.io.op = kind < 9    ? IoOp::kRead
                      : kind < 17 ? IoOp::kWrite
                      : kind < 18 ? IoOp::kFlush
                                  : IoOp::kDiscard;
            r.io.tag = &r;
            if (r.io.op == IoOp::kDiscard && (!discards || !disk.geometry().can_discard)) {
                r.io.op = IoOp::kRead;
            }
            if (r.io.op != IoOp::kFlush) {
                r.io.offset = begin;
                r.io.length = length;
            }
            if (r.io.op == IoOp::kDiscard) std::memset(&shadow[begin], 0, length);
            if (r.io.op == IoOp::kRead || r.io.op == IoOp::kWrite) {
                r.parts.clear();
                for (uint64_t at = 0; at < length;) {
                    const uint64_t part =
                        std::min(length - at, (1 + below(8192 / sector)) * sector);
                    r.parts.push_back({r.pages.data() + at, part});
                    at += part;
                }
                r.io.iov = r.parts.data();
                r.io.iov_count = static_cast<uint32_t>(r.parts.size());
                r.io.fua = below(8) == 0;
            }
            if (r.io.op == IoOp::kWrite) {
                for (uint64_t at = 0; at < length; at += 4) {
                    const uint32_t word = random();
                    std::memcpy(r.pages.data() + at, &word, 4);
                }
                std::memcpy(&shadow[begin], r.pages.data(), length);
            }
            r.begin = r.io.offset;
            r.end = r.io.offset + r.io.length;
            r.busy = true;
            busy++;
            batch.push_back(&r.io);
        }
        disk.queue().submit(batch);
        disk.context().submit();
        disk.context().poll();
        settle(disk.queue().reap());
    }
    while (busy > 0) settle(disk.wait());
    disk.settle();
    CHECK(failed == 0);
    CHECK(wrong == 0);
    CHECK(disk.context().in_flight() == 0);
}

}  // namespace disk_test
