// The script channel with a script in C++ at its other end: a thread that reads the rings as
// lib/engine/script/ does.
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "block/racy_bytes.h"
#include "block/disk_client.h"
#include "block/script_device.h"
#include "block/script_memory.h"
#include "stages_fixture.h"

using namespace disk_test;

namespace {

constexpr uint64_t kMiB = 1 << 20;

/// What the script is asked for, and its memory.
struct Call {
    uint32_t slot;
    ScriptDescriptor request;
    uint8_t* memory;
};

/// A thread that answers as `handler` says: an errno, or nothing for later (answer()).
class FakeScript {
  public:
    using Handler = std::function<std::optional<uint32_t>(const Call&)>;

    FakeScript(std::shared_ptr<ScriptChannel> channel, Handler handler)
        : channel_(std::move(channel)), handler_(std::move(handler)) {
        auto* base = static_cast<uint8_t*>(channel_->control().iov_base);
        indices_ = reinterpret_cast<ScriptIndices*>(base);
        submissions_ = reinterpret_cast<uint32_t*>(base + sizeof(ScriptIndices));
        answers_ = reinterpret_cast<ScriptAnswer*>(submissions_ + channel_->submission_entries());
        const auto after = reinterpret_cast<uintptr_t>(answers_ + channel_->answer_entries());
        descriptors_ = reinterpret_cast<ScriptDescriptor*>((after + 63) / 64 * 64);
        thread_ = std::thread([this] { run(); });
        REQUIRE(channel_->attach([this] { ring(); }));
        ring();
    }
    ~FakeScript() { stop(); }

    void stop() {
        if (!thread_.joinable()) return;
        {
            std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        wakes_.notify_one();
        thread_.join();
        channel_->detach();
    }

    /// On the script's thread, or when that has stopped or is known to do nothing.
    void answer(uint32_t slot, uint32_t error) {
        std::lock_guard lock(answering_);
        const uint32_t at = indices_->answered.value.load(std::memory_order_relaxed);
        answers_[at & (channel_->answer_entries() - 1)] = {slot, error};
        indices_->answered.value.store(at + 1, std::memory_order_release);
    }
    void answer_now(uint32_t slot, uint32_t error) {
        answer(slot, error);
        channel_->kick();
    }

    std::atomic<uint32_t> aborts{0};
    std::atomic<uint32_t> bells{0};
    std::atomic<uint32_t> most_at_once{0};

  private:
    void ring() {
        bells++;
        {
            std::lock_guard lock(mutex_);
            rung_ = true;
        }
        wakes_.notify_one();
    }

    void run() {
        for (;;) {
            {
                std::unique_lock lock(mutex_);
                wakes_.wait(lock, [this] { return rung_ || stopping_; });
                if (stopping_) return;
                rung_ = false;
            }
            for (;;) {
                drain();
                indices_->armed.value.store(1);
                if (indices_->submitted.value.load() == indices_->taken.value.load()) break;
                indices_->armed.value.store(0);
            }
        }
    }

    void drain() {
        uint32_t at = indices_->taken.value.load();
        bool answered = false;
        uint32_t batch = 0;
        for (; at != indices_->submitted.value.load(); at++) {
            const uint32_t entry = submissions_[at & (channel_->submission_entries() - 1)];
            indices_->taken.value.store(at + 1);
            if (entry & kScriptAbort) {
                aborts++;
                continue;
            }
            batch++;
            auto* memory = static_cast<uint8_t*>(channel_->pool().iov_base) +
                           size_t{entry} * kScriptSlotBytes;
            if (auto error = handler_({entry, descriptors_[entry], memory})) {
                answer(entry, *error);
                answered = true;
            }
        }
        if (batch > most_at_once) most_at_once = batch;
        if (answered) channel_->kick();
    }

    std::shared_ptr<ScriptChannel> channel_;
    Handler handler_;
    ScriptIndices* indices_;
    uint32_t* submissions_;
    ScriptAnswer* answers_;
    ScriptDescriptor* descriptors_;
    std::mutex mutex_;
    std::mutex answering_;
    std::condition_variable wakes_;
    bool rung_ = false;
    bool stopping_ = false;
    std::thread thread_;
};

/// A disk in the script's own memory.
class ScriptedMemory {
  public:
    explicit ScriptedMemory(uint64_t bytes) : bytes_(bytes) {}
    std::optional<uint32_t> operator()(const Call& call) {
        const auto offset = static_cast<uint64_t>(call.request.offset);
        const auto length = static_cast<uint64_t>(call.request.length);
        switch (static_cast<IoOp>(call.request.op)) {
            case IoOp::kRead:
                std::memcpy(call.memory, &bytes_[offset], length);
                return 0;
            case IoOp::kWrite:
                std::memcpy(&bytes_[offset], call.memory, length);
                return 0;
            case IoOp::kDiscard:
                std::memset(&bytes_[offset], 0, length);
                return 0;
            default:
                return 0;
        }
    }

