// The back ring: the known cases of ring arithmetic by name, the bytes it writes, and a hostile
// producer against a model.
#include "blkif/ring.h"

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "../fuzz/ring_model.h"
#include "base/clock.h"
#include "guest/front_ring.h"
#include "guest_slot.h"

using namespace vbd;
using namespace vbd::blkif;

namespace {

/// A ring in memory of its own, with the indices that a case needs.
class Shared {
  public:
    explicit Shared(uint32_t pages = 1, uint8_t fill = 0xee) : pages_(pages) {
        bytes_ = static_cast<uint8_t*>(std::aligned_alloc(kPageSize, size_t{pages} * kPageSize));
        std::memset(bytes_, fill, size_t{pages} * kPageSize);
    }
    Shared(const Shared&) = delete;
    Shared& operator=(const Shared&) = delete;
    ~Shared() { std::free(bytes_); }

    uint8_t* bytes() { return bytes_; }
    uint8_t* slot(uint32_t index, uint32_t stride) { return bytes_ + 64 + index * stride; }
    void set(size_t offset, uint32_t value) { std::memcpy(bytes_ + offset, &value, 4); }
    uint32_t get(size_t offset) const {
        uint32_t value;
        std::memcpy(&value, bytes_ + offset, 4);
        return value;
    }

    BackRing attach(uint32_t at, Protocol protocol = Protocol::kX86_64) {
        guest::FrontRing::initialise(bytes_, at);
        Result<BackRing> ring = BackRing::attach(bytes_, pages_, protocol);
        REQUIRE(ring);
        return ring.value();
    }

  private:
    uint32_t pages_;
    uint8_t* bytes_;
};

constexpr size_t kReqProd = 0, kReqEvent = 4, kRspProd = 8, kRspEvent = 12;

void consume(BackRing& ring, uint32_t count) {
    RawSlot slot;
    REQUIRE(ring.begin_pass());
    for (uint32_t i = 0; i < count; ++i) REQUIRE(ring.next(slot));
}

/// Answers `count` requests after `at` and says whether that notifies a frontend that set
/// rsp_event.
bool notifies(uint32_t at, uint32_t count, uint32_t rsp_event) {
    Shared shared;
    BackRing ring = shared.attach(at);
    shared.set(kReqProd, at + count);
    consume(ring, count);
    shared.set(kRspEvent, rsp_event);
    for (uint32_t i = 0; i < count; ++i) ring.respond(i, 0, 0);
    CHECK(shared.get(kRspProd) == at);  // nothing is visible before the push
    const bool notify = ring.push();
    CHECK(shared.get(kRspProd) == at + count);
    return notify;
}

}  // namespace

TEST_CASE("ring: attach refuses what is not a ring") {
    Shared shared;
    guest::FrontRing::initialise(shared.bytes());
    for (const uint32_t pages : {0U, 3U, 5U, 17U, 32U, ~0U}) {
        const Result<BackRing> ring = BackRing::attach(shared.bytes(), pages, Protocol::kNative);
        REQUIRE_FALSE(ring);
        CHECK(ring.error().kind == ErrorKind::kInvalidArgument);
    }
    const Result<BackRing> nowhere = BackRing::attach(nullptr, 1, Protocol::kNative);
    REQUIRE_FALSE(nowhere);
    CHECK(nowhere.error().kind == ErrorKind::kInvalidArgument);
    CHECK_FALSE(BackRing::attach(shared.bytes() + 4, 1, Protocol::kNative));

    shared.set(kReqProd, 33);
    const Result<BackRing> corrupt = BackRing::attach(shared.bytes(), 1, Protocol::kX86_64);
    REQUIRE_FALSE(corrupt);
    CHECK(corrupt.error().kind == ErrorKind::kRing);
    shared.set(kReqProd, 32);
    CHECK(BackRing::attach(shared.bytes(), 1, Protocol::kX86_64));
}

TEST_CASE("ring: attach takes a drained ring over at its response producer") {
    Shared shared;
    guest::FrontRing::initialise(shared.bytes(), 1000);
    shared.set(kReqProd, 1003);
    Result<BackRing> ring = BackRing::attach(shared.bytes(), 1, Protocol::kX86_64);
    REQUIRE(ring);
    CHECK(ring.value().in_flight() == 0);
    CHECK(ring.value().available() == 0);  // not looked yet
    REQUIRE(ring.value().begin_pass());
    CHECK(ring.value().available() == 3);
}

