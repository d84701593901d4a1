// The security boundary against an oracle that is written another way: in bytes and 128-bit
// numbers, from what the guest meant instead of from the slot. Where the space allows,
// exhaustively.
#include "blkif/request.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <string>

#include "guest_slot.h"

using namespace vbd;
using namespace vbd::blkif;
using test::encode;
using test::kProtocols;
using test::Wish;

namespace {

__extension__ typedef unsigned __int128 Wide;

constexpr uint64_t kBoundaries[] = {0,
                                    1,
                                    7,
                                    8,
                                    9,
                                    87,
                                    88,
                                    89,
                                    1023,
                                    1024,
                                    1025,
                                    (1ULL << 31) - 1,
                                    1ULL << 31,
                                    (1ULL << 32) - 8,
                                    (1ULL << 32) - 1,
                                    1ULL << 32,
                                    (1ULL << 32) + 1,
                                    (1ULL << 54) - 1,
                                    1ULL << 54,
                                    (1ULL << 55) - 1,
                                    1ULL << 55,
                                    (1ULL << 55) + 1,
                                    (1ULL << 63) - 1,
                                    1ULL << 63,
                                    (1ULL << 63) + 1,
                                    ~0ULL - 88,
                                    ~0ULL - 8,
                                    ~0ULL - 7,
                                    ~0ULL - 1,
                                    ~0ULL};

Limits usual() {
    Limits limits;
    limits.capacity_sectors = 1024;
    limits.max_indirect_segments = 256;
    limits.discard = true;
    limits.secure_discard = true;
    return limits;
}

/// The oracle's word: nothing for "execute", else the status of the answer.
using Verdict = std::optional<int>;

bool lies_on_disk(Wide first_byte, Wide bytes, const Limits& limits) {
    return first_byte % limits.sector_size == 0 &&
           first_byte + bytes <= Wide{limits.capacity_sectors} * 512;
}

/// Bytes that the segments cover, or nothing when one is wrong.
std::optional<Wide> covered(const std::vector<Segment>& segments, const Limits& limits) {
    Wide total = 0;
    for (const Segment& segment : segments) {
        const int begin = segment.first_sector * 512;
        const int end = segment.last_sector * 512 + 512;
        if (end > 4096 || begin >= end) return std::nullopt;
        if (begin % int(limits.sector_size) || end % int(limits.sector_size)) return std::nullopt;
        total += Wide(end - begin);
    }
    return total;
}

Verdict oracle(const Wish& wish, const Limits& limits) {
    constexpr int kError = -1, kUnsupported = -2;
    const std::string ops("\0\1\2\3\5\6", 6);
    if (ops.find(char(wish.operation)) == std::string::npos) return kUnsupported;
    const bool offered[] = {true,
                            true,
                            limits.barrier,
                            limits.flush,
                            false,
                            limits.discard,
                            limits.max_indirect_segments > 0};
    if (!offered[wish.operation]) return kUnsupported;

    Wide bytes = 0;
    bool writes = false;
    switch (wish.operation) {
        case 5:
            writes = true;
            if (wish.nr_sectors == 0) return kError;
            bytes = Wide{wish.nr_sectors} * 512;
            if (bytes % limits.sector_size) return kError;
            break;
        case 6: {
            if (wish.second > 1) return kError;
            if (wish.nr_segments < 1 || wish.nr_segments > limits.max_indirect_segments)
                return kError;
            if (wish.nr_segments > 4096) return kError;
            writes = wish.second == 1;
            const auto sum = covered(wish.segments, limits);
            if (!sum) return kError;
            bytes = *sum;
            break;
        }
        default: {
            const bool may_be_empty = wish.operation >= 2;
            if (wish.nr_segments > 11 || wish.nr_segments + may_be_empty < 1) return kError;
            writes = wish.operation == 1 || wish.operation == 2 ||
                     (wish.operation == 3 && wish.nr_segments > 0);
            if (writes && limits.read_only) return kError;
            if (wish.nr_segments == 0) return std::nullopt;  // no place on the disk is named
            auto used = wish.segments;
            used.resize(wish.nr_segments);
            const auto sum = covered(used, limits);
            if (!sum) return kError;
            bytes = *sum;
        }
    }
    if (writes && limits.read_only) return kError;
    if (!lies_on_disk(Wide{wish.sector} * 512, bytes, limits)) return kError;
    return std::nullopt;
}

/// The whole way of the code under test: parse, and for an indirect request the segments.
Reject judge(Protocol protocol, const Wish& wish, const Limits& limits, Request& request) {
    const Reject reject = parse(protocol, encode(protocol, wish), limits, request);
    if (reject != Reject::kNone || !request.indirect) return reject;
    return check_segments(wish.segments, limits, request);
}

/// Compares with the oracle; counts, because a CHECK for each of millions would take minutes.
struct Comparison {
    uint64_t cases = 0;
    uint64_t accepted = 0;
    uint64_t differences = 0;
    std::string first_difference;