  private:
    std::vector<uint8_t> bytes_;
};

struct Rig {
    explicit Rig(uint64_t bytes, ScriptChannel::Options options, FakeScript::Handler handler) {
        auto made = ScriptChannel::create(options, [this](const ScriptChannel::Overdue& request) {
            std::lock_guard lock(mutex);
            overdue.push_back(request);
        });
        REQUIRE(made);
        channel = std::move(made).value();
        Geometry geometry;
        geometry.size_bytes = bytes;
        geometry.can_discard = true;
        auto device = ScriptDevice::create(geometry, channel);
        REQUIRE(device);
        disk = std::make_unique<Disk>(std::move(device).value());
        if (handler) script = std::make_unique<FakeScript>(channel, std::move(handler));
    }
    size_t overdue_count() {
        std::lock_guard lock(mutex);
        return overdue.size();
    }

    std::mutex mutex;
    std::vector<ScriptChannel::Overdue> overdue;
    std::shared_ptr<ScriptChannel> channel;
    std::unique_ptr<Disk> disk;
    std::unique_ptr<FakeScript> script;
};

/// Waits for something that another thread does.
template <typename Condition>
void eventually(Condition holds) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kTimeout_ms);
    while (!holds()) {
        REQUIRE(std::chrono::steady_clock::now() < deadline);
        std::this_thread::yield();
    }
}

}  // namespace

TEST_CASE("script: random work, for one request at a time and for many") {
    for (uint32_t concurrency : {1u, 5u, 64u}) {
        CAPTURE(concurrency);
        Rig rig(4 * kMiB, {.concurrency = concurrency}, ScriptedMemory(4 * kMiB));
        compare_with_shadow(*rig.disk, 4 * kMiB, 150, 50 + concurrency);
        CHECK(rig.script->most_at_once <= concurrency);
        CHECK(rig.overdue_count() == 0);
    }
}

TEST_CASE("script: a request longer than a slot goes in pieces, whatever its parts") {
    Rig rig(16 * kMiB, {.concurrency = 1}, ScriptedMemory(16 * kMiB));
    Pages out(3 * kMiB + 512), in(3 * kMiB + 512);
    for (size_t i = 0; i < out.size(); i++) out.data()[i] = TempFile::pattern(i);
    std::vector<iovec> parts;
    for (size_t at = 0; at < out.size();) {
        const size_t length = std::min<size_t>(out.size() - at, 512 * (1 + at / 512 % 97));
        parts.push_back({out.data() + at, length});
        at += length;
    }
    CHECK(rig.disk->run({.op = IoOp::kWrite,
                         .iov_count = static_cast<uint32_t>(parts.size()),
                         .iov = parts.data(),
                         .offset = 512,
                         .length = out.size()}) == 0);
    CHECK(rig.disk->read(512, in) == 0);
    CHECK(in.has_pattern(0));
}