TEST_CASE("ring: nothing to do, final check asks for the next request") {
    Shared shared;
    BackRing ring = shared.attach(5);
    REQUIRE(ring.begin_pass());
    CHECK(ring.available() == 0);
    CHECK_FALSE(ring.final_check());
    CHECK(shared.get(kReqEvent) == 6);
}

TEST_CASE("ring: indices wrap at 2^32") {
    Shared shared;
    BackRing ring = shared.attach(0xfffffffe);
    shared.set(kReqProd, 3);
    REQUIRE(ring.begin_pass());
    CHECK(ring.available() == 5);
    CHECK(ring.final_check());
    CHECK(shared.get(kReqEvent) == 0xffffffff);  // as the frontend left it: there is work
    RawSlot slot;
    for (int i = 0; i < 5; ++i) CHECK(ring.next(slot));
    CHECK_FALSE(ring.next(slot));
    CHECK(ring.in_flight() == 5);
    CHECK_FALSE(ring.final_check());
    CHECK(shared.get(kReqEvent) == 4);
}

TEST_CASE("ring: a push notifies exactly when rsp_event was passed") {
    CHECK(notifies(10, 2, 11));
    CHECK_FALSE(notifies(10, 2, 13));
    CHECK_FALSE(notifies(10, 2, 10));
    CHECK(notifies(10, 2, 12));
    CHECK(notifies(0xffffffff, 2, 0));
    CHECK(notifies(0xffffffff, 2, 1));
    CHECK_FALSE(notifies(0xffffffff, 2, 0xffffffff));
    CHECK_FALSE(notifies(0xffffffff, 2, 2));
}

TEST_CASE("ring: a push without responses does nothing") {
    Shared shared;
    BackRing ring = shared.attach(7);
    shared.set(kRspEvent, 7);
    shared.set(kRspProd, 99);
    CHECK_FALSE(ring.has_unpublished());
    CHECK_FALSE(ring.push());
    CHECK(shared.get(kRspProd) == 99);
}

TEST_CASE("ring: one past a full ring stops it for good") {
    for (const uint32_t start : {0U, 1000U, 0xfffffff0U}) {
        Shared shared;
        BackRing ring = shared.attach(start);
        shared.set(kReqProd, start + 33);
        RawSlot slot;
        CHECK(ring.final_check());  // corrupt: do not sleep, look
        CHECK_FALSE(ring.begin_pass());
        CHECK(ring.stopped());
        CHECK_FALSE(ring.next(slot));
        CHECK_FALSE(ring.final_check());
        shared.set(kReqProd, start + 1);  // too late
        CHECK_FALSE(ring.begin_pass());
        CHECK_FALSE(ring.next(slot));
        CHECK(ring.available() == 0);
    }
}

TEST_CASE("ring: a full ring is legal") {
    for (const uint32_t start : {0U, 0xfffffff0U}) {
        Shared shared;
        BackRing ring = shared.attach(start);
        shared.set(kReqProd, start + 32);
        REQUIRE(ring.begin_pass());
        CHECK(ring.available() == 32);
        RawSlot slot;
        uint32_t taken = 0;
        while (ring.next(slot)) ++taken;
        CHECK(taken == 32);
        CHECK(ring.in_flight() == 32);
        REQUIRE(ring.begin_pass());
        CHECK(ring.available() == 0);
    }
}

TEST_CASE("ring: requests in flight count against what may be produced") {
    Shared shared;
    BackRing ring = shared.attach(0);
    shared.set(kReqProd, 20);
    consume(ring, 20);
    for (int i = 0; i < 5; ++i) ring.respond(0, 0, 0);
    CHECK(ring.in_flight() == 15);
    shared.set(kReqProd, 37);  // 5 answered: 32 slots from there
    CHECK(ring.begin_pass());
    CHECK(ring.available() == 17);
    shared.set(kReqProd, 38);
    CHECK_FALSE(ring.begin_pass());
    CHECK(ring.in_flight() == 15);
    while (ring.in_flight() > 0) ring.respond(0, 0, 0);  // the last answers are still possible
    CHECK(ring.push());
    CHECK(shared.get(kRspProd) == 20);
}

TEST_CASE("ring: a producer that moves backwards stops the ring") {
    for (const uint32_t back : {1U, 3U, 8U, 9U, 0x80000000U}) {
        Shared shared;
        BackRing ring = shared.attach(100);
        shared.set(kReqProd, 108);
        consume(ring, 8);
        shared.set(kReqProd, 108 - back);
        CHECK_FALSE(ring.begin_pass());
        CHECK(ring.stopped());
    }
}

