// A mock Xen for one test case: a broker in this process under a directory of its own, one guest,
// one peer (domain 0).
#pragma once

#include <doctest/doctest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "xen/mock_broker.h"
#include "xen/mock_client.h"
#include "xen/mock_guest.h"

namespace vbd::xen {

inline constexpr int kPatienceMs = 20'000;

class TemporaryDirectory {
  public:
    TemporaryDirectory() {
        char path[] = "/tmp/vbdkit-mock-XXXXXX";
        REQUIRE(::mkdtemp(path) != nullptr);
        path_ = path;
    }
    ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
    std::string file(const char* name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

/// What the broker told of domains, in order.
class DomainLog {
  public:
    void add(DomainEvent event, DomainId domain) {
        const std::lock_guard lock(mutex_);
        const char* names[] = {"created", "dying", "destroyed"};
        lines_.push_back(std::string(names[static_cast<int>(event)]) + " " +
                         std::to_string(domain));
        changed_.notify_all();
    }
    bool wait_for(const std::string& line) {
        std::unique_lock lock(mutex_);
        return changed_.wait_for(lock, std::chrono::milliseconds(kPatienceMs), [&] {
            return std::find(lines_.begin(), lines_.end(), line) != lines_.end();
        });
    }
    std::vector<std::string> lines() {
        const std::lock_guard lock(mutex_);
        return lines_;
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::string> lines_;
};

template <typename T>
T require_value(Result<T> result) {
    if (!result) FAIL(result.error().message);
    return std::move(result).value();
}

inline void require_done(const Status& status) {
    if (!status) FAIL(status.error().message);
}

inline bool readable(int fd, int timeout_ms = 0) {
    pollfd wait = {fd, POLLIN, 0};
    return ::poll(&wait, 1, timeout_ms) > 0 && (wait.revents & POLLIN) != 0;
}

inline size_t open_descriptors() {
    size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
        (void)entry;
        ++count;
    }
    return count;
}

inline size_t memfd_mappings() {
    size_t count = 0;
    FILE* maps = std::fopen("/proc/self/maps", "re");
    REQUIRE(maps != nullptr);
    char line[512];
    while (std::fgets(line, sizeof(line), maps) != nullptr) {
        if (std::strstr(line, "vbdkit-mock") != nullptr) ++count;
    }
    std::fclose(maps);
    return count;
}

class World {
  public:
    static constexpr DomainId kGuest = 7;
    static constexpr uint32_t kPages = 64;

    World() {
        broker = require_value(MockBroker::start(
            path(), [this](DomainEvent event, DomainId domain) { log.add(event, domain); }));
        guest = require_value(MockGuest::connect(path(), kGuest, kPages));
        xen = require_value(MockXen::connect(path(), 0));
        table = require_value(xen->open_grant_table());
    }

    std::string path() const { return directory.file("xen.sock"); }
    std::byte* page(uint32_t number) const { return guest->memory() + size_t{number} * kPageSize; }

    /// Waits until what the broker says of the guest's domain satisfies `test`; absent domains are
    /// given as pages = 0.
    template <typename Test>
    bool eventually(Test test) {
        const auto deadline =
            std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
        while (std::chrono::steady_clock::now() < deadline) {
            if (test(summary())) return true;
            std::this_thread::yield();
        }
        return false;
    }
    DomainSummary summary() {
        for (const DomainSummary& each : broker->domains()) {
            if (each.domain == kGuest) return each;
        }
        return {};
    }
    uint32_t pins() { return summary().grants_mapped; }

    TemporaryDirectory directory;
    DomainLog log;
    std::unique_ptr<MockBroker> broker;
    std::unique_ptr<MockGuest> guest;
    std::unique_ptr<MockXen> xen;
    std::unique_ptr<GrantTable> table;
};

inline GrantCopy piece(GrantRef ref, void* local,
                       CopyDirection direction = CopyDirection::kFromGuest, uint16_t offset = 0,
                       uint16_t length = 16) {
    GrantCopy copy;
    copy.ref = ref;
    copy.offset = offset;
    copy.length = length;
    copy.direction = direction;
    copy.local = local;
    return copy;
}

}  // namespace vbd::xen
