// Snapshot, reset and commit of an overlay by a process that is killed before each of its changes in turn: what the overlay
// reads as is what it was before or what it is after, and the same can be asked for again.
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <filesystem>
#include <functional>
#include <set>

#include "stages/overlay.h"
#include "stages/overlay_layers.h"
#include "stages_fixture.h"

using namespace disk_test;
using namespace stages_test;
using vbd::Status;

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kSize = 256 << 10;
constexpr uint32_t kGranule = 4096;

/// System calls by which something changes on a disk.
const std::set<uint64_t> kChanges = {
    SYS_pwrite64,  SYS_pwritev,  SYS_write,    SYS_fsync,    SYS_fdatasync, SYS_ftruncate,
    SYS_fallocate, SYS_linkat,   SYS_renameat, SYS_unlinkat, SYS_openat,    SYS_renameat2,
#ifdef SYS_link
    SYS_link,      SYS_rename,   SYS_unlink,
#endif
#ifdef SYS_io_uring_enter
    SYS_io_uring_enter,
#endif
};

/// Has a traced process or thread run to its next system call.
void go_on(pid_t thread, int status) {
    const int signal = WSTOPSIG(status) & 0x7f;
    const bool is_ours = signal == SIGTRAP || signal == SIGSTOP;
    ::ptrace(PTRACE_SYSCALL, thread, nullptr, is_ours ? 0L : static_cast<long>(signal));
}

bool is_about_to_change(pid_t thread, int status) {
    if (WSTOPSIG(status) != (SIGTRAP | 0x80)) return false;
    __ptrace_syscall_info info{};
    if (::ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof(info), &info) <= 0) return false;
    return info.op == PTRACE_SYSCALL_INFO_ENTRY && kChanges.contains(info.entry.nr);
}

/// Runs `act` in a process that is killed before its `n`-th change, from 1. False: it ended before that, in good order.
bool killed_at(uint64_t n, const std::function<Status()>& act) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
        ::raise(SIGSTOP);
        ::_exit(act() ? 0 : 1);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSTOPPED(status));
    const long options = PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE | PTRACE_O_TRACESYSGOOD;
    REQUIRE(::ptrace(PTRACE_SETOPTIONS, child, nullptr, options) == 0);
    go_on(child, status);
    for (uint64_t changes = 0;;) {
        const pid_t thread = ::waitpid(-1, &status, __WALL);
        REQUIRE(thread > 0);
        if (!WIFSTOPPED(status)) {
            if (thread != child) continue;
            REQUIRE(WIFEXITED(status));
            REQUIRE(WEXITSTATUS(status) == 0);
            return false;
        }
        if (is_about_to_change(thread, status) && ++changes == n) {
            ::kill(child, SIGKILL);
            while (::waitpid(-1, &status, __WALL) > 0) {
            }
            return true;
        }
        go_on(thread, status);
    }
}

/// A disk, its overlay and the layers between them, in a folder that goes with the scope.
class World {
  public:
    World() : folder_(scratch_folder() + "/vbd-layers-" + std::to_string(::getpid())) {
        fs::remove_all(folder_);
        fs::create_directory(folder_);
        const int fd = ::open(base_path().c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
        REQUIRE(::ftruncate(fd, kSize) == 0);
        ::close(fd);
        for (int fill = 1; fill <= 3; fill++) {
            {
                Disk disk(open(spec()));
                Pages page(kGranule * 3);
                std::memset(page.data(), fill, page.size());
                REQUIRE(disk.write(static_cast<uint64_t>(fill) * 2 * kGranule, page) == 0);
                REQUIRE(disk.device().close());
            }
            if (fill < 3) REQUIRE(snapshot_overlay(options()));
        }
        fs::copy(folder_, kept());
    }
    ~World() {
        fs::remove_all(folder_);
        fs::remove_all(kept());
    }

    OverlayOptions options() const { return {.scratch = folder_ + "/scratch", .granule_bytes = kGranule}; }

    uint32_t layers() const {
        auto count = overlay_layers(options().scratch);
        if (!count) FAIL(count.error().message);
        return count.value();
    }

    /// What a guest reads.
    std::vector<uint8_t> content() const { return read_all(spec()); }
    std::vector<uint8_t> content_of_base() const { return read_all(base(true)); }

    Status commit() const {
        auto below = try_open(base(false));
        if (!below) return below.error();
        return commit_overlay(options(), *below.value());
    }

    void begin_again() const {
        fs::remove_all(folder_);
        fs::copy(kept(), folder_);
    }

  private:
    std::string kept() const { return folder_ + ".kept"; }
    std::string base_path() const { return folder_ + "/base"; }
    DiskSpec base(bool read_only) const {
        return leaf({.path = base_path(), .read_only = read_only});
    }
    DiskSpec spec() const {
        DiskSpec below = base(true);
        for (uint32_t i = 1; i <= layers(); i++) {
            OverlayOptions layer{.scratch = layer_path(options().scratch, i), .granule_bytes = kGranule};
            layer.read_only = true;
            below = over(layer, std::move(below));
        }
        return over(options(), std::move(below));
    }
    static std::vector<uint8_t> read_all(const DiskSpec& what) {
        Disk disk(open(what));
        Pages pages(kSize);
        REQUIRE(disk.read(0, pages) == 0);
        const auto* bytes = reinterpret_cast<const uint8_t*>(pages.data());
        std::vector<uint8_t> all(bytes, bytes + kSize);
        REQUIRE(disk.device().close());
        return all;
    }

    std::string folder_;
};

/// Kills `act` before each change in turn; `check` looks at what is left, then `act` is done again and `check_after`
/// looks at that.
void kill_everywhere(const World& world, const std::function<Status()>& act,
                     const std::function<void()>& check, const std::function<void()>& check_after) {
    uint64_t n = 1;
    for (bool killed = true; killed; n++) {
        CAPTURE(n);
        world.begin_again();
        killed = killed_at(n, act);
        check();
        Status again = act();
        if (!again) FAIL(again.error().message);
        check_after();
    }
    // That nothing was counted would be no proof.
    CHECK(n > 5);
}

}  // namespace

TEST_CASE("overlay layers: a snapshot that is killed at any change") {
    World world;
    const auto before = world.content();
    const auto same = [&] { CHECK(world.content() == before); };
    kill_everywhere(
        world,
        [&]() -> Status {
            auto layer = snapshot_overlay(world.options());
            return layer ? Status{} : Status{layer.error()};
        },
        [&] {
            same();
            const uint32_t layers = world.layers();
            CHECK((layers == 2 || layers == 3));
        },
        [&] {
            same();
            CHECK(world.layers() >= 3);
        });
}

TEST_CASE("overlay layers: a reset that is killed at any change") {
    World world;
    const auto before = world.content();
    REQUIRE(reset_overlay(world.options()));
    const auto after = world.content();
    REQUIRE(before != after);
    kill_everywhere(
        world, [&] { return reset_overlay(world.options()); },
        [&] {
            const auto found = world.content();
            CHECK((found == before || found == after));
        },
        [&] { CHECK(world.content() == after); });
}

TEST_CASE("overlay layers: a commit that is killed at any change") {
    World world;
    const auto before = world.content();
    kill_everywhere(
        world, [&] { return world.commit(); }, [&] { CHECK(world.content() == before); },
        [&] {
            CHECK(world.content() == before);
            CHECK(world.content_of_base() == before);
            CHECK(world.layers() == 0);
        });
}