TEST_CASE("ring: what a guest writes into our indices changes nothing") {
    Shared shared;
    BackRing ring = shared.attach(0);
    shared.set(kReqProd, 2);
    consume(ring, 2);
    shared.set(kRspProd, 0x12345678);
    shared.set(kReqEvent, 0x9abcdef0);
    shared.set(kRspEvent, 2);
    ring.respond(1, 0, 0);
    CHECK_FALSE(ring.push());
    CHECK(shared.get(kRspProd) == 1);
    shared.set(kRspProd, 77);
    ring.respond(2, 0, 0);
    CHECK(ring.push());
    CHECK(shared.get(kRspProd) == 2);
    CHECK_FALSE(ring.final_check());
    CHECK(shared.get(kReqEvent) == 3);
}

TEST_CASE("ring: what a guest does to a slot after it was taken changes nothing") {
    Shared shared;
    BackRing ring = shared.attach(0);
    std::memcpy(shared.slot(0, 112), test::kGoldenRead64, sizeof test::kGoldenRead64);
    shared.set(kReqProd, 1);
    REQUIRE(ring.begin_pass());
    RawSlot slot;
    REQUIRE(ring.next(slot));
    std::memset(shared.slot(0, 112), 0xff, 112);
    CHECK(std::memcmp(slot.bytes, test::kGoldenRead64, sizeof test::kGoldenRead64) == 0);
}

TEST_CASE("ring: golden requests arrive, and their golden answers leave, byte for byte") {
    struct Row {
        Protocol protocol;
        std::vector<uint8_t> request;
        uint8_t operation;
        int16_t status;
        std::array<uint8_t, 16> response;  // 12 of them on x86_32
    };
    const std::array<uint8_t, 16> written{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
                                          0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00};
    const std::array<uint8_t, 16> unsupported{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
                                              0x05, 0x00, 0xfe, 0xff, 0x00, 0x00, 0x00, 0x00};
    const auto bytes = [](const auto& array) {
        return std::vector<uint8_t>(std::begin(array), std::end(array));
    };
    const Row rows[] = {
        {Protocol::kX86_64, bytes(test::kGoldenIndirect64), 1, 0, written},
        {Protocol::kX86_32, bytes(test::kGoldenIndirect32), 1, 0, written},
        {Protocol::kX86_64, bytes(test::kGoldenDiscard64), 5, -2, unsupported},
        {Protocol::kX86_32, bytes(test::kGoldenDiscard32), 5, -2, unsupported},
    };
    for (const Row& row : rows) {
        Shared shared;
        const uint32_t stride = row.protocol == Protocol::kX86_32 ? 108 : 112;
        const size_t length = row.protocol == Protocol::kX86_32 ? 12 : 16;
        BackRing ring = shared.attach(31, row.protocol);
        uint8_t* slot = shared.slot(31, stride);
        std::memcpy(slot, row.request.data(), row.request.size());
        shared.set(kReqProd, 32);
        RawSlot copy;
        REQUIRE(ring.begin_pass());
        REQUIRE(ring.next(copy));

        Limits limits;
        limits.capacity_sectors = 1 << 20;
        limits.max_indirect_segments = 256;
        Request request;
        const Reject reject = parse(row.protocol, copy, limits, request);
        CHECK(status_of(reject) == row.status);
        CHECK(request.id == test::kGoldenId);
        CHECK(request.wire_operation == row.operation);

        ring.respond(request.id, request.wire_operation, status_of(reject));
        CHECK(std::memcmp(slot, row.response.data(), length) == 0);
        // The rest of the slot is the guest's own.
        CHECK(std::memcmp(slot + length, row.request.data() + length,
                          row.request.size() - length) == 0);
    }
}

