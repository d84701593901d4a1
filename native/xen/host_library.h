// HostLibrary: Xen's two user libraries, libxengnttab and libxenevtchn, found at run time, so that
// one binary runs with and without Xen. Their functions as a table, with prototypes of our own:
// only plain numbers, opaque handles and the two structs below cross the border, unchanged since
// Xen 4.8. Immutable once loaded; any thread.
//
// Nothing is ever unloaded: the libraries keep a list of the handles that are open.
#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace vbd::xen::host {

struct GnttabHandle;  // the libraries' own, opaque
struct EvtchnHandle;

/// struct xentoollog_logger: what the libraries call instead of writing to stderr.
struct ToolLogger {
    void (*vmessage)(ToolLogger*, int level, int errno_code, const char* context,
                     const char* format, va_list arguments);
    void (*progress)(ToolLogger*, const char* context, const char* doing, int percent,
                     unsigned long done, unsigned long total);
    void (*destroy)(ToolLogger*);
};

/// One end of a copy: an address of ours, or a piece of a granted page. Clear the whole union
/// before filling `foreign`: what is left of a pointer would be taken for an offset.
union CopyEnd {
    void* local;
    struct {
        uint32_t ref;
        uint16_t offset;
        uint16_t domain;
    } foreign;
};

/// struct xengnttab_grant_copy_segment.
struct CopySegment {
    CopyEnd source;
    CopyEnd dest;
    uint16_t length;
    uint16_t flags;
    int16_t status;
};
static_assert(sizeof(CopyEnd) == 8 && sizeof(CopySegment) == 24);
static_assert(offsetof(CopySegment, dest) == 8 && offsetof(CopySegment, length) == 16 &&
              offsetof(CopySegment, flags) == 18 && offsetof(CopySegment, status) == 20);

inline constexpr uint16_t kSourceIsGrant = 1;  // GNTCOPY_source_gref
inline constexpr uint16_t kDestIsGrant = 2;    // GNTCOPY_dest_gref

/// What became of one library.
struct LibraryReport {
    std::string soname;
    std::string path;                  // of the file that was loaded; empty: none was
    std::string error;                 // why not
    std::vector<std::string> missing;  // functions that it lacks and that we need
};

struct HostLibrary {
    GnttabHandle* (*gnttab_open)(ToolLogger*, unsigned flags) = nullptr;
    int (*gnttab_close)(GnttabHandle*) = nullptr;
    void* (*gnttab_map_grant_ref)(GnttabHandle*, uint32_t domain, uint32_t ref,
                                  int protection) = nullptr;
    void* (*gnttab_map_domain_grant_refs)(GnttabHandle*, uint32_t count, uint32_t domain,
                                          uint32_t* refs, int protection) = nullptr;
    int (*gnttab_unmap)(GnttabHandle*, void* start, uint32_t count) = nullptr;
    int (*gnttab_grant_copy)(GnttabHandle*, uint32_t count,
                             CopySegment*) = nullptr;  // null before Xen 4.8

    EvtchnHandle* (*evtchn_open)(ToolLogger*, unsigned flags) = nullptr;
    int (*evtchn_close)(EvtchnHandle*) = nullptr;
    int (*evtchn_fd)(EvtchnHandle*) = nullptr;
    int (*evtchn_bind_interdomain)(EvtchnHandle*, uint32_t domain, uint32_t remote_port) = nullptr;
    int (*evtchn_unbind)(EvtchnHandle*, uint32_t port) = nullptr;
    int (*evtchn_notify)(EvtchnHandle*, uint32_t port) = nullptr;

    LibraryReport gnttab;
    LibraryReport evtchn;

    /// Everything needed was found.
    bool complete() const;

    /// Loads what there is and reports the rest; never fails, see complete().
    static std::shared_ptr<const HostLibrary> load();
};

}  // namespace vbd::xen::host
