// Threads, and that whatever needs one reports when there is none to be had.
#include <doctest/doctest.h>
#include <pthread.h>

#include "base/thread.h"
#include "block/disk_client.h"
#include "block/file_device.h"
#include "block/script_channel.h"
#include "engine/reactor.h"
#include "stages/overlay.h"
#include "support/engine_rig.h"

namespace vbd::test {

namespace {

/// While it lives no thread can be started: its stack would be larger than all memory.
class NoThreads {
  public:
    NoThreads() {
        ::pthread_getattr_default_np(&before_);
        pthread_attr_t endless;
        ::pthread_attr_init(&endless);
        REQUIRE(::pthread_attr_setstacksize(&endless, size_t{1} << 47) == 0);
        REQUIRE(::pthread_setattr_default_np(&endless) == 0);
        ::pthread_attr_destroy(&endless);
    }
    ~NoThreads() {
        CHECK(::pthread_setattr_default_np(&before_) == 0);
        ::pthread_attr_destroy(&before_);
    }

  private:
    pthread_attr_t before_;
};

}  // namespace

TEST_CASE("thread: without room for one more, whatever needs it says so and holds nothing") {
    auto disk = memory_disk(1 << 20);
    auto base = block::open_device({.driver = block::Driver::kMemory, .size_bytes = 1 << 20});
    const NoThreads none;
    auto reactor = engine::Reactor::start({"no-thread", 50, 64});
    REQUIRE(!reactor);
    CHECK(reactor.error().kind == ErrorKind::kNoMemory);
    CHECK(reactor.error().message.find("starting the thread no-thread: ") == 0);
    auto channel = block::ScriptChannel::create({}, [](const block::ScriptChannel::Overdue&) {});
    REQUIRE(!channel);
    CHECK(channel.error().message.find("starting the thread ") == 0);
    auto client = block::DiskClient::open(disk, 4, [] {});
    REQUIRE(!client);
    CHECK(client.error().message.find("starting the thread ") == 0);
    CHECK(disk.use_count() == 1);
    auto overlay = stages::Overlay::open({}, std::move(base).value());
    REQUIRE(!overlay);
    CHECK(overlay.error().message.find("starting the thread ") == 0);
}

TEST_CASE("thread: has its name, and none of the program's signals") {
    Thread thread;
    std::string name(16, '\0');
    bool interrupted = false;
    REQUIRE(thread.start("a-name-too-long-for-it", [&] {
        ::pthread_getname_np(::pthread_self(), name.data(), name.size());
        sigset_t blocked;
        ::pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
        interrupted = !sigismember(&blocked, SIGTERM);
    }));
    thread.join();
    CHECK(name.substr(0, 15) == "a-name-too-long");
    CHECK(!interrupted);
}

}  // namespace vbd::test
