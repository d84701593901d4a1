// Fault rules: every kind of call can be made to fail, as often as the rule says, in every process
// of the mock.
#include <array>

#include "base/clock.h"
#include "mock_world.h"

namespace vbd::xen {
namespace {

using mock::Fault;
using mock::FaultCall;

struct Faulty : World {
    Faulty() {
        for (GrantRef ref = 8; ref < 12; ++ref) require_done(guest->grant(ref, ref, 0, false));
    }
    void set(std::vector<Fault> faults) { require_done(broker->set_faults(faults)); }
    int map(std::vector<GrantRef> refs) {
        Result<void*> mapped = table->map(kGuest, refs, Access::kRead);
        if (!mapped) return mapped.error().errno_code;
        require_done(table->unmap(mapped.value(), static_cast<uint32_t>(refs.size())));
        return 0;
    }
};

TEST_CASE("mock: a map fault skips, then counts, then is spent") {
    Faulty world;
    world.set({{.call = FaultCall::kMap, .skip = 2, .count = 2, .errno_code = ENOMEM}});
    std::vector<int> results;
    for (int i = 0; i < 6; ++i) results.push_back(world.map({8}));
    CHECK(results == std::vector<int>{0, 0, ENOMEM, ENOMEM, 0, 0});
    CHECK(world.pins() == 0);
}

TEST_CASE("mock: a fault can be of one reference or one domain") {
    Faulty world;
    world.set({{.call = FaultCall::kMap, .ref = 9}});
    CHECK(world.map({8}) == 0);
    CHECK(world.map({8, 9}) == EINVAL);
    CHECK(world.map({10, 11}) == 0);
    world.set({{.call = FaultCall::kMap, .domain = 5}});
    CHECK(world.map({8, 9}) == 0);
    world.set({{.call = FaultCall::kMap, .domain = 7}});
    CHECK(world.map({8, 9}) == EINVAL);
    world.set({});
    CHECK(world.map({8, 9}) == 0);
}

TEST_CASE("mock: a failed unmap leaves the mapping") {
    Faulty world;
    void* mapped = require_value(world.table->map(7, std::array<GrantRef, 1>{8}, Access::kRead));
    world.set({{.call = FaultCall::kUnmap, .count = 1, .errno_code = EAGAIN}});
    CHECK(world.table->unmap(mapped, 1).error().errno_code == EAGAIN);
    CHECK(world.pins() == 1);
    CHECK(*static_cast<char*>(mapped) == 0);
    require_done(world.table->unmap(mapped, 1));
    CHECK(world.pins() == 0);
}

TEST_CASE("mock: a copy fails as a whole, or by the segment") {
    Faulty world;
    std::array<char, 16> local;
    const auto copy = [&](std::vector<int>& statuses) {
        std::vector<GrantCopy> segments = {piece(8, local.data()), piece(9, local.data()),
                                           piece(8, local.data())};
        const Status done = world.table->copy(7, segments);
        statuses.clear();
        for (const GrantCopy& segment : segments) statuses.push_back(segment.status);
        return done ? 0 : done.error().errno_code;
    };
    std::vector<int> statuses;
    world.set({{.call = FaultCall::kCopy, .ref = 9, .errno_code = EFAULT}});
    CHECK(copy(statuses) == EFAULT);
    world.set({{.call = FaultCall::kCopy, .ref = 9, .status = kGrantEagain}});
    CHECK(copy(statuses) == 0);
    CHECK(statuses == std::vector<int>{0, kGrantEagain, 0});
    world.set({{.call = FaultCall::kCopy, .skip = 1, .count = 1}});
    CHECK(copy(statuses) == 0);
    CHECK(statuses == std::vector<int>{0, kGrantGeneralError, 0});
    CHECK(copy(statuses) == 0);
    CHECK(statuses == std::vector<int>{0, 0, 0});
}

TEST_CASE("mock: bind, allocation and notification fail too") {
    Faulty world;
    const Port port = require_value(world.guest->alloc_unbound(0));
    world.set({{.call = FaultCall::kBind, .count = 1, .errno_code = ENOSPC},
               {.call = FaultCall::kAllocUnbound}});
    CHECK(world.xen->bind_interdomain(7, port).error().errno_code == ENOSPC);
    CHECK(world.guest->alloc_unbound(0).error().errno_code == ENOSPC);
    auto channel = require_value(world.xen->bind_interdomain(7, port));
    REQUIRE(channel->take_pending());
    channel->unmask();
    world.set({{.call = FaultCall::kNotify, .domain = 0, .count = 1},
               {.call = FaultCall::kNotify, .domain = 7}});
    require_done(world.guest->notify(port));  // lost
    CHECK_FALSE(readable(channel->fd()));
    require_done(world.guest->notify(port));
    CHECK(readable(channel->fd(), kPatienceMs));
    channel->notify();
    CHECK_FALSE(readable(world.guest->event_fd()));
}

TEST_CASE("mock: a rule reaches other processes, and counts over all of them") {
    Faulty world;
    world.set({{.call = FaultCall::kMap, .skip = 1, .count = 1}});
    CHECK(world.map({8}) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
        auto xen = MockXen::connect(world.path(), 0);
        if (!xen) ::_exit(1);
        auto table = xen.value()->open_grant_table();
        ::_exit(table.value()->map(7, std::array<GrantRef, 1>{8}, Access::kRead) ? 2 : 0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
    CHECK(world.map({8}) == 0);
}

TEST_CASE("mock: a rule that makes no sense is refused") {
    Faulty world;
    CHECK(world.broker->set_faults(std::array{Fault{}}).error().kind ==
          ErrorKind::kInvalidArgument);
    const Fault backwards = {.call = FaultCall::kCopy, .status = 3};
    CHECK(world.broker->set_faults(std::array{backwards}).error().kind ==
          ErrorKind::kInvalidArgument);
    const std::vector<Fault> many(65, Fault{.call = FaultCall::kMap});
    CHECK(world.broker->set_faults(many).error().kind == ErrorKind::kInvalidArgument);
    CHECK(world.map({8}) == 0);
}

TEST_CASE("mock: a call can be late, and fail after that or not") {
    Faulty world;
    const auto took_ms = [](auto call) {
        const uint64_t started_ns = monotonic_ns();
        call();
        return (monotonic_ns() - started_ns) / 1'000'000;
    };
    world.set({{.call = FaultCall::kMap, .count = 2, .delay_ms = 30}});
    CHECK(took_ms([&] { CHECK(world.map({8}) == 0); }) >= 30);
    world.set({{.call = FaultCall::kMap, .errno_code = ENOMEM, .delay_ms = 30}});
    CHECK(took_ms([&] { CHECK(world.map({8}) == ENOMEM); }) >= 30);
    world.set({{.call = FaultCall::kCopy, .ref = 9, .delay_ms = 30}});
    char local = 0;
    std::array<GrantCopy, 1> copy;
    copy[0].ref = 9;
    copy[0].length = 1;
    copy[0].local = &local;
    CHECK(took_ms([&] { require_done(world.table->copy(7, copy)); }) >= 30);
    CHECK(copy[0].status == kGrantOkay);
}

}  // namespace
}  // namespace vbd::xen
