// Filters one by one: what each of them is for. What all stages have alike is in conformance_test.cc.
#include <cmath>

#include "base/clock.h"
#include "block/pattern_device.h"
#include "stages/throttle.h"
#include "stages/verify.h"
#include "stages_fixture.h"

using namespace disk_test;
using namespace stages_test;

namespace {

DiskSpec memory(uint64_t size = kMiB) {
    return leaf({.driver = Driver::kMemory, .size_bytes = size});
}

/// Submits `count` reads of a sector at once and waits for all; returns how long that took.
uint64_t time_reads(Disk& disk, size_t count) {
    Pages page(512);
    iovec part{page.data(), 512};
    std::vector<iovec> parts(count, part);
    std::vector<Io> ios(count);
    std::vector<Io*> batch;
    for (size_t i = 0; i < count; i++) {
        ios[i] = {.op = IoOp::kRead, .iov_count = 1, .iov = &parts[i], .length = 512};
        batch.push_back(&ios[i]);
    }
    const uint64_t begin_ns = monotonic_ns();
    disk.run(batch);
    for (const Io& io : ios) CHECK(io.error == 0);
    return monotonic_ns() - begin_ns;
}

double counter(Device& device, std::string_view wanted) {
    double found = -1;
    device.report([&](const char* name, double value) {
        if (name == wanted) found = value;
    });
    return found;
}

}  // namespace

TEST_CASE("throttle: never faster than its rate, and in order") {
    Disk disk(open(over(ThrottleOptions{.iops = 1000, .burst_s = 0}, memory())));
    CHECK(time_reads(disk, 100) >= 98'000'000);
    CHECK(counter(disk.device(), "delayed") >= 98);
    // Bytes count, too, and a request larger than the burst is served.
    Disk bytes(open(over(ThrottleOptions{.bps = 10 * kMiB, .burst_s = 0}, memory())));
    Pages much(kMiB);
    const uint64_t begin_ns = monotonic_ns();
    CHECK(bytes.read(0, much) == 0);
    CHECK(bytes.read(0, much) == 0);
    CHECK(monotonic_ns() - begin_ns >= 99'000'000);
}

TEST_CASE("throttle: flushes pass, whoever waits") {
    Disk disk(open(over(ThrottleOptions{.iops = 0.001, .burst_s = 0}, memory())));
    Pages page(512);
    CHECK(disk.read(0, page) == 0);
    iovec part{page.data(), 512};
    Io read{.op = IoOp::kRead, .iov_count = 1, .iov = &part, .length = 512};
    Io flush{.op = IoOp::kFlush};
    Io* batch[] = {&read, &flush};
    disk.queue().submit(batch);
    CHECK(disk.wait() == &flush);
    CHECK(disk.queue().reap() == nullptr);
    CHECK(disk.context().in_flight() == 1);
    // A guest that goes does not wait for the rate.
    disk.queue().hurry();
    CHECK(disk.wait() == &read);
    CHECK(disk.context().in_flight() == 0);
}

