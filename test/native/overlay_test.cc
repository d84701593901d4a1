// Overlays: what is written survives what it has to survive: cuts of the power, and on real files the end of
// the process.
#include <sys/syscall.h>

#include <signal.h>
#include <sys/wait.h>

#include "power_cut.h"
#include "stages/overlay.h"

/// Folders cannot be written out while this is set: in place of libc's.
static bool folder_fsync_fails = false;
extern "C" int fsync(int fd) {
    struct stat info {};
    if (folder_fsync_fails && ::fstat(fd, &info) == 0 && S_ISDIR(info.st_mode)) {
        errno = EIO;
        return -1;
    }
    return static_cast<int>(::syscall(SYS_fsync, fd));
}

using namespace power_cut;

namespace {

std::unique_ptr<Device> pattern(uint64_t size) {
    return open(leaf({.driver = Driver::kPattern, .size_bytes = size, .seed = kSeed}));
}

std::unique_ptr<Device> opened(Result<std::unique_ptr<Device>> device) {
    if (!device) FAIL(device.error().message);
    return std::move(device).value();
}

/// Places in several sectors of a page of the bitmap, where one page ends, and the end.
std::vector<uint64_t> windows_of(uint64_t size, uint64_t granule_bytes) {
    const uint64_t border = OverlayFile::kBitsPerPage * granule_bytes;
    if (size <= border + kWindow) return {0, (size - kWindow / 2) / 4096 * 4096};
    return {0, border / 3, border - kWindow / 2, (size - kWindow / 2) / 4096 * 4096};
}

/// A name for a file that is not there; it goes with the scope.
struct NewFile {
    std::string path;
    explicit NewFile() {
        TempFile file(0);
        path = file.path() + ".overlay";
    }
    ~NewFile() { ::unlink(path.c_str()); }
};

void cut_and_go_on(uint64_t size, uint32_t granule_bytes, int sessions, uint32_t seed) {
    const OverlayOptions options{.scratch = "medium", .granule_bytes = granule_bytes};
    const std::vector<uint64_t> windows = windows_of(size, granule_bytes);
    auto medium = std::make_shared<Medium>(OverlayFile::container_bytes(size, granule_bytes));
    MediumDevice fresh(medium);
    REQUIRE(OverlayFile::create_in(fresh, size, granule_bytes));
    std::mt19937 random(seed);
    Model model;
    uint64_t number = uint64_t{seed} << 16;
    for (int session = 0; session < sessions; session++) {
        const bool cut = random() % 4 != 0;
        if (cut) medium->cut_after(1 + random() % 60, random());
        {
            Disk disk(opened(Overlay::over(options, pattern(size),
                                           std::make_unique<MediumDevice>(medium))));
            if (!medium->was_cut()) model.check(disk, windows);
            for (int i = 0; cut ? !medium->was_cut() : i < 20; i++) {
                const Step step(number++, windows, size);
                model.begin(step);
                REQUIRE(step.run(disk) == 0);
                if (!medium->was_cut()) model.done(step);
            }
        }
        if (cut) {
            medium = medium->image();
        } else {
            model.settle();
        }
    }
    Disk disk(opened(
        Overlay::over(options, pattern(size), std::make_unique<MediumDevice>(medium))));
    model.check(disk, windows);
}

}  // namespace

TEST_CASE("overlay: power cuts at any operation, of any part of what was not flushed") {
    for (uint32_t seed = 1; seed <= 3; seed++) {
        CAPTURE(seed);
        cut_and_go_on(200 * kMiB, 4096, 80, seed);
        cut_and_go_on(3 * kMiB + 512, 64 * 1024, 80, seed + 100);
    }
}

TEST_CASE("overlay: random work, over a disk of zeroes, in memory and in a file") {
    NewFile file;
    for (const std::string& scratch : {std::string(), file.path}) {
        for (uint32_t granule_bytes : {4096u, 32768u}) {
            Disk disk(open(
                over(OverlayOptions{.scratch = scratch, .granule_bytes = granule_bytes},
                     leaf({.driver = Driver::kZero, .size_bytes = 4 * kMiB + 1024}))));
            compare_with_shadow(disk, 4 * kMiB + 1024, 150, granule_bytes);
            ::unlink(file.path.c_str());  // the next one begins anew
        }
    }
}

TEST_CASE("overlay: a process that is killed leaves what it flushed, and nothing half") {
    constexpr uint64_t kSize = 160 * kMiB;
    const std::vector<uint64_t> windows = windows_of(kSize, 4096);
    NewFile file;
    const OverlayOptions options{.scratch = file.path};
    std::mt19937 random(5);
    Model model;
    uint64_t number = 1 << 30;
    for (int round = 0; round < 8; round++) {
        int events[2];
        REQUIRE(::pipe2(events, O_CLOEXEC) == 0);
        const pid_t child = ::fork();
        REQUIRE(child >= 0);
        if (child == 0) {
            Disk disk(opened(Overlay::open(options, pattern(kSize))));
            for (uint64_t n = number;; n++) {
                const Step step(n, windows, kSize);
                if (::write(events[1], "b", 1) != 1 || step.run(disk) != 0) ::_exit(1);
                if (::write(events[1], "d", 1) != 1) ::_exit(1);
            }
        }
        ::close(events[1]);
        const uint32_t enough = 1 + random() % 300;
        char event = 0;
        for (uint32_t seen = 0; ::read(events[0], &event, 1) == 1; seen++) {
            const Step step(number, windows, kSize);
            if (event == 'b') {
                model.begin(step);
            } else {
                model.done(step);
                number++;
            }
            if (seen == enough) ::kill(child, SIGKILL);
        }
        number++;
        ::close(events[0]);
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        REQUIRE(WIFSIGNALED(status));
        REQUIRE(WTERMSIG(status) == SIGKILL);
        Disk disk(opened(Overlay::open(options, pattern(kSize))));
        model.check(disk, windows);
    }
}

