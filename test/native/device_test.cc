// Opening disks, what they say of themselves, and the same random work on every kind of them.
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <thread>

#include "disk_fixture.h"

using namespace disk_test;

namespace {

constexpr uint64_t kDisk = 4 << 20;

Error refusal(const DeviceOptions& options) {
    auto device = open_device(options);
    REQUIRE_FALSE(device);
    CHECK(device.error().message.find('\n') == std::string::npos);
    return device.error();
}

bool mentions(const Error& error, const std::string& text) {
    INFO(error.message);
    return error.message.find(text) != std::string::npos;
}

struct Kind {
    const char* name;
    DirectChoice direct;
    IoChoice io;
    uint32_t sector_size;
    bool write_through;
};

}  // namespace

TEST_CASE("disk: what is no disk is refused with its path") {
    const std::string folder = scratch_folder();
    CHECK(refusal({.path = folder + "/vbd-none"}).errno_code == ENOENT);
    CHECK(mentions(refusal({.path = folder + "/vbd-none"}), folder + "/vbd-none"));
    CHECK(mentions(refusal({.path = folder}), "is a directory"));
    CHECK(mentions(refusal({.path = "/dev/null"}), "/dev/null is a character device"));
    CHECK(refusal({.path = "/dev/null"}).kind == ErrorKind::kBacking);

    const std::string pipe = folder + "/vbd-pipe-" + std::to_string(::getpid());
    REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
    CHECK(mentions(refusal({.path = pipe}), "is a pipe"));
    ::unlink(pipe.c_str());

    TempFile empty(0), tiny(511);
    CHECK(mentions(refusal({.path = empty.path()}), "is empty"));
    CHECK(mentions(refusal({.path = tiny.path()}), "not even one sector of 512"));
    CHECK(refusal({.sector_size = 1024, .path = tiny.path()}).kind == ErrorKind::kInvalidArgument);
}

TEST_CASE("disk: no permission is a clear error") {
    TempFile file(kDisk);
    REQUIRE(::fchmod(file.fd(), 0400) == 0);
    if (::geteuid() != 0) {
        CHECK(refusal({.path = file.path()}).errno_code == EACCES);
        return;
    }
    // The calling thread alone becomes nobody.
    Error error;
    std::thread([&] {
        ::syscall(SYS_setfsuid, 65534);
        auto device = open_device({.path = file.path()});
        if (!device) error = device.error();
    }).join();
    CHECK(error.errno_code == EACCES);
    CHECK(error.message == "opening " + file.path() + " for writing: Permission denied");
}

TEST_CASE("disk: a file is locked against a second writer, readers share") {
    TempFile file(kDisk);
    {
        auto first = open_device({.path = file.path()});
        REQUIRE(first);
        CHECK(refusal({.path = file.path()}).errno_code == EWOULDBLOCK);
        CHECK(mentions(refusal({.path = file.path(), .read_only = true}), "is in use"));
    }
    auto one = open_device({.path = file.path(), .read_only = true});
    auto two = open_device({.path = file.path(), .read_only = true});
    CHECK(one);
    CHECK(two);
    CHECK(refusal({.path = file.path()}).errno_code == EWOULDBLOCK);
}

TEST_CASE("disk: geometry and description of a file") {
    TempFile file(kDisk + 100);
    auto device =
        open_device({.path = file.path(), .direct = DirectChoice::kOff, .io = IoChoice::kSync});
    REQUIRE(device);
    const Geometry& geometry = device.value()->geometry();
    CHECK(geometry.size_bytes == kDisk);
    CHECK(device.value()->size_bytes() == kDisk);
    CHECK(geometry.sector_size == 512);
    CHECK(geometry.physical_sector_size == 4096);
    CHECK(geometry.can_flush);
    CHECK_FALSE(geometry.can_secure_discard);
    CHECK(geometry.description ==
          "file(" + file.path() + ", sync, page cache, last 100 bytes unused: no whole sector)");
    device = open_device({.driver = Driver::kNull, .size_bytes = 512});
    REQUIRE(device);
    auto read_only = open_device({.path = file.path(), .read_only = true});
    REQUIRE(read_only);
    CHECK(read_only.value()->geometry().read_only);
    CHECK_FALSE(read_only.value()->geometry().can_discard);
}