TEST_CASE("ring: only the bytes that a request uses are taken, at every place of the ring") {
    for (const Protocol protocol : test::kProtocols) {
        const uint32_t stride = protocol == Protocol::kX86_32 ? 108 : 112;
        const uint32_t body = protocol == Protocol::kX86_32 ? 20 : 24;
        for (const uint32_t pages : {1U, 2U, 4U, 8U, 16U}) {
            Shared shared(pages, 0);
            BackRing ring = shared.attach(0, protocol);
            CHECK(ring.entries() == 32 * pages);
            for (uint32_t index = 0; index < ring.entries(); ++index) {
                uint8_t* slot = shared.slot(index, stride);
                for (uint32_t at = 0; at < stride; ++at) slot[at] = uint8_t(index * 7 + at);
                slot[0] = index % 8;
                slot[1] = uint8_t(index % 16);
            }
            shared.set(kReqProd, ring.entries());
            REQUIRE(ring.begin_pass());
            for (uint32_t index = 0; index < ring.entries(); ++index) {
                const uint8_t* slot = shared.slot(index, stride);
                const size_t segments = std::min<size_t>(slot[1], 11) * 8;
                size_t used = body;
                if (slot[0] <= 3) used += segments;
                if (slot[0] == 5) used += 8;
                if (slot[0] == 6) used = protocol == Protocol::kX86_32 ? 56 : 64;  // whole words
                RawSlot copy;
                std::memset(copy.bytes, 0x5a, sizeof copy.bytes);
                REQUIRE(ring.next(copy));
                CAPTURE(index);
                REQUIRE(std::memcmp(copy.bytes, slot, used) == 0);
                for (size_t at = used; at < sizeof copy.bytes; ++at)
                    REQUIRE(copy.bytes[at] == 0x5a);
            }
        }
    }
}

TEST_CASE("ring: both ends together, many times around") {
    for (const Protocol protocol : test::kProtocols) {
        Shared shared(2);
        BackRing back = shared.attach(0xffffff00, protocol);
        Result<guest::FrontRing> attached = guest::FrontRing::attach(shared.bytes(), 2, protocol);
        REQUIRE(attached);
        guest::FrontRing front = attached.value();
        Limits limits;
        limits.capacity_sectors = ~0ULL >> 1;
        limits.max_indirect_segments = 4096;
        limits.discard = limits.secure_discard = true;
        std::mt19937_64 random(3);
        uint64_t sent = 0, answered = 0;
        std::vector<Segment> segments;
        RawSlot slot;
        while (answered < 5000) {
            for (uint64_t n = random() % (front.free_slots() + 1); n > 0; --n, ++sent) {
                const uint64_t sector = sent * 8;
                if (sent % 3 == 0) {
                    segments.assign(1 + sent % 11, Segment{GrantRef(sent), 1, 6, 0});
                    front.write_data(Operation::kWrite, sent, sector, segments);
                } else if (sent % 3 == 1) {
                    const GrantRef refs[] = {GrantRef(sent), GrantRef(sent + 1)};
                    front.write_indirect(Operation::kRead, sent, sector, 600, refs);
                } else {
                    front.write_discard(sent, sector, sent + 1, sent % 2 == 0);
                }
            }
            front.push();
            REQUIRE(back.begin_pass());
            while (back.next(slot)) {
                Request request;
                REQUIRE(parse(protocol, slot, limits, request) == Reject::kNone);
                const uint64_t id = request.id;
                REQUIRE(request.sector == id * 8);
                if (id % 3 == 0) {
                    REQUIRE(request.nr_segments == 1 + id % 11);
                    REQUIRE(request.segments[id % 11].ref == GrantRef(id));
                    REQUIRE(request.nr_sectors == 6 * (1 + id % 11));
                } else if (id % 3 == 1) {
                    REQUIRE(request.nr_segments == 600);
                    REQUIRE(request.indirect_pages() == 2);
                    REQUIRE(request.indirect_refs[1] == GrantRef(id + 1));
                } else {
                    REQUIRE(request.nr_sectors == id + 1);
                    REQUIRE(request.secure == (id % 2 == 0));
                }
                back.respond(id, request.wire_operation, int16_t(id % 3) - 2);
            }
            back.push();
            REQUIRE(front.begin_pass());
            guest::FrontResponse response;
            for (; front.next(response); ++answered) {
                REQUIRE(response.id == answered);
                const uint8_t operations[] = {1, 0, 5};
                REQUIRE(response.operation == operations[answered % 3]);
                REQUIRE(response.status == int16_t(answered % 3) - 2);
            }
        }
        CHECK(front.in_flight() == sent - answered);
        CHECK(back.in_flight() == 0);
    }
}

