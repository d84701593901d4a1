// The host's grant table and event channel on a library of our own making: what is asked of Xen's
// libraries, and what is made of each of their answers. How real Xen answers is in
// xen_semantics_test.cc.
#include "xen/host_xen.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "xen/host_event_channel.h"
#include "xen/host_grant_table.h"
#include "xen/host_logger.h"

namespace vbd::xen {
namespace {

using host::CopySegment;
using host::EvtchnHandle;
using host::GnttabHandle;
using host::HostLibrary;
using host::ToolLogger;

/// What the made-up library does and was asked to do. Its functions are plain C: one test runs at a
/// time.
struct Script {
    int open_errno = 0;
    int map_errno = 0;
    int unmap_errno = 0;
    int copy_errno = 0;
    int bind_errno = 0;
    uint32_t slow_ms = 0;
    std::map<uint32_t, int16_t> statuses;  // by reference
    std::string log;

    int handles = 0;
    int protection = 0;
    uint32_t map_calls = 0;
    std::map<void*, uint32_t> mapped;
    std::vector<std::vector<CopySegment>> copies;
    ToolLogger* logger = nullptr;
    std::array<int, 2> pipe = {-1, -1};
    std::vector<std::string> events;
};
Script* script = nullptr;

void say(ToolLogger* logger, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    logger->vmessage(logger, 8, 22, "xengnttab", format, arguments);
    va_end(arguments);
}

template <typename T>
T* handle_or_errno(int code) {
    errno = code;
    if (code != 0) return nullptr;
    ++script->handles;
    return reinterpret_cast<T*>(script);
}

void* fake_map(uint32_t count, int protection) {
    ++script->map_calls;
    script->protection = protection;
    if (script->slow_ms > 0)
        std::this_thread::sleep_for(std::chrono::milliseconds(script->slow_ms));
    if (script->map_errno != 0) {
        if (!script->log.empty()) {
            errno = 0;
            say(script->logger, "%s: %s", "ioctl MAP_GRANT_REF", script->log.c_str());
        }
        errno = script->map_errno;
        return nullptr;
    }
    void* address =
        ::mmap(nullptr, count * 4096ul, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    std::memset(address, 'm', count * 4096ul);
    script->mapped[address] = count;
    return address;
}

int fake_copy(GnttabHandle*, uint32_t count, CopySegment* segments) {
    script->copies.emplace_back(segments, segments + count);
    if (script->slow_ms > 0)
        std::this_thread::sleep_for(std::chrono::milliseconds(script->slow_ms));
    if (script->copy_errno != 0) {
        errno = script->copy_errno;
        return -1;
    }
    for (uint32_t i = 0; i < count; ++i) {
        const bool to_guest = segments[i].flags == host::kDestIsGrant;
        const uint32_t ref = (to_guest ? segments[i].dest : segments[i].source).foreign.ref;
        segments[i].status = script->statuses.count(ref) != 0 ? script->statuses[ref] : int16_t{0};
    }
    return 0;
}

std::shared_ptr<HostLibrary> fake_library() {
    auto library = std::make_shared<HostLibrary>();
    library->gnttab_open = [](ToolLogger* logger, unsigned) {
        script->logger = logger;
        return handle_or_errno<GnttabHandle>(script->open_errno);
    };
    library->gnttab_close = [](GnttabHandle*) { return --script->handles, 0; };
    library->gnttab_map_grant_ref = [](GnttabHandle*, uint32_t, uint32_t, int protection) {
        return fake_map(1, protection);
    };
    library->gnttab_map_domain_grant_refs = [](GnttabHandle*, uint32_t count, uint32_t, uint32_t*,
                                               int protection) {
        return fake_map(count, protection);
    };
    library->gnttab_unmap = [](GnttabHandle*, void* start, uint32_t count) {
        if (script->unmap_errno != 0) {
            errno = script->unmap_errno;
            return -1;
        }
        CHECK(script->mapped[start] == count);
        script->mapped.erase(start);
        return ::munmap(start, count * 4096ul);
    };
    library->gnttab_grant_copy = &fake_copy;
    library->evtchn_open = [](ToolLogger*, unsigned) {
        return handle_or_errno<EvtchnHandle>(script->open_errno);
    };
    library->evtchn_close = [](EvtchnHandle*) { return --script->handles, 0; };
    library->evtchn_fd = [](EvtchnHandle*) { return script->pipe[0]; };
    library->evtchn_bind_interdomain = [](EvtchnHandle*, uint32_t domain, uint32_t port) {
        script->events.push_back("bind " + std::to_string(domain) + " " + std::to_string(port));
        errno = script->bind_errno;
        return script->bind_errno != 0 ? -1 : 42;
    };
    library->evtchn_unbind = [](EvtchnHandle*, uint32_t port) {
        script->events.push_back("unbind " + std::to_string(port));
        return 0;
    };
    library->evtchn_notify = [](EvtchnHandle*, uint32_t port) {
        script->events.push_back("notify " + std::to_string(port));
        return 0;
    };
    return library;
}

struct FakeHost : Script {
    FakeHost() {
        script = this;
        library = fake_library();
    }
    ~FakeHost() {
        CHECK(handles == 0);
        CHECK(mapped.empty());
        script = nullptr;
    }
    std::unique_ptr<GrantTable> table() {
        HostXen xen(library, [this](DomainId domain, uint64_t elapsed_ns) {
            slow_calls.emplace_back(domain, elapsed_ns);
        });
        auto opened = xen.open_grant_table();
        REQUIRE(opened);
        return std::move(opened).value();
    }
    std::shared_ptr<HostLibrary> library;
    std::vector<std::pair<DomainId, uint64_t>> slow_calls;
};

GrantCopy piece(GrantRef ref, void* local, CopyDirection direction, uint16_t offset,
                uint16_t length) {
    GrantCopy copy;
    copy.ref = ref;
    copy.offset = offset;
    copy.length = length;
    copy.direction = direction;
    copy.local = local;
    return copy;
}

TEST_CASE("host: a copy is one call, with both unions filled for their direction") {
    FakeHost host;
    auto table = host.table();
    std::array<char, 64> local = {};
    std::vector<GrantCopy> segments = {
        piece(7, local.data(), CopyDirection::kFromGuest, 512, 1024),
        piece(9, local.data() + 8, CopyDirection::kToGuest, 3584, 512),
        piece(11, local.data(), CopyDirection::kFromGuest, 0, 0),  // never issued
        piece(8, local.data(), CopyDirection::kFromGuest, 0, 1),
    };
    host.statuses = {{9, kGrantGeneralError}, {8, kGrantBadRef}};
    CHECK(table->copy(5, segments));
    REQUIRE(host.copies.size() == 1);
    REQUIRE(host.copies[0].size() == 3);
    const CopySegment& from = host.copies[0][0];
    CHECK(from.flags == 1);
    CHECK(from.source.foreign.ref == 7);
    CHECK(from.source.foreign.offset == 512);
    CHECK(from.source.foreign.domain == 5);
    CHECK(from.dest.local == local.data());
    CHECK(from.length == 1024);
    CHECK(from.status == kGrantGeneralError);  // a failure until Xen says otherwise
    const CopySegment& to = host.copies[0][1];
    CHECK(to.flags == 2);
    CHECK(to.source.local == local.data() + 8);
    CHECK(to.dest.foreign.ref == 9);
    CHECK(to.dest.foreign.offset == 3584);
    CHECK(to.dest.foreign.domain == 5);
    CHECK(segments[0].status == kGrantOkay);
    CHECK(segments[1].status == kGrantGeneralError);
    CHECK(segments[2].status == kGrantOkay);
    CHECK(segments[3].status == kGrantBadRef);

    std::vector<GrantCopy> empty = {piece(1, local.data(), CopyDirection::kToGuest, 0, 0)};
    CHECK(table->copy(5, empty));
    CHECK(table->copy(5, {}));
    CHECK(host.copies.size() == 1);
}

TEST_CASE("host: a copy that fails as a whole fails every segment") {
    FakeHost host;
    auto table = host.table();
    char local = 0;
    for (const int code : {EINVAL, EFAULT, ENOMEM}) {
        host.copy_errno = code;
        std::vector<GrantCopy> segments(3, piece(7, &local, CopyDirection::kToGuest, 0, 1));
        for (GrantCopy& segment : segments) segment.status = kGrantOkay;
        const Status status = table->copy(5, segments);
        REQUIRE_FALSE(status);
        CHECK(status.error().kind == ErrorKind::kXen);
        CHECK(status.error().errno_code == code);
        for (const GrantCopy& segment : segments) CHECK(segment.status != kGrantOkay);
    }
    CHECK(host.copies.size() == 3);
    CHECK(host.map_calls == 0);
}

TEST_CASE("host: without grant copy, segments are mapped, copied and unmapped") {
    FakeHost host;
    SUBCASE("in the kernel") {
        host.copy_errno = ENOTTY;
    }
    SUBCASE("in the library") {
        host.library->gnttab_grant_copy = nullptr;
    }
    auto table = host.table();
    std::array<char, 32> local = {};
    std::vector<GrantCopy> segments = {
        piece(7, local.data() + 4, CopyDirection::kFromGuest, 100, 8),
        piece(8, local.data(), CopyDirection::kToGuest, 0, 16),
        piece(9, local.data(), CopyDirection::kFromGuest, 4090, 16),  // beyond the page
    };
    CHECK(table->copy(5, segments));
    CHECK(std::string(local.data() + 4, 9) == std::string("mmmmmmmm\0", 9));
    CHECK(segments[0].status == kGrantOkay);
    CHECK(segments[1].status == kGrantOkay);
    CHECK(host.protection == (PROT_READ | PROT_WRITE));
    CHECK(segments[2].status == kGrantBadCopyArg);
    CHECK(host.map_calls == 2);
    CHECK(host.mapped.empty());

    host.map_errno = EINVAL;
    CHECK(table->copy(5, segments));
    CHECK(segments[0].status == kGrantGeneralError);
    CHECK(host.copies.size() <= 1);  // asked once, then never again
}

TEST_CASE("host: the kernel is asked for grant copy without copying") {
    FakeHost host;
    auto table = host::HostGrantTable::open(host.library, {});
    REQUIRE(table);
    CHECK(table.value()->has_grant_copy());
    REQUIRE(host.copies.size() == 1);
    CHECK(host.copies[0].empty());
    host.copy_errno = ENOTTY;
    CHECK_FALSE(table.value()->has_grant_copy());
    CHECK_FALSE(table.value()->has_grant_copy());
    CHECK(host.copies.size() == 2);
}

TEST_CASE("host: maps one by itself and several as a batch, and unmaps only what it mapped") {
    FakeHost host;
    auto table = host.table();
    auto one = table->map(5, std::array<GrantRef, 1>{8}, Access::kRead);
    REQUIRE(one);
    CHECK(host.protection == PROT_READ);
    auto batch = table->map(5, std::array<GrantRef, 3>{8, 9, 10}, Access::kReadWrite);
    REQUIRE(batch);
    CHECK(host.protection == (PROT_READ | PROT_WRITE));
    CHECK(host.mapped[batch.value()] == 3);
    CHECK(table->unmap(batch.value(), 1).error().errno_code == EINVAL);
    CHECK(table->unmap(static_cast<char*>(batch.value()) + 4096, 2).error().errno_code == EINVAL);
    CHECK(table->unmap(&host, 1).error().errno_code == EINVAL);
    CHECK(table->unmap(batch.value(), 3));
    CHECK(table->unmap(batch.value(), 3).error().errno_code == EINVAL);
    CHECK(table->map(5, {}, Access::kRead).error().errno_code == EINVAL);
    const std::vector<GrantRef> many(64 * 1024 + 1, 8);
    CHECK(table->map(5, many, Access::kRead).error().errno_code == EINVAL);
    CHECK(host.map_calls == 2);
    // `one` is still mapped: the handle unmaps it when it goes.
}

TEST_CASE("host: a refused unmap leaves the mapping in the books") {
    FakeHost host;
    auto table = host.table();
    auto mapped = table->map(5, std::array<GrantRef, 1>{8}, Access::kRead);
    REQUIRE(mapped);
    host.unmap_errno = ENOENT;
    CHECK(table->unmap(mapped.value(), 1).error().errno_code == ENOENT);
    host.unmap_errno = 0;
    CHECK(table->unmap(mapped.value(), 1));
}

TEST_CASE("host: what the library says goes into the error, not to stderr") {
    FakeHost host;
    auto table = host.table();
    host.map_errno = EINVAL;
    host.log = "failed\n\x1b[2J";
    Error error = table->map(5, std::array<GrantRef, 2>{8, 9}, Access::kRead).error();
    CHECK(error.kind == ErrorKind::kXen);
    CHECK(error.errno_code == EINVAL);
    CHECK(error.message ==
          "mapping 2 grants of domain 5 (ioctl MAP_GRANT_REF: failed??[2J): Invalid argument");
    host.log.clear();
    error = table->map(5, std::array<GrantRef, 1>{8}, Access::kRead).error();
    CHECK(error.message == "mapping 1 grants of domain 5: Invalid argument");
    host.log = std::string(1000, 'x');  // bounded
    error = table->map(5, std::array<GrantRef, 1>{8}, Access::kRead).error();
    CHECK(error.message.size() < 300);
}

TEST_CASE("host: a grant call that sleeps is reported with its domain") {
    FakeHost host;
    auto table = host.table();
    char local = 0;
    std::vector<GrantCopy> segments = {piece(7, &local, CopyDirection::kToGuest, 0, 1)};
    CHECK(table->copy(5, segments));
    CHECK(host.slow_calls.empty());
    host.slow_ms = host::kSlowCallNs / 1'000'000 + 1;
    CHECK(table->copy(5, segments));
    auto mapped = table->map(6, std::array<GrantRef, 1>{8}, Access::kRead);
    REQUIRE(host.slow_calls.size() == 2);
    CHECK(host.slow_calls[0].first == 5);
    CHECK(host.slow_calls[0].second >= host::kSlowCallNs);
    CHECK(host.slow_calls[1].first == 6);
}

struct FakeChannel : FakeHost {
    FakeChannel() {
        REQUIRE(::pipe2(pipe.data(), O_CLOEXEC) == 0);
        HostXen xen(library, {});
        auto bound = xen.bind_interdomain(5, 9);
        REQUIRE(bound);
        channel = std::move(bound).value();
    }
    ~FakeChannel() {
        channel.reset();
        CHECK(events.back() == "unbind 42");
        ::close(pipe[0]);
        ::close(pipe[1]);
    }
    void deliver(std::vector<Port> ports) {
        const size_t bytes = ports.size() * sizeof(Port);
        REQUIRE(::write(pipe[1], ports.data(), bytes) == static_cast<ssize_t>(bytes));
    }
    std::unique_ptr<EventChannel> channel;
};

TEST_CASE("host: events are read from the descriptor, without blocking") {
    FakeChannel host;
    CHECK(host.events[0] == "bind 5 9");
    CHECK(host.channel->local_port() == 42);
    CHECK(host.channel->fd() == host.pipe[0]);
    CHECK_FALSE(host.channel->take_pending());
    host.deliver({42});
    CHECK(host.channel->take_pending());
    CHECK_FALSE(host.channel->take_pending());
    host.deliver({41, 42});
    CHECK(host.channel->take_pending());
    host.deliver({41});  // not ours
    CHECK_FALSE(host.channel->take_pending());
    host.channel->notify();
    CHECK(host.events.back() == "notify 42");
}

TEST_CASE("host: an event is let through by writing its port") {
    FakeChannel host;
    // The write goes to the descriptor that is read: turn it into one that remembers.
    const int file = ::memfd_create("vbdkit-evtchn", MFD_CLOEXEC);
    REQUIRE(::dup2(file, host.pipe[0]) == host.pipe[0]);
    host.channel->unmask();
    Port port = 0;
    CHECK(::pread(file, &port, sizeof(port), 0) == 4);
    CHECK(port == 42);
    CHECK(::lseek(file, 0, SEEK_END) == 4);
    ::close(file);
}

TEST_CASE("host: what cannot be opened or bound is an error, and leaves no handle") {
    FakeHost host;
    HostXen xen(host.library, {});
    host.pipe[0] = ::eventfd(0, EFD_CLOEXEC);
    host.bind_errno = ESRCH;
    const auto refused = xen.bind_interdomain(5, 9);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().errno_code == ESRCH);
    CHECK(refused.error().message == "binding to event channel 9 of domain 5: No such process");
    host.open_errno = EACCES;
    CHECK(xen.bind_interdomain(5, 9).error().errno_code == EACCES);
    CHECK(xen.open_grant_table().error().errno_code == EACCES);
    CHECK(host.handles == 0);
    ::close(host.pipe[0]);
}

TEST_CASE("host: the probe names all that is missing") {
    const HostReport report = probe_host();
    CHECK(report.gnttab.soname == "libxengnttab.so.1");
    CHECK(report.gnttab.path.empty() == !report.gnttab.error.empty());
    CHECK(report.devices.size() == 2);
    auto opened = HostXen::open();
    CHECK(static_cast<bool>(opened) == report.problems().empty());
    if (!opened) {
        CHECK(opened.error().kind == ErrorKind::kUnsupported);
        for (const std::string& problem : report.problems()) {
            CHECK(opened.error().message.find(problem) != std::string::npos);
        }
    }

    HostReport bare;
    bare.gnttab = {"libxengnttab.so.1", "/x", "", {"xengnttab_unmap"}};
    bare.evtchn = {"libxenevtchn.so.1", "", "libxenevtchn.so.1: not there", {}};
    bare.devices = {{"/dev/xen/gntdev", 0}, {"/dev/xen/evtchn", EACCES}};
    CHECK(bare.problems() == std::vector<std::string>{"libxengnttab.so.1 has no xengnttab_unmap",
                                                      "libxenevtchn.so.1: not there",
                                                      "/dev/xen/evtchn: Permission denied",
                                                      "the kernel's pages are not 4 KiB"});
}

}  // namespace
}  // namespace vbd::xen