TEST_CASE("script: what a read leaves out is zeroes") {
    Rig rig(kMiB, {.concurrency = 1}, [](const Call& call) -> std::optional<uint32_t> {
        if (static_cast<IoOp>(call.request.op) == IoOp::kRead) call.memory[0] = 1;
        return 0;
    });
    Pages secret(4096), page(4096);
    std::memset(secret.data(), 0x55, secret.size());
    CHECK(rig.disk->write(0, secret) == 0);
    CHECK(rig.disk->read(0, page) == 0);
    CHECK(page.data()[0] == 1);
    page.data()[0] = 0;
    CHECK(page.all(0));
}

TEST_CASE("script: what it sees is what was written, whatever happens to the pages since") {
    std::atomic<int> stage{0};
    std::vector<uint8_t> seen;
    Rig rig(kMiB, {}, [&](const Call& call) -> std::optional<uint32_t> {
        stage = 1;
        while (stage != 2) std::this_thread::yield();
        seen.assign(call.memory, call.memory + 4096);
        return 0;
    });
    Pages page(4096);
    std::memset(page.data(), 7, page.size());
    iovec part{page.data(), page.size()};
    Io io{.op = IoOp::kWrite, .iov_count = 1, .iov = &part, .length = page.size()};
    Io* one = &io;
    rig.disk->queue().submit({&one, 1});
    eventually([&] { return stage == 1; });
    std::memset(page.data(), 9, page.size());
    stage = 2;
    CHECK(rig.disk->wait() == one);
    CHECK(io.error == 0);
    CHECK(seen == std::vector<uint8_t>(4096, 7));
}

TEST_CASE("script: it is told everything about a request") {
    std::vector<ScriptDescriptor> calls;
    Rig rig(kMiB, {}, [&](const Call& call) -> std::optional<uint32_t> {
        calls.push_back(call.request);
        return 0;
    });
    rig.disk->queue().identify("1:xvda");
    Pages page(8192);
    CHECK(rig.disk->write(4096, page, true) == 0);
    CHECK(rig.disk->flush() == 0);
    CHECK(rig.disk->discard(512, kMiB - 512) == 0);
    CHECK(rig.disk->run({.op = IoOp::kSecureDiscard, .length = 512}) == EOPNOTSUPP);
    rig.script->stop();
    REQUIRE(calls.size() == 3);
    CHECK(calls[0].op == static_cast<uint32_t>(IoOp::kWrite));
    CHECK(calls[0].flags == kScriptFua);
    CHECK(calls[0].offset == 4096);
    CHECK(calls[0].length == 8192);
    CHECK(rig.channel->client_name(calls[0].client) == "1:xvda");
    CHECK(calls[1].op == static_cast<uint32_t>(IoOp::kFlush));
    CHECK(calls[1].flags == 0);
    CHECK(calls[2].offset == 512);
    CHECK(calls[2].length == kMiB - 512);
    CHECK(calls[2].tag != calls[1].tag);
}

TEST_CASE("script: errors are its own, and no nonsense becomes a success") {
    uint32_t answer = 0;
    Rig rig(kMiB, {}, [&](const Call&) -> std::optional<uint32_t> { return answer; });
    Pages page(4096);
    for (auto [given, seen] : {std::pair{28u, ENOSPC}, {95u, EOPNOTSUPP}, {0x80000000u, EIO}}) {
        answer = given;
        CHECK(rig.disk->read(0, page) == seen);
    }
    answer = 0;
    CHECK(rig.disk->read(0, page) == 0);
}