TEST_CASE("ring: polling keeps the frontend silent, arming wakes it once") {
    Shared shared;
    BackRing back = shared.attach(0);
    guest::FrontRing front = guest::FrontRing::attach(shared.bytes(), 1, Protocol::kX86_64).value();
    const Segment segment{1, 0, 7, 0};
    const auto send = [&] {
        front.write_data(Operation::kRead, 1, 0, {&segment, 1});
        return front.push();
    };
    const auto serve = [&] {
        RawSlot slot;
        REQUIRE(back.begin_pass());
        while (back.next(slot)) back.respond(1, 0, 0);
        return back.push();
    };
    CHECK(send());        // a new ring is armed for its first request
    CHECK_FALSE(send());  // and only for that
    CHECK(serve());       // so is the other way
    CHECK_FALSE(send());
    CHECK_FALSE(serve());
    CHECK_FALSE(back.final_check());
    CHECK(send());
    CHECK(back.final_check());  // there is work: it must not sleep
    CHECK_FALSE(serve());
    guest::FrontResponse response;
    REQUIRE(front.begin_pass());
    while (front.next(response)) {
    }
    CHECK_FALSE(front.final_check());
    CHECK_FALSE(send());
    CHECK(serve());
    CHECK(front.final_check() == true);
}

namespace {

/// An event that one thread sends and one sleeps for. A sleep that is too long says that an event
/// was lost.
class Event {
  public:
    explicit Event(std::atomic<bool>& lost) : lost_(lost) {}
    void send() { pending_.store(true); }
    void sleep() {
        const uint64_t start_ns = monotonic_ns();
        for (uint32_t spins = 1; !pending_.exchange(false) && !lost_.load(); ++spins) {
            if (spins % 1024 == 0) std::this_thread::yield();
            if (monotonic_ns() - start_ns > 10'000'000'000) lost_.store(true);
        }
    }

  private:
    std::atomic<bool> pending_{false};
    std::atomic<bool>& lost_;
};

/// Moves what follows about in time, against what the other end does.
void dawdle(uint64_t round) {
    std::atomic<uint64_t> spin{round % 97};
    while (spin.load(std::memory_order_relaxed) > 0) spin.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace

TEST_CASE("ring: nothing falls between the last look and the sleep, at either end") {
    Shared shared;
    BackRing back = shared.attach(0);
    guest::FrontRing front = guest::FrontRing::attach(shared.bytes(), 1, Protocol::kX86_64).value();
    std::atomic<bool> lost{false};
    std::atomic<bool> over{false};
    Event to_back(lost), to_front(lost);
    uint64_t sent = 0;
    std::thread frontend([&] {
        const Segment segment{1, 0, 7, 0};
        guest::FrontResponse response;
        const uint64_t start_ns = monotonic_ns();
        while (!lost.load() && sent < 100'000 && monotonic_ns() - start_ns < 500'000'000) {
            dawdle(sent);
            front.write_data(Operation::kRead, sent++, 0, {&segment, 1});
            if (front.push()) to_back.send();
            while (front.begin_pass() && !front.next(response) && !lost.load()) {
                dawdle(sent * 7);
                if (!front.final_check()) to_front.sleep();
            }
        }
        over.store(true);
        to_back.send();
    });
    uint64_t served = 0;
    RawSlot slot;
    while (!lost.load() && !over.load() && back.begin_pass()) {
        while (back.next(slot)) back.respond(served++, 0, 0);
        dawdle(served * 31);
        if (back.push()) to_front.send();
        dawdle(served * 13);
        if (!back.final_check()) to_back.sleep();
    }
    frontend.join();
    CHECK_FALSE(lost.load());
    CHECK(served == sent);
    CHECK(sent > 0);
}

TEST_CASE("ring: a frontend does not believe more answers than requests") {
    Shared shared;
    guest::FrontRing::initialise(shared.bytes());
    Result<guest::FrontRing> front = guest::FrontRing::attach(shared.bytes(), 1, Protocol::kX86_64);
    REQUIRE(front);
    shared.set(kRspProd, 1);
    CHECK_FALSE(front.value().begin_pass());
    shared.set(kReqProd, 3);
    CHECK_FALSE(guest::FrontRing::attach(shared.bytes(), 1, Protocol::kX86_64));
}

TEST_CASE("ring: a hostile frontend against the model") {
    uint64_t consumed = 0, accepted = 0, stopped = 0;
    std::mt19937_64 random(2013);
    std::vector<uint8_t> program;
    for (int round = 0; round < 3000; ++round) {
        program.resize(200 + random() % 3000);
        for (uint8_t& byte : program) byte = uint8_t(random());
        test::RingModel model(program.data(), program.size());
        model.run();
        consumed += model.requests_consumed();
        accepted += model.requests_accepted();
        stopped += model.ring_stopped();
    }
    // The programs reached what they are for.
    CHECK(consumed > 10000);
    CHECK(accepted > 1000);
    CHECK(stopped > 100);
    CHECK(stopped < 3000);
}