TEST_CASE("disk: resize a file") {
    TempFile file(kDisk);
    Disk disk({.path = file.path()});
    CHECK(disk.device().resize(2 * kDisk));
    CHECK(disk.device().size_bytes() == 2 * kDisk);
    CHECK(disk.geometry().size_bytes == 2 * kDisk);
    CHECK(std::filesystem::file_size(file.path()) == 2 * kDisk);
    Pages page(4096);
    std::memset(page.data(), 7, 4096);
    CHECK(disk.write(2 * kDisk - 4096, page) == 0);
    CHECK(disk.device().resize(kDisk));
    CHECK(disk.read(2 * kDisk - 4096, page) == EIO);
    CHECK(std::filesystem::file_size(file.path()) == kDisk);

    auto status = disk.device().resize(kDisk + 1);
    REQUIRE_FALSE(status);
    CHECK(status.error().kind == ErrorKind::kInvalidArgument);
    CHECK_FALSE(disk.device().resize(0));

    REQUIRE(::ftruncate(file.fd(), kDisk + 512 * 3 + 1) == 0);
    auto size = disk.device().refresh_size();
    REQUIRE(size);
    CHECK(size.value() == kDisk + 512 * 3);
    CHECK(disk.device().size_bytes() == kDisk + 512 * 3);

    auto reader = [&] {
        TempFile other(kDisk);
        return open_device({.path = other.path(), .read_only = true});
    }();
    REQUIRE(reader);
    CHECK_FALSE(reader.value()->resize(2 * kDisk));
}

TEST_CASE("disk: the file size limit is an error, not a signal") {
    for (IoChoice io : {IoChoice::kAuto, IoChoice::kSync}) {
        for (const std::string& folder : {scratch_folder(), std::string("/dev/shm")}) {
            TempFile file(kDisk, folder);
            Disk disk({.path = file.path(), .io = io});
            Pages page(4096);
            rlimit before{};
            REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
            rlimit low{kDisk / 2, before.rlim_max};
            REQUIRE(::setrlimit(RLIMIT_FSIZE, &low) == 0);
            const int32_t beyond = disk.write(kDisk / 2, page);
            const int32_t within = disk.write(kDisk / 2 - 4096, page);
            const Status resized = disk.device().resize(2 * kDisk);
            REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
            CHECK(beyond == EFBIG);
            CHECK(within == 0);
            REQUIRE_FALSE(resized);
            CHECK(resized.error().errno_code == EFBIG);
            CHECK(disk.write(kDisk / 2, page) == 0);
        }
    }
}

TEST_CASE("disk: random work on every kind of file equals the same on memory") {
    const Kind kinds[] = {
        {"io_uring, page cache", DirectChoice::kOff, IoChoice::kAuto, 512, false},
        {"io_uring, O_DIRECT", DirectChoice::kAuto, IoChoice::kAuto, 512, false},
        {"io_uring, O_DIRECT, 4096", DirectChoice::kAuto, IoChoice::kAuto, 4096, true},
        {"sync, page cache", DirectChoice::kOff, IoChoice::kSync, 512, false},
        {"sync, O_DIRECT", DirectChoice::kAuto, IoChoice::kSync, 512, false},
        {"io_uring, page cache, write-through", DirectChoice::kOff, IoChoice::kAuto, 512, true},
    };
    uint32_t seed = 1;
    for (const Kind& kind : kinds) {
        SUBCASE(kind.name) {
            TempFile file(kDisk);
            Disk disk({.sector_size = kind.sector_size,
                       .path = file.path(),
                       .direct = kind.direct,
                       .io = kind.io,
                       .write_through = kind.write_through});
            INFO(disk.geometry().description);
            compare_with_shadow(disk, kDisk, 150, seed);
        }
        seed++;
    }
}

TEST_CASE("disk: random work on tmpfs") {
    TempFile file(kDisk, "/dev/shm");
    Disk disk({.path = file.path()});
    INFO(disk.geometry().description);
    if (disk.geometry().description.find("inline") == std::string::npos)
        MESSAGE("/dev/shm is no tmpfs");
    compare_with_shadow(disk, kDisk, 120, 11);
}

TEST_CASE("disk: random work with a tiny io_uring, which is always full") {
    TempFile file(kDisk);
    Disk disk({.path = file.path()}, {}, 2);
    compare_with_shadow(disk, kDisk, 150, 12);
}

TEST_CASE("disk: random work on a block device, with discards on its worker") {
    for (IoChoice io : {IoChoice::kAuto, IoChoice::kSync}) {
        for (DirectChoice direct : {DirectChoice::kOff, DirectChoice::kOn}) {
            TempFile file(kDisk);
            LoopDevice loop(file.path());
            if (loop.path.empty()) return;
            Disk disk({.path = loop.path, .direct = direct, .io = io});
            INFO(disk.geometry().description);
            CHECK(disk.geometry().can_discard);
            CHECK(disk.geometry().size_bytes == kDisk);
            CHECK_FALSE(disk.geometry().can_secure_discard);
            CHECK(disk.run({.op = IoOp::kSecureDiscard, .length = 4096}) == EOPNOTSUPP);
            compare_with_shadow(disk, kDisk, 100, 21);
            CHECK(refusal({.path = loop.path}).errno_code == EWOULDBLOCK);
            CHECK(disk.device().resize(kDisk / 2));
            CHECK(disk.device().size_bytes() == kDisk / 2);
            CHECK_FALSE(disk.device().resize(2 * kDisk));
        }
    }
}

