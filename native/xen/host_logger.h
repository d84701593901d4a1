// HostLogger: what one library handle has to say. libxengnttab reports every refused map, and by
// default on stderr, which a guest could flood with bad references; here a message is counted and
// the last one kept, to go into the Error of the call that failed. Belongs to one handle, and so to
// its thread; outlives it.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <string>

#include "xen/host_library.h"

namespace vbd::xen::host {

class HostLogger : private ToolLogger {
  public:
    HostLogger();
    HostLogger(const HostLogger&) = delete;
    HostLogger& operator=(const HostLogger&) = delete;

    ToolLogger* tool_logger() { return this; }

    uint64_t count() const { return count_; }

    /// " (the last message)" with everything unprintable as '?', or nothing; forgets it.
    std::string take();

  private:
    static void on_message(ToolLogger* self, int level, int errno_code, const char* context,
                           const char* format, va_list arguments);

    uint64_t count_ = 0;
    char last_[160] = {};
};

}  // namespace vbd::xen::host
