// service_manager SOCKET: what systemd is to a service, for tests. Prints what is told at SOCKET (sd_notify), a line for each
// message, with | between its lines. Takes commands on stdin: `stop TID` stops a thread of any process where it is, as one
// that hangs would be, and `go TID` lets it go on.
#include <poll.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

void fail(const char* what) {
    std::perror(what);
    std::exit(1);
}

void obey(const char* line) {
    char command[8];
    int tid;
    if (std::sscanf(line, "%7s %d", command, &tid) != 2) return;
    if (std::strcmp(command, "stop") == 0) {
        if (::ptrace(PTRACE_SEIZE, tid, nullptr, nullptr) < 0) fail("PTRACE_SEIZE");
        if (::ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr) < 0) fail("PTRACE_INTERRUPT");
        if (::waitpid(tid, nullptr, __WALL) < 0) fail("waitpid");
        std::puts("stopped");
    } else {
        if (::ptrace(PTRACE_DETACH, tid, nullptr, nullptr) < 0) fail("PTRACE_DETACH");
        std::puts("going");
    }
}

}  // namespace

int main(int, char** arguments) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, arguments[1], sizeof address.sun_path - 1);
    if (::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0) fail("bind");
    std::puts("listening");
    pollfd sources[] = {{fd, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
    while (::poll(sources, 2, -1) >= 0) {
        char text[4096];
        if (sources[0].revents != 0) {
            const ssize_t bytes = ::recv(fd, text, sizeof text - 1, 0);
            text[bytes < 0 ? 0 : bytes] = 0;
            for (char* at = text; (at = std::strchr(at, '\n')) != nullptr;) *at = '|';
            std::puts(text);
        }
        if (sources[1].revents != 0) {
            const ssize_t bytes = ::read(STDIN_FILENO, text, sizeof text - 1);
            if (bytes <= 0) return 0;
            text[bytes] = 0;
            obey(text);
        }
    }
}
