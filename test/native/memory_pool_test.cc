// PagePool and PersistentGrants by themselves.
#include <doctest/doctest.h>

#include <random>

#include "memory/page_pool.h"
#include "memory/persistent_grants.h"
#include "support/fake_xen.h"

using namespace vbd;
using memory::PagePool;
using memory::PersistentGrants;

TEST_CASE(
    "page pool: pages are distinct, bounded, kept warm up to the limit and given back beyond it") {
    auto pool = std::move(PagePool::create(1000, 100)).value();
    std::vector<void*> pages(1000);
    REQUIRE(pool->acquire(pages));
    CHECK(std::set<void*>(pages.begin(), pages.end()).size() == 1000);
    void* one;
    CHECK(!pool->acquire(std::span<void*>(&one, 1)));
    for (void* page : pages) std::memset(page, 0xee, kPageSize);
    size_t forgotten = 0;
    pool->on_give_back([&](void*, size_t length) { forgotten += length; });
    pool->release(pages);
    CHECK(pool->in_use() == 0);
    CHECK(pool->warm() == 100);
    CHECK(forgotten == 900 * size_t{kPageSize});
    pool->set_max_free(0);
    pool->shrink();
    CHECK(pool->warm() == 0);
    REQUIRE(pool->acquire(pages));
    for (void* page : pages)
        CHECK(static_cast<uint8_t*>(page)[0] == 0);  // the system took the memory back
    pool->release(pages);
    pool->on_give_back(nullptr);
}

TEST_CASE("page pool: a run comes back as a run") {
    auto pool = std::move(PagePool::create(1000, 1000)).value();
    std::vector<void*> a(11), b(11);
    for (int round = 0; round < 10; round++) {
        REQUIRE(pool->acquire(a));
        REQUIRE(pool->acquire(b));
        for (size_t i = 1; i < a.size(); i++) {
            CHECK(static_cast<uint8_t*>(a[i]) == static_cast<uint8_t*>(a[i - 1]) + kPageSize);
        }
        pool->release(b);
        pool->release(a);
    }
}

TEST_CASE("persistent grants: a model with wild and tame references, pins, caps and purges") {
    test::FakeXen xen(64);
    auto table = std::move(xen.open_grant_table()).value();
    std::mt19937 random(3);
    std::vector<GrantRef> refs;
    for (uint32_t i = 0; i < 300; i++) {
        GrantRef ref = i % 3 == 0   ? i
                       : i % 3 == 1 ? (1u << 20) + i * 4096
                                    : static_cast<GrantRef>(random() | 0x8000'0000);
        refs.push_back(ref);
        xen.grant(ref, i % 64);
    }
    auto cache = std::move(PersistentGrants::create(*table, 1, 100)).value();
    std::map<GrantRef, uint32_t> model;  // reference → entry
    uint32_t now = 0;
    for (int step = 0; step < 20000; step++) {
        GrantRef ref = refs[random() % refs.size()];
        uint32_t entry = cache->acquire(ref, ++now);
        CHECK((entry != PersistentGrants::kNone) == model.contains(ref));
        if (entry != PersistentGrants::kNone) {
            CHECK(model[ref] == entry);
            cache->release(entry);
        } else {
            auto inserted = cache->insert(ref, now, entry);
            CHECK((inserted == PersistentGrants::Insert::kInserted) == (model.size() < 100));
            if (inserted == PersistentGrants::Insert::kInserted) {
                model[ref] = entry;
                cache->release(entry);
            }
        }
        if (step % 500 == 499) {
            uint32_t size = cache->size();
            uint32_t purged = cache->purge(now, 0);
            CHECK((size < 100 ? purged == 0 : purged >= 5));
            std::erase_if(model, [&](auto& item) {
                uint32_t found = cache->acquire(item.first, now);
                if (found != PersistentGrants::kNone) cache->release(found);
                return found == PersistentGrants::kNone;
            });
            CHECK(model.size() == cache->size());
            CHECK(xen.mapped_pages == static_cast<int>(cache->size()));
        }
    }
    cache.reset();
    CHECK(xen.mapped_pages == 0);
}

TEST_CASE(
    "persistent grants: the purge takes the least recently used, never one in use, and idle ones "
    "by age") {
    test::FakeXen xen(64);
    auto table = std::move(xen.open_grant_table()).value();
    for (GrantRef ref = 0; ref < 40; ref++) xen.grant(ref, ref);
    auto cache = std::move(PersistentGrants::create(*table, 1, 40)).value();
    std::vector<uint32_t> entries(40);
    for (GrantRef ref = 0; ref < 40; ref++) {
        REQUIRE(cache->insert(ref, 100 + ref, entries[ref]) == PersistentGrants::Insert::kInserted);
        if (ref != 1) cache->release(entries[ref]);  // 1 stays in use
    }
    uint32_t unused;
    CHECK(cache->insert(50, 200, unused) == PersistentGrants::Insert::kFull);
    CHECK(cache->purge(200, 0) == 2);
    CHECK(cache->acquire(0, 200) == PersistentGrants::kNone);
    CHECK(cache->acquire(2, 200) == PersistentGrants::kNone);
    CHECK(cache->purge(200, 0) == 0);  // no overflow since
    cache->set_cap(20);
    CHECK(cache->purge(200, 0) >= 18);
    CHECK(cache->size() <= 20);
    CHECK(cache->purge(1'000'000, 60'000) > 0);  // all but the one in use are idle
    CHECK(cache->size() == 1);
    cache->release(entries[1]);
    CHECK(cache->insert(60, 0, unused) == PersistentGrants::Insert::kRefused);
}
