// The engine on a fake Xen: every way of a request, and everything that can go wrong on it.
#include <sys/resource.h>

#include "base/clock.h"
#include "block/open_device.h"
#include "support/engine_rig.h"

using namespace vbd;
using namespace vbd::test;

namespace {

void fill(uint8_t* page, uint32_t seed) {
    std::mt19937 random(seed);
    for (uint32_t i = 0; i < kPageSize; i += 4) {
        uint32_t word = random();
        std::memcpy(page + i, &word, 4);
    }
}

}  // namespace

TEST_CASE("engine: data is right for every protocol, transfer, ring count and ring size") {
    struct Transfer {
        engine::TransferChoice choice;
        bool persistent;
        memory::Strategy expected;
    };
    const Transfer transfers[] = {
        {engine::TransferChoice::kAuto, true, memory::Strategy::kPersistent},
        {engine::TransferChoice::kAuto, false, memory::Strategy::kCopy},
        {engine::TransferChoice::kCopy, true, memory::Strategy::kCopy},
        {engine::TransferChoice::kMap, false, memory::Strategy::kMap},
    };
    for (Protocol protocol : {Protocol::kNative, Protocol::kX86_32, Protocol::kX86_64}) {
        for (const Transfer& transfer : transfers) {
            for (uint32_t rings : {1u, 4u}) {
                for (uint32_t pages : {1u, 16u}) {
                    CAPTURE(static_cast<int>(protocol));
                    CAPTURE(static_cast<int>(transfer.expected));
                    RigOptions options;
                    options.protocol = protocol;
                    options.transfer = transfer.choice;
                    options.persistent = transfer.persistent;
                    options.rings = rings;
                    options.ring_pages = pages;
                    options.reactors = 2;
                    const uint64_t sectors = 4096;
                    EngineRig rig(memory_disk(sectors * kSectorSize), options);
                    auto connected = rig.connect();
                    REQUIRE(connected);
                    CHECK(connected.value() == transfer.expected);

                    std::vector<uint8_t> shadow(sectors * kSectorSize);
                    std::mt19937 random(1);
                    for (int round = 0; round < 60; round++) {
                        uint32_t ring = random() % rings;
                        uint32_t count = 1 + random() % 11;
                        bool indirect = random() % 4 == 0;
                        std::vector<Segment> segments;
                        uint32_t total = 0;
                        for (uint32_t i = 0; i < count; i++) {
                            uint8_t first = random() % 8, last = first + random() % (8 - first);
                            segments.push_back(rig.segment(i, first, last));
                            total += last - first + 1u;
                        }
                        uint64_t sector = random() % (sectors - total);
                        bool write = random() % 2;
                        for (uint32_t i = 0; i < count; i++) fill(rig.data(i), random());
                        Operation operation = write ? Operation::kWrite : Operation::kRead;
                        if (indirect) {
                            std::memcpy(rig.data(100), segments.data(), count * sizeof(Segment));
                            GrantRef ref = rig.data_ref(100);
                            rig.fronts[ring].write_indirect(operation, 7, sector, count,
                                                            std::span(&ref, 1));
                            rig.push(ring);
                            auto response = rig.collect(1, ring)[0];
                            REQUIRE(response.status == 0);
                            REQUIRE(response.operation == static_cast<uint8_t>(operation));
                        } else {
                            REQUIRE(rig.transact(operation, sector, segments, ring) == 0);
                        }
                        uint8_t* disk = shadow.data() + sector * kSectorSize;
                        for (uint32_t i = 0; i < count; i++) {
                            uint8_t* piece = rig.data(i) + segments[i].first_sector * kSectorSize;
                            size_t length =
                                (segments[i].last_sector - segments[i].first_sector + 1u) *
                                kSectorSize;
                            if (write) {
                                std::memcpy(disk, piece, length);
                            } else {
                                REQUIRE(std::memcmp(disk, piece, length) == 0);
                            }
                            disk += length;
                        }
                    }
                }
            }
        }
    }
}

TEST_CASE("engine: a full ring is answered once each, ids bit-exact, in few notifications") {
    EngineRig rig(memory_disk(1 << 20));
    REQUIRE(rig.connect());
    std::set<uint64_t> ids;
    for (uint32_t i = 0; i < 32; i++) {
        uint64_t id = 0x8000'0000'0000'0000ull + i * 0x0123'4567'89abull;
        ids.insert(id);
        Segment segment = rig.segment(i);
        rig.fronts[0].write_data(Operation::kRead, id, i * 8, std::span(&segment, 1));
    }
    rig.push();
    for (auto& response : rig.collect(32)) {
        CHECK(response.status == 0);
        CHECK(ids.erase(response.id) == 1);
    }
    CHECK(ids.empty());
    CHECK(rig.counters().read.requests.get() == 32);
    CHECK(rig.counters().notifications_sent.get() <= 3);
}

