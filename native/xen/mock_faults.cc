#include "xen/mock_faults.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

namespace vbd::xen::mock {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

int usual_errno(FaultCall call) {
    switch (call) {
        case FaultCall::kAllocUnbound:
            return ENOSPC;
        case FaultCall::kCopy:
            return 0;  // a status per segment instead
        default:
            return EINVAL;
    }
}

/// Counts a matching call; whether it is one of those that fail.
bool fires(FaultRule& rule) {
    const uint32_t hit = rule.hits.fetch_add(1, kRelaxed);
    const uint32_t skip = rule.skip.load(kRelaxed);
    const uint32_t count = rule.count.load(kRelaxed);
    return hit >= skip && (count == kAny || hit - skip < count);
}

bool concerns(const FaultRule& rule, FaultCall call, DomainId domain) {
    if (rule.call.load(kRelaxed) != static_cast<uint32_t>(call)) return false;
    const uint32_t only = rule.domain.load(kRelaxed);
    return only == kAny || only == domain;
}

/// `touches(ref)`: whether the call touches that reference.
template <typename Touches>
int failing_errno(FaultTable::Bank& bank, FaultCall call, DomainId domain, Touches touches) {
    const uint32_t rules = std::min(bank.rules.load(std::memory_order_acquire), kMaxFaults);
    for (uint32_t i = 0; i < rules; ++i) {
        FaultRule& rule = bank.rule[i];
        const int code = rule.errno_code.load(kRelaxed);
        const uint32_t ref = rule.ref.load(kRelaxed);
        const uint32_t delay_ms = rule.delay_ms.load(kRelaxed);
        if ((code == 0 && delay_ms == 0) || !concerns(rule, call, domain)) continue;
        if (ref != kAny && !touches(ref)) continue;
        if (!fires(rule)) continue;
        if (delay_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(delay_ms));
        if (code != 0) return code;
    }
    return 0;
}

}  // namespace

Result<Faults> Faults::create() {
    Result<SharedMemory> memory = SharedMemory::create("vbdkit-mock-faults", sizeof(FaultTable));
    if (!memory) return memory.error();
    Faults faults;
    faults.memory_ = std::move(memory).value();
    return faults;
}

Result<Faults> Faults::attach(Fd fd) {
    Result<SharedMemory> memory = SharedMemory::attach(std::move(fd), sizeof(FaultTable));
    if (!memory) return memory.error();
    Faults faults;
    faults.memory_ = std::move(memory).value();
    return faults;
}

FaultTable::Bank& Faults::bank() const {
    FaultTable* table = memory_.as<FaultTable>();
    return table->banks[table->bank.load(std::memory_order_acquire) & 1];
}

Status Faults::set(std::span<const Fault> faults) {
    if (faults.size() > kMaxFaults) {
        return Error{ErrorKind::kInvalidArgument, 0, "more than 64 fault rules"};
    }
    FaultTable* table = memory_.as<FaultTable>();
    const uint32_t next = (table->bank.load(kRelaxed) & 1) ^ 1;
    FaultTable::Bank& target = table->banks[next];
    for (size_t i = 0; i < faults.size(); ++i) {
        const Fault& fault = faults[i];
        FaultRule& rule = target.rule[i];
        if (fault.call == FaultCall::kNone || fault.errno_code < 0 || fault.status > 0) {
            return Error{ErrorKind::kInvalidArgument, 0,
                         "a fault rule needs a call, an errno above and a status below 0"};
        }
        rule.call.store(static_cast<uint32_t>(fault.call), kRelaxed);
        rule.domain.store(fault.domain, kRelaxed);
        rule.ref.store(fault.ref, kRelaxed);
        // A delay alone makes a call late, not fail.
        const int usual = fault.delay_ms != 0 ? 0 : usual_errno(fault.call);
        rule.errno_code.store(fault.errno_code != 0 ? fault.errno_code : usual, kRelaxed);
        rule.delay_ms.store(fault.delay_ms, kRelaxed);
        rule.status.store(fault.status != 0 ? fault.status : int16_t{kGrantGeneralError}, kRelaxed);
        rule.skip.store(fault.skip, kRelaxed);
        rule.count.store(fault.count, kRelaxed);
        rule.hits.store(0, kRelaxed);
    }
    target.rules.store(static_cast<uint32_t>(faults.size()), std::memory_order_release);
    table->bank.store(next, std::memory_order_release);
    return {};
}

int Faults::fail_call(FaultCall call, DomainId domain, std::span<const GrantRef> refs) const {
    return failing_errno(bank(), call, domain, [refs](GrantRef wanted) {
        return std::find(refs.begin(), refs.end(), wanted) != refs.end();
    });
}

int Faults::fail_copy(DomainId domain, std::span<const GrantCopy> segments) const {
    return failing_errno(bank(), FaultCall::kCopy, domain, [segments](GrantRef wanted) {
        return std::any_of(segments.begin(), segments.end(),
                           [wanted](const GrantCopy& segment) { return segment.ref == wanted; });
    });
}

int16_t Faults::fail_segment(DomainId domain, GrantRef ref) const {
    FaultTable::Bank& rules = bank();
    const uint32_t count = std::min(rules.rules.load(std::memory_order_acquire), kMaxFaults);
    for (uint32_t i = 0; i < count; ++i) {
        FaultRule& rule = rules.rule[i];
        const uint32_t only = rule.ref.load(kRelaxed);
        if (rule.errno_code.load(kRelaxed) != 0 || rule.delay_ms.load(kRelaxed) != 0 ||
            !concerns(rule, FaultCall::kCopy, domain))
            continue;
        if ((only == kAny || only == ref) && fires(rule))
            return static_cast<int16_t>(rule.status.load(kRelaxed));
    }
    return kGrantOkay;
}

}  // namespace vbd::xen::mock
