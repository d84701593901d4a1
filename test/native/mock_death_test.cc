// Death on the mock: of domains (libraries see what they see under `xl destroy`), of peers by
// SIGKILL, of the broker.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cstring>
#include <fstream>

#include "mock_world.h"

namespace vbd::xen {
namespace {

/// A child process that does something, tells by a byte that it is done, and waits to be killed.
class Child {
  public:
    template <typename Work>
    explicit Child(Work work) {
        int pipes[2];
        REQUIRE(::pipe2(pipes, O_CLOEXEC) == 0);
        pid_ = ::fork();
        REQUIRE(pid_ >= 0);
        if (pid_ == 0) {
            ::close(pipes[0]);
            char ok = 'n';
            try {
                if (work()) ok = 'y';
            } catch (...) {  // a failed check must not unwind into the test runner a second time
            }
            (void)!::write(pipes[1], &ok, 1);
            for (;;) ::pause();
        }
        ::close(pipes[1]);
        char answer = 0;
        ready_ = ::read(pipes[0], &answer, 1) == 1 && answer == 'y';
        ::close(pipes[0]);
    }
    ~Child() { kill(); }
    bool ready() const { return ready_; }
    void kill() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = 0;
    }

  private:
    pid_t pid_ = 0;
    bool ready_ = false;
};

int16_t copy_status(GrantTable& table, DomainId domain, GrantRef ref) {
    char local[16];
    GrantCopy copy = piece(ref, local);
    require_done(table.copy(domain, std::span(&copy, 1)));
    return copy.status;
}

/// Maps and copies grants 8 to 11 of domain 7 until the process is killed; tells when it is well
/// under way.
[[noreturn]] void work_for_ever(GrantTable& table, int tell) {
    char local[16];
    for (int i = 0;; ++i) {
        const GrantRef ref = 8 + static_cast<GrantRef>(i % 4);
        GrantCopy copy = piece(ref, local, CopyDirection::kToGuest);
        (void)table.copy(7, std::span(&copy, 1));
        Result<void*> mapped = table.map(7, std::array{ref, GrantRef{8}}, Access::kReadWrite);
        if (mapped) (void)table.unmap(mapped.value(), 2);
        if (i == 10) (void)!::write(tell, "y", 1);
    }
}

TEST_CASE("mock: a destroyed domain lingers until its last page is unmapped") {
    World world;
    require_done(world.guest->grant(8, 1, 0, false));
    require_done(world.guest->grant(9, 2, 0, false));
    const Port port = require_value(world.guest->alloc_unbound(0));
    const Port unbound = require_value(world.guest->alloc_unbound(0));
    auto channel = require_value(world.xen->bind_interdomain(7, port));
    REQUIRE(channel->take_pending());
    channel->unmask();
    auto* mapped = static_cast<char*>(
        require_value(world.table->map(7, std::array<GrantRef, 1>{8}, Access::kReadWrite)));

    SUBCASE("destroyed by the broker") {
        require_done(world.broker->destroy_domain(7));
    }
    SUBCASE("by its own process") {
        world.guest.reset();
    }
    CHECK(world.log.wait_for("dying 7"));
    CHECK(world.summary().dying);
    if (world.guest) {
        const bool lost = readable(world.guest->connection_fd(), kPatienceMs);
        CHECK(lost);
        CHECK_FALSE(world.guest->connected());
        world.guest->memory()[0] = std::byte{1};  // its memory is still there
    }
    mapped[5] = 'x';  // so it is for us
    CHECK(mapped[5] == 'x');
    CHECK_FALSE(readable(channel->fd()));  // no event told of it
    channel->notify();
    void* again = require_value(world.table->map(7, std::array<GrantRef, 1>{8}, Access::kRead));
    CHECK(world.table->map(7, std::array<GrantRef, 1>{9}, Access::kRead).error().errno_code ==
          EINVAL);
    CHECK(copy_status(*world.table, 7, 8) == kGrantBadDomain);
    CHECK(world.xen->bind_interdomain(7, unbound).error().errno_code == EINVAL);
    CHECK(MockGuest::connect(world.path(), 7, 4).error().errno_code == EBUSY);
    CHECK(world.broker->create_domain(7, 4).error().errno_code == EEXIST);
    require_done(world.table->unmap(mapped, 1));
    CHECK(world.summary().grants_mapped == 1);
    require_done(world.table->unmap(again, 1));
    CHECK(world.log.wait_for("destroyed 7"));
    CHECK(world.log.lines() == std::vector<std::string>{"created 7", "dying 7", "destroyed 7"});
    CHECK(world.table->map(7, std::array<GrantRef, 1>{8}, Access::kRead).error().errno_code ==
          EINVAL);
    CHECK(copy_status(*world.table, 7, 8) == kGrantBadDomain);
    CHECK(world.xen->bind_interdomain(7, unbound).error().errno_code == ESRCH);
    channel->notify();
    channel.reset();

    // A later domain of the same number is another one.
    auto next = require_value(MockGuest::connect(world.path(), 7, 4));
    require_done(next->grant(8, 1, 0, false));
    next->memory()[kPageSize] = std::byte{'n'};
    auto* fresh = static_cast<char*>(
        require_value(world.table->map(7, std::array<GrantRef, 1>{8}, Access::kRead)));
    CHECK(fresh[0] == 'n');
    require_done(world.table->unmap(fresh, 1));
}

TEST_CASE("mock: a domain with nothing mapped is gone at once") {
    World world;
    require_done(world.broker->destroy_domain(7));
    CHECK(world.summary().pages == 0);
    CHECK(world.broker->destroy_domain(7).error().errno_code == ESRCH);
    CHECK(world.log.lines() == std::vector<std::string>{"created 7", "dying 7", "destroyed 7"});
}

TEST_CASE("mock: a guest joins a domain that exists, and only its maker's end is the domain's") {
    World world;
    require_done(world.broker->create_domain(9, 16));
    {
        auto guest = require_value(MockGuest::connect(world.path(), 9, 4));
        CHECK(guest->pages() == 16);
    }
    {
        auto second = require_value(MockGuest::connect(world.path(), 7, 4));
        CHECK(second->pages() == World::kPages);
        second->memory()[0] = std::byte{42};
        CHECK(world.page(0)[0] == std::byte{42});
    }
    auto third = require_value(MockGuest::connect(world.path(), 9, 4));  // both are served by now
    CHECK(world.broker->domains().size() == 2);
    for (const uint32_t pages : {0u, mock::kMaxPages + 1}) {
        CHECK(MockGuest::connect(world.path(), 11, pages).error().errno_code == EINVAL);
    }
    CHECK(MockGuest::connect(world.path(), 0, 4).error().errno_code == EINVAL);
    CHECK(MockGuest::connect(world.path(), 0x7ff0, 4).error().errno_code == EINVAL);
}

TEST_CASE("mock: what a killed backend held is given back, and the next one starts afresh") {
    World world;
    for (GrantRef ref = 8; ref < 40; ++ref) require_done(world.guest->grant(ref, ref, 0, false));
    const Port port = require_value(world.guest->alloc_unbound(0));
    void* ours = require_value(world.table->map(7, std::array<GrantRef, 1>{8}, Access::kRead));
    std::unique_ptr<MockXen> xen;
    Child backend([&] {
        xen = require_value(MockXen::connect(world.path(), 0));
        auto table = require_value(xen->open_grant_table());
        std::vector<GrantRef> refs;
        for (GrantRef ref = 8; ref < 40; ++ref) refs.push_back(ref);
        const bool mapped = static_cast<bool>(table->map(7, refs, Access::kReadWrite));
        auto channel = require_value(xen->bind_interdomain(7, port));
        channel->notify();
        (void)channel.release();
        (void)table.release();
        return mapped;
    });
    REQUIRE(backend.ready());
    CHECK(world.pins() == 33);
    CHECK_FALSE(require_value(world.guest->end_access(20)));
    CHECK(readable(world.guest->event_fd(), kPatienceMs));
    backend.kill();
    CHECK(world.eventually(
        [](const DomainSummary& it) { return it.grants_mapped == 1 && it.ports_bound == 0; }));
    CHECK_FALSE(require_value(world.guest->end_access(8)));  // ours is still there
    for (GrantRef ref = 9; ref < 40; ++ref) CHECK(require_value(world.guest->end_access(ref)));
    require_done(world.table->unmap(ours, 1));
    CHECK(require_value(world.guest->end_access(8)));
    auto channel = require_value(world.xen->bind_interdomain(7, port));
    CHECK(channel->take_pending());
}

TEST_CASE("mock: backends killed in the middle of their work leave nothing pinned") {
    World world;
    for (GrantRef ref = 8; ref < 12; ++ref) require_done(world.guest->grant(ref, ref, 0, false));
    for (int round = 0; round < 20; ++round) {
        int pipes[2];
        REQUIRE(::pipe2(pipes, O_CLOEXEC) == 0);
        const pid_t pid = ::fork();
        if (pid == 0) {
            auto xen = MockXen::connect(world.path(), 0);
            if (!xen) ::_exit(1);
            auto table = xen.value()->open_grant_table();
            work_for_ever(*table.value(), pipes[1]);
        }
        char started = 0;
        REQUIRE(::read(pipes[0], &started, 1) == 1);
        for (int i = 0; i < 50 * round; ++i) {  // a different moment each round, and contention
            GrantCopy copy = piece(8, &started, CopyDirection::kFromGuest, 0, 1);
            require_done(world.table->copy(7, std::span(&copy, 1)));
            CHECK(copy.status == kGrantOkay);
        }
        ::kill(pid, SIGKILL);
        ::waitpid(pid, nullptr, 0);
        ::close(pipes[0]);
        ::close(pipes[1]);
        CHECK(world.eventually([](const DomainSummary& it) { return it.grants_mapped == 0; }));
        for (GrantRef ref = 8; ref < 12; ++ref) {
            const bool freed = require_value(world.guest->end_access(ref));
            CHECK(freed);
            if (freed) require_done(world.guest->grant(ref, ref, 0, false));
        }
    }
}

TEST_CASE("mock: a killed guest dies as a domain") {
    World world;
    std::unique_ptr<MockGuest> guest;
    Child child([&] {
        guest = require_value(MockGuest::connect(world.path(), 20, 8));
        guest->memory()[0] = std::byte{'k'};
        return static_cast<bool>(guest->grant(8, 0, 0, false));
    });
    REQUIRE(child.ready());
    auto* mapped = static_cast<char*>(
        require_value(world.table->map(20, std::array<GrantRef, 1>{8}, Access::kRead)));
    child.kill();
    CHECK(world.log.wait_for("dying 20"));
    CHECK(mapped[0] == 'k');
    require_done(world.table->unmap(mapped, 1));
    CHECK(world.log.wait_for("destroyed 20"));
}

TEST_CASE("mock: after the broker's death calls fail, and what exists goes on") {
    TemporaryDirectory directory;
    const std::string path = directory.file("xen.sock");
    std::unique_ptr<MockBroker> theirs;
    auto broker = std::make_unique<Child>([&] {
        auto started = MockBroker::start(path);
        if (started) theirs = std::move(started).value();
        return theirs != nullptr;
    });
    REQUIRE(broker->ready());
    auto guest = require_value(MockGuest::connect(path, 7, 8));
    auto xen = require_value(MockXen::connect(path, 0));
    auto table = require_value(xen->open_grant_table());
    require_done(guest->grant(8, 1, 0, false));
    const Port port = require_value(guest->alloc_unbound(0));
    auto channel = require_value(xen->bind_interdomain(7, port));
    REQUIRE(channel->take_pending());
    channel->unmask();
    auto* mapped = static_cast<char*>(
        require_value(table->map(7, std::array<GrantRef, 1>{8}, Access::kReadWrite)));
    CHECK(xen->connected());
    CHECK(guest->connected());

    broker->kill();
    pollfd lost = {xen->connection_fd(), POLLRDHUP, 0};
    CHECK(::poll(&lost, 1, kPatienceMs) == 1);
    mapped[0] = 'm';
    CHECK(guest->memory()[kPageSize] == std::byte{'m'});
    require_done(guest->notify(port));
    CHECK(readable(channel->fd(), kPatienceMs));
    CHECK(guest->alloc_unbound(0).error().errno_code == EPIPE);
    CHECK(xen->bind_interdomain(7, port).error().errno_code == EPIPE);
    CHECK(table->map(7, std::array<GrantRef, 1>{8}, Access::kRead).error().errno_code == EPIPE);
    char local[16];
    GrantCopy copy = piece(8, local);
    CHECK(table->copy(7, std::span(&copy, 1)).error().errno_code == EPIPE);
    CHECK_FALSE(xen->connected());
    CHECK_FALSE(guest->connected());
    require_done(table->unmap(mapped, 1));
    CHECK(require_value(guest->end_access(8)));
    require_done(guest->close_port(port));
    CHECK(MockXen::connect(path, 0).error().errno_code == ECONNREFUSED);

    auto next =
        require_value(MockBroker::start(path));  // the path that was left behind is taken over
    CHECK(MockXen::connect(path, 0));
}

TEST_CASE("mock: a broker takes no path that somebody uses") {
    TemporaryDirectory directory;
    const std::string path = directory.file("xen.sock");
    {
        auto broker = require_value(MockBroker::start(path));
        CHECK(MockBroker::start(path).error().errno_code == EADDRINUSE);
        CHECK(MockXen::connect(path, 0));
    }
    CHECK_FALSE(std::filesystem::exists(path));
    CHECK(MockXen::connect(path, 0).error().errno_code == ENOENT);
    std::ofstream(path) << "precious";
    CHECK(MockBroker::start(path).error().errno_code == EEXIST);
    CHECK(std::filesystem::file_size(path) == 8);
    CHECK(MockBroker::start(directory.file("no/such/xen.sock")).error().errno_code == ENOENT);
    CHECK(MockBroker::start(directory.file(std::string(120, 'x').c_str())).error().errno_code ==
          ENAMETOOLONG);
    auto closed = require_value(MockBroker::start(directory.file("other.sock")));
    closed->close();
    closed->close();
    CHECK(closed->create_domain(5, 5).error().errno_code == EPIPE);
}

TEST_CASE("mock: a client that does not speak the protocol is cut off, and nobody else notices") {
    World world;
    for (const size_t size : {size_t{1}, size_t{19}, size_t{21}, size_t{5000}}) {
        Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
        sockaddr_un address = {};
        address.sun_family = AF_UNIX;
        std::strcpy(address.sun_path, world.path().c_str());
        REQUIRE(::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) ==
                0);
        std::vector<char> garbage(size, '\x7f');
        REQUIRE(::send(socket.get(), garbage.data(), size, 0) == static_cast<ssize_t>(size));
        char byte = 0;
        pollfd wait = {socket.get(), POLLIN, 0};
        CHECK(::poll(&wait, 1, kPatienceMs) == 1);
        const ssize_t received = ::recv(socket.get(), &byte, 1, MSG_DONTWAIT);
        CHECK(received <= 0);
    }
    require_done(world.guest->grant(8, 1, 0, false));
    CHECK(copy_status(*world.table, 7, 8) == kGrantOkay);
}

}  // namespace
}  // namespace vbd::xen