TEST_CASE("engine: what a guest may not ask is refused, and counted by reason") {
    EngineRig rig(memory_disk(1 << 20));
    REQUIRE(rig.connect());
    CHECK(rig.transact(Operation::kRead, 2048, {rig.segment(0)}) == blkif::kResponseError);
    CHECK(rig.transact(Operation::kRead, 0, {rig.segment(0, 3, 2)}) == blkif::kResponseError);
    CHECK(rig.transact(Operation::kRead, 0, {rig.segment(0, 0, 8)}) == blkif::kResponseError);
    CHECK(rig.transact(Operation::kRead, 0, {}) == blkif::kResponseError);
    CHECK(rig.transact(static_cast<Operation>(99), 0, {}) == blkif::kResponseUnsupported);
    CHECK(rig.transact(Operation::kReserved, 0, {}) == blkif::kResponseUnsupported);
    CHECK(rig.counters().rejected[static_cast<int>(blkif::Reject::kSegmentBounds)].get() == 2);
    CHECK(rig.counters().rejected[static_cast<int>(blkif::Reject::kRange)].get() == 1);
    CHECK(rig.transact(Operation::kFlush, 0, {}) == 0);
    CHECK(rig.transact(Operation::kWriteBarrier, 0, {}) == 0);
    CHECK(rig.transact(Operation::kWriteBarrier, 0, {rig.segment(0)}) == 0);
    CHECK(rig.transact(Operation::kFlush, 0, {rig.segment(0)}) == 0);
}

TEST_CASE(
    "engine: a vbd that is read-only for its guest refuses every change, whatever the disk "
    "allows") {
    RigOptions options;
    options.read_only = true;
    EngineRig rig(memory_disk(1 << 20), options);
    REQUIRE(rig.connect());
    CHECK(rig.transact(Operation::kRead, 0, {rig.segment(0)}) == 0);
    CHECK(rig.transact(Operation::kFlush, 0, {}) == 0);
    CHECK(rig.transact(Operation::kWrite, 0, {rig.segment(0)}) == blkif::kResponseError);
    CHECK(rig.transact(Operation::kWriteBarrier, 0, {rig.segment(0)}) == blkif::kResponseError);
    CHECK(rig.transact(Operation::kFlush, 0, {rig.segment(0)}) == blkif::kResponseError);
    rig.fronts[0].write_discard(1, 0, 8, false);
    rig.push();
    CHECK(rig.collect(1)[0].status == blkif::kResponseError);
    CHECK(rig.counters().write.requests.get() == 0);
    CHECK(rig.counters().discard.requests.get() == 0);
}

