// HostXen: the Xen that this machine runs on, for a process in dom0 or a driver domain. Thread
// safe; its handles keep what they need, so they may outlive it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "xen/host_grant_table.h"
#include "xen/host_library.h"
#include "xen/xen.h"

namespace vbd::xen {

/// What this machine has of what a backend needs.
struct HostReport {
    struct Device {
        std::string path;
        int errno_code = 0;  // of opening it; 0: it opens
    };
    host::LibraryReport gnttab;
    host::LibraryReport evtchn;
    std::vector<Device> devices;
    bool small_pages = false;  // the kernel's pages are Xen's 4 KiB
    bool grant_copy = false;   // the kernel copies grants; false also where nothing can be opened

    /// Everything that keeps guests from being served, one phrase each; empty: nothing.
    std::vector<std::string> problems() const;
};

/// Looks, and leaves nothing open.
HostReport probe_host();

class HostXen final : public Xen {
  public:
    /// `on_slow` is told of grant calls that slept in the kernel, on the thread that made them.
    /// Errors: kUnsupported with everything that is missing in the message, and the first errno.
    static Result<std::unique_ptr<HostXen>> open(host::OnSlowCall on_slow = {});

    /// On a library of the caller's own, for tests.
    HostXen(std::shared_ptr<const host::HostLibrary> library, host::OnSlowCall on_slow)
        : library_(std::move(library)), on_slow_(std::move(on_slow)) {}

    Result<std::unique_ptr<GrantTable>> open_grant_table() override;
    Result<std::unique_ptr<EventChannel>> bind_interdomain(DomainId domain,
                                                           Port remote_port) override;

  private:
    const std::shared_ptr<const host::HostLibrary> library_;
    const host::OnSlowCall on_slow_;
};

}  // namespace vbd::xen
