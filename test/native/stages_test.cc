// Drivers that compute their content, and stages that only move it.
#include "block/pattern_device.h"
#include "stages_fixture.h"

using namespace disk_test;
using namespace stages_test;

TEST_CASE("zero: reads zeroes, takes zeroes, refuses the rest") {
    Disk disk({.driver = Driver::kZero, .size_bytes = kMiB});
    Pages page(4096);
    std::memset(page.data(), 1, 4096);
    CHECK(disk.read(4096, page) == 0);
    CHECK(page.all(0));
    CHECK(disk.write(0, page) == 0);
    page.data()[4095] = 1;
    CHECK(disk.write(0, page) == EIO);
    CHECK(disk.flush() == 0);
    CHECK(disk.discard(0, kMiB) == 0);
    CHECK(disk.run({.op = IoOp::kSecureDiscard, .length = 4096}) == EOPNOTSUPP);
    CHECK_FALSE(open_device({.driver = Driver::kZero, .size_bytes = 100}));
}

TEST_CASE("pattern: every word as computed, and nothing else is accepted") {
    Disk disk({.driver = Driver::kPattern, .size_bytes = kMiB, .seed = 7});
    Pages pages(8192);
    CHECK(disk.read(512, pages) == 0);
    for (uint64_t at = 0; at < 8192; at += 8) {
        uint64_t word;
        std::memcpy(&word, pages.data() + at, 8);
        CHECK(word == PatternDevice::word_at(7, 512 + at));
    }
    CHECK(disk.write(512, pages) == 0);
    CHECK(disk.write(1024, pages) == EIO);
    pages.data()[8191] ^= 0x80;
    CHECK(disk.write(512, pages) == EIO);
    CHECK_FALSE(disk.geometry().can_discard);

    // Parts that end within a word.
    iovec parts[] = {{pages.data(), 3}, {pages.data() + 3, 700}, {pages.data() + 703, 833}};
    Io io{.op = IoOp::kRead, .iov_count = 3, .iov = parts, .offset = 2048, .length = 1536};
    CHECK(disk.run(io) == 0);
    for (uint64_t at = 0; at < 1536; at += 8) {
        uint64_t word;
        std::memcpy(&word, pages.data() + at, 8);
        CHECK(word == PatternDevice::word_at(7, 2048 + at));
    }
}

TEST_CASE("slice: is the part of the disk below, and nothing more of it") {
    Disk disk(open(over(SliceOptions{.offset_bytes = 512, .length_bytes = 64 * 1024},
                        leaf({.driver = Driver::kPattern, .size_bytes = kMiB}))));
    CHECK(disk.device().size_bytes() == 64 * 1024);
    Pages page(4096);
    CHECK(disk.read(1024, page) == 0);
    uint64_t word;
    std::memcpy(&word, page.data(), 8);
    CHECK(word == PatternDevice::word_at(0, 1536));
    CHECK(disk.flush() == 0);
    CHECK_FALSE(disk.device().resize(kMiB));
    CHECK(disk.device().refresh_size().value() == 64 * 1024);
}

TEST_CASE("slice: what is not inside the disk is refused") {
    const DiskSpec base = leaf({.driver = Driver::kMemory, .size_bytes = kMiB});
    for (auto [offset, length] : {std::pair{kMiB, 0ull}, {0ull, kMiB + 512}, {kMiB - 512, 1024ull},
                                  {100ull, 0ull}, {0ull, 100ull}, {~0ull - 511, 512ull}}) {
        CHECK_FALSE(try_open(over(SliceOptions{offset, length}, base)));
    }
    CHECK_FALSE(try_open({.stage = SliceOptions{}}));
}

TEST_CASE("slice: to the end, it grows with the disk") {
    Disk disk(open(over(SliceOptions{.offset_bytes = 4096},
                        leaf({.driver = Driver::kMemory, .size_bytes = kMiB}))));
    CHECK(disk.device().size_bytes() == kMiB - 4096);
    CHECK(disk.device().resize(2 * kMiB));
    CHECK(disk.device().size_bytes() == 2 * kMiB);
    CHECK(disk.device().refresh_size().value() == 2 * kMiB);
    CHECK_FALSE(disk.device().resize(100));
}

TEST_CASE("slice: random work") {
    Disk disk(open(over(SliceOptions{.offset_bytes = 1536, .length_bytes = 2 * kMiB},
                        leaf({.driver = Driver::kMemory, .size_bytes = 4 * kMiB}))));
    compare_with_shadow(disk, 2 * kMiB, 100, 7);
}