TEST_CASE("engine: an indirect request's descriptors are checked as strictly") {
    for (bool persistent : {true, false}) {
        RigOptions options;
        options.persistent = persistent;
        EngineRig rig(memory_disk(1 << 20), options);
        REQUIRE(rig.connect());
        auto indirect = [&](std::vector<Segment> segments, GrantRef page) {
            std::memcpy(rig.data(100), segments.data(), segments.size() * sizeof(Segment));
            rig.fronts[0].write_indirect(Operation::kRead, 1, 0,
                                         static_cast<uint16_t>(segments.size()),
                                         std::span(&page, 1));
            rig.push();
            return rig.collect(1)[0].status;
        };
        CHECK(indirect({rig.segment(0), rig.segment(1)}, rig.data_ref(100)) == 0);
        CHECK(indirect({rig.segment(0), rig.segment(1, 0, 8)}, rig.data_ref(100)) ==
              blkif::kResponseError);
        CHECK(indirect(std::vector<Segment>(257, rig.segment(0)), rig.data_ref(100)) ==
              blkif::kResponseError);
        CHECK(indirect({rig.segment(0)}, 999'999) == blkif::kResponseError);
        CHECK(indirect({rig.segment(0)}, 0xffff'fff0) == blkif::kResponseError);
        CHECK(rig.counters().transfer.grant_errors.get() == 2);
    }
}

TEST_CASE("engine: a bad grant fails its own request and no other, whatever the transfer") {
    const std::pair<engine::TransferChoice, bool> transfers[] = {
        {engine::TransferChoice::kAuto, true},
        {engine::TransferChoice::kCopy, false},
        {engine::TransferChoice::kMap, false}};
    for (auto [choice, persistent] : transfers) {
        RigOptions options;
        options.transfer = choice;
        options.persistent = persistent;
        EngineRig rig(memory_disk(1 << 20), options);
        REQUIRE(rig.connect());
        rig.xen->grant(rig.data_ref(5), rig.first_data_page() + 5, true);
        for (uint64_t id = 0; id < 8; id++) {
            std::vector<Segment> segments = {rig.segment(id), rig.segment(id)};
            if (id == 3) segments[1].ref = 4'000'000'000u;
            rig.fronts[0].write_data(Operation::kRead, id, 0, segments);
        }
        rig.push();
        for (auto& response : rig.collect(8)) {
            bool bad = response.id == 3 ||
                       response.id == 5;  // no such grant; read-only, and a read writes to it
            CHECK(response.status == (bad ? blkif::kResponseError : blkif::kResponseOkay));
        }
        CHECK(rig.counters().transfer.grant_errors.get() == 2);
        if (choice != engine::TransferChoice::kAuto) {
            CHECK(rig.transact(Operation::kWrite, 0, {rig.segment(5)}) ==
                  0);  // reading a read-only page is fine
        }
        CHECK(rig.counters().in_flight.get() == 0);
    }
}

TEST_CASE("engine: a grant copy that fails as a whole fails every segment") {
    RigOptions options;
    options.persistent = false;
    EngineRig rig(memory_disk(1 << 20), options);
    REQUIRE(rig.connect());
    rig.xen->fail_copy_calls = true;
    CHECK(rig.transact(Operation::kWrite, 0, {rig.segment(0)}) == blkif::kResponseError);
    CHECK(rig.transact(Operation::kRead, 0, {rig.segment(0)}) == blkif::kResponseError);
    rig.xen->fail_copy_calls = false;
    CHECK(rig.transact(Operation::kRead, 0, {rig.segment(0)}) == 0);
}

TEST_CASE("engine: one grant call serves a whole batch") {
    for (engine::TransferChoice choice :
         {engine::TransferChoice::kCopy, engine::TransferChoice::kMap}) {
        RigOptions options;
        options.transfer = choice;
        options.poll_us = 0;
        EngineRig rig(memory_disk(1 << 20), options);
        REQUIRE(rig.connect());
        uint64_t before = rig.xen->copy_calls + rig.xen->map_calls;
        for (uint64_t id = 0; id < 32; id++) {
            Segment segments[2] = {rig.segment(id), rig.segment(id + 32)};
            rig.fronts[0].write_data(Operation::kWrite, id, id * 16, segments);
        }
        rig.push();
        rig.collect(32);
        CHECK(rig.xen->copy_calls + rig.xen->map_calls - before == 1);
    }
}

TEST_CASE("engine: what the device has done is answered before new requests are started") {
    RigOptions options;
    options.poll_us = 0;
    auto device = std::make_shared<ManualDevice>(1 << 20);
    EngineRig rig(device, options);
    std::vector<uint32_t> answered;  // when each batch was started
    device->on_submit = [&] {
        answered.push_back(blkif::shared::load_index(rig.xen->page(0) + blkif::kRingRspProd));
    };
    REQUIRE(rig.connect());
    const Segment segment = rig.segment(0);
    const auto write_read = [&](uint64_t id) {
        rig.fronts[0].write_data(Operation::kRead, id, 0, std::span(&segment, 1));
    };
    write_read(0);
    rig.push();
    device->wait_for(1);
    // The second request is on the ring, but no event tells of it: the completion wakes the reactor
    // for both.
    write_read(1);
    (void)rig.fronts[0].push();
    device->complete(1);
    device->wait_for(1);
    device->complete(1);
    rig.collect(2);
    rig.disconnect();
    CHECK(answered == std::vector<uint32_t>{0, 1});
}

TEST_CASE("engine: with map, no response precedes the unmap of its pages") {
    RigOptions options;
    options.transfer = engine::TransferChoice::kMap;
    auto device = std::make_shared<ManualDevice>(1 << 20);
    EngineRig rig(device, options);
    REQUIRE(rig.connect());
    int ring_pages_mapped = rig.xen->mapped_pages;
    for (uint64_t id = 0; id < 4; id++) {
        Segment segment = rig.segment(id);
        rig.fronts[0].write_data(Operation::kRead, id, 0, std::span(&segment, 1));
    }
    rig.push();
    device->wait_for(4);
    CHECK(rig.xen->mapped_pages == ring_pages_mapped + 4);
    device->complete(3);
    CHECK(rig.silent());
    device->complete(1);
    rig.collect(4);
    CHECK(rig.xen->mapped_pages == ring_pages_mapped);
}

TEST_CASE("engine: persistent grants stay, overflow to copies at the cap, and are purged") {
    RigOptions options;
    EngineRig rig(memory_disk(8 << 20), options);
    rig.vbd->tunables().max_persistent_grants = 64;
    REQUIRE(rig.connect());
    auto read_all = [&](uint32_t pages) {
        for (uint32_t i = 0; i < pages; i += 8) {
            std::vector<Segment> segments;
            for (uint32_t k = 0; k < 8; k++) segments.push_back(rig.segment(i + k));
            REQUIRE(rig.transact(Operation::kRead, i * 8, segments) == 0);
        }
    };
    read_all(64);
    uint64_t maps = rig.xen->map_calls;
    CHECK(rig.counters().transfer.persistent.get() == 64);
    read_all(64);
    CHECK(rig.xen->map_calls == maps);  // found, not mapped again
    read_all(128);
    CHECK(rig.counters().transfer.overflow.get() >= 1);
    CHECK(rig.xen->mapped_pages <= 64 + 1);
    // The overflow makes the next 100 ms tick drop at least 5 %.
    uint64_t deadline = monotonic_ns() + 5'000'000'000;
    while (rig.counters().transfer.purged.get() < 3 && monotonic_ns() < deadline) {
        rig.transact(Operation::kRead, 0, {rig.segment(200)});
    }
    CHECK(rig.counters().transfer.purged.get() >= 3);
    rig.disconnect();
    CHECK(rig.xen->mapped_pages == 0);
}

TEST_CASE("engine: the in-flight budget holds requests back, and a giant alone still passes") {
    for (bool persistent : {true, false}) {
        RigOptions options;
        options.persistent = persistent;
        EngineRig rig(memory_disk(8 << 20), options);
        rig.vbd->tunables().max_in_flight_bytes = 4 * kPageSize;
        REQUIRE(rig.connect());
        std::vector<Segment> giant;
        for (uint32_t i = 0; i < 256; i++) giant.push_back(rig.segment(i));
        std::memcpy(rig.data(1000), giant.data(), giant.size() * sizeof(Segment));
        GrantRef ref = rig.data_ref(1000);
        for (uint64_t id = 0; id < 32; id++) {
            if (id % 8 == 0) {
                rig.fronts[0].write_indirect(Operation::kRead, id, 0, 256, std::span(&ref, 1));
            } else {
                rig.fronts[0].write_data(Operation::kWrite, id, id * 8,
                                         std::span(giant.data() + id, 3));
            }
        }
        rig.push();
        for (auto& response : rig.collect(32)) CHECK(response.status == 0);
        CHECK(rig.counters().out_of_requests.get() > 0);
    }
}

TEST_CASE(
    "engine: a producer that overflows stops the ring for good, says so once, and still lets go of "
    "everything") {
    EngineRig rig(memory_disk(1 << 20));
    REQUIRE(rig.connect());
    CHECK(rig.transact(Operation::kRead, 0, {rig.segment(0)}) == 0);
    auto* req_prod = reinterpret_cast<uint32_t*>(rig.xen->page(0));
    __atomic_store_n(req_prod, 1000, __ATOMIC_RELEASE);
    uint64_t one = 1;
    (void)!::write(rig.xen->channel(rig.ports[0]).to_back.get(), &one, sizeof one);
    auto events = rig.wait_for_events(1);
    CHECK(events[0].type == engine::Event::Type::kRingCorrupt);
    __atomic_store_n(req_prod, 2, __ATOMIC_RELEASE);
    (void)!::write(rig.xen->channel(rig.ports[0]).to_back.get(), &one, sizeof one);
    CHECK(rig.silent());
    rig.disconnect();
    CHECK(rig.wait_for_events(1).size() == 1);
    CHECK(rig.xen->mapped_pages == 0);
}

TEST_CASE("engine: a failed connect leaves nothing, and the next one works") {
    RigOptions options;
    options.rings = 4;
    options.reactors = 2;
    EngineRig rig(memory_disk(1 << 20), options);
    rig.xen->revoke(EngineRig::kFirstRing + 2);
    auto refused = rig.connect();
    REQUIRE(!refused);
    CHECK(refused.error().kind == ErrorKind::kXen);
    CHECK(rig.xen->mapped_pages == 0);
    CHECK(rig.xen->bound_ports == 0);
    rig.xen->grant(EngineRig::kFirstRing + 2, 2);
    rig.xen->fail_bind = true;
    CHECK(!rig.connect());
    CHECK(rig.xen->mapped_pages == 0);
    rig.xen->fail_bind = false;
    *reinterpret_cast<uint32_t*>(rig.xen->page(3)) = 77;  // req_prod far ahead before we attach
    CHECK(!rig.connect());
    *reinterpret_cast<uint32_t*>(rig.xen->page(3)) = 0;
    REQUIRE(rig.connect());
    CHECK(rig.transact(Operation::kRead, 0, {rig.segment(0)}, 3) == 0);
    for (auto& reactor : rig.reactors) CHECK(reactor->ring_count() == 2);
}

TEST_CASE("engine: disconnect waits for the disk, answers what was taken, then holds nothing") {
    for (auto choice : {engine::TransferChoice::kAuto, engine::TransferChoice::kCopy,
                        engine::TransferChoice::kMap}) {
        RigOptions options;
        options.transfer = choice;
        auto device = std::make_shared<ManualDevice>(1 << 20);
        EngineRig rig(device, options);
        REQUIRE(rig.connect());
        for (uint64_t id = 0; id < 5; id++) {
            Segment segment = rig.segment(id);
            rig.fronts[0].write_data(Operation::kWrite, id, 0, std::span(&segment, 1));
        }
        rig.push();
        device->wait_for(5);
        auto gone = rig.start_disconnect();
        CHECK(gone.wait_for(30ms) == std::future_status::timeout);
        device->complete(5);
        REQUIRE(gone.wait_for(10s) == std::future_status::ready);
        CHECK(rig.collect(5).size() == 5);
        CHECK(rig.xen->mapped_pages == 0);
        CHECK(rig.xen->bound_ports == 0);
    }
}

TEST_CASE("engine: rings that were drained are gone on with, requests of the meantime included") {
    RigOptions options;
    options.rings = 2;
    EngineRig rig(memory_disk(1 << 20), options);
    REQUIRE(rig.connect());
    for (int turn = 0; turn < 40; turn++) {  // around the ring
        CHECK(rig.transact(Operation::kWrite, 8, {rig.segment(0)}) == 0);
        if (turn % 10 != 9) continue;
        rig.disconnect();
        CHECK(rig.vbd->drained());
        rig.take_over = engine::TakeOver::kDrained;
        Segment segment = rig.segment(0);
        rig.fronts[1].write_data(Operation::kRead, 77, 0, std::span(&segment, 1));
        rig.push(1);
        REQUIRE(rig.connect());
        CHECK(rig.collect(1, 1)[0].id == 77);
    }
}

TEST_CASE("engine: after a death only rings without requests are gone on with, all or none") {
    RigOptions options;
    options.rings = 2;
    EngineRig rig(memory_disk(1 << 20), options);
    REQUIRE(rig.connect());
    CHECK(rig.transact(Operation::kWrite, 8, {rig.segment(0)}) == 0);
    rig.disconnect();
    rig.take_over = engine::TakeOver::kIdle;
    Segment segment = rig.segment(0);
    rig.fronts[1].write_data(Operation::kRead, 5, 0, std::span(&segment, 1));
    rig.push(1);
    auto refused = rig.connect();
    REQUIRE(!refused);
    CHECK(refused.error().kind == ErrorKind::kRing);
    CHECK(rig.xen->mapped_pages == 0);
    CHECK(rig.xen->bound_ports == 0);
    // Answered after all, by whoever was believed dead.
    rig.take_over = engine::TakeOver::kDrained;
    REQUIRE(rig.connect());
    CHECK(rig.collect(1, 1)[0].id == 5);
    rig.disconnect();
    rig.take_over = engine::TakeOver::kIdle;
    uint64_t drained_events = 0;
    (void)!::read(rig.xen->channel(rig.ports[0]).to_front.get(), &drained_events,
                  sizeof drained_events);
    REQUIRE(rig.connect());
    // It may have died before it said that it had answered.
    uint64_t events = 0;
    CHECK(::read(rig.xen->channel(rig.ports[0]).to_front.get(), &events, sizeof events) ==
          sizeof events);
    CHECK(events == 1);
    CHECK(rig.transact(Operation::kRead, 8, {rig.segment(0)}) == 0);
}

TEST_CASE("engine: a barrier waits for every ring and holds every ring back") {
    RigOptions options;
    options.rings = 2;
    options.reactors = 2;
    auto device = std::make_shared<ManualDevice>(1 << 20);
    EngineRig rig(device, options);
    REQUIRE(rig.connect());
    using block::IoOp;
    auto write = [&](uint32_t ring, uint64_t id, Operation operation = Operation::kWrite) {
        Segment segment = rig.segment(ring * 8 + static_cast<uint32_t>(id));
        rig.fronts[ring].write_data(operation, id, 0, std::span(&segment, 1));
        rig.push(ring);
    };
    write(0, 1);
    write(1, 2);
    device->wait_for(2);
    write(0, 3, Operation::kWriteBarrier);
    write(0, 4);
    CHECK(rig.silent(0));
    CHECK(device->waiting() == 2);  // the barrier waits for both writes
    device->complete(2);
    CHECK(device->wait_for(1) == std::vector{IoOp::kFlush});
    rig.collect(1, 0);
    rig.collect(1, 1);
    write(1, 5);
    CHECK(rig.silent(1));
    CHECK(device->waiting() == 1);  // neither ring starts anything beside the barrier
    device->complete(1);
    CHECK(device->wait_for(1) == std::vector{IoOp::kWrite});
    CHECK(device->waiting() == 1);
    device->complete(1);
    CHECK(device->wait_for(1) == std::vector{IoOp::kFlush});
    device->complete(1);
    CHECK(rig.collect(1, 0)[0].id == 3);
    CHECK(device->wait_for(2) == std::vector{IoOp::kWrite, IoOp::kWrite});
    device->complete(2);
    rig.collect(1, 0);
    rig.collect(1, 1);
}

TEST_CASE("engine: barriers of several rings under load all complete") {
    RigOptions options;
    options.rings = 4;
    options.reactors = 2;
    EngineRig rig(memory_disk(1 << 20), options);
    REQUIRE(rig.connect());
    for (int round = 0; round < 50; round++) {
        for (uint32_t ring = 0; ring < 4; ring++) {
            for (uint64_t id = 0; id < 16; id++) {
                Segment segment = rig.segment(ring * 16 + static_cast<uint32_t>(id));
                auto operation = id % 5 == ring % 5 ? Operation::kWriteBarrier : Operation::kWrite;
                rig.fronts[ring].write_data(operation, id, id * 8, std::span(&segment, 1));
            }
            rig.push(ring);
        }
        for (uint32_t ring = 0; ring < 4; ring++) {
            for (auto& response : rig.collect(16, ring)) REQUIRE(response.status == 0);
        }
    }
}

TEST_CASE(
    "engine: a flush that failed is never answered; writes fail, reads go on, and the vbd still "
    "closes") {
    auto device = std::make_shared<ManualDevice>(1 << 20);
    EngineRig rig(device);
    REQUIRE(rig.connect());
    rig.fronts[0].write_data(Operation::kFlush, 1, 0, {});
    rig.push();
    device->wait_for(1);
    device->complete(1, EIO);
    auto events = rig.wait_for_events(1);
    CHECK(events[0].type == engine::Event::Type::kFlushFailed);
    CHECK(rig.silent());
    CHECK(rig.transact(Operation::kWrite, 0, {rig.segment(0)}) == blkif::kResponseError);
    rig.fronts[0].write_data(Operation::kFlush, 2, 0, {});
    rig.fronts[0].write_data(Operation::kWriteBarrier, 3, 0, {});
    rig.push();
    CHECK(rig.silent());
    Segment segment = rig.segment(0);
    rig.fronts[0].write_data(Operation::kRead, 4, 0, std::span(&segment, 1));
    rig.push();
    device->wait_for(1);
    device->complete(1);
    CHECK(rig.collect(1)[0].id == 4);
    CHECK(rig.wait_for_events(1).size() == 1);
    rig.disconnect();
    CHECK(rig.xen->mapped_pages == 0);
    CHECK(!rig.vbd->drained());  // the flushes and the barrier
}

TEST_CASE("engine: a flush that was under way beside one that failed is not answered either") {
    auto device = std::make_shared<ManualDevice>(1 << 20);
    EngineRig rig(device);
    REQUIRE(rig.connect());
    rig.fronts[0].write_data(Operation::kFlush, 1, 0, {});
    rig.fronts[0].write_data(Operation::kFlush, 2, 0, {});
    rig.push();
    device->wait_for(2);
    device->complete(1, EIO);
    rig.wait_for_events(1);
    device->complete(1);
    CHECK(rig.silent());
    rig.disconnect();
    CHECK(!rig.vbd->drained());
}

TEST_CASE("engine: a barrier that waits when a flush fails is never begun, and holds up nobody") {
    auto device = std::make_shared<ManualDevice>(1 << 20);
    RigOptions options;
    options.rings = 2;
    EngineRig rig(device, options);
    REQUIRE(rig.connect());
    rig.fronts[0].write_data(Operation::kFlush, 1, 0, {});
    rig.fronts[0].write_data(Operation::kWriteBarrier, 2, 0, {});
    rig.push();
    device->wait_for(1);
    CHECK(rig.silent());
    device->complete(1, EIO);
    rig.wait_for_events(1);
    Segment segment = rig.segment(0);
    for (uint32_t ring = 0; ring < 2; ring++) {
        CHECK(rig.transact(Operation::kWrite, 0, {segment}, ring) == blkif::kResponseError);
        rig.fronts[ring].write_data(Operation::kRead, 3, 0, std::span(&segment, 1));
        rig.push(ring);
        CHECK(device->wait_for(1)[0] == block::IoOp::kRead);
        device->complete(1);
        CHECK(rig.collect(1, ring)[0].id == 3);
    }
    rig.disconnect();
    CHECK(!rig.vbd->drained());
}

TEST_CASE("engine: what was over the budget when a flush failed is refused as all after it is") {
    auto device = std::make_shared<ManualDevice>(1 << 20);
    EngineRig rig(device);
    rig.vbd->tunables().max_in_flight_bytes = kPageSize;
    REQUIRE(rig.connect());
    Segment segment = rig.segment(0);
    rig.fronts[0].write_data(Operation::kFlush, 1, 0, {});
    rig.fronts[0].write_data(Operation::kRead, 2, 0, std::span(&segment, 1));
    rig.fronts[0].write_data(Operation::kWrite, 3, 8, std::span(&segment, 1));
    rig.push();
    device->wait_for(2);
    device->complete(1, EIO);
    const auto refused = rig.collect(1)[0];
    CHECK(refused.id == 3);
    CHECK(refused.status == blkif::kResponseError);
    device->complete(1);
    CHECK(rig.collect(1)[0].id == 2);
    CHECK(device->waiting() == 0);
}

TEST_CASE("engine: another disk begins without the failed flush of the one before") {
    auto device = std::make_shared<ManualDevice>(1 << 20);
    EngineRig rig(device);
    REQUIRE(rig.connect());
    rig.fronts[0].write_data(Operation::kFlush, 1, 0, {});
    rig.push();
    device->wait_for(1);
    device->complete(1, EIO);
    rig.wait_for_events(1);
    rig.disconnect();
    REQUIRE(rig.vbd->use_device(memory_disk(1 << 20)));
    rig.make_rings();
    REQUIRE(rig.connect());
    CHECK(rig.transact(Operation::kWrite, 0, {rig.segment(0)}) == blkif::kResponseOkay);
    CHECK(rig.transact(Operation::kFlush, 0, {}) == blkif::kResponseOkay);
}

TEST_CASE(
    "engine: a request that found no page in the reactor's pool goes on when others give theirs "
    "back") {
    constexpr uint32_t kPagesEach = blkif::kMaxIndirectSegments;
    auto device = std::make_shared<ManualDevice>(uint64_t{kPagesEach} * kPageSize);
    RigOptions options;
    options.rings = 8;  // times 32 requests: all pages that there are
    options.transfer = engine::TransferChoice::kCopy;
    options.max_indirect = kPagesEach;
    options.data_pages = 16;
    EngineRig greedy(device, options);
    greedy.vbd->tunables().max_in_flight_bytes = UINT64_MAX;
    REQUIRE(greedy.connect());
    const std::vector<Segment> descriptors(blkif::kSegmentsPerIndirectPage, greedy.segment(1));
    std::memcpy(greedy.data(0), descriptors.data(), descriptors.size() * sizeof(Segment));
    const std::vector<GrantRef> pages(blkif::kMaxIndirectPages, greedy.data_ref(0));
    for (uint32_t ring = 0; ring < options.rings; ring++) {
        for (uint64_t id = 0; id < 32; id++)
            greedy.fronts[ring].write_indirect(Operation::kRead, id, 0, kPagesEach, pages);
        greedy.push(ring);
    }
    device->wait_for(options.rings * 32);

    RigOptions none = options;
    none.rings = 1;
    none.reactors = 0;
    EngineRig modest(memory_disk(1 << 20), none);
    modest.lent.push_back(greedy.reactors[0].get());
    REQUIRE(modest.connect());
    const Segment segment = modest.segment(0);
    modest.fronts[0].write_data(Operation::kRead, 1, 0, std::span(&segment, 1));
    modest.push();
    CHECK(modest.silent());
    CHECK(modest.counters().out_of_requests.get() == 1);
    device->complete(options.rings * 32, EIO);
    CHECK(modest.collect(1)[0].status == blkif::kResponseOkay);
}

TEST_CASE("engine: disk errors become the right answers") {
    auto device = std::make_shared<ManualDevice>(1 << 20);
    EngineRig rig(device);
    REQUIRE(rig.connect());
    auto outcome = [&](int32_t error) {
        rig.push();
        device->wait_for(1);
        device->complete(1, error);
        return rig.collect(1)[0].status;
    };
    Segment segment = rig.segment(0);
    std::memset(rig.data(0), 0x5a, kPageSize);
    rig.fronts[0].write_data(Operation::kRead, 1, 0, std::span(&segment, 1));
    CHECK(outcome(EIO) == blkif::kResponseError);
    CHECK(rig.data(0)[0] == 0x5a);
    rig.fronts[0].write_data(Operation::kWrite, 2, 0, std::span(&segment, 1));
    CHECK(outcome(ENOSPC) == blkif::kResponseError);
    rig.fronts[0].write_discard(3, 0, 8, false);
    CHECK(outcome(EOPNOTSUPP) == blkif::kResponseUnsupported);
    rig.fronts[0].write_discard(4, 0, 8, false);
    CHECK(outcome(0) == blkif::kResponseOkay);
    CHECK(rig.counters().disk_errors.get() == 3);
}

TEST_CASE(
    "engine: an idle reactor sleeps, an event storm is throttled, and work after it is served") {
    EngineRig rig(memory_disk(1 << 20));
    REQUIRE(rig.connect());
    CHECK(rig.transact(Operation::kRead, 0, {rig.segment(0)}) == 0);
    CHECK(rig.silent());
    uint64_t beats = rig.reactors[0]->heartbeat();
    CHECK(rig.silent());
    CHECK(rig.reactors[0]->heartbeat() - beats < 20);

    uint64_t one = 1;
    beats = rig.reactors[0]->heartbeat();
    uint64_t end = monotonic_ns() + 300'000'000;
    while (monotonic_ns() < end) {
        (void)!::write(rig.xen->channel(rig.ports[0]).to_back.get(), &one, sizeof one);
    }
    CHECK(rig.counters().spurious_events.get() < 30);  // 0, 1, 2, 4 ... ms between them
    CHECK(rig.reactors[0]->heartbeat() - beats < 30'000);  // it sleeps between them
    CHECK(rig.transact(Operation::kRead, 0, {rig.segment(0)}) == 0);
}

TEST_CASE("engine: 64 vbds on 2 reactors, no thread beyond them") {
    auto threads = [] {
        size_t count = 0;
        FILE* status = std::fopen("/proc/self/status", "r");
        char line[128];
        while (std::fgets(line, sizeof line, status)) std::sscanf(line, "Threads: %zu", &count);
        std::fclose(status);
        return count;
    };
    RigOptions options;
    options.reactors = 2;
    EngineRig first(memory_disk(1 << 20), options);
    size_t before = threads();
    RigOptions none = options;
    none.reactors = 0;
    none.data_pages = 16;
    std::vector<std::unique_ptr<EngineRig>> rigs;
    for (int i = 0; i < 63; i++) {
        rigs.push_back(std::make_unique<EngineRig>(memory_disk(1 << 20), none));
        rigs.back()->reactors.swap(first.reactors);
        REQUIRE(rigs.back()->connect());
        rigs.back()->reactors.swap(first.reactors);
    }
    CHECK(threads() == before);
    for (int round = 0; round < 3; round++) {
        for (auto& rig : rigs) {
            Segment segment = rig->segment(0);
            rig->fronts[0].write_data(Operation::kWrite, 1, 0, std::span(&segment, 1));
            rig->push();
        }
        for (auto& rig : rigs) CHECK(rig->collect(1)[0].status == 0);
    }
    rigs.clear();
}

TEST_CASE(
    "engine: reactors that stop while a vbd connects leave nothing mapped and nothing bound") {
    for (int round = 0; round < 200; round++) {
        RigOptions options;
        options.rings = 6;
        options.reactors = 0;
        options.data_pages = 8;
        EngineRig rig(memory_disk(1 << 20), options);
        std::vector<std::unique_ptr<engine::Reactor>> reactors;
        std::vector<engine::Reactor*> all;
        for (int i = 0; i < 3; i++) {
            reactors.push_back(
                std::move(engine::Reactor::start({"stop-" + std::to_string(i), 20, 64})).value());
            all.push_back(reactors.back().get());
        }
        auto vbd = engine::Vbd::create("1:51712", memory_disk(1 << 20), {}, [](engine::Event) {});
        vbd->connect(rig.spec(), rig.xen, all, [](Result<memory::Strategy>) {});
        std::this_thread::sleep_for(std::chrono::microseconds(round * 2));
        engine::Reactor::stop_all(all);
        reactors.clear();
        vbd.reset();
        CHECK(rig.xen->mapped_pages == 0);
        CHECK(rig.xen->bound_ports == 0);
    }
}

TEST_CASE("engine: a port that cannot be watched is no connection, and leaves nothing behind") {
    RigOptions options;
    options.rings = 2;
    options.reactors = 2;
    EngineRig rig(memory_disk(1 << 20), options);
    rig.xen->unwatchable = rig.ports[1];
    auto connected = rig.connect();
    REQUIRE_FALSE(connected);
    CHECK(connected.error().errno_code == EPERM);
    CHECK(connected.error().message.find("watching an event channel") == 0);
    CHECK(rig.xen->mapped_pages == 0);
    CHECK(rig.xen->bound_ports == 0);
    for (auto& reactor : rig.reactors) CHECK(reactor->ring_count() == 0);
    rig.xen->unwatchable = 0;
    REQUIRE(rig.connect());
    for (uint32_t ring : {0u, 1u}) {
        CHECK(rig.transact(Operation::kWrite, 0, {rig.segment(0)}, ring) == 0);
    }
}