    void operator()(Protocol protocol, const Wish& wish, const Limits& limits) {
        Request request;
        const Reject reject = judge(protocol, wish, limits, request);
        const Verdict verdict = oracle(wish, limits);
        ++cases;
        accepted += reject == Reject::kNone;
        bool same = status_of(reject) == verdict.value_or(0) &&
                    (reject == Reject::kNone) == !verdict.has_value() && request.id == wish.id &&
                    request.wire_operation == (wish.operation == 6 ? wish.second : wish.operation);
        if (reject == Reject::kNone) same = same && means(request, wish, limits);
        if (same) return;
        if (differences++ == 0) {
            first_difference = "operation " + std::to_string(wish.operation) + " second " +
                               std::to_string(wish.second) + " segments " +
                               std::to_string(wish.nr_segments) + " sector " +
                               std::to_string(wish.sector) + " sectors " +
                               std::to_string(wish.nr_sectors) + " capacity " +
                               std::to_string(limits.capacity_sectors) + ": " + name_of(reject);
        }
    }

    /// An accepted request says what the guest meant.
    static bool means(const Request& request, const Wish& wish, const Limits& limits) {
        if (wish.operation == 5) {
            return request.operation == Operation::kDiscard && request.sector == wish.sector &&
                   request.nr_sectors == wish.nr_sectors && request.nr_segments == 0 &&
                   !request.indirect &&
                   request.secure == (limits.secure_discard && (wish.second & 1) == 1);
        }
        if (request.secure || request.nr_segments != wish.nr_segments) return false;
        if (wish.nr_segments == 0) return request.sector == 0 && request.nr_sectors == 0;
        auto segments = wish.segments;
        segments.resize(wish.nr_segments);
        if (Wide{request.nr_sectors} * 512 != covered(segments, limits).value_or(1)) return false;
        if (request.sector != wish.sector) return false;
        if (wish.operation == 6) {
            return request.indirect && uint8_t(request.operation) == wish.second &&
                   std::equal(wish.refs.begin(), wish.refs.end(), request.indirect_refs);
        }
        return !request.indirect && uint8_t(request.operation) == wish.operation &&
               std::equal(segments.begin(), segments.end(), request.segments,
                          [](const Segment& a, const Segment& b) {
                              return a.ref == b.ref && a.first_sector == b.first_sector &&
                                     a.last_sector == b.last_sector;
                          });
    }

    void finish() const {
        INFO(first_difference);
        CHECK(differences == 0);
        CHECK(accepted > 0);
        CHECK(accepted < cases);
    }
};

Wish data_wish(uint8_t operation, uint32_t nr_segments) {
    Wish wish;
    wish.operation = operation;
    wish.nr_segments = nr_segments;
    wish.id = 0xfff0000000000001;  // as a double, a NaN
    wish.segments.assign(11, Segment{77, 0, 7, 0});
    return wish;
}

Wish indirect_wish(uint8_t inner, uint32_t nr_segments) {
    Wish wish;
    wish.operation = 6;
    wish.second = inner;
    wish.nr_segments = nr_segments;
    wish.id = ~0ULL;
    wish.refs = {1, 2, 3, 4, 5, 6, 7, 0xffffffff};
    wish.segments.assign(nr_segments, Segment{5, 0, 7, 0});
    return wish;
}

template <size_t N>
RawSlot golden(const uint8_t (&bytes)[N]) {
    RawSlot slot;
    std::memset(slot.bytes, 0xee, sizeof slot.bytes);
    std::memcpy(slot.bytes, bytes, N);
    return slot;
}

Limits golden_limits() {
    Limits limits = usual();
    limits.capacity_sectors = 1 << 20;
    return limits;
}

}  // namespace