TEST_CASE("script: a request that is never answered fails at its deadline, and its memory is let be") {
    std::vector<Call> kept;
    bool keep = true;
    Rig rig(kMiB, {.concurrency = 2, .deadline_ns = 40'000'000},
            [&](const Call& call) -> std::optional<uint32_t> {
                if (!keep) return 0;
                kept.push_back(call);
                return {};
            });
    Pages page(4096);
    CHECK(rig.disk->read(4096, page) == ETIMEDOUT);
    eventually([&] { return rig.overdue_count() == 1; });  // told after the answer
    eventually([&] { return rig.script->aborts == 1; });
    CHECK(rig.overdue[0].op == IoOp::kRead);
    CHECK(rig.overdue[0].offset == 4096);

    // The other slot serves on, and never the memory of the first.
    keep = false;
    for (int i = 0; i < 10; i++) CHECK(rig.disk->read(0, page) == 0);
    keep = true;
    CHECK(rig.disk->read(0, page) == ETIMEDOUT);
    REQUIRE(kept.size() == 2);
    CHECK(kept[0].slot != kept[1].slot);

    // Both are lost: what waits fails at its own deadline.
    CHECK(rig.disk->read(8192, page) == ETIMEDOUT);
    eventually([&] { return rig.overdue_count() == 3; });
    CHECK(kept.size() == 2);

    // A late answer changes nothing but that there is a slot again.
    keep = false;
    std::memset(kept[0].memory, 0xee, 4096);
    rig.script->answer_now(kept[0].slot, 0);
    CHECK(rig.disk->read(0, page) == 0);
    CHECK(page.all(0));
    rig.script->answer_now(kept[1].slot, 5);
    compare_with_shadow(*rig.disk, kMiB, 0, 1);
    CHECK(rig.overdue_count() == 3);
}

TEST_CASE("script: an answer for a slot that it does not have is nothing") {
    Rig rig(kMiB, {.concurrency = 4}, [](const Call&) -> std::optional<uint32_t> { return 0; });
    Pages page(4096);
    CHECK(rig.disk->read(0, page) == 0);
    rig.script->answer_now(3, 0);
    rig.script->answer_now(400, 0);
    CHECK(rig.disk->read(0, page) == 0);
}

TEST_CASE("script: when it goes everything fails, and so does what comes") {
    Rig rig(kMiB, {.concurrency = 2},
            [](const Call&) -> std::optional<uint32_t> { return std::nullopt; });
    Pages pages(8 * 4096);
    std::vector<Io> ios(8);
    std::vector<iovec> parts(8);
    std::vector<Io*> batch;
    for (size_t i = 0; i < ios.size(); i++) {
        parts[i] = {pages.data() + i * 4096, 4096};
        ios[i] = {.op = IoOp::kRead, .iov_count = 1, .iov = &parts[i], .length = 4096};
        batch.push_back(&ios[i]);
    }
    rig.disk->queue().submit(batch);
    rig.script->stop();
    for (size_t left = batch.size(); left > 0;) {
        for (Io* io = rig.disk->wait(); io; io = io->next, left--) CHECK(io->error == EIO);
    }
    CHECK(rig.disk->context().in_flight() == 0);
    rig.disk->run(batch);
    for (const Io& io : ios) CHECK(io.error == EIO);
    CHECK_FALSE(rig.channel->attach([] {}));
}

TEST_CASE("script: requests from before it came are its first") {
    Rig rig(kMiB, {}, nullptr);
    Pages page(4096);
    iovec part{page.data(), page.size()};
    Io io{.op = IoOp::kRead, .iov_count = 1, .iov = &part, .length = page.size()};
    Io* one = &io;
    rig.disk->queue().submit({&one, 1});
    rig.script = std::make_unique<FakeScript>(
        rig.channel, [](const Call&) -> std::optional<uint32_t> { return 0; });
    CHECK(rig.disk->wait() == one);
    CHECK(io.error == 0);
}

