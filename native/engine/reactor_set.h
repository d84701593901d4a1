// ReactorSet: the reactors of an engine, and which of them serve a guest.
//
//   shared   all guests share the same few: the cheapest, where no grant call can sleep
//   guest    each guest has its own, as many as it has rings, up to the same number: a grant call
//            that sleeps in the kernel (a page of the guest is paged out: 32 s and more) holds up
//            nobody but the guest that it is for. Linux's backend has a thread per ring.
//
// A guest of a shared set can be served apart, once its calls were found to sleep.
//
// Belongs to one control thread. Reactors of guests without rings end with drop_idle().
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/reactor.h"

namespace vbd::engine {

enum class Placement : uint8_t { kShared, kGuest };

class ReactorSet {
  public:
    struct Options {
        std::string name;  // of the threads of a shared set: NAME-0, NAME-1
        Placement placement = Placement::kShared;
        uint32_t count = 1;  // of a shared set, and the most that one guest has
        uint32_t poll_us = 50;
        uint32_t max_buffer_pages = 1024;
    };
    struct Member {
        uint64_t id;  // never used again in this set
        std::unique_ptr<Reactor> reactor;
    };

    /// Errors: those of Reactor::start.
    static Result<ReactorSet> start(const Options& options);
    ReactorSet(ReactorSet&&) = default;
    ReactorSet& operator=(ReactorSet&&) = delete;
    ~ReactorSet() { stop(); }

    /// The reactors for `rings` more rings of `domain`; valid until they have no ring any more.
    /// `apart`: of its own, whatever the placement. Starts what is missing. Errors: those of
    /// Reactor::start.
    Result<std::vector<Reactor*>> of_guest(DomainId domain, size_t rings, bool apart);

    /// Ends the reactors of guests that have no ring any more.
    void drop_idle();

    /// Joins every thread; no callback comes after it. No guest can be served any more.
    void stop();
    bool stopped() const { return stopped_; }

    void set_poll_us(uint32_t poll_us);
    void set_max_buffer_pages(uint32_t pages);

    size_t size() const;

    template <typename Function>
    void each(Function function) const {
        for (const Member& member : shared_) function(member);
        for (const auto& [domain, own] : own_) {
            for (const Member& member : own) function(member);
        }
    }

  private:
    explicit ReactorSet(const Options& options) : options_(options) {}
    Status add(std::vector<Member>& members, const std::string& name);

    Options options_;
    uint64_t next_id_ = 0;
    bool stopped_ = false;
    std::vector<Member> shared_;
    std::map<DomainId, std::vector<Member>> own_;
};

}  // namespace vbd::engine
