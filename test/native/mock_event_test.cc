// Event channels on the mock: masking, coalescing, the initial event, who may bind to what, and
// what a close leaves.
#include <array>

#include "mock_world.h"

namespace vbd::xen {
namespace {

int bind_errno(MockXen& xen, DomainId domain, Port port) {
    Result<std::unique_ptr<EventChannel>> bound = xen.bind_interdomain(domain, port);
    return bound ? 0 : bound.error().errno_code;
}

struct Channel : World {
    Channel() {
        port = require_value(guest->alloc_unbound(0));
        channel = require_value(xen->bind_interdomain(kGuest, port));
    }
    bool guest_takes(Port wanted) {
        std::array<Port, 8> ports;
        const size_t count = guest->take_pending(ports);
        return count == 1 && ports[0] == wanted;
    }
    Port port = 0;
    std::unique_ptr<EventChannel> channel;
};

TEST_CASE("mock: a fresh binding has one event pending") {
    Channel world;
    CHECK(readable(world.channel->fd()));
    CHECK(world.channel->take_pending());
    CHECK_FALSE(world.channel->take_pending());
    CHECK(world.channel->local_port() != 0);
    CHECK_FALSE(readable(world.guest->event_fd()));  // the allocating end has none
}

TEST_CASE("mock: events coalesce, and are held back while masked") {
    Channel world;
    REQUIRE(world.channel->take_pending());
    world.channel->unmask();
    CHECK_FALSE(readable(world.channel->fd()));
    for (int i = 0; i < 3; ++i) require_done(world.guest->notify(world.port));
    CHECK(readable(world.channel->fd(), kPatienceMs));
    CHECK(world.channel->take_pending());
    CHECK_FALSE(world.channel->take_pending());
    require_done(world.guest->notify(world.port));
    require_done(world.guest->notify(world.port));
    CHECK_FALSE(readable(world.channel->fd()));  // masked since it was taken
    CHECK_FALSE(world.channel->take_pending());
    world.channel->unmask();
    CHECK(readable(world.channel->fd(), kPatienceMs));
    CHECK(world.channel->take_pending());
    world.channel->unmask();
    world.channel->unmask();
    CHECK_FALSE(world.channel->take_pending());
}

TEST_CASE("mock: the guest's end has the same manners") {
    Channel world;
    for (int i = 0; i < 3; ++i) world.channel->notify();
    CHECK(readable(world.guest->event_fd(), kPatienceMs));
    CHECK(world.guest_takes(world.port));
    world.channel->notify();
    CHECK_FALSE(readable(world.guest->event_fd()));
    require_done(world.guest->unmask(world.port));
    CHECK(world.guest_takes(world.port));
    CHECK(world.guest->notify(999).error().errno_code == ENOTCONN);
    CHECK(world.guest->unmask(999).error().errno_code == ENOTCONN);
    CHECK(world.guest->close_port(999).error().errno_code == ENOTCONN);
}

TEST_CASE("mock: only a port that waits for us can be bound") {
    Channel world;
    CHECK(bind_errno(*world.xen, 7, world.port) == EINVAL);  // bound
    CHECK(bind_errno(*world.xen, 7, 500) == EINVAL);
    CHECK(bind_errno(*world.xen, 7, 0) == EINVAL);
    CHECK(bind_errno(*world.xen, 7, 0xffffffff) == EINVAL);
    CHECK(bind_errno(*world.xen, 99, 1) == ESRCH);
    const Port other = require_value(world.guest->alloc_unbound(3));
    CHECK(bind_errno(*world.xen, 7, other) == EINVAL);  // unbound, for domain 3
    auto third = require_value(MockXen::connect(world.path(), 3));
    CHECK(bind_errno(*third, 7, other) == 0);
    CHECK(world.summary().ports_bound == 1);
}

TEST_CASE("mock: a channel that its backend closed waits for the next one") {
    Channel world;
    REQUIRE(world.channel->take_pending());
    world.channel.reset();
    CHECK(world.summary().ports_bound == 0);
    require_done(world.guest->notify(world.port));   // dropped: nobody is bound
    CHECK_FALSE(readable(world.guest->event_fd()));  // and the close told nobody
    world.channel = require_value(world.xen->bind_interdomain(7, world.port));
    CHECK(world.channel->take_pending());  // the initial event, once
    world.channel->unmask();
    CHECK_FALSE(world.channel->take_pending());
    require_done(world.guest->notify(world.port));
    CHECK(readable(world.channel->fd(), kPatienceMs));
    world.channel->notify();
    CHECK(world.guest_takes(world.port));
}

TEST_CASE("mock: a peer that closes sends nothing, and notifying it is no error") {
    Channel world;
    REQUIRE(world.channel->take_pending());
    world.channel->unmask();
    require_done(world.guest->close_port(world.port));
    CHECK_FALSE(readable(world.channel->fd()));
    world.channel->notify();
    CHECK(bind_errno(*world.xen, 7, world.port) == EINVAL);
    CHECK(world.summary().ports_bound == 0);
    CHECK(require_value(world.guest->alloc_unbound(0)) == world.port);  // the lowest free number
}

TEST_CASE("mock: a waiter takes ports over and gives them back") {
    Channel world;
    auto waiter = require_value(world.guest->wait_on(std::array{world.port}));
    CHECK(waiter->wait(0) == GuestPortWaiter::Wake::kTimeout);
    world.channel->notify();
    CHECK_FALSE(readable(world.guest->event_fd()));
    CHECK(waiter->wait(kPatienceMs) == GuestPortWaiter::Wake::kEvent);
    CHECK(waiter->wait(0) == GuestPortWaiter::Wake::kTimeout);
    std::thread waker([&] { waiter->wake(); });
    CHECK(waiter->wait(kPatienceMs) == GuestPortWaiter::Wake::kEvent);
    waker.join();
    REQUIRE(world.channel->take_pending());
    world.channel->unmask();
    waiter->notify(world.port);
    waiter->notify(world.port + 1);  // not one of its ports
    CHECK(readable(world.channel->fd(), kPatienceMs));
    waiter.reset();
    world.channel->notify();
    CHECK(world.guest_takes(world.port));
    CHECK(world.guest->wait_on(std::array<Port, 1>{999}).error().errno_code == ENOTCONN);
    CHECK(world.guest->wait_on(std::array{world.port, world.port}).error().kind ==
          ErrorKind::kInvalidArgument);
    world.broker->close();
    auto orphan = require_value(world.guest->wait_on(std::array{world.port}));
    CHECK(orphan->wait(kPatienceMs) == GuestPortWaiter::Wake::kClosed);
}

TEST_CASE("mock: two threads play ping-pong without losing an event") {
    Channel world;
    constexpr int kRounds = 2000;
    std::thread backend([&] {
        int seen = 0;  // the initial event is answered as well
        while (seen <= kRounds) {
            if (!readable(world.channel->fd(), kPatienceMs)) return;
            if (!world.channel->take_pending()) continue;
            ++seen;
            world.channel->unmask();
            world.channel->notify();
        }
    });
    int rounds = 0;
    while (rounds <= kRounds && readable(world.guest->event_fd(), kPatienceMs)) {
        if (!world.guest_takes(world.port)) continue;
        ++rounds;
        require_done(world.guest->unmask(world.port));
        if (rounds <= kRounds) require_done(world.guest->notify(world.port));
    }
    backend.join();
    CHECK(rounds == kRounds + 1);
}

}  // namespace
}  // namespace vbd::xen