TEST_CASE("throttle: new limits are felt at once") {
    Disk disk(open(over(ThrottleOptions{.iops = 0.01, .burst_s = 0}, memory())));
    time_reads(disk, 1);
    Pages page(512);
    iovec part{page.data(), 512};
    Io read{.op = IoOp::kRead, .iov_count = 1, .iov = &part, .length = 512};
    Io* one = &read;
    disk.queue().submit(std::span(&one, 1));
    CHECK_FALSE(disk.queue().has_completions());
    REQUIRE(disk.device().tune("iops", 100'000));
    CHECK(disk.wait() == &read);
    CHECK(counter(disk.device(), "iops") == 100'000);
    CHECK_FALSE(disk.device().tune("iops", -1));
    CHECK_FALSE(disk.device().tune("pace", 1));
    REQUIRE(disk.device().tune("iops", 0));
    CHECK(time_reads(disk, 200) < 1'000'000'000);
}

TEST_CASE("throttle: a group shares one rate") {
    RateGroups groups;
    const DiskSpec spec =
        over(ThrottleOptions{.iops = 1000, .burst_s = 0, .group = "tenant"}, memory());
    Disk first(std::move(open_disk(spec, groups)).value());
    Disk second(std::move(open_disk(spec, groups)).value());
    const uint64_t begin_ns = monotonic_ns();
    for (int i = 0; i < 5; i++) {
        time_reads(first, 10);
        time_reads(second, 10);
    }
    CHECK(monotonic_ns() - begin_ns >= 98'000'000);
    auto other = open_disk(over(ThrottleOptions{.iops = 5, .group = "tenant"}, memory()), groups);
    REQUIRE_FALSE(other);
    CHECK(other.error().message.find("open with other limits") != std::string::npos);
}

TEST_CASE("throttle: rates and bursts have a range, whoever sets them") {
    Disk disk(open(over(ThrottleOptions{.iops = 1000}, memory())));
    REQUIRE(disk.device().tune("burstSeconds", 3600));
    for (double wrong : {3601.0, 1e15, -1.0, double(INFINITY), double(NAN)}) {
        Status tuned = disk.device().tune("burstSeconds", wrong);
        REQUIRE_FALSE(tuned);
        CHECK(tuned.error().message == "burstSeconds of a throttle is 0 to 3600");
        CHECK_FALSE(try_open(over(ThrottleOptions{.iops = 1, .burst_s = wrong}, memory())));
    }
    CHECK(counter(disk.device(), "burstSeconds") == 3600);
    CHECK_FALSE(disk.device().tune("bps", 1e16));
    CHECK_FALSE(try_open(over(ThrottleOptions{.iops = INFINITY}, memory())));
    CHECK_FALSE(try_open(over(ThrottleOptions{.bps = -1}, memory())));
    // And where nobody looked: no time that has no number.
    CHECK(make_rate({.iops = 1, .burst_s = 1e300})->requests.due_ns(7) == 0);
}

TEST_CASE("delay: each kind by its own time") {
    Disk disk(open(over(DelayOptions{.delay_ns = {0, 20'000'000, 0, 0}}, memory())));
    Pages page(512);
    uint64_t begin_ns = monotonic_ns();
    CHECK(disk.write(0, page) == 0);
    CHECK(monotonic_ns() - begin_ns >= 20'000'000);
    iovec part{page.data(), 512}, same = part;
    Io write{.op = IoOp::kWrite, .iov_count = 1, .iov = &part, .length = 512};
    Io read{.op = IoOp::kRead, .iov_count = 1, .iov = &same, .length = 512};
    Io* batch[] = {&write, &read};
    disk.queue().submit(batch);
    CHECK(disk.wait() == &read);
    disk.queue().hurry();
    CHECK(disk.wait() == &write);
    REQUIRE(disk.device().tune("writeMs", 0));
    CHECK(counter(disk.device(), "writeMs") == 0);
    CHECK_FALSE(disk.device().tune("writeMs", 1e9));
}

TEST_CASE("fault: the same requests fail for the same seed") {
    auto failures = [](uint64_t seed, double probability) {
        Disk disk(open(over(FaultOptions{.operations = 1u << static_cast<int>(IoOp::kRead),
                                         .error = ENOSPC,
                                         .probability = probability,
                                         .seed = seed},
                            memory())));
        std::string found;
        Pages page(512);
        for (int i = 0; i < 400; i++) {
            const int32_t error = disk.read(0, page);
            CHECK((error == 0 || error == ENOSPC));
            found += error ? 'x' : '.';
        }
        CHECK(disk.write(0, page) == 0);
        CHECK(counter(disk.device(), "matched") == 400);
        CHECK(counter(disk.device(), "failed") == std::count(found.begin(), found.end(), 'x'));
        return found;
    };
    const std::string first = failures(1, 0.25);
    CHECK(first == failures(1, 0.25));
    CHECK(first != failures(2, 0.25));
    const auto count = std::count(first.begin(), first.end(), 'x');
    CHECK(count > 60);
    CHECK(count < 140);
    CHECK(failures(1, 0) == std::string(400, '.'));
    CHECK(failures(1, 1) == std::string(400, 'x'));
}

TEST_CASE("fault: where, when, how often") {
    Disk disk(open(over(
        FaultOptions{.begin_bytes = 4096, .end_bytes = 8192, .skip = 1, .count = 2}, memory())));
    Pages page(512);
    CHECK(disk.read(0, page) == 0);
    CHECK(disk.read(8192, page) == 0);
    CHECK(disk.read(4096, page) == 0);  // skipped
    CHECK(disk.read(4096, page) == EIO);
    CHECK(disk.discard(0, 4096 + 512) == EIO);
    CHECK(disk.read(4096, page) == 0);  // both are used up
    REQUIRE(disk.device().tune("count", 1));
    CHECK(disk.read(7680, page) == EIO);
    CHECK(disk.read(7680, page) == 0);
    CHECK_FALSE(disk.device().tune("probability", 2));
    for (int none : {-1, 0, 9999}) {
        CHECK_FALSE(try_open(over(FaultOptions{.error = none}, memory())));
    }
}

TEST_CASE("concat: crosses from disk to disk, and flushes them all") {
    DiskSpec spec{.stage = ConcatOptions{}};
    spec.bases.push_back(leaf({.driver = Driver::kPattern, .size_bytes = 4096, .seed = 1}));
    spec.bases.push_back(leaf({.driver = Driver::kPattern, .size_bytes = 1536, .seed = 2}));
    spec.bases.push_back(memory());
    Disk disk(open(spec));
    CHECK(disk.device().size_bytes() == 4096 + 1536 + kMiB);
    Pages pages(8192);
    CHECK(disk.read(2048, pages) == 0);
    uint64_t word;
    std::memcpy(&word, pages.data() + 2048, 8);
    CHECK(word == PatternDevice::word_at(2, 0));
    std::memcpy(&word, pages.data() + 2040, 8);
    CHECK(word == PatternDevice::word_at(1, 4088));
    CHECK(disk.write(2048, pages) == 0);
    pages.data()[3000] ^= 1;  // in the second one, which refuses
    CHECK(disk.write(2048, pages) == EIO);
    CHECK(disk.flush() == 0);
    CHECK_FALSE(disk.geometry().can_discard);  // a pattern cannot
    CHECK_FALSE(disk.device().resize(4096 + 1536));
    CHECK(disk.device().resize(4096 + 1536 + 512));
    CHECK_FALSE(try_open({.stage = ConcatOptions{}, .bases = {memory()}}));
    CHECK_FALSE(try_open({.stage = ConcatOptions{},
                          .bases = {memory(), leaf({.driver = Driver::kMemory,
                                                    .sector_size = 4096,
                                                    .size_bytes = kMiB})}}));
}

TEST_CASE("encrypt: the disk below holds no plain text, and the right key reads it back") {
    TempFile file(kMiB);
    auto spec = [&file](uint8_t first, uint32_t unit) {
        std::vector<uint8_t> key(64);
        for (size_t i = 0; i < 64; i++) key[i] = static_cast<uint8_t>(first + i);
        return over(EncryptOptions{.key = std::make_shared<Secret>(key), .unit_bytes = unit},
                    leaf({.path = file.path()}));
    };
    Pages pages(64 * 1024), again(64 * 1024);
    std::memset(pages.data(), 'A', pages.size());
    {
        Disk disk(open(spec(1, 512)));
        CHECK(disk.geometry().sector_size == 512);
        CHECK(disk.write(512, pages) == 0);
        CHECK(pages.all('A'));  // a guest's pages are not touched
        CHECK(disk.flush() == 0);
        CHECK(disk.read(512, again) == 0);
        CHECK(again.all('A'));
        CHECK(disk.discard(0, 4096) == EOPNOTSUPP);
    }
    std::vector<uint8_t> raw(64 * 1024);
    REQUIRE(::pread(file.fd(), raw.data(), raw.size(), 512) == static_cast<ssize_t>(raw.size()));
    CHECK(std::count(raw.begin(), raw.end(), 'A') < 600);
    CHECK(std::memcmp(&raw[0], &raw[512], 512) != 0);
    {
        Disk wrong(open(spec(2, 512)));
        CHECK(wrong.read(512, again) == 0);
        CHECK_FALSE(again.all('A'));
    }
    {
        Disk large(open(spec(1, 4096)));
        CHECK(large.geometry().sector_size == 4096);
    }
    CHECK_FALSE(try_open(spec(1, 1024)));
}

TEST_CASE("verify: notices a disk that lies") {
    TempFile file(kMiB);
    auto checked = [&file](bool report_only) {
        return open(over(VerifyOptions{.report_only = report_only},
                         leaf({.path = file.path(), .direct = DirectChoice::kOff})));
    };
    Pages pages(64 * 1024);
    std::memset(pages.data(), 3, pages.size());
    for (bool report_only : {false, true}) {
        Disk disk(checked(report_only));
        CHECK(disk.write(4096, pages) == 0);
        CHECK(disk.read(4096, pages) == 0);
        CHECK(counter(disk.device(), "compared") == 16);
        CHECK(counter(disk.device(), "mismatches") == 0);
        // One bit, behind its back.
        REQUIRE(::pwrite(file.fd(), "\x07", 1, 12345) == 1);
        CHECK(disk.read(4096, pages) == (report_only ? 0 : EIO));
        CHECK(counter(disk.device(), "mismatches") == 1);
        CHECK(counter(disk.device(), "lastMismatchOffset") == 12288);
        Pages page(4096);
        CHECK(disk.read(4096, page) == 0);
        // Written anew, it is right again; discarded, nobody knows.
        CHECK(disk.write(12288, page) == 0);
        CHECK(disk.read(12288, page) == 0);
        CHECK(disk.discard(12288, 4096) == 0);
        REQUIRE(::pwrite(file.fd(), "\x07", 1, 12345) == 1);
        CHECK(disk.read(12288, page) == 0);
        CHECK(counter(disk.device(), "mismatches") == 1);
        // What was read once has to stay so.
        CHECK(disk.read(512 * 1024, page) == 0);
        REQUIRE(::pwrite(file.fd(), "\x09", 1, 512 * 1024) == 1);
        CHECK(disk.read(512 * 1024, page) == (report_only ? 0 : EIO));
        REQUIRE(::pwrite(file.fd(), "\x00", 1, 512 * 1024) == 1);
    }
}

TEST_CASE("verify: what a disk lost when it became shorter is not missed when it grows again") {
    Disk disk(open(over(VerifyOptions{}, memory())));
    Pages page(4096);
    const uint64_t kept = 256 * 1024 - 4096, lost = 512 * 1024;
    std::memset(page.data(), 3, page.size());
    CHECK(disk.write(kept, page) == 0);
    CHECK(disk.write(lost, page) == 0);
    CHECK(disk.device().resize(256 * 1024));
    CHECK(disk.device().resize(kMiB));
    CHECK(disk.read(lost, page) == 0);
    CHECK(page.all(0));
    // What is still there is still known.
    const double compared = counter(disk.device(), "compared");
    CHECK(disk.read(kept, page) == 0);
    CHECK(counter(disk.device(), "compared") == compared + 1);
    CHECK(counter(disk.device(), "mismatches") == 0);
}

TEST_CASE("verify: the same of a file that others make shorter, or longer than it can follow") {
    TempFile file(kMiB);
    Disk disk(open(over(VerifyOptions{},
                        leaf({.path = file.path(), .direct = DirectChoice::kOff}))));
    Pages page(4096);
    std::memset(page.data(), 3, page.size());
    CHECK(disk.write(512 * 1024, page) == 0);
    for (off_t size : {256 * 1024, 1024 * 1024}) {
        REQUIRE(::ftruncate(file.fd(), size) == 0);
        CHECK(disk.device().refresh_size().value() == static_cast<uint64_t>(size));
    }
    CHECK(disk.read(512 * 1024, page) == 0);
    CHECK(page.all(0));
    REQUIRE(::ftruncate(file.fd(), 64 * kMiB) == 0);
    CHECK_FALSE(disk.device().refresh_size());
    CHECK(disk.device().size_bytes() == kMiB);
}

TEST_CASE("verify: writers that meet leave a block unknown") {
    auto table = std::move(ChecksumTable::create(4)).value();
    table->begin_write(1);
    table->begin_write(1);
    table->end_write(1, 11);
    const uint64_t looked = table->look(1);
    CHECK(table->check(1, looked, 5, 0));  // one is still at it
    table->end_write(1, 22);
    CHECK(table->look(1) == 0);
    table->begin_write(1);
    table->end_write(1, 33);
    CHECK(table->check(1, table->look(1), 33, 0));
    CHECK_FALSE(table->check(1, table->look(1), 34, 0));
    // A discard in the middle of a write.
    table->begin_write(1);
    table->forget(1);
    table->end_write(1, 44);
    CHECK(table->look(1) == 0);
    // A discard in the middle of the first read.
    const uint64_t before = table->look(2), discards = table->discards();
    table->begin_discard();
    table->forget(2);
    CHECK(table->check(2, before, 55, discards));
    table->end_discard();
    CHECK(table->check(2, before, 55, discards));
    CHECK(table->look(2) == 0);
    CHECK(table->check(2, before, 55, table->discards()));
    CHECK(table->look(2) == 55);
}

TEST_CASE("log: a record of every request, and a count of those that had no room") {
    Disk disk(open(over(LogOptions{.records = 64}, over(FaultOptions{.skip = 2, .count = 1},
                                                        memory()))));
    Pages page(512);
    CHECK(disk.write(1024, page, true) == 0);
    CHECK(disk.flush() == 0);
    CHECK(disk.read(2048, page) == EIO);
    std::vector<IoRecord> records;
    CHECK(disk.device().take_records(records) == 0);
    REQUIRE(records.size() == 3);
    CHECK(records[0].op == IoOp::kWrite);
    CHECK(records[0].fua);
    CHECK(records[0].offset == 1024);
    CHECK(records[0].length == 512);
    CHECK(records[1].op == IoOp::kFlush);
    CHECK(records[2].error == EIO);
    CHECK(records[2].started_ns >= records[1].started_ns);
    records.clear();
    for (int i = 0; i < 100; i++) CHECK(disk.read(0, page) == 0);
    CHECK(disk.device().take_records(records) == 36);
    CHECK(records.size() == 64);
    CHECK_FALSE(try_open(over(LogOptions{.records = 100}, memory())));
}