TEST_CASE("request: the golden READ") {
    for (const Protocol protocol : kProtocols) {
        Request request;
        const RawSlot slot = protocol == Protocol::kX86_32 ? golden(test::kGoldenRead32)
                                                           : golden(test::kGoldenRead64);
        REQUIRE(parse(protocol, slot, golden_limits(), request) == Reject::kNone);
        CHECK(request.id == test::kGoldenId);
        CHECK(request.wire_operation == 0);
        CHECK(request.operation == Operation::kRead);
        CHECK(request.sector == 0x1000);
        CHECK(request.nr_segments == 2);
        CHECK(request.nr_sectors == 10);
        CHECK(request.segments[0].ref == 0x101);
        CHECK(request.segments[0].first_sector == 0);
        CHECK(request.segments[0].last_sector == 7);
        CHECK(request.segments[1].ref == 0x102);
        CHECK(request.segments[1].first_sector == 2);
        CHECK(request.segments[1].last_sector == 3);
    }
}

TEST_CASE("request: the golden DISCARD, secure where it is offered") {
    for (const Protocol protocol : kProtocols) {
        for (const bool offered : {true, false}) {
            Limits limits = golden_limits();
            limits.secure_discard = offered;
            Request request;
            const RawSlot slot = protocol == Protocol::kX86_32 ? golden(test::kGoldenDiscard32)
                                                               : golden(test::kGoldenDiscard64);
            REQUIRE(parse(protocol, slot, limits, request) == Reject::kNone);
            CHECK(request.id == test::kGoldenId);
            CHECK(request.wire_operation == 5);
            CHECK(request.operation == Operation::kDiscard);
            CHECK(request.sector == 0x1000);
            CHECK(request.nr_sectors == 0x800);
            CHECK(request.secure == offered);
        }
    }
}

TEST_CASE("request: the golden INDIRECT write") {
    for (const Protocol protocol : kProtocols) {
        Request request;
        const RawSlot slot = protocol == Protocol::kX86_32 ? golden(test::kGoldenIndirect32)
                                                           : golden(test::kGoldenIndirect64);
        REQUIRE(parse(protocol, slot, golden_limits(), request) == Reject::kNone);
        CHECK(request.id == test::kGoldenId);
        CHECK(request.wire_operation == 1);
        CHECK(request.operation == Operation::kWrite);
        CHECK(request.indirect);
        CHECK(request.sector == 0x1000);
        CHECK(request.nr_segments == 32);
        CHECK(request.indirect_pages() == 1);
        CHECK(request.indirect_refs[0] == 0x201);
        for (int i = 1; i < 8; ++i) CHECK(request.indirect_refs[i] == 0);
    }
}

TEST_CASE("request: every first and last sector, at every place, for both sector sizes") {
    Comparison compare;
    for (const Protocol protocol : kProtocols) {
        for (const uint32_t sector_size : {512U, 4096U}) {
            Limits limits = usual();
            limits.sector_size = sector_size;
            Wish one = data_wish(1, 1);
            Wish last_of_eleven = data_wish(0, 11);
            Wish indirect = indirect_wish(1, 12);
            for (uint32_t bits = 0; bits < 65536; ++bits) {
                const Segment segment{9, uint8_t(bits), uint8_t(bits >> 8), 0};
                one.segments[0] = segment;
                compare(protocol, one, limits);
                last_of_eleven.segments[10] = segment;
                compare(protocol, last_of_eleven, limits);
                indirect.segments[bits % 12] = segment;
                compare(protocol, indirect, limits);
                indirect.segments[bits % 12] = Segment{5, 0, 7, 0};
            }
        }
    }
    compare.finish();
}

