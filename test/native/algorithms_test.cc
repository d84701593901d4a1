// The algorithms that stages are made of: rates, checksums, AES-XTS, cutting memory.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/crc32c.h"
#include "base/token_bucket.h"
#include "stages/iov_cursor.h"
#include "stages/xts.h"

using namespace vbd;
using namespace vbd::stages;

namespace {

constexpr uint64_t kSecond = 1'000'000'000;

std::vector<uint8_t> from_hex(const std::string& hex) {
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i < hex.size(); i += 2) {
        bytes.push_back(static_cast<uint8_t>(std::stoul(hex.substr(i, 2), nullptr, 16)));
    }
    return bytes;
}

/// Takes one token whenever one may be taken, for `seconds`, looking every `step_ns`.
uint64_t taken(TokenBucket& bucket, uint64_t from_ns, uint64_t seconds, uint64_t step_ns) {
    uint64_t count = 0;
    for (uint64_t now = from_ns; now < from_ns + seconds * kSecond; now += step_ns) {
        while (bucket.due_ns(now) <= now) {
            bucket.take(1, now);
            count++;
        }
    }
    return count;
}

}  // namespace

TEST_CASE("token bucket: the rate, and the burst at its beginning") {
    for (double rate : {1.0, 100.0, 12345.0}) {
        TokenBucket bucket;
        bucket.set(rate, kSecond / 2);
        const double wanted = 10 * rate + rate / 2 + 1;
        CHECK(std::abs(static_cast<double>(taken(bucket, 5 * kSecond, 10, 100'000)) - wanted) <=
              2 + wanted / 10'000);
    }
}

TEST_CASE("token bucket: no limit, then one, then another") {
    TokenBucket bucket;
    CHECK_FALSE(bucket.limited());
    bucket.take(1'000'000, kSecond);
    CHECK(bucket.due_ns(kSecond) <= kSecond);
    bucket.set(10, 0);
    bucket.take(100, kSecond);  // 10 s of debt
    CHECK(bucket.due_ns(2 * kSecond) == doctest::Approx(11.0 * kSecond));
    bucket.refill();
    CHECK(bucket.due_ns(2 * kSecond) <= 2 * kSecond);
    bucket.set(0, 0);
    CHECK_FALSE(bucket.limited());
}

TEST_CASE("token bucket: what is saved up is the burst, however long it was idle") {
    TokenBucket bucket;
    bucket.set(1000, kSecond / 10);
    for (uint64_t now : {1 * kSecond, 100 * kSecond, 10'000 * kSecond}) {
        uint64_t at_once = 0;
        while (bucket.due_ns(now) <= now) {
            bucket.take(1, now);
            at_once++;
        }
        CHECK(at_once >= 100);
        CHECK(at_once <= 102);
    }
}

TEST_CASE("token bucket: threads together get the rate of one") {
    TokenBucket bucket;
    bucket.set(100'000, 1'000'000);
    std::atomic<uint64_t> count{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++) {
        threads.emplace_back([&] {
            for (uint64_t now = kSecond; now < 2 * kSecond; now += 1000) {
                if (bucket.due_ns(now) > now) continue;
                bucket.take(1, now);
                count++;
            }
        });
    }
    for (auto& thread : threads) thread.join();
    // A check and a take are two steps: each thread may be one over.
    CHECK(count >= 99'000);
    CHECK(count <= 100'110);
}

TEST_CASE("crc32c: known values, both ways, in any pieces") {
    CHECK(crc32c("123456789", 9) == 0xe3069283);
    CHECK(crc32c_portable("123456789", 9) == 0xe3069283);
    const std::vector<uint8_t> zeroes(32), ones(32, 0xff);
    CHECK(crc32c(zeroes.data(), 32) == 0x8a9136aa);
    CHECK(crc32c(ones.data(), 32) == 0x62a8ab43);
    std::mt19937 random(3);
    std::vector<uint8_t> data(5000);
    for (auto& byte : data) byte = static_cast<uint8_t>(random());
    for (int i = 0; i < 200; i++) {
        const size_t begin = random() % data.size(), bytes = random() % (data.size() - begin);
        const size_t first = bytes ? random() % bytes : 0;
        const uint32_t whole = crc32c(&data[begin], bytes);
        CHECK(whole == crc32c_portable(&data[begin], bytes));
        CHECK(whole == crc32c(&data[begin] + first, bytes - first, crc32c(&data[begin], first)));
    }
}

TEST_CASE("xts: the vectors of IEEE 1619, 4 and 10") {
    struct Vector {
        const char* key;
        uint64_t sector;
        const char* begins;
        const char* ends;
    };
    const Vector vectors[] = {
        {"2718281828459045235360287471352631415926535897932384626433832795", 0,
         "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c",
         "0a282df920147beabe421ee5319d0568"},
        {"2718281828459045235360287471352662497757247093699959574966967627"
         "3141592653589793238462643383279502884197169399375105820974944592",
         0xff, "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
         "c4f36ffda9fcea70b9c6e693e148c151"},
    };
    for (const Vector& vector : vectors) {
        const Secret key(from_hex(vector.key));
        auto encrypt = Xts::create(key, Xts::Direction::kEncrypt);
        auto decrypt = Xts::create(key, Xts::Direction::kDecrypt);
        REQUIRE(encrypt);
        REQUIRE(decrypt);
        std::vector<uint8_t> plain(512), data;
        for (size_t i = 0; i < 512; i++) plain[i] = static_cast<uint8_t>(i);
        data = plain;
        REQUIRE(encrypt.value()->run(data.data(), 512, vector.sector, 512));
        const auto begins = from_hex(vector.begins), ends = from_hex(vector.ends);
        CHECK(std::memcmp(data.data(), begins.data(), 32) == 0);
        CHECK(std::memcmp(&data[496], ends.data(), 16) == 0);
        REQUIRE(decrypt.value()->run(data.data(), 512, vector.sector, 512));
        CHECK(data == plain);
    }
}

TEST_CASE("xts: sectors count in 512 bytes, and each has its own tweak") {
    const Secret key(from_hex("2718281828459045235360287471352631415926535897932384626433832795"));
    auto xts = std::move(Xts::create(key, Xts::Direction::kEncrypt)).value();
    std::vector<uint8_t> all(8192, 7), one(8192, 7), large(8192, 7);
    REQUIRE(xts->run(all.data(), 8192, 100, 512));
    for (uint64_t i = 0; i < 16; i++) REQUIRE(xts->run(&one[i * 512], 512, 100 + i, 512));
    CHECK(all == one);
    CHECK(std::memcmp(&all[0], &all[512], 512) != 0);
    REQUIRE(xts->run(large.data(), 8192, 100, 4096));
    CHECK(std::memcmp(&all[0], &large[0], 512) == 0);
    CHECK(std::memcmp(&all[512], &large[512], 512) != 0);
    std::vector<uint8_t> second(4096, 7);
    REQUIRE(xts->run(second.data(), 4096, 108, 4096));
    CHECK(std::memcmp(&large[4096], second.data(), 4096) == 0);
}

TEST_CASE("xts: keys that are none") {
    for (size_t bytes : {0, 16, 31, 33, 48, 63, 65}) {
        std::vector<uint8_t> key(bytes);
        for (size_t i = 0; i < bytes; i++) key[i] = static_cast<uint8_t>(i);
        CHECK_FALSE(Xts::create(Secret(key), Xts::Direction::kEncrypt));
    }
    CHECK_FALSE(Xts::create(Secret(std::vector<uint8_t>(64, 5)), Xts::Direction::kEncrypt));
}

TEST_CASE("iov cursor: copies, skips and cuts any memory as if it were in one piece") {
    std::mt19937 random(11);
    for (int round = 0; round < 300; round++) {
        std::vector<std::vector<uint8_t>> parts;
        std::vector<uint8_t> flat;
        for (uint32_t i = 0, count = 1 + random() % 9; i < count; i++) {
            parts.emplace_back(random() % 5 == 0 ? 0 : 512 * (1 + random() % 8));
            for (auto& byte : parts.back()) flat.push_back(byte = static_cast<uint8_t>(random()));
        }
        std::vector<iovec> iov;
        for (auto& part : parts) iov.push_back({part.data(), part.size()});
        if (flat.empty()) continue;
        const size_t begin = random() % flat.size();
        const size_t bytes = random() % (flat.size() - begin);
        IovCursor cursor(iov.data());
        cursor.skip(begin);
        std::vector<uint8_t> copy(bytes);
        IovCursor reader = cursor;
        reader.copy_out(copy.data(), bytes);
        CHECK(std::equal(copy.begin(), copy.end(), flat.begin() + begin));

        iovec cut[4];
        uint32_t count = 0;
        const uint32_t unit = random() % 2 ? 512 : 4096;
        const uint64_t whole = cursor.cut(flat.size() - begin, unit, cut, 4, count);
        CHECK(whole % unit == 0);
        std::vector<uint8_t> described;
        for (uint32_t i = 0; i < count; i++) {
            auto* from = static_cast<uint8_t*>(cut[i].iov_base);
            described.insert(described.end(), from, from + cut[i].iov_len);
        }
        CHECK(described.size() == whole);
        CHECK(std::equal(described.begin(), described.end(), flat.begin() + begin));
        // And stands where it stopped.
        if (begin + whole < flat.size()) {
            uint8_t next = 0;
            cursor.copy_out(&next, 1);
            CHECK(next == flat[begin + whole]);
        }
    }
}
