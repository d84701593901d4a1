#include "xen/host_xen.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/fd.h"
#include "xen/host_event_channel.h"

namespace vbd::xen {
namespace {

HostReport::Device try_device(const char* path) {
    const Fd fd(::open(path, O_RDWR | O_CLOEXEC));
    return {path, fd ? 0 : errno};
}

void add_problem(const host::LibraryReport& library, std::vector<std::string>& problems) {
    if (!library.error.empty()) problems.push_back(library.error);
    for (const std::string& symbol : library.missing) {
        problems.push_back(library.soname + " has no " + symbol);
    }
}

HostReport probe(const std::shared_ptr<const host::HostLibrary>& library) {
    HostReport report;
    report.gnttab = library->gnttab;
    report.evtchn = library->evtchn;
    for (const char* path : {"/dev/xen/gntdev", "/dev/xen/evtchn"}) {
        report.devices.push_back(try_device(path));
    }
    report.small_pages = ::sysconf(_SC_PAGESIZE) == static_cast<long>(kPageSize);
    if (!library->complete() || report.devices[0].errno_code != 0) return report;
    auto table = host::HostGrantTable::open(library, {});
    report.grant_copy = table && table.value()->has_grant_copy();
    return report;
}

}  // namespace

std::vector<std::string> HostReport::problems() const {
    std::vector<std::string> found;
    add_problem(gnttab, found);
    add_problem(evtchn, found);
    for (const Device& device : devices) {
        if (device.errno_code != 0) {
            found.push_back(device.path + ": " + std::strerror(device.errno_code));
        }
    }
    if (!small_pages) found.push_back("the kernel's pages are not 4 KiB");
    return found;
}

HostReport probe_host() {
    return probe(host::HostLibrary::load());
}

Result<std::unique_ptr<HostXen>> HostXen::open(host::OnSlowCall on_slow) {
    auto library = host::HostLibrary::load();
    const HostReport report = probe(library);
    const std::vector<std::string> problems = report.problems();
    if (problems.empty()) {
        return std::make_unique<HostXen>(std::move(library), std::move(on_slow));
    }
    Error error{ErrorKind::kUnsupported, 0, "this machine cannot serve Xen guests"};
    const char* separator = ": ";
    for (const std::string& problem : problems) {
        error.message += separator + problem;
        separator = "; ";
    }
    for (const HostReport::Device& device : report.devices) {
        if (error.errno_code == 0) error.errno_code = device.errno_code;
    }
    return error;
}

Result<std::unique_ptr<GrantTable>> HostXen::open_grant_table() {
    auto table = host::HostGrantTable::open(library_, on_slow_);
    if (!table) return table.error();
    return std::unique_ptr<GrantTable>(std::move(table).value());
}

Result<std::unique_ptr<EventChannel>> HostXen::bind_interdomain(DomainId domain, Port remote_port) {
    return host::HostEventChannel::bind(library_, domain, remote_port);
}

}  // namespace vbd::xen
