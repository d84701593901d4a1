// What keeps parts of a disk in memory must never answer with what is older than an answered write, on
// whatever ring that was: one ring writes blocks that say how new they are, others read them, over a disk
// that takes its time and answers out of order.
#include <array>
#include <thread>

#include "stages_fixture.h"

using namespace disk_test;
using namespace stages_test;

namespace {

constexpr uint64_t kBlock = 4096;
constexpr uint64_t kBlocks = 512;

/// A queue of a disk, for one thread.
class Ring {
  public:
    explicit Ring(Device& device)
        : context_(make_context()), queue_(std::move(device.open_queue(*context_)).value()) {}
    ~Ring() {
        queue_->hurry();
        while (!queue_->idle() || context_->in_flight() > 0) {
            wait();
            queue_->reap();
        }
    }

    int32_t run(IoOp op, uint64_t offset, uint64_t length, void* memory) {
        iovec part{memory, length};
        Io io{.op = op, .iov_count = 1, .iov = &part, .offset = offset, .length = length};
        Io* one = &io;
        queue_->submit(std::span(&one, 1));
        while (!queue_->reap()) wait();
        return io.error;
    }

  private:
    void wait() {
        context_->submit();
        if (context_->poll() == 0 && !queue_->has_completions()) sleep_on(*context_, 1000);
    }

    std::unique_ptr<IoContext> context_;
    std::unique_ptr<DeviceQueue> queue_;
};

struct Truth {
    std::array<std::atomic<uint64_t>, kBlocks> answered{};  // the newest version that was answered
    std::array<std::atomic<uint64_t>, kBlocks> begun{};
    std::atomic<uint64_t> wrong{0};
    std::atomic<uint64_t> reads{0};
    std::atomic<bool> done{false};
};

/// Writes every block anew, in runs, here and there.
void write_blocks(Device& device, Truth& truth, uint32_t seed, uint64_t end_ns) {
    Ring ring(device);
    std::mt19937 random(seed);
    Pages pages(8 * kBlock);
    while (monotonic_ns() < end_ns) {
        const uint64_t count = 1 + random() % 8;
        const uint64_t first = random() % (kBlocks - count);
        for (uint64_t i = 0; i < count; i++) {
            const uint64_t version = truth.begun[first + i].fetch_add(1) + 1;
            for (uint64_t at = 0; at < kBlock; at += 8) {
                std::memcpy(pages.data() + i * kBlock + at, &version, 8);
            }
        }
        truth.wrong += ring.run(IoOp::kWrite, first * kBlock, count * kBlock, pages.data()) != 0;
        for (uint64_t i = 0; i < count; i++) {
            truth.answered[first + i].store(truth.begun[first + i].load());
        }
        if (random() % 16 == 0) ring.run(IoOp::kFlush, 0, 0, nullptr);
    }
    truth.done = true;
}

void read_blocks(Device& device, Truth& truth, uint32_t seed) {
    Ring ring(device);
    std::mt19937 random(seed);
    Pages pages(8 * kBlock);
    std::vector<uint64_t> oldest(8);
    while (!truth.done) {
        // In a row, mostly, as somebody who copies a file.
        const uint64_t begin = random() % 2 ? 0 : random() % kBlocks;
        const uint64_t step = 1 + random() % 8;
        for (uint64_t block = begin; block + step <= kBlocks && !truth.done; block += step) {
            for (uint64_t i = 0; i < step; i++) oldest[i] = truth.answered[block + i].load();
            truth.wrong += ring.run(IoOp::kRead, block * kBlock, step * kBlock, pages.data()) != 0;
            for (uint64_t i = 0; i < step; i++) {
                const uint64_t newest = truth.begun[block + i].load();
                for (uint64_t at = 0; at < kBlock; at += 8) {
                    uint64_t version;
                    std::memcpy(&version, pages.data() + i * kBlock + at, 8);
                    truth.wrong += version < oldest[i] || version > newest;
                }
            }
            truth.reads += step;
        }
    }
}

void check_freshness(const DiskSpec& spec, uint32_t seed) {
    auto device = open(spec);
    Truth truth;
    const uint64_t end_ns = monotonic_ns() + 400'000'000;
    std::thread writer([&] { write_blocks(*device, truth, seed, end_ns); });
    std::thread reader([&] { read_blocks(*device, truth, seed + 1); });
    read_blocks(*device, truth, seed + 2);
    writer.join();
    reader.join();
    CHECK(truth.wrong == 0);
    CHECK(truth.reads > 100);
    REQUIRE(device->close());
}

/// Each kind of request takes another time.
DiskSpec slow(uint64_t read_us, uint64_t write_us) {
    return over(DelayOptions{.delay_ns = {read_us * 1000, write_us * 1000, 50'000, 0}},
                leaf({.driver = Driver::kMemory, .size_bytes = kBlocks * kBlock}));
}

}  // namespace

TEST_CASE("freshness: a cache that is smaller than what is used") {
    const CacheOptions options{.memory_bytes = kMiB, .write_back_ns = 1'000'000};
    check_freshness(over(options, slow(300, 100)), 1);
    check_freshness(over(options, slow(50, 400)), 2);
}

TEST_CASE("freshness: reading ahead of readers while somebody writes") {
    const ReadAheadOptions options{};
    check_freshness(over(options, slow(300, 100)), 3);
    check_freshness(over(options, slow(100, 300)), 4);
    check_freshness(over(options, over(CacheOptions{.memory_bytes = kMiB}, slow(200, 100))), 5);
}
