// Grants on the mock: what a peer can map and copy, what it is told otherwise, and what the guest
// sees of it.
#include <sys/mman.h>

#include <array>
#include <cstring>
#include <random>

#include "mock_world.h"

namespace vbd::xen {
namespace {

int map_errno(GrantTable& table, DomainId domain, std::vector<GrantRef> refs,
              Access access = Access::kRead) {
    Result<void*> mapped = table.map(domain, refs, access);
    if (mapped) return 0;
    CHECK(mapped.error().kind == ErrorKind::kXen);
    return mapped.error().errno_code;
}

TEST_CASE("mock: a mapped grant is the guest's page itself") {
    World world;
    require_done(world.guest->grant(8, 3, 0, false));
    auto* mapped = static_cast<char*>(
        require_value(world.table->map(7, std::array<GrantRef, 1>{8}, Access::kReadWrite)));
    std::strcpy(reinterpret_cast<char*>(world.page(3)), "from the guest");
    CHECK(std::strcmp(mapped, "from the guest") == 0);
    std::strcpy(mapped + 100, "from the peer");
    CHECK(std::strcmp(reinterpret_cast<char*>(world.page(3)) + 100, "from the peer") == 0);
    CHECK(world.pins() == 1);
    require_done(world.table->unmap(mapped, 1));
    CHECK(world.pins() == 0);
}

TEST_CASE("mock: a batch is contiguous in its own order, whatever the frames") {
    World world;
    const std::vector<uint32_t> frames = {5, 6, 7, 2, 9, 8, 8, 63};
    std::vector<GrantRef> refs;
    for (uint32_t i = 0; i < frames.size(); ++i) {
        require_done(world.guest->grant(10 + i, frames[i], 0, true));
        refs.push_back(10 + i);
        std::memset(world.page(frames[i]), static_cast<int>(frames[i]), kPageSize);
    }
    auto* mapped =
        static_cast<unsigned char*>(require_value(world.table->map(7, refs, Access::kRead)));
    for (size_t i = 0; i < frames.size(); ++i) {
        CHECK(mapped[i * kPageSize] == frames[i]);
        CHECK(mapped[i * kPageSize + kPageSize - 1] == frames[i]);
    }
    SUBCASE("and is unmapped whole, or not at all") {
        CHECK(world.table->unmap(mapped, 4).error().errno_code == EINVAL);
        CHECK(world.table->unmap(mapped + kPageSize, 7).error().errno_code == EINVAL);
        CHECK(world.table->unmap(mapped, 9).error().errno_code == EINVAL);
        CHECK(world.pins() == 8);
        CHECK(mapped[0] == 5);
    }
    require_done(world.table->unmap(mapped, 8));
    CHECK(world.table->unmap(mapped, 8).error().errno_code == EINVAL);
    CHECK(world.pins() == 0);
}

TEST_CASE("mock: one bad reference fails the whole map call and leaves nothing") {
    World world;
    for (GrantRef ref = 8; ref < 16; ++ref) require_done(world.guest->grant(ref, ref, 0, false));
    require_done(world.guest->grant(20, 1, 3, false));  // another domain's
    require_done(world.guest->grant(21, 1, 0, true));
    CHECK(map_errno(*world.table, 7, {500}) ==
          EINVAL);  // from here on the domain itself is in view
    const size_t mappings = memfd_mappings();
    CHECK(map_errno(*world.table, 7, {8, 9, 10, 500, 12, 13, 14, 15}) == EINVAL);  // not granted
    CHECK(map_errno(*world.table, 7, {8, 40'000}) == EINVAL);  // beyond the table
    CHECK(map_errno(*world.table, 7, {8, 0xffffffff}) == EINVAL);
    CHECK(map_errno(*world.table, 7, {8, 20}) == EINVAL);
    CHECK(map_errno(*world.table, 7, {8, 21}, Access::kReadWrite) == EINVAL);
    CHECK(map_errno(*world.table, 99, {8}) == EINVAL);  // no such domain
    CHECK(map_errno(*world.table, 7, {}) == EINVAL);
    CHECK(map_errno(*world.table, 7, std::vector<GrantRef>(64 * 1024 + 1, 8)) == EINVAL);
    CHECK(world.pins() == 0);
    CHECK(memfd_mappings() == mappings);
    for (GrantRef ref = 8; ref < 16; ++ref) CHECK(require_value(world.guest->end_access(ref)));
}

TEST_CASE("mock: read-only mappings of read-only and of writable grants are read-only") {
    World world;
    require_done(world.guest->grant(8, 1, 0, true));
    require_done(world.guest->grant(9, 2, 0, false));
    for (GrantRef ref : {8u, 9u}) {
        void* mapped = require_value(world.table->map(7, std::array{ref}, Access::kRead));
        const pid_t child = ::fork();
        if (child == 0) {
            ::signal(SIGSEGV, SIG_DFL);
            ::signal(SIGBUS, SIG_DFL);
            *static_cast<volatile char*>(mapped) = 1;
            ::_exit(0);
        }
        int status = 0;
        ::waitpid(child, &status, 0);
        CHECK(!(WIFEXITED(status) && WEXITSTATUS(status) == 0));
        require_done(world.table->unmap(mapped, 1));
    }
}

TEST_CASE("mock: a guest cannot end access while a peer maps, and can after") {
    World world;
    require_done(world.guest->grant(8, 1, 0, false));
    const std::array<GrantRef, 1> refs = {8};
    void* reading = require_value(world.table->map(7, refs, Access::kRead));
    void* writing = require_value(world.table->map(7, refs, Access::kReadWrite));
    CHECK(reading != writing);
    CHECK(world.pins() == 2);
    CHECK_FALSE(require_value(world.guest->end_access(8)));
    CHECK(world.guest->grant(8, 2, 0, false).error().errno_code == EBUSY);
    require_done(world.table->unmap(writing, 1));
    CHECK_FALSE(require_value(world.guest->end_access(8)));
    require_done(world.table->unmap(reading, 1));
    CHECK(require_value(world.guest->end_access(8)));
    CHECK(map_errno(*world.table, 7, {8}) == EINVAL);
    CHECK(world.guest->end_access(7).error().kind == ErrorKind::kInvalidArgument);
    CHECK(world.guest->end_access(32768).error().kind == ErrorKind::kInvalidArgument);
    CHECK(world.guest->grant(8, World::kPages, 0, false).error().kind ==
          ErrorKind::kInvalidArgument);
}

TEST_CASE("mock: one grant takes 128 pins of a class, of one domain") {
    World world;
    require_done(world.guest->grant(8, 1, 0, false));
    std::vector<void*> mapped;
    for (int i = 0; i < 128; ++i) {
        mapped.push_back(
            require_value(world.table->map(7, std::array<GrantRef, 1>{8}, Access::kRead)));
    }
    CHECK(map_errno(*world.table, 7, {8}, Access::kRead) == EINVAL);
    mapped.push_back(
        require_value(world.table->map(7, std::array<GrantRef, 1>{8}, Access::kReadWrite)));
    CHECK(world.pins() == 129);
    for (void* each : mapped) require_done(world.table->unmap(each, 1));
    CHECK(world.pins() == 0);
    CHECK(require_value(world.guest->end_access(8)));
}

TEST_CASE("mock: a copy has a status per segment") {
    World world;
    require_done(world.guest->grant(8, 1, 0, false));
    require_done(world.guest->grant(9, 2, 3, false));
    require_done(world.guest->grant(10, 3, 0, true));
    std::memset(world.page(1), 'g', kPageSize);
    std::array<char, 64> local = {};
    std::memset(local.data() + 32, 'l', 32);
    std::vector<GrantCopy> segments = {
        piece(8, local.data()),
        piece(40'000, local.data()),
        piece(8, local.data() + 32, CopyDirection::kToGuest, 4080, 16),
        piece(9, local.data()),
        piece(11, local.data()),
        piece(10, local.data(), CopyDirection::kToGuest),
        piece(10, local.data() + 16),
    };
    require_done(world.table->copy(7, segments));
    std::vector<int> statuses;
    for (const GrantCopy& segment : segments) statuses.push_back(segment.status);
    CHECK(statuses == std::vector<int>{0, kGrantBadRef, 0, kGrantGeneralError, kGrantGeneralError,
                                       kGrantGeneralError, 0});
    CHECK(local[0] == 'g');
    CHECK(static_cast<char>(world.page(1)[4080]) == 'l');
    CHECK(static_cast<char>(world.page(1)[4079]) == 'g');
    CHECK(world.pins() == 0);
    for (GrantRef ref = 8; ref < 12; ++ref) CHECK(require_value(world.guest->end_access(ref)));

    std::vector<GrantCopy> absent = {piece(8, local.data()), piece(9, local.data())};
    require_done(world.table->copy(99, absent));
    CHECK(absent[0].status == kGrantBadDomain);
    CHECK(absent[1].status == kGrantBadDomain);
}

TEST_CASE("mock: a copy beyond the page fails the call, after the batches before it") {
    World world;
    require_done(world.guest->grant(8, 1, 0, false));
    std::vector<char> local(64 * 16, 'x');
    std::vector<GrantCopy> segments;
    for (uint16_t i = 0; i < 20; ++i) {
        segments.push_back(piece(8, local.data() + i * 16, CopyDirection::kToGuest,
                                 static_cast<uint16_t>(i * 16)));
    }
    segments.push_back(piece(8, local.data(), CopyDirection::kToGuest, 4090, 16));
    const Status copied = world.table->copy(7, segments);
    REQUIRE(!copied);
    CHECK(copied.error().errno_code == EINVAL);
    CHECK(static_cast<char>(world.page(1)[15 * 16]) == 'x');  // the sixteenth was done
    CHECK(static_cast<char>(world.page(1)[16 * 16]) ==
          '\0');  // the seventeenth waited for its batch
    CHECK(world.pins() == 0);
}

TEST_CASE("mock: a local buffer may cross pages, and a grant-mapped page may be one") {
    World world;
    require_done(world.guest->grant(8, 1, 0, false));
    require_done(world.guest->grant(9, 2, 0, false));
    for (uint32_t i = 0; i < kPageSize; ++i) world.page(1)[i] = static_cast<std::byte>(i % 251);
    std::vector<char> local(3 * kPageSize);
    std::vector<GrantCopy> whole = {
        piece(8, local.data() + 1234, CopyDirection::kFromGuest, 0, 4096)};
    require_done(world.table->copy(7, whole));
    CHECK(whole[0].status == kGrantOkay);
    CHECK(std::memcmp(local.data() + 1234, world.page(1), kPageSize) == 0);

    void* mapped =
        require_value(world.table->map(7, std::array<GrantRef, 1>{9}, Access::kReadWrite));
    whole = {piece(8, mapped, CopyDirection::kFromGuest, 0, 4096)};
    require_done(world.table->copy(7, whole));
    CHECK(std::memcmp(world.page(2), world.page(1), kPageSize) == 0);
    require_done(world.table->unmap(mapped, 1));
    std::vector<GrantCopy> empty = {piece(12345, local.data(), CopyDirection::kFromGuest, 0, 0)};
    require_done(world.table->copy(7, empty));
    CHECK(empty[0].status == kGrantOkay);  // an empty segment is not looked at
}

TEST_CASE("mock: copies and maps of many threads keep the books straight") {
    World world;
    constexpr int kThreads = 4;
    for (GrantRef ref = 8; ref < 24; ++ref) require_done(world.guest->grant(ref, ref, 0, false));
    std::atomic<int> failures = 0;
    std::atomic<bool> done = false;
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
        threads.emplace_back([&, t] {
            std::unique_ptr<GrantTable> table = require_value(world.xen->open_grant_table());
            std::minstd_rand random(static_cast<unsigned>(t) + 1);
            std::array<char, 64> local;
            for (int i = 0; i < 2000; ++i) {
                const GrantRef ref = 8 + random() % 16;
                const Access access = random() % 2 != 0 ? Access::kRead : Access::kReadWrite;
                if (random() % 2 != 0) {
                    Result<void*> mapped = table->map(7, std::array{ref, GrantRef{8}}, access);
                    if (!mapped || !table->unmap(mapped.value(), 2)) ++failures;
                } else {
                    GrantCopy copy = piece(ref, local.data());
                    if (!table->copy(7, std::span(&copy, 1)) || copy.status != kGrantOkay)
                        ++failures;
                }
            }
        });
    }
    std::thread guest([&] {  // ends and renews a grant of its own meanwhile
        while (!done) {
            if (require_value(world.guest->end_access(30)))
                require_done(world.guest->grant(30, 30, 0, false));
        }
    });
    for (std::thread& thread : threads) thread.join();
    done = true;
    guest.join();
    CHECK(failures == 0);
    CHECK(world.pins() == 0);
    for (GrantRef ref = 8; ref < 24; ++ref) CHECK(require_value(world.guest->end_access(ref)));
}

TEST_CASE("mock: nothing is left open or mapped") {
    { World warm_up; }
    const size_t descriptors = open_descriptors();
    const size_t mappings = memfd_mappings();
    for (int i = 0; i < 3; ++i) {
        World world;
        require_done(world.guest->grant(8, 1, 0, false));
        void* mapped =
            require_value(world.table->map(7, std::array<GrantRef, 1>{8}, Access::kRead));
        const Port port = require_value(world.guest->alloc_unbound(0));
        auto channel = require_value(world.xen->bind_interdomain(7, port));
        auto waiter = require_value(world.guest->wait_on(std::array{port}));
        require_done(world.table->unmap(mapped, 1));
        CHECK(!world.xen->bind_interdomain(7, port));
    }
    CHECK(open_descriptors() == descriptors);
    CHECK(memfd_mappings() == mappings);
}

}  // namespace
}  // namespace vbd::xen
