// TokenBucket: a rate with a burst, shared by any number of threads without a lock. It keeps one
// number, the time at which the bucket would be in balance again (GCRA, the virtual scheduling
// algorithm of ITU-T I.371): what is taken moves it on by its cost, and while it is further ahead of
// the clock than the burst, nothing more may be taken.
//
//   full                               in balance                        empty: wait
//   ───┬──────────────────────────────────┬─────────────────────────────────┬─────────► balance
//      ... ≤ now                          now                               now + burst
//
// Whatever is asked for while the bucket is not empty is given whole, and the debt is waited for by
// the next: a request may be larger than the burst.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace vbd {

class TokenBucket {
  public:
    /// `per_second` 0: no limit. What was taken stays taken.
    void set(double per_second, uint64_t burst_ns) {
        ns_per_token_.store(per_second > 0 ? 1e9 / per_second : 0, std::memory_order_relaxed);
        burst_ns_.store(burst_ns, std::memory_order_relaxed);
    }

    bool limited() const { return ns_per_token_.load(std::memory_order_relaxed) > 0; }

    /// When something may be taken; not later than `now_ns`: now.
    uint64_t due_ns(uint64_t now_ns) const {
        if (!limited()) return now_ns;
        const uint64_t balance = balance_ns_.load(std::memory_order_relaxed);
        const uint64_t burst = burst_ns_.load(std::memory_order_relaxed);
        return balance > burst ? balance - burst : 0;
    }

    void take(uint64_t tokens, uint64_t now_ns) {
        const double each = ns_per_token_.load(std::memory_order_relaxed);
        if (each <= 0 || tokens == 0) return;
        const double cost = each * static_cast<double>(tokens);
        const uint64_t cost_ns = static_cast<uint64_t>(std::min(cost, kLongestDebtNs)) + 1;
        uint64_t balance = balance_ns_.load(std::memory_order_relaxed);
        while (!balance_ns_.compare_exchange_weak(balance, std::max(balance, now_ns) + cost_ns,
                                                  std::memory_order_relaxed)) {
        }
    }

    /// Forgets what was taken: the bucket is full.
    void refill() { balance_ns_.store(0, std::memory_order_relaxed); }

  private:
    static constexpr double kLongestDebtNs = 3.6e12;  // one request costs an hour at most

    std::atomic<double> ns_per_token_{0};
    std::atomic<uint64_t> burst_ns_{0};
    std::atomic<uint64_t> balance_ns_{0};
};

}  // namespace vbd