TEST_CASE("request: every sector size between, with every edge in a page") {
    Comparison compare;
    for (const uint32_t sector_size : {512U, 1024U, 2048U, 4096U}) {
        Limits limits = usual();
        limits.sector_size = sector_size;
        for (uint32_t bits = 0; bits < 4096; ++bits) {
            Wish wish = data_wish(0, 2);
            wish.segments[0] = Segment{1, uint8_t(bits & 7), uint8_t(bits >> 3 & 7), 0};
            wish.segments[1] = Segment{1, uint8_t(bits >> 6 & 7), uint8_t(bits >> 9 & 7), 0};
            for (uint64_t sector = 0; sector < 9; ++sector) {
                wish.sector = sector;
                compare(Protocol::kX86_64, wish, limits);
            }
        }
    }
    compare.finish();
}

TEST_CASE("request: every operation with every segment count, whatever is offered") {
    Comparison compare;
    for (uint32_t offers = 0; offers < 32; ++offers) {
        Limits limits = usual();
        limits.read_only = (offers & 1) != 0;
        limits.flush = (offers & 2) != 0;
        limits.barrier = (offers & 4) != 0;
        limits.discard = (offers & 8) != 0;
        limits.max_indirect_segments = (offers & 16) != 0 ? 32 : 0;
        for (uint32_t operation = 0; operation < 256; ++operation) {
            for (uint32_t count = 0; count < 256; ++count) {
                Wish wish = data_wish(uint8_t(operation), count);
                if (operation == 5) wish.nr_sectors = count;
                if (operation == 6) wish = indirect_wish(uint8_t(count), 1);
                wish.second = uint8_t(count);
                compare(kProtocols[(operation + count) % 3], wish, limits);
            }
        }
    }
    compare.finish();
}

TEST_CASE("request: every indirect segment count, whatever limit is advertised") {
    Comparison compare;
    for (const uint32_t most : {0U, 1U, 32U, 256U, 512U, 513U, 4095U, 4096U, 65535U}) {
        Limits limits = usual();
        limits.capacity_sectors = 1 << 20;
        limits.max_indirect_segments = most;
        Wish wish = indirect_wish(0, 0);
        for (uint32_t count = 0; count < 65536; ++count) {
            wish.nr_segments = count;
            // Only counts that can pass are followed by that many descriptors.
            if (count <= 4096 && count <= most && count % 61 == 1) {
                wish.segments.assign(count, Segment{5, 0, 7, 0});
                compare(kProtocols[count % 3], wish, limits);
                wish.segments.back().last_sector = 8;  // the last one is looked at too
                compare(kProtocols[count % 3], wish, limits);
                continue;
            }
            Request request;
            const Protocol protocol = kProtocols[count % 3];
            const Reject reject = parse(protocol, encode(protocol, wish), limits, request);
            const Reject expected = most == 0 ? Reject::kNotAdvertised
                                    : count == 0 || count > most || count > 4096
                                        ? Reject::kSegmentCount
                                        : Reject::kNone;
            if (reject != expected) {
                CAPTURE(count);
                CAPTURE(most);
                REQUIRE(reject == expected);
            }
        }
    }
    compare.finish();
}

TEST_CASE("request: every inner operation of an indirect request") {
    Comparison compare;
    for (uint32_t inner = 0; inner < 256; ++inner) {
        for (const bool read_only : {false, true}) {
            Limits limits = usual();
            limits.read_only = read_only;
            for (const Protocol protocol : kProtocols) {
                compare(protocol, indirect_wish(uint8_t(inner), 17), limits);
                compare(protocol, indirect_wish(uint8_t(inner), 0), limits);
            }
        }
    }
    compare.finish();
}

