// Overlays: what is written survives what it has to survive. A medium that forgets what was not flushed
// when its power is cut, at any moment and in any mixture; and real files, whose process is killed.
#include <signal.h>
#include <sys/wait.h>

#include <map>
#include <mutex>
#include <unordered_map>

#include "block/pattern_device.h"
#include "stages/overlay.h"
#include "stages_fixture.h"

using namespace disk_test;
using namespace stages_test;

namespace {

constexpr uint64_t kSector = 512;
constexpr uint64_t kSeed = 11;
constexpr uint64_t kWindow = 48 * 1024;

using Sector = std::vector<uint8_t>;

/// What a disk holds, and what it would hold without power: any mixture of what was written since the
/// last flush, sector by sector.
class Medium {
  public:
    explicit Medium(uint64_t size) : size_(size) {}

    uint64_t size() const { return size_; }
    /// The power goes with the n-th operation from now on that is no read.
    void cut_after(uint64_t n, uint32_t seed) {
        const std::lock_guard lock(mutex_);
        left_ = n;
        random_.seed(seed);
    }
    bool was_cut() {
        const std::lock_guard lock(mutex_);
        return image_ != nullptr;
    }
    std::shared_ptr<Medium> image() { return image_; }

    void run(const Io& io) {
        const std::lock_guard lock(mutex_);
        const bool last = io.op != IoOp::kRead && left_ > 0 && --left_ == 0;
        if (last && io.op == IoOp::kFlush) cut();
        if (io.op == IoOp::kFlush) flush();
        uint64_t at = io.offset / kSector;
        if (io.op == IoOp::kDiscard) {
            for (uint64_t i = 0; i < io.length / kSector; i++) put(at + i, Sector(kSector));
        }
        if (io.op == IoOp::kRead || io.op == IoOp::kWrite) {
            for (const iovec& part : std::span(io.iov, io.iov_count)) {
                auto* bytes = static_cast<uint8_t*>(part.iov_base);
                for (uint64_t i = 0; i < part.iov_len; i += kSector, at++) {
                    if (io.op == IoOp::kWrite) {
                        put(at, Sector(bytes + i, bytes + i + kSector));
                    } else {
                        std::memcpy(bytes + i, get(at).data(), kSector);
                    }
                }
            }
        }
        if (last && io.op != IoOp::kFlush) cut();
    }

  private:
    void put(uint64_t sector, Sector bytes) { volatile_[sector] = std::move(bytes); }
    Sector get(uint64_t sector) const {
        if (auto found = volatile_.find(sector); found != volatile_.end()) return found->second;
        if (auto found = durable_.find(sector); found != durable_.end()) return found->second;
        return Sector(kSector);
    }
    void flush() {
        for (auto& [sector, bytes] : volatile_) durable_[sector] = std::move(bytes);
        volatile_.clear();
    }
    void cut() {
        auto image = std::make_shared<Medium>(size_);
        image->durable_ = durable_;
        const uint32_t kept_of_4 = random_() % 5;
        for (const auto& [sector, bytes] : volatile_) {
            if (random_() % 4 < kept_of_4) image->durable_[sector] = bytes;
        }
        image_ = std::move(image);
    }

    const uint64_t size_;
    std::mutex mutex_;
    std::unordered_map<uint64_t, Sector> durable_;
    std::map<uint64_t, Sector> volatile_;
    uint64_t left_ = 0;
    std::mt19937 random_;
    std::shared_ptr<Medium> image_;
};

class MediumDevice final : public Device {
  public:
    explicit MediumDevice(std::shared_ptr<Medium> medium) : medium_(std::move(medium)) {
        geometry_.size_bytes = medium_->size();
        geometry_.can_discard = true;
        geometry_.description = "medium";
        size_bytes_.store(medium_->size());
    }
    const Geometry& geometry() const override { return geometry_; }
    const char* kind() const override { return "medium"; }
    Result<std::unique_ptr<DeviceQueue>> open_queue(IoContext&) override {
        return std::unique_ptr<DeviceQueue>(new Queue(*medium_));
    }
    Status resize(uint64_t) override { return Error{ErrorKind::kUnsupported, 0, "no"}; }
    Result<uint64_t> refresh_size() override { return size_bytes(); }

