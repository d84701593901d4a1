// The disks that are no files: memory and null.
#include <fstream>
#include <thread>

#include "block/memory_device.h"
#include "block/racy_bytes.h"
#include "disk_fixture.h"

using namespace disk_test;

namespace {

constexpr uint64_t kMiB = 1 << 20;

#ifdef VBD_THREAD_SANITIZER
constexpr bool kMeasurable = false;  // it keeps several bytes for each of ours
#else
constexpr bool kMeasurable = true;
#endif

uint64_t resident_bytes() {
    std::ifstream statm("/proc/self/statm");
    uint64_t total = 0, resident = 0;
    statm >> total >> resident;
    return resident * 4096;
}

DeviceOptions memory(uint64_t size, uint32_t sector_size = 512) {
    return {.driver = Driver::kMemory, .sector_size = sector_size, .size_bytes = size};
}

}  // namespace

TEST_CASE("memory: random work") {
    Disk disk(memory(4 * kMiB));
    compare_with_shadow(disk, 4 * kMiB, 120, 41);
    Disk other(memory(4 * kMiB, 4096));
    compare_with_shadow(other, 4 * kMiB, 60, 42);
}

TEST_CASE("memory: sizes that are no disk are refused") {
    for (uint64_t size : {0ull, 511ull, 4096ull + 1, ~0ull, 1ull << 63, 1ull << 50}) {
        auto device = open_device(memory(size));
        CHECK_FALSE(device);
    }
    CHECK_FALSE(open_device(memory(4096, 2048)));
    CHECK_FALSE(open_device({.driver = Driver::kNull, .size_bytes = 100}));
}

TEST_CASE("memory: unwritten is zeros and takes no memory, discarded too") {
    constexpr uint64_t kSize = 64ull << 30;
    const uint64_t before = resident_bytes();
    Disk disk(memory(kSize));
    Pages page(4096), much(64 * kMiB);
    CHECK(disk.read(kSize - 4096, page) == 0);
    CHECK(page.all(0));
    std::memset(much.data(), 1, much.size());
    const uint64_t empty = resident_bytes();
    if (kMeasurable) CHECK(empty - before < 96 * kMiB);
    CHECK(disk.write(kSize / 2 + 512, much) == 0);
    if (kMeasurable) CHECK(resident_bytes() > empty + 60 * kMiB);

    // Edges that are no whole page, and more than one step.
    CHECK(disk.discard(kSize / 2 + 1024, much.size() - 1024) == 0);
    if (kMeasurable) CHECK(resident_bytes() < empty + 8 * kMiB);
    CHECK(disk.read(kSize / 2, page) == 0);
    for (size_t i = 0; i < 4096; i++) CHECK(page.data()[i] == (i >= 512 && i < 1024));
    CHECK(disk.read(kSize / 2 + much.size(), page) == 0);
    for (size_t i = 0; i < 4096; i++) CHECK(page.data()[i] == (i < 512));

    CHECK(disk.discard(0, kSize) == 0);
    CHECK(disk.read(kSize / 2, page) == 0);
    CHECK(page.all(0));
}

TEST_CASE("memory: a discard of one step completes at once, a longer one lets others pass") {
    Disk disk(memory(kMiB * 1024));
    Io io{.op = IoOp::kDiscard, .length = MemoryDevice::kDiscardStepBytes};
    Io* one = &io;
    disk.queue().submit(std::span(&one, 1));
    CHECK(disk.queue().reap() == &io);
    io.length = 3 * MemoryDevice::kDiscardStepBytes;
    disk.queue().submit(std::span(&one, 1));
    CHECK_FALSE(disk.queue().has_completions());
    CHECK(disk.context().in_flight() == 1);
    CHECK(sleep_on(disk.context(), 0));
    CHECK(disk.context().poll() == 0);
    CHECK(sleep_on(disk.context(), 0));
    CHECK(disk.context().poll() == 1);
    CHECK(disk.queue().reap() == &io);
    CHECK(io.error == 0);
    CHECK_FALSE(sleep_on(disk.context(), 0));
}

TEST_CASE("memory: grows and shrinks, and grown parts are zeros") {
    Disk disk(memory(kMiB));
    Pages page(4096);
    std::memset(page.data(), 5, 4096);
    CHECK(disk.device().resize(2 * kMiB));
    CHECK(disk.device().size_bytes() == 2 * kMiB);
    CHECK(disk.write(2 * kMiB - 4096, page) == 0);
    CHECK(disk.device().resize(kMiB + 512));
    CHECK(disk.device().resize(2 * kMiB));
    CHECK(disk.read(2 * kMiB - 4096, page) == 0);
    CHECK(page.all(0));
    CHECK_FALSE(disk.device().resize(100));
    auto far = disk.device().resize(1ull << 45);
    REQUIRE_FALSE(far);
    CHECK(far.error().message.find("can grow to at most") != std::string::npos);
    CHECK(disk.device().size_bytes() == 2 * kMiB);
}

TEST_CASE("memory: secure discard is not offered") {
    Disk disk(memory(kMiB));
    CHECK_FALSE(disk.geometry().can_secure_discard);
    CHECK(disk.run({.op = IoOp::kSecureDiscard, .length = 4096}) == EOPNOTSUPP);
}

TEST_CASE("memory: queues of several threads on the same sectors, while the disk is resized") {
    auto device = open_device(memory(kMiB));
    REQUIRE(device);
    std::atomic<int> failures{0};
    auto reactor = [&] {
        auto context = IoContext::create({});
        if (!context) return void(failures++);
        auto queue = device.value()->open_queue(*context.value());
        if (!queue) return void(failures++);
        Pages page(8192);
        for (int i = 0; i < 500; i++) {
            iovec part{page.data(), 8192};
            Io io{.op = i % 3 ? (i % 2 ? IoOp::kRead : IoOp::kWrite) : IoOp::kDiscard,
                  .iov_count = 1,
                  .iov = &part,
                  .offset = static_cast<uint64_t>(i % 7) * 4096,
                  .length = 8192};
            Io* one = &io;
            queue.value()->submit(std::span(&one, 1));
            failures += queue.value()->reap() != &io || io.error != 0;
        }
    };
    std::thread one(reactor), two(reactor);
    for (int i = 0; i < 100; i++) {
        if (!device.value()->resize((1 + static_cast<uint64_t>(i % 2)) * kMiB / 2)) failures++;
    }
    one.join();
    two.join();
    CHECK(failures == 0);
}

TEST_CASE("null: reads are zeros, unless left alone on purpose") {
    Disk disk({.driver = Driver::kNull, .size_bytes = 1ull << 40});
    Pages page(4096);
    std::memset(page.data(), 9, 4096);
    CHECK(disk.write(0, page) == 0);
    CHECK(page.all(9));
    CHECK(disk.read((1ull << 40) - 4096, page) == 0);
    CHECK(page.all(0));
    CHECK(disk.flush() == 0);
    CHECK(disk.discard(0, 1ull << 40) == 0);
    CHECK(disk.device().resize(4096));
    CHECK_FALSE(disk.device().resize(4097));

    Disk raw({.driver = Driver::kNull, .size_bytes = 1 << 20, .no_fill = true});
    std::memset(page.data(), 9, 4096);
    CHECK(raw.read(0, page) == 0);
    CHECK(page.all(9));
    CHECK(raw.geometry().description.find("leave buffers") != std::string::npos);
    // Or pages of the pool would reach a guest with what others left in them.
    CHECK_FALSE(raw.geometry().fills_reads);
    CHECK(disk.geometry().fills_reads);
}
