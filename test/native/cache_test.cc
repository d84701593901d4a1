// The cache: what was flushed survives a cut of the power, what could not be written is neither lost nor
// called durable, and no ring ever reads what is older than another ring's answered write.
#include <thread>

#include "power_cut.h"
#include "stages/cache.h"

using namespace power_cut;

namespace {

DiskSpec memory(uint64_t size = 4 * kMiB) {
    return leaf({.driver = Driver::kMemory, .size_bytes = size});
}

double counter(Device& device, std::string_view wanted) {
    double found = -1;
    device.report([&](const char* name, double value) {
        if (name == wanted) found = value;
    });
    return found;
}

/// Writes back only when it is told to, or has to.
constexpr CacheOptions kPatient{.memory_bytes = kMiB, .write_back_ns = Cache::kLongestNs};

std::unique_ptr<Device> cache_over(const CacheOptions& options, std::unique_ptr<Device> below) {
    auto cache = Cache::open(options, std::move(below));
    if (!cache) FAIL(cache.error().message);
    return std::move(cache).value();
}

/// Of the n-th request for it, and what became of the disk below.
void wait_until(const std::function<bool()>& done) {
    const uint64_t give_up_ns = monotonic_ns() + 20'000'000'000;
    while (!done()) {
        REQUIRE(monotonic_ns() < give_up_ns);
        std::this_thread::yield();
    }
}

/// Passes everything to a disk that somebody else keeps.
class Borrowed final : public StageDevice {
  public:
    explicit Borrowed(Device& device)
        : StageDevice(std::make_unique<Window>(device)) {}
    Result<std::unique_ptr<DeviceQueue>> open_queue(IoContext& context) override {
        return base_->open_queue(context);
    }

  private:
    class Window final : public Device {
      public:
        explicit Window(Device& device) : device_(device) { size_bytes_.store(device.size_bytes()); }
        const Geometry& geometry() const override { return device_.geometry(); }
        Result<std::unique_ptr<DeviceQueue>> open_queue(IoContext& context) override {
            return device_.open_queue(context);
        }
        Status resize(uint64_t size_bytes) override {
            Status done = device_.resize(size_bytes);
            if (done) size_bytes_.store(size_bytes);
            return done;
        }
        Result<uint64_t> refresh_size() override { return device_.refresh_size(); }

      private:
        Device& device_;
    };
};

void cut_and_go_on(const CacheOptions& options, int sessions, uint32_t seed) {
    constexpr uint64_t kSize = 2 * kMiB + 1024;
    const std::vector<uint64_t> windows{0, 700 * 1024, kSize - kWindow};
    auto medium = std::make_shared<Medium>(kSize);
    {
        Disk disk(std::make_unique<MediumDevice>(medium));
        Pages page(kSector);
        for (const uint64_t window : windows) {
            for (uint64_t at = window; at < std::min(window + kWindow, kSize); at += kSector) {
                std::memcpy(page.data(), below(at / kSector).data(), kSector);
                REQUIRE(disk.write(at, page) == 0);
            }
        }
        REQUIRE(disk.flush() == 0);
    }
    std::mt19937 random(seed);
    Model model;
    uint64_t number = uint64_t{seed} << 16;
    for (int session = 0; session < sessions; session++) {
        const bool cut = random() % 4 != 0;
        if (cut) medium->cut_after(1 + random() % 40, random());
        {
            Disk disk(cache_over(options, std::make_unique<MediumDevice>(medium)));
            if (!medium->was_cut()) model.check(disk, windows);
            // Without a flush a patient cache may never ask the medium for anything.
            for (int i = 0; cut ? !medium->was_cut() : i < 30; i++) {
                const Step step(number++, windows, kSize);
                model.begin(step);
                REQUIRE(step.run(disk) == 0);
                if (!medium->was_cut()) model.done(step);
            }
            if (!cut) REQUIRE(disk.device().close());
        }
        if (cut) {
            medium = medium->image();
        } else {
            model.settle();
        }
    }
    Disk disk(std::make_unique<MediumDevice>(medium));
    model.check(disk, windows);
}

}  // namespace

