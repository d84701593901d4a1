#include "xen/host_library.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>

namespace vbd::xen::host {
namespace {

/// One dlopen()ed library, whose handle is dropped on purpose.
class Loader {
  public:
    explicit Loader(LibraryReport& report, const char* soname) : report_(report) {
        report.soname = soname;
        handle_ = ::dlopen(soname, RTLD_NOW | RTLD_LOCAL);
        if (handle_ != nullptr) return;
        const char* why = ::dlerror();
        report.error = why != nullptr ? why : "unknown error";
    }

    template <typename Function>
    void need(Function& function, const char* symbol) {
        want(function, symbol);
        if (handle_ != nullptr && function == nullptr) report_.missing.emplace_back(symbol);
    }

    template <typename Function>
    void want(Function& function, const char* symbol) {
        if (handle_ == nullptr) return;
        void* address = ::dlsym(handle_, symbol);
        function = reinterpret_cast<Function>(address);
        if (address != nullptr && report_.path.empty()) find_file(address);
    }

  private:
    void find_file(void* address) {
        Dl_info info = {};
        if (::dladdr(address, &info) == 0 || info.dli_fname == nullptr) return;
        char resolved[PATH_MAX];  // with its links followed, the name carries the minor version
        report_.path = ::realpath(info.dli_fname, resolved) != nullptr ? resolved : info.dli_fname;
    }

    LibraryReport& report_;
    void* handle_ = nullptr;
};

bool loaded(const LibraryReport& report) {
    return report.error.empty() && report.missing.empty();
}

}  // namespace

bool HostLibrary::complete() const {
    return loaded(gnttab) && loaded(evtchn);
}

std::shared_ptr<const HostLibrary> HostLibrary::load() {
    auto library = std::make_shared<HostLibrary>();
    Loader gnttab(library->gnttab, "libxengnttab.so.1");
    gnttab.need(library->gnttab_open, "xengnttab_open");
    gnttab.need(library->gnttab_close, "xengnttab_close");
    gnttab.need(library->gnttab_map_grant_ref, "xengnttab_map_grant_ref");
    gnttab.need(library->gnttab_map_domain_grant_refs, "xengnttab_map_domain_grant_refs");
    gnttab.need(library->gnttab_unmap, "xengnttab_unmap");
    gnttab.want(library->gnttab_grant_copy, "xengnttab_grant_copy");

    Loader evtchn(library->evtchn, "libxenevtchn.so.1");
    evtchn.need(library->evtchn_open, "xenevtchn_open");
    evtchn.need(library->evtchn_close, "xenevtchn_close");
    evtchn.need(library->evtchn_fd, "xenevtchn_fd");
    evtchn.need(library->evtchn_bind_interdomain, "xenevtchn_bind_interdomain");
    evtchn.need(library->evtchn_unbind, "xenevtchn_unbind");
    evtchn.need(library->evtchn_notify, "xenevtchn_notify");
    return library;
}

}  // namespace vbd::xen::host