TEST_CASE("request: sectors and lengths at every boundary of 64 bits") {
    Comparison compare;
    std::vector<uint64_t> capacities(std::begin(kBoundaries), std::end(kBoundaries));
    for (const uint64_t capacity : capacities) {
        std::vector<uint64_t> places = capacities;
        for (const uint64_t near : {capacity - 1, capacity - 8, capacity - 88, capacity + 1}) {
            places.push_back(near);
        }
        for (const uint32_t sector_size : {512U, 4096U}) {
            Limits limits = usual();
            limits.capacity_sectors = capacity;
            limits.sector_size = sector_size;
            limits.max_indirect_segments = 4096;
            for (const uint64_t sector : places) {
                const Protocol protocol = kProtocols[sector % 3];
                for (const uint32_t count : {1U, 11U}) {
                    Wish wish = data_wish(uint8_t(sector % 2), count);
                    wish.sector = sector;
                    compare(protocol, wish, limits);
                    wish.segments[0].last_sector = 0;
                    compare(protocol, wish, limits);
                }
                Wish empty = data_wish(3, 0);
                empty.sector = sector;
                compare(protocol, empty, limits);
                Wish indirect = indirect_wish(0, 513);
                indirect.sector = sector;
                compare(protocol, indirect, limits);
                for (const uint64_t nr_sectors : places) {
                    Wish discard;
                    discard.operation = 5;
                    discard.sector = sector;
                    discard.nr_sectors = nr_sectors;
                    compare(protocol, discard, limits);
                }
            }
        }
    }
    compare.finish();
}

TEST_CASE("request: random segments of indirect requests") {
    std::mt19937_64 random(5);
    Comparison compare;
    for (int round = 0; round < 4000; ++round) {
        Limits limits = usual();
        limits.max_indirect_segments = 4096;
        limits.capacity_sectors = random() % 40000;
        limits.sector_size = round % 2 == 0 ? 512 : 4096;
        Wish wish = indirect_wish(uint8_t(round % 2),
                                  1 + uint32_t(random() % (round % 8 == 0 ? 4096 : 40)));
        wish.sector = random() % 64;
        for (Segment& segment : wish.segments) {
            if (random() % 4 != 0) continue;
            segment.first_sector = uint8_t(random() % 8);
            segment.last_sector = uint8_t(segment.first_sector + random() % 4);
            if (limits.sector_size == 4096 && random() % 64 != 0) segment = {1, 0, 7, 0};
            if (segment.last_sector > 7 && random() % 64 != 0) segment.last_sector = 7;
        }
        compare(kProtocols[round % 3], wish, limits);
    }
    compare.finish();
}

TEST_CASE("request: random slots are total, and what is accepted is in bounds") {
    std::mt19937_64 random(7);
    uint64_t accepted = 0;
    for (int round = 0; round < 300000; ++round) {
        RawSlot slot;
        for (size_t at = 0; at < sizeof slot.bytes; at += 8) {
            const uint64_t word = random();
            std::memcpy(slot.bytes + at, &word, 8);
        }
        slot.bytes[0] &= 7;
        slot.bytes[1] &= 15;
        Limits limits = usual();
        limits.capacity_sectors = ~0ULL >> (random() % 64);
        Request request;
        if (parse(kProtocols[round % 3], slot, limits, request) != Reject::kNone) continue;
        ++accepted;
        const bool on_disk = Wide{request.sector} + request.nr_sectors <= limits.capacity_sectors;
        if (!on_disk) REQUIRE(on_disk);
    }
    CHECK(accepted > 0);
}