TEST_CASE("disk: a device with sectors of 4096 bytes is served with 512 through the page cache") {
    TempFile file(kDisk);
    LoopDevice loop(file.path(), "--sector-size 4096");
    if (loop.path.empty()) return;
    {
        Disk disk({.path = loop.path});
        INFO(disk.geometry().description);
        CHECK(disk.geometry().description.find("page cache") != std::string::npos);
        CHECK(disk.geometry().physical_sector_size == 4096);
        // Whole sectors of the device are discarded, and of parts of them nothing.
        Pages before(3 * 4096), after(3 * 4096);
        std::memset(before.data(), 1, before.size());
        CHECK(disk.write(0, before) == 0);
        CHECK(disk.discard(512, 8192) == 0);
        CHECK(disk.discard(8192 + 512, 1024) == 0);
        CHECK(disk.read(0, after) == 0);
        for (size_t i = 0; i < after.size(); i++) {
            if (i < 4096 || i >= 8192) REQUIRE(after.data()[i] == 1);
        }
        CHECK(after.data()[4096] == 0);
        CHECK(disk.write(0, *std::make_unique<Pages>(3 * 4096)) == 0);
        compare_with_shadow(disk, kDisk, 50, 31, false);
    }
    CHECK(refusal({.path = loop.path, .direct = DirectChoice::kOn}).kind ==
          ErrorKind::kUnsupported);
    Disk disk({.sector_size = 4096, .path = loop.path, .direct = DirectChoice::kOn});
    CHECK(disk.geometry().description.find("O_DIRECT") != std::string::npos);
}

TEST_CASE("disk: a full file system is ENOSPC, and what fitted is there") {
    SmallTmpfs small("256k");
    if (!small.ok) return;
    TempFile file(1 << 20, small.path());
    for (IoChoice io : {IoChoice::kAuto, IoChoice::kSync}) {
        Disk disk({.path = file.path(), .io = io});
        Pages much(512 * 1024), start(4096);
        std::memset(much.data(), 0x5a, much.size());
        CHECK(disk.write(0, much) == ENOSPC);
        CHECK(disk.read(0, start) == 0);
        CHECK(start.all(0x5a));
        CHECK(disk.flush() == 0);  // a full disk is no lost write
        CHECK(disk.discard(0, 1 << 20) == 0);
        CHECK(disk.write(0, start) == 0);
        CHECK(disk.read(0, start) == 0);
        CHECK(start.all(0x5a));
    }
}

TEST_CASE("disk: a flush that fails on a real device latches it") {
    for (IoChoice io : {IoChoice::kAuto, IoChoice::kSync}) {
        SmallTmpfs small("256k");
        if (!small.ok) return;
        TempFile file(4 << 20, small.path());
        LoopDevice loop(file.path());
        if (loop.path.empty()) return;
        {
            Disk disk({.path = loop.path, .direct = DirectChoice::kOff, .io = io});
            Pages much(1 << 20), one(4096);
            std::memset(much.data(), 0x33, much.size());
            CHECK(disk.write(0, much) == 0);  // into the page cache
            CHECK(disk.flush() != 0);         // and no further
            CHECK(disk.flush() == EIO);
            CHECK(disk.write(0, one) == EIO);
            CHECK(disk.discard(0, 4096) == EIO);
            CHECK(disk.read(0, one) == 0);
        }
    }
}

TEST_CASE("disk: nothing is left of a disk that was closed") {
    auto count = [](const char* folder) {
        size_t entries = 0;
        for (const auto& entry : std::filesystem::directory_iterator(folder))
            entries += !!entry.path().c_str();
        return entries;
    };
    auto cycle = [](IoChoice io) {
        TempFile file(kDisk);
        Disk disk({.path = file.path(), .direct = DirectChoice::kOff, .io = io});
        Pages page(4096);
        CHECK(disk.write(0, page) == 0);
        CHECK(disk.flush() == 0);
    };
    cycle(IoChoice::kAuto);  // whatever the runtime keeps for itself is there after this
    cycle(IoChoice::kSync);
    const size_t descriptors = count("/proc/self/fd");
    const size_t threads = count("/proc/self/task");
    for (int i = 0; i < 20; i++) {
        cycle(IoChoice::kAuto);
        cycle(IoChoice::kSync);
    }
    CHECK(count("/proc/self/fd") == descriptors);
    // The kernel ends an io_uring's own workers a moment after the ring.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kTimeout_ms);
    while (count("/proc/self/task") > threads && std::chrono::steady_clock::now() < deadline) {
        ::poll(nullptr, 0, 5);
    }
    CHECK(count("/proc/self/task") <= threads);
}
