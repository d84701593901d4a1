// The semantics that a backend relies on, once for the mock and once for real Xen: each case below
// runs on both. The ones for real Xen need a dom0 with /dev/xen/gntalloc and are skipped elsewhere;
// "xen semantics: real Xen" says why.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "mock_world.h"
#include "support/xen_world.h"

namespace vbd::xen {
namespace {

/// Declares a case that is run on both worlds.
#define XEN_SEMANTICS(function, title)                                                       \
    void function(XenWorld& world);                                                          \
    TEST_CASE("xen semantics, mock: " title) {                                               \
        function(*make_mock_world());                                                        \
    }                                                                                        \
    TEST_CASE("xen semantics, real: " title* doctest::skip(!host_world_problem().empty())) { \
        function(*make_host_world());                                                        \
    }                                                                                        \
    void function(XenWorld& world)

TEST_CASE("xen semantics: real Xen") {
    const std::string problem = host_world_problem();
    if (!problem.empty()) MESSAGE("xen semantics, real: skipped: ", problem);
}

constexpr GrantRef kBeyondTable = 0x7fff'ffff;

std::unique_ptr<GrantTable> open_table(XenWorld& world) {
    return require_value(world.xen().open_grant_table());
}

std::byte* map(GrantTable& table, XenWorld& world, std::vector<GrantRef> refs,
               Access access = Access::kReadWrite) {
    return static_cast<std::byte*>(require_value(table.map(world.guest(), refs, access)));
}

int map_errno(GrantTable& table, DomainId domain, std::vector<GrantRef> refs,
              Access access = Access::kRead) {
    Result<void*> mapped = table.map(domain, refs, access);
    if (!mapped) {
        CHECK(mapped.error().kind == ErrorKind::kXen);
        return mapped.error().errno_code;
    }
    require_done(table.unmap(mapped.value(), static_cast<uint32_t>(refs.size())));
    return 0;
}

/// Tries again until it holds; a guest's end of access may have to wait for the kernel to let go of
/// the page.
bool eventually(const std::function<bool()>& test) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
    while (std::chrono::steady_clock::now() < deadline) {
        if (test()) return true;
        ::poll(nullptr, 0, 5);
    }
    return false;
}

bool ends(XenWorld& world, GrantTable& table, const XenWorld::Page& page) {
    world.end_access(page);
    return eventually([&] {
        (void)world.xen();
        return map_errno(table, world.guest(), {page.ref}) == EINVAL;
    });
}

void fill(std::byte* bytes, char c) {
    std::memset(bytes, c, kPageSize);
}

bool filled(const std::byte* bytes, char c, size_t length = kPageSize) {
    for (size_t i = 0; i < length; ++i) {
        if (bytes[i] != static_cast<std::byte>(c)) return false;
    }
    return true;
}

/// Page-aligned memory of ours.
class Buffer {
  public:
    explicit Buffer(size_t pages) : size_(pages * kPageSize) {
        void* memory =
            ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(memory != MAP_FAILED);
        bytes_ = static_cast<std::byte*>(memory);
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { ::munmap(bytes_, size_); }
    std::byte* at(size_t offset) const { return bytes_ + offset; }

  private:
    size_t size_;
    std::byte* bytes_ = nullptr;
};

/// One event channel between the two, and a second that tells when all that was sent before it has
/// arrived.
struct Channel {
    explicit Channel(XenWorld& given) : world(given) {
        port = world.alloc_unbound();
        end = require_value(world.xen().bind_interdomain(world.guest(), port));
        barrier_port = world.alloc_unbound();
        barrier_end = require_value(world.xen().bind_interdomain(world.guest(), barrier_port));
        REQUIRE(readable(barrier_end->fd(), kPatienceMs));
        REQUIRE(barrier_end->take_pending());
        barrier_end->unmask();
    }
    /// No event is pending here, nor on its way.
    bool quiet() {
        world.notify(barrier_port);
        REQUIRE(readable(barrier_end->fd(), kPatienceMs));
        REQUIRE(barrier_end->take_pending());
        barrier_end->unmask();
        return !readable(end->fd()) && !end->take_pending();
    }
    bool takes() { return readable(end->fd(), kPatienceMs) && end->take_pending(); }