  private:
    class Queue final : public DeviceQueue {
      public:
        explicit Queue(Medium& medium) : medium_(medium) {}
        void submit(std::span<Io* const> batch) override {
            for (Io* io : batch) {
                medium_.run(*io);
                complete(io, 0);
            }
        }

      private:
        Medium& medium_;
    };

    std::shared_ptr<Medium> medium_;
    Geometry geometry_;
};

Sector below(uint64_t sector) {
    Sector bytes(kSector);
    for (uint64_t at = 0; at < kSector; at += 8) {
        const uint64_t word = PatternDevice::word_at(kSeed, sector * kSector + at);
        std::memcpy(bytes.data() + at, &word, 8);
    }
    return bytes;
}

/// One write, flush or discard, the same whenever it is made of the same number.
struct Step {
    Step(uint64_t number, const std::vector<uint64_t>& windows, uint64_t size) {
        std::mt19937_64 random(number * 7919 + 1);
        const uint64_t kind = random() % 8;
        op = kind < 5 ? IoOp::kWrite : kind < 6 ? IoOp::kDiscard : IoOp::kFlush;
        fua = op == IoOp::kWrite && random() % 6 == 0;
        if (op == IoOp::kFlush) return;
        const uint64_t window = windows[random() % windows.size()];
        const uint64_t most = std::min(kWindow, size - window) / kSector;
        // By sectors or by pages.
        const uint64_t unit = random() % 2 ? 8 : 1;
        const uint64_t count = std::max<uint64_t>(random() % (32 / unit) * unit, unit);
        first = window / kSector + random() % (most - count + 1) / unit * unit;
        for (uint64_t i = 0; i < count; i++) {
            Sector bytes(kSector);
            if (op == IoOp::kWrite) {
                for (uint64_t at = 0; at < kSector; at += 8) {
                    const uint64_t word = (number << 32) ^ ((first + i) << 8) ^ at;
                    std::memcpy(bytes.data() + at, &word, 8);
                }
            }
            sectors.push_back(std::move(bytes));
        }
    }

    int32_t run(Disk& disk) const {
        if (op == IoOp::kFlush) return disk.flush();
        const uint64_t length = sectors.size() * kSector;
        if (op == IoOp::kDiscard) return disk.discard(first * kSector, length);
        Pages pages(length);
        for (size_t i = 0; i < sectors.size(); i++) {
            std::memcpy(pages.data() + i * kSector, sectors[i].data(), kSector);
        }
        return disk.write(first * kSector, pages, fua);
    }

    IoOp op;
    bool fua = false;
    uint64_t first = 0;
    std::vector<Sector> sectors;
};

/// What each sector may be after a crash: the last one that was flushed, or what was written since.
class Model {
  public:
    void begin(const Step& step) {
        for (size_t i = 0; i < step.sectors.size(); i++) {
            at(step.first + i).push_back(step.sectors[i]);
        }
    }
    void done(const Step& step) {
        if (step.op == IoOp::kFlush) settle();
        for (size_t i = 0; step.fua && i < step.sectors.size(); i++) {
            at(step.first + i) = {step.sectors[i]};
        }
    }
    /// All of what was written is there.
    void settle() {
        for (auto& [sector, values] : values_) values = {values.back()};
    }
    /// What was found counts from now on.
    void check(Disk& disk, const std::vector<uint64_t>& windows) {
        int wrong = 0;
        const uint64_t size = disk.geometry().size_bytes;
        for (const uint64_t window : windows) {
            Pages pages(std::min(kWindow, size - window));
            REQUIRE(disk.read(window, pages) == 0);
            for (uint64_t i = 0; i < pages.size(); i += kSector) {
                const Sector found(pages.data() + i, pages.data() + i + kSector);
                auto& values = at((window + i) / kSector);
                wrong += std::find(values.begin(), values.end(), found) == values.end();
                values = {found};
            }
        }
        CHECK(wrong == 0);
    }

  private:
    std::vector<Sector>& at(uint64_t sector) {
        auto& values = values_[sector];
        if (values.empty()) values.push_back(below(sector));
        return values;
    }

    std::unordered_map<uint64_t, std::vector<Sector>> values_;
};

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
