// Faults: rules that make calls of the mock fail or sleep, in shared memory, so that a rule set in the
// broker's process counts and fails calls in every process. Matching is lock free and costs one
// load while no rule is set.
#pragma once

#include <cstdint>
#include <span>

#include "xen/grant_table.h"
#include "xen/mock_memory.h"
#include "xen/mock_protocol.h"

namespace vbd::xen::mock {

/// One rule. A call that matches is counted; the first `skip` pass, the next `count` fail. With a
/// delay the call sleeps first, as one does in the kernel that waits for a page of the guest; then
/// it fails with the rule's errno, or goes on where there is none.
struct Fault {
    FaultCall call = FaultCall::kNone;
    uint32_t domain = kAny;  // calls towards this domain only
    uint32_t ref = kAny;     // map, copy: calls that touch this reference only
    uint32_t skip = 0;
    uint32_t count = kAny;
    int errno_code =
        0;  // 0: the call's usual one; for copy: not the call but the segment fails, with `status`
    int16_t status = 0;  // of a failing copy segment; 0: GNTST_general_error
    uint32_t delay_ms = 0;
};

class Faults {
  public:
    Faults() = default;
    static Result<Faults> create();
    static Result<Faults> attach(Fd fd);

    int fd() const { return memory_.fd(); }

    /// Replaces all rules; all counts start anew. Broker only, one caller at a time. Errors:
    /// kInvalidArgument.
    Status set(std::span<const Fault> faults);

    /// The errno this call shall fail with, or 0. `refs` are those it touches.
    int fail_call(FaultCall call, DomainId domain, std::span<const GrantRef> refs = {}) const;

    /// The same for a copy call as a whole.
    int fail_copy(DomainId domain, std::span<const GrantCopy> segments) const;

    /// The status this segment of a copy shall fail with, or kGrantOkay.
    int16_t fail_segment(DomainId domain, GrantRef ref) const;

  private:
    FaultTable::Bank& bank() const;

    SharedMemory memory_;
};

}  // namespace vbd::xen::mock