    XenWorld& world;
    Port port = 0;
    Port barrier_port = 0;
    std::unique_ptr<EventChannel> end;
    std::unique_ptr<EventChannel> barrier_end;
};

int bind_errno(XenWorld& world, DomainId domain, Port port) {
    Result<std::unique_ptr<EventChannel>> bound = world.xen().bind_interdomain(domain, port);
    return bound ? 0 : bound.error().errno_code;
}

// ----------------------------------------------------------------------------------------------------------
// mapping

XEN_SEMANTICS(mapped_page_is_the_guests, "a mapped grant is the guest's page itself") {
    auto table = open_table(world);
    const auto page = world.grant(true);
    CHECK(filled(page.bytes, 0));
    std::byte* mapped = map(*table, world, {page.ref});
    std::strcpy(reinterpret_cast<char*>(page.bytes), "from the guest");
    CHECK(std::strcmp(reinterpret_cast<char*>(mapped), "from the guest") == 0);
    std::strcpy(reinterpret_cast<char*>(mapped) + 4000, "from the backend");
    CHECK(std::strcmp(reinterpret_cast<char*>(page.bytes) + 4000, "from the backend") == 0);
    require_done(table->unmap(mapped, 1));
    CHECK(ends(world, *table, page));
}

XEN_SEMANTICS(batch_is_contiguous, "a batch is contiguous, and is unmapped whole or not at all") {
    auto table = open_table(world);
    std::vector<GrantRef> refs;
    for (char c = 'a'; c < 'i'; ++c) {
        const auto page = world.grant(true);
        fill(page.bytes, c);
        refs.push_back(page.ref);
    }
    std::swap(refs[1], refs[6]);  // in the order that was asked for
    refs.push_back(refs[0]);      // one grant twice in a batch
    std::byte* mapped = map(*table, world, refs);
    const char* order = "agcdefbha";
    for (size_t i = 0; i < refs.size(); ++i) CHECK(filled(mapped + i * kPageSize, order[i]));
    CHECK(table->unmap(mapped, 1).error().errno_code == EINVAL);
    CHECK(table->unmap(mapped, 4).error().errno_code == EINVAL);
    CHECK(table->unmap(mapped + kPageSize, 8).error().errno_code == EINVAL);
    CHECK(table->unmap(mapped, 10).error().errno_code == EINVAL);
    CHECK(filled(mapped + 8 * kPageSize, 'a'));
    require_done(table->unmap(mapped, 9));
    CHECK(table->unmap(mapped, 9).error().errno_code == EINVAL);
}

XEN_SEMANTICS(bad_reference_fails_batch,
              "one bad reference fails the whole call, and nothing stays mapped") {
    auto table = open_table(world);
    const auto good = world.grant(true);
    const auto last = world.grant(true);
    const auto read_only = world.grant(false);
    const auto strangers = world.grant_to_stranger();
    const DomainId guest = world.guest();
    CHECK(map_errno(*table, guest, {good.ref, kBeyondTable, last.ref}) == EINVAL);
    CHECK(map_errno(*table, guest, {good.ref, strangers.ref, last.ref}) == EINVAL);
    CHECK(map_errno(*table, guest, {good.ref, read_only.ref, last.ref}, Access::kReadWrite) ==
          EINVAL);
    CHECK(map_errno(*table, guest, {kBeyondTable}) == EINVAL);
    CHECK(map_errno(*table, guest, {0xffff'ffff}) == EINVAL);
    CHECK(map_errno(*table, guest, {strangers.ref}) == EINVAL);
    CHECK(map_errno(*table, guest, {read_only.ref}, Access::kReadWrite) == EINVAL);
    CHECK(map_errno(*table, world.absent(), {good.ref}) == EINVAL);
    CHECK(map_errno(*table, guest, {}) == EINVAL);
    CHECK(map_errno(*table, guest, std::vector<GrantRef>(64 * 1024 + 1, good.ref)) == EINVAL);
    CHECK(map_errno(*table, guest, {good.ref, read_only.ref, last.ref}) == 0);
    const GrantRef ungranted = world.ungranted();
    CHECK(eventually([&] { return map_errno(*table, guest, {good.ref, ungranted}) == EINVAL; }));
    CHECK(ends(world, *table, good));
    CHECK(ends(world, *table, last));
}

XEN_SEMANTICS(read_only_mapping, "a page mapped for reading cannot be written") {
    auto table = open_table(world);
    const Fd zero(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
    REQUIRE(zero);
    for (const bool writable : {false, true}) {
        const auto page = world.grant(writable);
        fill(page.bytes, 'r');
        std::byte* mapped = map(*table, world, {page.ref}, Access::kRead);
        CHECK(filled(mapped, 'r'));
        CHECK(::read(zero.get(), mapped, 1) == -1);
        CHECK(errno == EFAULT);
        CHECK(filled(page.bytes, 'r'));
        require_done(table->unmap(mapped, 1));
    }
}

XEN_SEMANTICS(mapped_page_stays, "what is mapped the guest cannot take back") {
    auto table = open_table(world);
    const auto page = world.grant(true);
    fill(page.bytes, 'k');
    std::byte* mapped = map(*table, world, {page.ref});
    world.end_access(page);
    CHECK(filled(mapped, 'k'));
    std::byte* again = map(*table, world, {page.ref});  // still granted, for it is in use
    CHECK(again != mapped);
    fill(again, 'l');
    CHECK(filled(mapped, 'l'));
    require_done(table->unmap(mapped, 1));
    CHECK(filled(again, 'l'));
    require_done(table->unmap(again, 1));
    CHECK(eventually([&] {
        (void)world.xen();
        return map_errno(*table, world.guest(), {page.ref}) == EINVAL;
    }));
}

XEN_SEMANTICS(mapped_often, "one grant can be mapped often, up to a limit") {
    auto table = open_table(world);
    const auto page = world.grant(true);
    std::vector<std::byte*> mapped;
    for (uint32_t i = 0; i < world.most_mappings(); ++i) {
        mapped.push_back(map(*table, world, {page.ref}));
    }
    CHECK(map_errno(*table, world.guest(), {page.ref}, Access::kReadWrite) == EINVAL);
    mapped[0][0] = std::byte{'x'};
    CHECK(mapped.back()[0] == std::byte{'x'});
    for (std::byte* each : mapped) require_done(table->unmap(each, 1));
    CHECK(map_errno(*table, world.guest(), {page.ref}, Access::kReadWrite) == 0);
}

XEN_SEMANTICS(handles_are_apart, "handles share nothing but the guest") {
    auto one = open_table(world);
    auto two = open_table(world);
    const auto page = world.grant(true);
    std::byte* first = map(*one, world, {page.ref});
    std::byte* second = map(*two, world, {page.ref});
    CHECK(two->unmap(first, 1).error().errno_code == EINVAL);
    fill(first, 's');
    require_done(one->unmap(first, 1));
    CHECK(filled(second, 's'));
    require_done(two->unmap(second, 1));
    CHECK(ends(world, *one, page));
}

XEN_SEMANTICS(handle_goes, "what a handle has mapped goes with it") {
    const auto page = world.grant(true);
    auto table = open_table(world);
    (void)map(*table, world, {page.ref});
    (void)map(*table, world, {page.ref, page.ref}, Access::kRead);
    table.reset();
    auto another = open_table(world);
    CHECK(ends(world, *another, page));
}

XEN_SEMANTICS(kernel_reaches_mapped, "the kernel reads and writes mapped pages as any others") {
    auto table = open_table(world);
    const auto page = world.grant(true);
    const auto other = world.grant(true);
    std::byte* mapped = map(*table, world, {page.ref, other.ref});
    char path[] = "/var/tmp/vbdkit-semantics-XXXXXX";
    const Fd file(::mkostemp(path, O_CLOEXEC));
    REQUIRE(file);
    const Fd direct(::open(path, O_RDWR | O_DIRECT | O_CLOEXEC));
    ::unlink(path);
    for (const Fd* each : {&file, &direct}) {
        if (!*each) continue;  // not every file system has O_DIRECT
        fill(page.bytes, 'p');
        fill(other.bytes, 'q');
        REQUIRE(::pwrite(each->get(), mapped, 2 * kPageSize, 0) == 2 * kPageSize);
        fill(page.bytes, 0);
        fill(other.bytes, 0);
        REQUIRE(::pread(each->get(), mapped, 2 * kPageSize, 0) == 2 * kPageSize);
        CHECK(filled(page.bytes, 'p'));
        CHECK(filled(other.bytes, 'q'));
    }
    // As the local side of a copy, too.
    GrantCopy copy = piece(other.ref, mapped, CopyDirection::kFromGuest, 0, kPageSize);
    require_done(table->copy(world.guest(), {&copy, 1}));
    CHECK(copy.status == kGrantOkay);
    CHECK(filled(page.bytes, 'q'));
    require_done(table->unmap(mapped, 2));
}

// ----------------------------------------------------------------------------------------------------------
// copying

XEN_SEMANTICS(copy_statuses, "a copy has a status for each segment") {
    auto table = open_table(world);
    const auto page = world.grant(true);
    const auto read_only = world.grant(false);
    const auto strangers = world.grant_to_stranger();
    fill(page.bytes, 'g');
    fill(read_only.bytes, 'r');
    const Buffer local(2);
    fill(local.at(0), 'l');
    std::vector<GrantCopy> segments = {
        piece(page.ref, local.at(0), CopyDirection::kFromGuest, 512, 512),
        piece(kBeyondTable, local.at(512), CopyDirection::kFromGuest, 0, 512),
        piece(page.ref, local.at(1024), CopyDirection::kToGuest, 0, 100),
        piece(strangers.ref, local.at(512), CopyDirection::kFromGuest, 0, 512),
        piece(read_only.ref, local.at(512), CopyDirection::kToGuest, 0, 512),
        piece(read_only.ref, local.at(2048), CopyDirection::kFromGuest, 4095, 1),
        piece(page.ref, local.at(kPageSize), CopyDirection::kFromGuest, 0, kPageSize),
    };
    require_done(table->copy(world.guest(), segments));
    const std::array<int16_t, 7> expected = {
        0, kGrantBadRef, 0, kGrantGeneralError, kGrantGeneralError, 0, 0};
    for (size_t i = 0; i < segments.size(); ++i) {
        INFO("segment ", i);
        CHECK(segments[i].status == expected[i]);
    }
    CHECK(filled(local.at(0), 'g', 512));
    CHECK(filled(local.at(512), 'l', 1536));
    CHECK(filled(local.at(2048), 'r', 1));
    CHECK(filled(local.at(2049), 'l', 2047));
    CHECK(filled(page.bytes, 'l', 100));
    CHECK(filled(page.bytes + 100, 'g', kPageSize - 100));
    CHECK(filled(local.at(kPageSize), 'l', 100));  // after the write before it
    CHECK(filled(read_only.bytes, 'r'));

    require_done(table->copy(world.absent(), segments));
    for (const GrantCopy& segment : segments) CHECK(segment.status == kGrantBadDomain);

    const GrantRef ungranted = world.ungranted();
    CHECK(eventually([&] {
        GrantCopy copy = piece(ungranted, local.at(0), CopyDirection::kFromGuest, 0, 1);
        require_done(table->copy(world.guest(), {&copy, 1}));
        return copy.status == kGrantGeneralError;
    }));
}

XEN_SEMANTICS(copy_beyond_page,
              "a segment that leaves its page fails the call, after the full sixteens before it") {
    auto table = open_table(world);
    const auto page = world.grant(true);
    fill(page.bytes, 'g');
    const Buffer local(1);
    std::vector<GrantCopy> segments;
    for (uint16_t i = 0; i < 20; ++i) {
        segments.push_back(piece(page.ref, local.at(i), CopyDirection::kFromGuest, i, 1));
    }
    segments[19].offset = 4000;
    segments[19].length = 97;
    const Status status = table->copy(world.guest(), segments);
    REQUIRE_FALSE(status);
    CHECK(status.error().kind == ErrorKind::kXen);
    CHECK(status.error().errno_code == EINVAL);
    CHECK(filled(local.at(0), 'g', 16));
    CHECK(filled(local.at(16), 0, 100));
}

XEN_SEMANTICS(copy_crosses_pages, "the local side of a segment may cross pages") {
    auto table = open_table(world);
    const auto page = world.grant(true);
    for (size_t i = 0; i < kPageSize; ++i) page.bytes[i] = static_cast<std::byte>(i * 7 + i / 256);
    const Buffer local(2);
    GrantCopy copy = piece(page.ref, local.at(100), CopyDirection::kFromGuest, 0, kPageSize);
    require_done(table->copy(world.guest(), {&copy, 1}));
    CHECK(copy.status == kGrantOkay);
    CHECK(std::memcmp(local.at(100), page.bytes, kPageSize) == 0);
    fill(page.bytes, 0);
    copy = piece(page.ref, local.at(100 + 3000), CopyDirection::kToGuest, 1000, 1096);
    require_done(table->copy(world.guest(), {&copy, 1}));
    CHECK(copy.status == kGrantOkay);
    CHECK(std::memcmp(local.at(3100), page.bytes + 1000, 1096) == 0);
    CHECK(filled(page.bytes, 0, 1000));
}

XEN_SEMANTICS(copy_many, "hundreds of segments are one call") {
    auto table = open_table(world);
    constexpr size_t kPages = 16;
    constexpr size_t kSegments = 704;  // a pass over a long ring
    std::array<XenWorld::Page, kPages> pages;
    for (size_t i = 0; i < kPages; ++i) {
        pages[i] = world.grant(true);
        fill(pages[i].bytes, static_cast<char>('A' + i));
    }
    const Buffer local(kSegments / 8);
    std::vector<GrantCopy> segments;
    for (size_t i = 0; i < kSegments; ++i) {
        segments.push_back(piece(pages[i % kPages].ref, local.at(i * 512),
                                 CopyDirection::kFromGuest, static_cast<uint16_t>(i % 8 * 512),
                                 512));
    }
    require_done(table->copy(world.guest(), segments));
    for (size_t i = 0; i < kSegments; ++i) {
        REQUIRE(segments[i].status == kGrantOkay);
        REQUIRE(filled(local.at(i * 512), static_cast<char>('A' + i % kPages), 512));
    }
}

XEN_SEMANTICS(copy_while_mapped, "copying and mapping one grant do not get in each other's way") {
    auto table = open_table(world);
    const auto page = world.grant(true);
    std::byte* mapped = map(*table, world, {page.ref});
    const Buffer local(1);
    fill(local.at(0), 'c');
    GrantCopy copy = piece(page.ref, local.at(0), CopyDirection::kToGuest, 0, kPageSize);
    require_done(table->copy(world.guest(), {&copy, 1}));
    CHECK(copy.status == kGrantOkay);
    CHECK(filled(mapped, 'c'));
    require_done(table->unmap(mapped, 1));
    CHECK(ends(world, *table, page));
}

// -----------------------------------------------------------------------------------------------------------
// events

XEN_SEMANTICS(initial_event, "a fresh binding has one event pending, the guest's end none") {
    Channel channel(world);
    CHECK(channel.takes());
    CHECK_FALSE(channel.end->take_pending());
    CHECK(channel.end->local_port() != 0);
    CHECK_FALSE(world.take(channel.port, 0));
    channel.end->unmask();
    CHECK(channel.quiet());
}

XEN_SEMANTICS(events_coalesce,
              "events coalesce, are held back while masked, and fire once at the unmask") {
    Channel channel(world);
    REQUIRE(channel.takes());
    channel.end->unmask();
    CHECK(channel.quiet());
    for (int i = 0; i < 3; ++i) world.notify(channel.port);
    CHECK(channel.takes());
    CHECK(channel.quiet());
    world.notify(channel.port);
    world.notify(channel.port);
    CHECK(channel.quiet());  // masked since it was taken
    channel.end->unmask();
    CHECK(channel.takes());
    channel.end->unmask();
    channel.end->unmask();  // nothing to let through
    CHECK(channel.quiet());
    world.notify(channel.port);
    CHECK(channel.takes());
}

XEN_SEMANTICS(guest_end, "the guest's end has the same manners") {
    Channel channel(world);
    for (int i = 0; i < 3; ++i) channel.end->notify();
    CHECK(world.take(channel.port, kPatienceMs));
    channel.end->notify();
    CHECK_FALSE(world.take(channel.port, 0));
    world.unmask(channel.port);
    CHECK(world.take(channel.port, kPatienceMs));
    world.unmask(channel.port);
    CHECK_FALSE(world.take(channel.port, 0));
}

XEN_SEMANTICS(notify_from_threads, "any thread may notify") {
    Channel channel(world);
    for (int i = 0; i < 10; ++i) {
        std::thread([&] { channel.end->notify(); }).join();
        CHECK(world.take(channel.port, kPatienceMs));
        world.unmask(channel.port);
    }
}

XEN_SEMANTICS(bind_errors, "only a port that waits for us can be bound") {
    Channel channel(world);
    const DomainId guest = world.guest();
    CHECK(bind_errno(world, guest, channel.port) == EINVAL);  // bound
    CHECK(bind_errno(world, guest, world.alloc_unbound_for_stranger()) == EINVAL);
    CHECK(bind_errno(world, guest, 0) == EINVAL);
    CHECK(bind_errno(world, guest, 4000) == EINVAL);
    CHECK(bind_errno(world, guest, 0x7fff'ffff) == EINVAL);
    CHECK(bind_errno(world, guest, 0xffff'ffff) == EINVAL);
    CHECK(bind_errno(world, world.absent(), channel.port) == ESRCH);
    const Port gone = world.alloc_unbound();
    world.close_port(gone);
    CHECK(bind_errno(world, guest, gone) == EINVAL);
    CHECK(channel.takes());  // and the one that is bound is none the worse
}

XEN_SEMANTICS(backend_closes, "a port that its backend closed waits for the next one") {
    Channel channel(world);
    REQUIRE(channel.takes());
    channel.end.reset();
    world.notify(channel.port);                // dropped: nobody is bound
    CHECK_FALSE(world.take(channel.port, 0));  // and the close told nobody
    channel.end = require_value(world.xen().bind_interdomain(world.guest(), channel.port));
    CHECK(channel.takes());
    channel.end->unmask();
    CHECK(channel.quiet());
    world.notify(channel.port);
    CHECK(channel.takes());
    channel.end->notify();
    CHECK(world.take(channel.port, kPatienceMs));
}

XEN_SEMANTICS(guest_closes,
              "a guest that closes its port sends nothing, and notifying it is no error") {
    Channel channel(world);
    REQUIRE(channel.takes());
    channel.end->unmask();
    world.close_port(channel.port);
    CHECK(channel.quiet());
    channel.end->notify();
    channel.end->unmask();
    CHECK(channel.quiet());
    CHECK(bind_errno(world, world.guest(), channel.port) == EINVAL);
}

// -------------------------------------------------------------------------------------------------------------
// death

XEN_SEMANTICS(guest_leaves, "what is mapped and bound outlives the guest that is gone") {
    auto table = open_table(world);
    const auto page = world.grant(true);
    fill(page.bytes, 'd');
    std::byte* mapped = map(*table, world, {page.ref});
    const Port port = world.alloc_unbound();
    auto channel = require_value(world.xen().bind_interdomain(world.guest(), port));
    REQUIRE(readable(channel->fd(), kPatienceMs));
    REQUIRE(channel->take_pending());
    channel->unmask();
    world.leave();
    CHECK(filled(mapped, 'd'));
    fill(mapped, 'e');
    CHECK(filled(mapped, 'e'));
    CHECK_FALSE(channel->take_pending());
    channel->notify();
    channel->unmask();
    CHECK(bind_errno(world, world.guest(), port) != 0);
    require_done(table->unmap(mapped, 1));
    CHECK(eventually([&] { return map_errno(*table, world.guest(), {page.ref}) == EINVAL; }));
}

}  // namespace
}  // namespace vbd::xen