TEST_CASE("request: each reason has its own name and status") {
    struct Row {
        Wish wish;
        Reject reject;
    };
    Limits limits = usual();
    limits.sector_size = 4096;
    Wish misplaced = data_wish(0, 1);
    misplaced.sector = 4;
    Wish half_page = data_wish(0, 1);
    half_page.segments[0] = {1, 0, 3, 0};
    Wish backwards = data_wish(0, 1);
    backwards.segments[0] = {1, 7, 0, 0};
    Wish beyond = data_wish(0, 1);
    beyond.sector = 1024;
    Wish no_discard;
    no_discard.operation = 5;
    Wish odd_discard = no_discard;
    odd_discard.nr_sectors = 12;
    const Row rows[] = {
        {data_wish(0, 1), Reject::kNone},
        {data_wish(4, 1), Reject::kUnknownOperation},
        {data_wish(7, 1), Reject::kUnknownOperation},
        {data_wish(0, 12), Reject::kSegmentCount},
        {data_wish(0, 0), Reject::kSegmentCount},
        {indirect_wish(5, 1), Reject::kIndirectOperation},
        {backwards, Reject::kSegmentBounds},
        {misplaced, Reject::kAlignment},
        {half_page, Reject::kAlignment},
        {odd_discard, Reject::kAlignment},
        {beyond, Reject::kRange},
        {no_discard, Reject::kDiscardEmpty},
    };
    for (const Row& row : rows) {
        Request request;
        CHECK(judge(Protocol::kX86_64, row.wish, limits, request) == row.reject);
    }
    limits.read_only = true;
    Request request;
    CHECK(judge(Protocol::kX86_32, data_wish(1, 1), limits, request) == Reject::kReadOnly);
    CHECK(judge(Protocol::kX86_32, data_wish(2, 0), limits, request) == Reject::kReadOnly);
    CHECK(judge(Protocol::kX86_32, data_wish(3, 1), limits, request) == Reject::kReadOnly);
    CHECK(judge(Protocol::kX86_32, data_wish(3, 0), limits, request) == Reject::kNone);
    limits.flush = false;
    CHECK(judge(Protocol::kX86_32, data_wish(3, 0), limits, request) == Reject::kNotAdvertised);

    std::vector<std::string> names;
    for (uint32_t i = 0; i < kRejectKinds; ++i) {
        const auto reject = static_cast<Reject>(i);
        names.emplace_back(name_of(reject));
        const int16_t status =
            reject == Reject::kNone                                                   ? 0
            : reject == Reject::kUnknownOperation || reject == Reject::kNotAdvertised ? -2
                                                                                      : -1;
        CHECK(status_of(reject) == status);
    }
    CHECK(names[uint32_t(Reject::kSegmentBounds)] == "segment-bounds");
    std::sort(names.begin(), names.end());
    CHECK(std::unique(names.begin(), names.end()) == names.end());
}

TEST_CASE("request: an empty flush is served wherever it points, as Linux sends it") {
    Wish wish = data_wish(3, 0);
    wish.sector = ~0ULL;
    Request request;
    request.nr_sectors = 99;  // of an earlier request
    CHECK(judge(Protocol::kX86_64, wish, usual(), request) == Reject::kNone);
    CHECK(request.operation == Operation::kFlush);
    CHECK(request.sector == 0);
    CHECK(request.nr_sectors == 0);
}

TEST_CASE("request: nothing of an earlier request survives in a reused one") {
    Request request;
    CHECK(judge(Protocol::kX86_64, indirect_wish(1, 3), usual(), request) == Reject::kNone);
    CHECK(request.indirect);
    Wish secure;
    secure.operation = 5;
    secure.second = 1;
    secure.nr_sectors = 8;
    CHECK(judge(Protocol::kX86_64, secure, usual(), request) == Reject::kNone);
    CHECK(request.secure);
    CHECK_FALSE(request.indirect);
    Wish bad = data_wish(99, 0);
    bad.id = 3;
    CHECK(judge(Protocol::kX86_64, bad, usual(), request) == Reject::kUnknownOperation);
    CHECK(request.id == 3);
    CHECK(request.wire_operation == 99);
    CHECK_FALSE(request.indirect);
    CHECK_FALSE(request.secure);
    CHECK(request.nr_segments == 0);
    CHECK(request.nr_sectors == 0);
}

TEST_CASE("request: descriptors must be as many as the request says") {
    Request request;
    Wish wish = indirect_wish(0, 4);
    const RawSlot slot = encode(Protocol::kX86_64, wish);
    REQUIRE(parse(Protocol::kX86_64, slot, usual(), request) == Reject::kNone);
    const std::span<const Segment> all(wish.segments);
    CHECK(check_segments(all.first(3), usual(), request) == Reject::kSegmentCount);
    CHECK(check_segments({}, usual(), request) == Reject::kSegmentCount);
    const std::vector<Segment> more(5, wish.segments[0]);
    CHECK(check_segments(more, usual(), request) == Reject::kSegmentCount);
    CHECK(request.nr_sectors == 0);
    CHECK(check_segments(all, usual(), request) == Reject::kNone);
    CHECK(request.nr_sectors == 32);
}