TEST_CASE("script: reactors share the slots of one disk, and none is forgotten") {
    constexpr int kThreads = 3;
    Rig rig(kThreads * kMiB, {.concurrency = 4}, ScriptedMemory(kThreads * kMiB));
    std::vector<std::thread> threads;
    std::atomic<int> failed{0};
    for (int t = 0; t < kThreads; t++) {
        threads.emplace_back([&, t] {
            auto context = make_context();
            auto queue = rig.disk->device().open_queue(*context);
            constexpr uint32_t kDepth = 16;
            Pages pages(kDepth * 4096);
            std::vector<Io> ios(kDepth);
            std::vector<iovec> parts(kDepth);
            for (int round = 0; round < 60; round++) {
                const IoOp op = round % 2 == 0 ? IoOp::kWrite : IoOp::kRead;
                std::vector<Io*> batch;
                for (uint32_t i = 0; i < kDepth; i++) {
                    parts[i] = {pages.data() + i * 4096, 4096};
                    if (op == IoOp::kWrite) std::memset(parts[i].iov_base, round + t, 4096);
                    if (op == IoOp::kRead) std::memset(parts[i].iov_base, 0, 4096);
                    ios[i] = {.op = op,
                              .iov_count = 1,
                              .iov = &parts[i],
                              .offset = t * kMiB + i * 4096,
                              .length = 4096};
                    batch.push_back(&ios[i]);
                }
                queue.value()->submit(batch);
                for (uint32_t left = kDepth; left > 0;) {
                    context->poll();
                    for (Io* io = queue.value()->reap(); io; io = io->next) {
                        left--;
                        failed += io->error != 0;
                    }
                    if (left > 0 && !sleep_on(*context)) failed += 1000;
                }
                if (op == IoOp::kWrite) continue;
                for (uint32_t i = 0; i < pages.size(); i++) {
                    failed += pages.data()[i] != static_cast<uint8_t>(round - 1 + t);
                }
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(failed == 0);
    CHECK(rig.script->most_at_once <= 4);
}

TEST_CASE("script: two rings of one reactor wait for the same slots") {
    Rig rig(kMiB, {.concurrency = 1}, ScriptedMemory(kMiB));
    auto other = rig.disk->device().open_queue(rig.disk->context());
    REQUIRE(other);
    Pages pages(8 * 4096);
    std::vector<Io> ios(8);
    std::vector<iovec> parts(8);
    for (size_t i = 0; i < ios.size(); i++) {
        parts[i] = {pages.data() + i * 4096, 4096};
        ios[i] = {.op = IoOp::kRead, .iov_count = 1, .iov = &parts[i], .length = 4096};
        Io* one = &ios[i];
        (i % 2 ? *other.value() : rig.disk->queue()).submit({&one, 1});
    }
    size_t mine = 0, others = 0;
    while (mine + others < ios.size()) {
        rig.disk->context().poll();
        for (Io* io = rig.disk->queue().reap(); io; io = io->next) mine++;
        for (Io* io = other.value()->reap(); io; io = io->next) others++;
        if (mine + others < ios.size()) REQUIRE(sleep_on(rig.disk->context()));
    }
    CHECK(mine == 4);
    CHECK(others == 4);
    CHECK(rig.disk->context().in_flight() == 0);
}

TEST_CASE("script: sizes that are no disk, and options out of range, are refused") {
    auto none = [](const ScriptChannel::Overdue&) {};
    CHECK_FALSE(ScriptChannel::create({.concurrency = 0}, none));
    CHECK_FALSE(ScriptChannel::create({.concurrency = 257}, none));
    CHECK_FALSE(ScriptChannel::create({.deadline_ns = 0}, none));
    auto channel = ScriptChannel::create({}, none);
    REQUIRE(channel);
    for (uint64_t size : {0ull, 511ull, ~0ull}) {
        Geometry geometry;
        geometry.size_bytes = size;
        CHECK_FALSE(ScriptDevice::create(geometry, channel.value()));
    }
    Geometry geometry;
    geometry.size_bytes = kMiB;
    auto device = ScriptDevice::create(geometry, channel.value());
    REQUIRE(device);
    CHECK_FALSE(device.value()->resize(511));
    CHECK(device.value()->resize(2 * kMiB));
    CHECK(device.value()->refresh_size().value() == 2 * kMiB);
}

// ---- the other way round

namespace {

/// A script in C++ that reads and writes a device through its client, one request at a time or many.
class Client {
  public:
    explicit Client(const DeviceOptions& options, uint32_t slots = 8) {
        auto opened = open_device(options);
        REQUIRE(opened);
        start(std::move(opened).value(), slots);
    }
    explicit Client(std::shared_ptr<Device> opened) { start(std::move(opened), 8); }

    void start(std::shared_ptr<Device> opened, uint32_t slots) {
        device = std::move(opened);
        auto made = DiskClient::open(device, slots, [this] {
            std::lock_guard lock(mutex_);
            rung_ = true;
            wakes_.notify_one();
        });
        REQUIRE(made);
        client = std::move(made).value();
        const ScriptLayout layout(sizeof(ClientIndices), client->entries(), client->entries(),
                                  slots);
        auto* base = static_cast<uint8_t*>(client->control().iov_base);
        indices = reinterpret_cast<ClientIndices*>(base);
        submissions_ = reinterpret_cast<uint32_t*>(base + layout.submissions);
        answers_ = reinterpret_cast<ScriptAnswer*>(base + layout.answers);
        descriptors_ = reinterpret_cast<ScriptDescriptor*>(base + layout.descriptors);
    }

    ~Client() { client->stop(); }

    uint8_t* memory(uint32_t slot) {
        return static_cast<uint8_t*>(client->pool().iov_base) + size_t{slot} * kScriptSlotBytes;
    }

    void submit(uint32_t slot, IoOp op, double offset, double length, bool fua = false) {
        descriptors_[slot] = {};
        descriptors_[slot].op = static_cast<uint32_t>(op);
        descriptors_[slot].flags = fua ? kScriptFua : 0;
        descriptors_[slot].offset = offset;
        descriptors_[slot].length = length;
        const uint32_t at = indices->submitted.value.load();
        submissions_[at & (client->entries() - 1)] = slot;
        indices->submitted.value.store(at + 1);
    }

    /// Kicks, and waits for the next answer.
    ScriptAnswer next() {
        client->kick();
        const uint32_t at = indices->consumed.value.load();
        for (;;) {
            indices->script_armed.value.store(1);
            if (indices->answered.value.load() != at) break;
            std::unique_lock lock(mutex_);
            REQUIRE(wakes_.wait_for(lock, std::chrono::milliseconds(kTimeout_ms),
                                    [this] { return rung_; }));
            rung_ = false;
        }
        const ScriptAnswer answer = answers_[at & (client->entries() - 1)];
        indices->consumed.value.store(at + 1);
        return answer;
    }

    uint32_t run(IoOp op, double offset, double length, bool fua = false) {
        submit(0, op, offset, length, fua);
        const ScriptAnswer answer = next();
        CHECK(answer.slot == 0);
        return answer.error;
    }

    std::shared_ptr<Device> device;
    std::shared_ptr<DiskClient> client;
    ClientIndices* indices;

  private:
    uint32_t* submissions_;
    ScriptAnswer* answers_;
    ScriptDescriptor* descriptors_;
    std::mutex mutex_;
    std::condition_variable wakes_;
    bool rung_ = false;
};

}  // namespace

TEST_CASE("script: a client reads and writes files and memory") {
    TempFile file(4 * kMiB);
    file.fill(4 * kMiB);
    Client client({.path = file.path()});
    CHECK(client.run(IoOp::kRead, 8192, 4096) == 0);
    for (int i = 0; i < 4096; i++) {
        if (client.memory(0)[i] != TempFile::pattern(8192 + i)) FAIL("a wrong byte");
    }
    std::memset(client.memory(0), 0x31, 1 * kMiB);
    CHECK(client.run(IoOp::kWrite, 1 * kMiB, 1 * kMiB, true) == 0);
    CHECK(client.run(IoOp::kFlush, 0, 0) == 0);
    uint8_t byte = 0;
    REQUIRE(::pread(file.fd(), &byte, 1, 2 * kMiB - 1) == 1);
    CHECK(byte == 0x31);
    CHECK(client.run(IoOp::kDiscard, 0, 2 * kMiB) == 0);
    CHECK(client.run(IoOp::kRead, 1 * kMiB, 512) == 0);
    CHECK(client.memory(0)[0] == 0);
}

TEST_CASE("script: a client has many requests at work, and every one comes back") {
    Client client({.driver = Driver::kMemory, .size_bytes = 4 * kMiB}, 5);
    for (int round = 0; round < 50; round++) {
        for (uint32_t slot = 0; slot < 5; slot++) {
            std::memset(client.memory(slot), static_cast<int>(slot + round), 4096);
            client.submit(slot, IoOp::kWrite, slot * 4096.0, 4096);
        }
        uint32_t seen = 0;
        for (int i = 0; i < 5; i++) {
            const ScriptAnswer answer = client.next();
            CHECK(answer.error == 0);
            seen |= 1u << answer.slot;
        }
        CHECK(seen == 31);
        CHECK(client.run(IoOp::kRead, (round % 5) * 4096.0, 4096) == 0);
        CHECK(client.memory(0)[17] == static_cast<uint8_t>(round % 5 + round));
    }
}

TEST_CASE("script: a client's mistakes are answered, and reach no device") {
    Client client({.driver = Driver::kMemory, .sector_size = 4096, .size_bytes = 4 * kMiB});
    const double size = 4 * kMiB;
    for (auto [op, offset, length] : std::vector<std::tuple<IoOp, double, double>>{
             {IoOp::kRead, size, 4096},
             {IoOp::kRead, -4096, 4096},
             {IoOp::kRead, 512, 4096},
             {IoOp::kRead, 0, 512},
             {IoOp::kRead, 0, 0},
             {IoOp::kRead, 0, 2.0 * kMiB},
             {IoOp::kWrite, size - 4096, 8192},
             {IoOp::kWrite, 1e300, 4096},
             {IoOp::kRead, std::nan(""), 4096},
             {IoOp::kDiscard, 0, std::nan("")},
             {IoOp::kDiscard, 0, size + 4096},
             {IoOp::kSecureDiscard, 0, 4096},
             {static_cast<IoOp>(77), 0, 4096}}) {
        CAPTURE(offset);
        CAPTURE(length);
        CHECK(client.run(op, offset, length) == EINVAL);
    }
    TempFile file(kMiB);
    Client reader({.path = file.path(), .read_only = true});
    CHECK(reader.run(IoOp::kWrite, 0, 4096) == EINVAL);
    CHECK(reader.run(IoOp::kRead, 0, 4096) == 0);
    CHECK_FALSE(DiskClient::open(client.device, 0, [] {}));
    CHECK_FALSE(DiskClient::open(client.device, 257, [] {}));
}

TEST_CASE("script: a client's requests wait as long as a stage wants, and no longer once it stops") {
    using stages_test::leaf, stages_test::open, stages_test::over;
    using namespace vbd::stages;
    const DiskSpec memory = leaf({.driver = Driver::kMemory, .size_bytes = 4 * kMiB});
    {
        Client client(std::shared_ptr<Device>(
            open(over(DelayOptions{.delay_ns = {20'000'000}}, memory))));
        const uint64_t begin_ns = monotonic_ns();
        CHECK(client.run(IoOp::kRead, 0, 4096) == 0);
        CHECK(monotonic_ns() - begin_ns >= 20'000'000);
    }
    for (const DiskSpec& spec :
         {over(DelayOptions{.delay_ns = {3'600'000'000'000}}, memory),
          over(ThrottleOptions{.iops = 0.001, .burst_s = 0}, memory),
          over(ReadAheadOptions{}, over(DelayOptions{.delay_ns = {500'000'000}}, memory))}) {
        Client client(std::shared_ptr<Device>(open(spec)));
        for (uint32_t slot = 0; slot < 8; slot++) {
            client.submit(slot, IoOp::kRead, slot * 4096.0, 4096);
        }
        client.client->kick();
        const uint64_t begin_ns = monotonic_ns();
        client.client->stop();
        CHECK(monotonic_ns() - begin_ns < 1'900'000'000);
        // Nothing of it was left with the device.
        CHECK(client.device.use_count() == 1);
    }
}

TEST_CASE("script: a client that stops lets go of the device, with requests on the way") {
    TempFile file(kMiB);
    for (int round = 0; round < 20; round++) {
        Client client({.path = file.path()});
        for (uint32_t slot = 0; slot < 8; slot++) client.submit(slot, IoOp::kWrite, 0, 4096);
        client.client->kick();
        client.client->stop();
        client.client->stop();
        CHECK(client.device.use_count() == 1);  // the test's own
    }
}
