// What every driver and every stage has to do alike, each alone and stacked: random work against a
// shadow, several queues at once, sizes, and what is in flight at the end.
#include <thread>

#include "stages_fixture.h"

using namespace disk_test;
using namespace stages_test;

namespace {

constexpr uint64_t kDisk = 4 * kMiB;

struct Subject {
    std::string name;
    DiskSpec spec;
    bool discards = true;  // a discard that is offered leaves zeroes
    bool resizes = true;
};

std::shared_ptr<const Secret> some_key() {
    std::vector<uint8_t> key(64);
    for (size_t i = 0; i < key.size(); i++) key[i] = static_cast<uint8_t>(i * 7 + 1);
    return std::make_shared<Secret>(std::move(key));
}

DiskSpec memory(uint64_t size = kDisk, uint32_t sector = 512) {
    return leaf({.driver = Driver::kMemory, .sector_size = sector, .size_bytes = size});
}

DiskSpec concat(DiskSpec a, DiskSpec b, DiskSpec c) {
    DiskSpec spec{.stage = ConcatOptions{}};
    spec.bases = {std::move(a), std::move(b), std::move(c)};
    return spec;
}

DiskSpec four_filters(DiskSpec base) {
    return over(ThrottleOptions{.iops = 1e6, .bps = 1e12},
                over(LogOptions{},
                     over(VerifyOptions{},
                          over(EncryptOptions{.key = some_key()}, std::move(base)))));
}

/// Every stage over `base`, which has kDisk bytes.
std::vector<Subject> subjects(const DiskSpec& base) {
    const DiskSpec third = memory(kMiB);
    std::vector<Subject> all = {
        {.name = "alone", .spec = base},
        {.name = "slice", .spec = over(SliceOptions{.offset_bytes = 4096}, base)},
        {.name = "concat",
         .spec = concat(memory(kMiB), over(SliceOptions{.length_bytes = kMiB}, base), third)},
        {.name = "throttle", .spec = over(ThrottleOptions{.iops = 1e6, .bps = 1e11}, base)},
        {.name = "delay",
         .spec = over(DelayOptions{.delay_ns = {100'000, 50'000, 10'000, 200'000}}, base)},
        {.name = "fault that never strikes", .spec = over(FaultOptions{.probability = 0}, base)},
        {.name = "log", .spec = over(LogOptions{.records = 64}, base)},
        {.name = "verify", .spec = over(VerifyOptions{}, base)},
        {.name = "verify by sectors", .spec = over(VerifyOptions{.block_bytes = 512}, base)},
        {.name = "encrypt", .spec = over(EncryptOptions{.key = some_key()}, base)},
        {.name = "encrypt with discard",
         .spec = over(EncryptOptions{.key = some_key(), .discard = true}, base),
         .discards = false},
        {.name = "encrypt by 4096",
         .spec = over(EncryptOptions{.key = some_key(), .unit_bytes = 4096}, base)},
        {.name = "overlay in memory", .spec = over(OverlayOptions{}, base)},
        {.name = "overlay with large granules",
         .spec = over(OverlayOptions{.granule_bytes = 65536}, base)},
        {.name = "overlay in a file", .spec = over(OverlayOptions{.scratch = "scratch"}, base)},
        {.name = "overlay of an overlay",
         .spec = over(OverlayOptions{.granule_bytes = 8192}, over(OverlayOptions{}, base))},
        {.name = "cache", .spec = over(CacheOptions{}, base)},
        {.name = "cache smaller than the disk",
         .spec = over(CacheOptions{.memory_bytes = kMiB, .write_back_ns = 0}, base)},
        {.name = "cache over a slow disk",
         .spec = over(CacheOptions{.memory_bytes = kMiB},
                      over(DelayOptions{.delay_ns = {300'000, 200'000, 0, 100'000}}, base))},
        {.name = "read-ahead", .spec = over(ReadAheadOptions{}, base)},
        {.name = "read-ahead over a cache over encryption",
         .spec = over(ReadAheadOptions{.memory_bytes = kMiB, .window_bytes = kMiB / 2},
                      over(CacheOptions{.memory_bytes = kMiB},
                           over(EncryptOptions{.key = some_key()}, base)))},
        {.name = "four filters", .spec = four_filters(base)},
    };
    return all;
}

/// As a guest's rings do on several reactors: each thread has its own queue and its own part.
void work_from_threads(Device& device, uint64_t size) {
    constexpr uint64_t kThreads = 3;
    const uint64_t part = size / kThreads / 4096 * 4096;
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < kThreads; t++) {
        threads.emplace_back([&, t] {
            auto context = std::move(IoContext::create({})).value();
            auto queue = std::move(device.open_queue(*context)).value();
            std::mt19937 random(static_cast<uint32_t>(t));
            std::vector<uint8_t> shadow(part);
            Pages data(16384);
            auto run = [&](IoOp op, uint64_t offset, uint64_t length) {
                iovec iov{data.data(), length};
                Io io{.op = op, .iov_count = 1, .iov = &iov, .offset = offset, .length = length};
                Io* one = &io;
                queue->submit(std::span(&one, 1));
                while (!queue->reap()) {
                    context->submit();
                    if (context->poll() == 0 && !queue->has_completions()) sleep_on(*context);
                }
                wrong += io.error != 0;
            };
            // What others wrote once is not zero.
            run(IoOp::kFlush, 0, 0);
            for (uint64_t at = 0; at < part; at += data.size()) {
                const uint64_t length = std::min<uint64_t>(data.size(), part - at);
                std::memset(data.data(), 0, length);
                run(IoOp::kWrite, t * part + at, length);
            }
            for (int i = 0; i < 60; i++) {
                const uint64_t length = 4096 * (1 + random() % 4);
                const uint64_t at = random() % ((part - length) / 4096) * 4096;
                if (random() % 2) {
                    for (uint64_t k = 0; k < length; k++) {
                        data.data()[k] = static_cast<uint8_t>(random());
                    }
                    std::memcpy(&shadow[at], data.data(), length);
                    run(IoOp::kWrite, t * part + at, length);
                    if (random() % 8 == 0) run(IoOp::kFlush, 0, 0);
                } else {
                    run(IoOp::kRead, t * part + at, length);
                    wrong += std::memcmp(&shadow[at], data.data(), length) != 0;
                }
            }
            while (!queue->idle()) {
                context->submit();
                context->poll();
                queue->reap();
            }
        });
    }
    for (auto& thread : threads) thread.join();
    CHECK(wrong == 0);
}

void check_subject(Subject subject) {
    INFO(subject.name);
    // A container of its own each time.
    const std::string scratch = scratch_folder() + "/vbd-overlay-" + std::to_string(::getpid());
    auto* overlay = std::get_if<OverlayOptions>(&subject.spec.stage);
    if (overlay && !overlay->scratch.empty()) overlay->scratch = scratch;
    ::unlink(scratch.c_str());
    {
        Disk disk(open(subject.spec));
        CHECK(disk.geometry().size_bytes == disk.device().size_bytes());
        CHECK_FALSE(disk.geometry().description.empty());
        CHECK(disk.run({.op = IoOp::kSecureDiscard, .length = 4096}) == EOPNOTSUPP);
        // Only what was written is known: an encrypted disk does not begin with zeroes.
        Pages zeroes(64 * 1024);
        for (uint64_t at = 0; at + zeroes.size() <= disk.device().size_bytes();
             at += zeroes.size()) {
            REQUIRE(disk.write(at, zeroes) == 0);
        }
        compare_with_shadow(disk, disk.device().size_bytes() / 65536 * 65536, 60,
                            static_cast<uint32_t>(subject.name.size()), subject.discards);
        CHECK(disk.queue().idle());
    }
    {
        Disk disk(open(subject.spec));
        const uint64_t size = disk.device().size_bytes();
        if (subject.resizes) {
            REQUIRE(disk.device().resize(size + kMiB));
            CHECK(disk.device().size_bytes() == size + kMiB);
            CHECK(disk.geometry().size_bytes == size + kMiB);
            Pages page(4096);
            std::memset(page.data(), 9, 4096);
            CHECK(disk.write(size + kMiB - 4096, page) == 0);
            CHECK(disk.read(size + kMiB - 4096, page) == 0);
            CHECK(page.all(9));
            // An overlay only grows.
            if (!overlay) REQUIRE(disk.device().resize(size));
        }
        const uint64_t now = disk.device().size_bytes();
        CHECK_FALSE(disk.device().resize(now + 100));
        CHECK(disk.device().refresh_size().value() == now);
    }
    auto device = open(subject.spec);
    work_from_threads(*device, device->size_bytes());
    CHECK(device->close());
    ::unlink(scratch.c_str());
}

}  // namespace

TEST_CASE("conformance: every stage over memory") {
    for (const Subject& subject : subjects(memory())) check_subject(subject);
}

TEST_CASE("conformance: every stage over memory with sectors of 4096 bytes") {
    for (Subject& subject : subjects(memory(kDisk, 4096))) {
        if (subject.name == "concat" || subject.name == "verify by sectors") continue;
        check_subject(subject);
    }
}

TEST_CASE("conformance: every stage over a file through io_uring") {
    for (size_t i = 0; i < subjects(memory()).size(); i++) {
        TempFile file(kDisk);
        Subject subject = subjects(leaf({.path = file.path()}))[i];
        if (subject.name == "concat") subject.resizes = false;  // checked above
        check_subject(subject);
    }
}
