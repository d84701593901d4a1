// Plain system calls: one worker for all queues of a device, completions that cross threads, the
// rules of a step.
#include <atomic>
#include <thread>

#include "block/file_io.h"
#include "disk_fixture.h"

using namespace disk_test;

namespace {
constexpr uint64_t kDisk = 4 << 20;
}

TEST_CASE("file io: advance keeps to the vectors, for every place to stop") {
    Pages pages(4096);
    std::mt19937 random(5);
    for (int round = 0; round < 2000; round++) {
        std::vector<iovec> parts;
        size_t length = 0;
        const size_t count = 1 + random() % 6;
        for (size_t i = 0; i < count; i++) {
            const size_t part = random() % 4 * 128;
            parts.push_back({pages.data() + length, part});
            length += part;
        }
        if (length == 0) continue;
        Io io{.iov_count = static_cast<uint32_t>(count), .iov = parts.data(), .length = length};
        const uint32_t granule = round % 2 ? 128 : 1;
        Progress progress = Progress::kPartial;
        while (progress == Progress::kPartial) {
            const uint64_t before = io.done;
            const uint64_t moved = random() % (length + 1);
            const uint64_t counted = moved - moved % granule;
            progress = advance(io, moved, granule);
            if (before + moved >= length) {
                CHECK(progress == Progress::kComplete);
                CHECK(io.done == length);
                break;
            }
            if (counted == 0) {
                CHECK(progress == Progress::kStuck);
                CHECK(io.done == before);
                break;
            }
            REQUIRE(progress == Progress::kPartial);
            CHECK(io.done == before + counted);
            uint64_t left = 0;
            for (uint32_t i = 0; i < io.iov_count; i++) left += io.iov[i].iov_len;
            CHECK(left == length - io.done);
            CHECK(io.iov->iov_base == pages.data() + io.done);
        }
    }
}

TEST_CASE("file io: steps of a discard add up and end at multiples of the step") {
    std::mt19937_64 random(6);
    for (int round = 0; round < 500; round++) {
        Io io{.op = IoOp::kDiscard};
        io.offset = random() % (1ull << 40) / 512 * 512;
        io.length = (1 + random() % (1ull << 20)) * 512;
        const uint64_t step = 4ull << 20;
        int steps = 0;
        while (io.done < io.length) {
            const uint64_t bytes = next_discard(io, step);
            REQUIRE(bytes > 0);
            REQUIRE(bytes <= step);
            io.done += bytes;
            if (io.done < io.length) REQUIRE((io.offset + io.done) % step == 0);
            steps++;
        }
        CHECK(io.done == io.length);
        CHECK(steps <= static_cast<int>(io.length / step) + 2);
    }
}

TEST_CASE("file io: a cold cache is asked ever less often, a warm one always") {
    TempFile file(kDisk);
    file.fill(kDisk);
    InlineReads reads(true);
    Pages page(4096);
    auto try_at = [&](uint64_t offset) {
        iovec part{page.data(), 4096};
        Io io{.iov_count = 1, .iov = &part, .offset = offset, .length = 4096};
        return reads.try_read(file.fd(), io);
    };
    for (int i = 0; i < 100; i++) REQUIRE(try_at(static_cast<uint64_t>(i) * 4096));
    CHECK(page.has_pattern(99 * 4096));
    file.drop_cache();
    if (try_at(1 << 20)) {
        MESSAGE("skipped: the page cache of this file system cannot be dropped");
        return;
    }
    for (int i = 0; i < 7; i++) CHECK_FALSE(try_at(1 << 20));
    // Warm again, but a while passes before that is noticed; then it is noticed for good.
    REQUIRE(::pread(file.fd(), page.data(), 4096, 1 << 20) == 4096);
    int waited = 0;
    while (!try_at(1 << 20)) REQUIRE(++waited < 10000);
    CHECK(waited == 64);
    for (int i = 0; i < 100; i++) CHECK(try_at(1 << 20));

    InlineReads off(false);
    iovec part{page.data(), 4096};
    Io io{.iov_count = 1, .iov = &part, .length = 4096};
    CHECK_FALSE(off.try_read(file.fd(), io));
}

TEST_CASE("sync: two reactors share a device and its one worker") {
    TempFile file(kDisk);
    auto device =
        open_device({.path = file.path(), .direct = DirectChoice::kOff, .io = IoChoice::kSync});
    REQUIRE(device);
    std::atomic<int> failures{0};
    auto reactor = [&](uint64_t base) {
        auto context = IoContext::create({});
        if (!context) return void(failures++);
        auto queue = device.value()->open_queue(*context.value());
        if (!queue) return void(failures++);
        constexpr size_t kIos = 16;
        std::vector<std::unique_ptr<Pages>> pages;
        std::vector<Io> ios(kIos);
        std::vector<iovec> parts(kIos);
        for (size_t i = 0; i < kIos; i++) pages.push_back(std::make_unique<Pages>(4096));
        for (int round = 0; round < 40; round++) {
            std::vector<Io*> batch;
            for (size_t i = 0; i < kIos; i++) {
                if (round % 2 == 0)
                    std::memset(pages[i]->data(), round + static_cast<int>(i), 4096);
                if (round % 2 == 1) std::memset(pages[i]->data(), 0, 4096);
                parts[i] = {pages[i]->data(), 4096};
                ios[i] = {.op = round % 2 ? IoOp::kRead : IoOp::kWrite,
                          .iov_count = 1,
                          .iov = &parts[i],
                          .offset = base + i * 4096,
                          .length = 4096};
                batch.push_back(&ios[i]);
            }
            Io flush{.op = IoOp::kFlush};
            batch.push_back(&flush);
            queue.value()->submit(batch);
            for (size_t done = 0; done < batch.size();) {
                context.value()->poll();
                Io* io = queue.value()->reap();
                if (!io && !sleep_on(*context.value())) return void(failures++);
                for (; io; io = io->next, done++) failures += io->error != 0;
            }
            for (size_t i = 0; i < kIos && round % 2; i++) {
                failures += !pages[i]->all(static_cast<uint8_t>(round - 1 + static_cast<int>(i)));
            }
        }
        failures += context.value()->in_flight() != 0;
    };
    std::thread other(reactor, kDisk / 2);
    reactor(0);
    other.join();
    CHECK(failures == 0);
}

TEST_CASE("sync: completions of many threads reach one reactor, each once") {
    class Sink final : public DeviceQueue {
      public:
        void submit(std::span<Io* const>) override {}
    };
    auto context = make_context();
    Sink sink;
    constexpr int kThreads = 4, kEach = 2000;
    std::vector<Io> ios(kThreads * kEach);
    for (Io& io : ios) {
        io.queue = &sink;
        context->note_started();
    }
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; t++) {
        threads.emplace_back([&, t] {
            for (int i = 0; i < kEach; i++) {
                Io& io = ios[static_cast<size_t>(t * kEach + i)];
                io.error = 1 + i;
                context->complete_from_thread(&io);
            }
        });
    }
    uint32_t polled = 0, reaped = 0;
    while (reaped < ios.size()) {
        REQUIRE(sleep_on(*context));  // a lost wake-up would hang here
        polled += context->poll();
        for (Io* io = sink.reap(); io; io = io->next) {
            reaped++;
            CHECK(io->error == 1 + (io - ios.data()) % kEach);
        }
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(polled == ios.size());
    CHECK(context->in_flight() == 0);
    CHECK_FALSE(sleep_on(*context, 0));
}