TEST_CASE("cache: power cuts at any operation, of any part of what was not flushed") {
    for (uint32_t seed = 1; seed <= 2; seed++) {
        CAPTURE(seed);
        cut_and_go_on(kPatient, 50, seed);
        cut_and_go_on({.memory_bytes = kMiB, .write_back_ns = 0}, 50, seed + 100);
    }
}

TEST_CASE("cache: answers from memory, and knows what is newer than below") {
    auto below = open(memory());
    Disk under(std::make_unique<Borrowed>(*below));
    Disk disk(cache_over(kPatient, std::make_unique<Borrowed>(*below)));
    Pages page(8192), found(8192);
    std::memset(page.data(), 7, page.size());
    CHECK(disk.write(512, page) == 0);
    CHECK(counter(disk.device(), "dirtyBytes") == 3 * 4096);
    CHECK(under.read(512, found) == 0);
    CHECK(found.all(0));
    CHECK(disk.read(512, found) == 0);
    CHECK(found.all(7));
    CHECK(counter(disk.device(), "hits") == 3);
    // What is left of the first block comes from below, and what is dirty stays what it is.
    CHECK(disk.read(0, found) == 0);
    CHECK(std::count(found.data(), found.data() + 8192, 7) == 8192 - 512);
    CHECK(counter(disk.device(), "misses") == 1);
    CHECK(disk.flush() == 0);
    CHECK(counter(disk.device(), "dirtyBytes") == 0);
    CHECK(counter(disk.device(), "writtenBackBytes") == 8192);
    CHECK(under.read(512, found) == 0);
    CHECK(found.all(7));
    // Durable itself: FUA is a flush of its own.
    CHECK(disk.write(65536, page, true) == 0);
    CHECK(under.read(65536, found) == 0);
    CHECK(found.all(7));
}

TEST_CASE("cache: writes back by itself after a while, and when half of it is dirty") {
    auto below = open(memory());
    Disk disk(cache_over({.memory_bytes = kMiB, .write_back_ns = 5'000'000},
                         std::make_unique<Borrowed>(*below)));
    Pages page(4096), much(768 * 1024);
    CHECK(disk.write(0, page) == 0);
    wait_until([&] { return counter(disk.device(), "writtenBackBytes") == 4096; });
    wait_until([&] { return counter(disk.device(), "dirtyBytes") == 0; });
    REQUIRE(disk.device().tune("writeBackMs", 3'600'000));
    CHECK_FALSE(disk.device().tune("writeBackMs", -1));
    CHECK(disk.write(0, much) == 0);
    wait_until([&] { return counter(disk.device(), "dirtyBytes") <= 512 * 1024; });
}

TEST_CASE("cache: what could not be written back fails the flush, stays, and is written later") {
    auto below = open(memory());
    auto fault = open(over(FaultOptions{.operations = 1u << static_cast<int>(IoOp::kWrite),
                                        .error = ENOSPC,
                                        .probability = 0},
                           memory()));
    Device& faults = *fault;
    Disk under(std::make_unique<Borrowed>(*fault));
    Disk disk(cache_over(kPatient, std::make_unique<Borrowed>(*fault)));
    Pages page(4096), found(4096);
    std::memset(page.data(), 5, 4096);
    CHECK(disk.write(8192, page) == 0);
    REQUIRE(faults.tune("probability", 1));
    CHECK(disk.flush() == ENOSPC);
    CHECK(disk.flush() == ENOSPC);
    CHECK(disk.write(12288, page, true) == ENOSPC);
    CHECK(counter(disk.device(), "failedWriteBacks") >= 3);
    CHECK(counter(disk.device(), "dirtyBytes") == 8192);
    CHECK(disk.read(8192, found) == 0);
    CHECK(found.all(5));
    // No room: whoever writes is told, not left waiting.
    Pages much(64 * 1024);
    int32_t error = 0;
    for (uint64_t at = kMiB; at < 4 * kMiB && !error; at += much.size()) error = disk.write(at, much);
    CHECK(error == ENOSPC);
    REQUIRE(faults.tune("probability", 0));
    CHECK(disk.flush() == 0);
    CHECK(counter(disk.device(), "dirtyBytes") == 0);
    CHECK(under.read(8192, found) == 0);
    CHECK(found.all(5));
    CHECK(disk.write(2 * kMiB, much) == 0);
    // At the end it is told, too.
    REQUIRE(faults.tune("probability", 1));
    Status closed = disk.device().close();
    REQUIRE_FALSE(closed);
    CHECK(closed.error().message.find("lost") != std::string::npos);
}

