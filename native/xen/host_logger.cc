#include "xen/host_logger.h"

#include <cerrno>
#include <cstdio>

namespace vbd::xen::host {

HostLogger::HostLogger() : ToolLogger{&HostLogger::on_message, nullptr, [](ToolLogger*) {}} {}

// errno is the library's way of saying what failed: it must survive us.
void HostLogger::on_message(ToolLogger* self, int, int, const char*, const char* format,
                            va_list arguments) {
    const int saved = errno;
    auto* logger = static_cast<HostLogger*>(self);
    ++logger->count_;
    (void)std::vsnprintf(logger->last_, sizeof(logger->last_), format, arguments);
    errno = saved;
}

std::string HostLogger::take() {
    if (last_[0] == '\0') return {};
    std::string text = std::string(" (") + last_ + ")";
    for (char& c : text) {
        if (c < ' ' || c > '~') c = '?';
    }
    last_[0] = '\0';
    return text;
}

}  // namespace vbd::xen::host