TEST_CASE("overlay: a torn page of the bitmap is whole again once the container was closed in order") {
    constexpr uint64_t kSize = 4 * kMiB;
    NewFile file;
    const OverlayOptions options{.scratch = file.path};
    Pages page(4096);
    std::memset(page.data(), 7, 4096);
    const auto tear = [&] {
        Fd fd(::open(file.path.c_str(), O_RDWR));
        uint8_t garbage[kSector];
        std::memset(garbage, 0x5a, sizeof garbage);
        // The second slot: a first commit writes the first.
        REQUIRE(::pwrite(fd.get(), garbage, sizeof garbage, 8192 + 1024) == kSector);
    };
    const std::string crashed = file.path + ".crashed";
    {
        Disk disk(opened(Overlay::open(options, pattern(kSize))));
        REQUIRE(disk.write(8192, page) == 0);
        REQUIRE(disk.flush() == 0);
        tear();
        std::filesystem::copy_file(file.path, crashed);
    }
    std::filesystem::rename(crashed, file.path);
    for (int i = 0; i < 2; i++) {
        Disk disk(opened(Overlay::open(options, pattern(kSize))));
        Pages found(4096);
        CHECK(disk.read(8192, found) == 0);
        CHECK(found.all(7));
        CHECK(disk.read(0, found) == 0);
        CHECK(std::memcmp(found.data(), below(0).data(), kSector) == 0);
    }
    // In a container that was left in order it is damage.
    for (uint64_t slot : {0, 1}) {
        Fd fd(::open(file.path.c_str(), O_RDWR));
        REQUIRE(::pwrite(fd.get(), "torn", 4, static_cast<off_t>(4096 * (1 + slot) + 99)) == 4);
    }
    auto refused = Overlay::open(options, pattern(kSize));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().message.find("damaged") != std::string::npos);
}

TEST_CASE("overlay: what is no container of this disk is refused") {
    NewFile file;
    const OverlayOptions options{.scratch = file.path};
    REQUIRE(opened(Overlay::open(options, pattern(kMiB)))->close());
    CHECK_FALSE(Overlay::open(options, pattern(2 * kMiB)));
    CHECK_FALSE(Overlay::open({.scratch = file.path, .granule_bytes = 8192}, pattern(kMiB)));
    CHECK_FALSE(Overlay::open({.scratch = file.path, .granule_bytes = 5000}, pattern(kMiB)));
    {
        auto first = opened(Overlay::open(options, pattern(kMiB)));
        CHECK_FALSE(Overlay::open(options, pattern(kMiB)));
    }
    REQUIRE(opened(Overlay::open(options, pattern(kMiB)))->close());
    TempFile other(4 * kMiB);
    other.fill(4 * kMiB);
    CHECK_FALSE(Overlay::open({.scratch = other.path()}, pattern(kMiB)));
}

TEST_CASE("overlay: of a disk that is too large for its granules is refused, in a file and in memory") {
    constexpr uint64_t kTooLarge = 128ull << 40;
    const auto fails = [](const OverlayOptions& options) {
        auto device = Overlay::open(options, pattern(kTooLarge));
        REQUIRE_FALSE(device);
        CHECK(device.error().message.find("127 TiB; choose larger granules") != std::string::npos);
    };
    NewFile file;
    fails({.scratch = file.path});
    fails({});
    CHECK(::access(file.path.c_str(), F_OK) != 0);
}

TEST_CASE("overlay: commit writes it into the disk below, reset forgets it") {
    constexpr uint64_t kSize = 3 * kMiB + 512;
    TempFile base(kSize);
    base.fill(kSize);
    const auto open_base = [&] { return open(leaf({.path = base.path(), .read_only = true})); };
    NewFile file;
    const OverlayOptions options{.scratch = file.path, .granule_bytes = 16384};
    Pages page(1024), found(1024);
    std::memset(page.data(), 9, page.size());
    const auto put = [&] {
        Disk disk(opened(Overlay::open(options, open_base())));
        CHECK(disk.write(kSize - 1024, page) == 0);
        CHECK(disk.read(kSize - 1024, found) == 0);
        CHECK(found.all(9));
        CHECK(disk.read(512, found) == 0);
        CHECK(found.has_pattern(512));
    };
    const auto get = [&](uint64_t offset) {
        Disk disk(opened(Overlay::open(options, open_base())));
        CHECK(disk.read(offset, found) == 0);
    };
    put();
    REQUIRE(Overlay::reset(options, kSize));
    get(kSize - 1024);
    CHECK(found.has_pattern(kSize - 1024));

    put();
    {
        auto writable = open(leaf({.path = base.path()}));
        REQUIRE(Overlay::commit(options, *writable));
    }
    Disk alone(DeviceOptions{.path = base.path()});
    CHECK(alone.read(kSize - 1024, found) == 0);
    CHECK(found.all(9));
    CHECK(alone.read(kSize - 2048, found) == 0);
    CHECK(found.has_pattern(kSize - 2048));
}

TEST_CASE("overlay: no container where its name cannot be made durable") {
    const std::string path = scratch_folder() + "/vbd-overlay-nameless";
    ::unlink(path.c_str());
    folder_fsync_fails = true;
    const Status made = OverlayFile::create_at(path, kMiB, 4096);
    folder_fsync_fails = false;
    CHECK_FALSE(made);
    CHECK(::access(path.c_str(), F_OK) != 0);
    CHECK(OverlayFile::create_at(path, kMiB, 4096));
    ::unlink(path.c_str());
}