TEST_CASE("cache: a flush that failed below is never followed by one that succeeds") {
    Disk disk(cache_over(
        kPatient,
        open(over(FaultOptions{.operations = 1u << static_cast<int>(IoOp::kFlush), .count = 1},
                  memory()))));
    Pages page(4096);
    CHECK(disk.write(0, page) == 0);
    CHECK(disk.flush() == EIO);
    CHECK(disk.flush() == EIO);
    CHECK(disk.write(0, page) == EIO);
    CHECK(disk.discard(0, 4096) == EIO);
    CHECK(disk.read(0, page) == 0);
    CHECK_FALSE(disk.device().close());
}

TEST_CASE("cache: a discard takes what is dirty with it, unless it fails") {
    auto fault = open(over(FaultOptions{.operations = 1u << static_cast<int>(IoOp::kDiscard),
                                        .probability = 0},
                           memory()));
    Device& faults = *fault;
    Disk disk(cache_over(kPatient, std::move(fault)));
    Pages page(4096), found(4096);
    std::memset(page.data(), 3, 4096);
    CHECK(disk.write(4096, page) == 0);
    REQUIRE(faults.tune("probability", 1));
    CHECK(disk.discard(0, kMiB) == EIO);
    CHECK(disk.read(4096, found) == 0);
    CHECK(found.all(3));
    REQUIRE(faults.tune("probability", 0));
    CHECK(disk.discard(4096 + 512, 512) == 0);
    CHECK(disk.read(4096, found) == 0);
    CHECK(std::count(found.data(), found.data() + 4096, 3) == 4096 - 512);
    CHECK(disk.discard(0, 4 * kMiB) == 0);
    CHECK(counter(disk.device(), "dirtyBytes") == 0);
    CHECK(disk.read(4096, found) == 0);
    CHECK(found.all(0));
}

TEST_CASE("cache: a disk that becomes shorter loses its end for good, dirty or not") {
    auto below = open(memory());
    Disk disk(cache_over(kPatient, std::make_unique<Borrowed>(*below)));
    Pages page(64 * 1024), found(64 * 1024);
    std::memset(page.data(), 9, page.size());
    CHECK(disk.write(3 * kMiB - 32768, page) == 0);
    CHECK(disk.write(kMiB, page) == 0);
    REQUIRE(disk.device().resize(3 * kMiB - 32768 + 512));
    CHECK(disk.flush() == 0);
    CHECK(below->size_bytes() == 3 * kMiB - 32768 + 512);
    REQUIRE(disk.device().resize(4 * kMiB));
    CHECK(disk.read(3 * kMiB - 32768, found) == 0);
    CHECK(std::count(found.data(), found.data() + found.size(), 9) == 512);
    CHECK(disk.read(kMiB, found) == 0);
    CHECK(found.all(9));
    CHECK(disk.write(4 * kMiB - 65536, page) == 0);
    CHECK(disk.flush() == 0);
}

TEST_CASE("cache: of a disk that is only read") {
    TempFile file(kMiB);
    file.fill(kMiB);
    Disk disk(open(over(CacheOptions{}, leaf({.path = file.path(), .read_only = true}))));
    CHECK(disk.geometry().read_only);
    Pages page(65536);
    CHECK(disk.read(0, page) == 0);
    CHECK(page.has_pattern(0));
    CHECK(disk.read(0, page) == 0);
    CHECK(page.has_pattern(0));
    CHECK(counter(disk.device(), "hits") == 16);
    CHECK(disk.flush() == 0);
    CHECK(disk.device().close());
}

TEST_CASE("cache: what it is told has to make sense") {
    CHECK_FALSE(try_open(over(CacheOptions{.memory_bytes = 4096}, memory())));
    CHECK_FALSE(try_open(over(CacheOptions{.memory_bytes = 1ull << 40}, memory())));
    CHECK_FALSE(try_open(over(CacheOptions{.write_back_ns = UINT64_MAX}, memory())));
}
