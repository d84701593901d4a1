/*
 * An LD_PRELOAD library that gives Debian's xenstored and oxenstored 4.17 what they need of Xen on a machine without it:
 * domains, one event channel file descriptor, and a page per domain for its xenstore ring. For tests only. What it knows
 * is in files under $XSHIM_DIR, so that a test can play the hypervisor:
 *
 *   dom/N     there: domain N lives (domain 0 always does)
 *   evtchn    a FIFO: a u32 written to it raises that port; port 1 is VIRQ_DOM_EXC ("some domain died"), and any other
 *             wakes the daemon to look at all rings
 *   ring.N    domain N's xenstore ring page (xen/include/public/io/xs_wire.h, struct xenstore_domain_interface)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xengnttab.h>

enum { PAGE_BYTES = 4096, DOMAINS_LOOKED_AT = 64, VIRQ_PORT = 1 };

/* Every handle is the same: there is nothing behind it. */
static char handle;

/* The daemons have one thread: one buffer will do. */
static const char *file_of(const char *name, unsigned number) {
    static char path[512];
    const char *dir = getenv("XSHIM_DIR");
    const int at = snprintf(path, sizeof path, "%s/", dir ? dir : ".");
    snprintf(path + at, sizeof path - at, name, number);
    return path;
}

static int lives(uint32_t domain) { return domain == 0 || access(file_of("dom/%u", domain), F_OK) == 0; }

static void *map_ring(unsigned domain) {
    if (!lives(domain)) {
        errno = EINVAL;
        return NULL;
    }
    const int fd = open(file_of("ring.%u", domain), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return NULL;
    void *page = MAP_FAILED;
    if (ftruncate(fd, PAGE_BYTES) == 0) {
        page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

/* libxenctrl: which domains live */

xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild, unsigned flags) {
    return (xc_interface *)&handle;
}

int xc_interface_close(xc_interface *xch) { return 0; }

const xc_error *xc_get_last_error(xc_interface *xch) {
    static xc_error error = {.code = 0, .message = "no Xen here"};
    return &error;
}

int xc_domain_getinfo(xc_interface *xch, uint32_t first, unsigned most, xc_dominfo_t *info) {
    unsigned count = 0;
    for (uint32_t domain = first; count < most && domain < first + DOMAINS_LOOKED_AT; domain++) {
        if (!lives(domain)) continue;
        memset(&info[count], 0, sizeof info[count]);
        info[count].domid = domain;
        info[count].running = 1;
        count++;
    }
    if (count > 0) return (int)count;
    errno = ESRCH;
    return -1;
}

int xc_domain_getinfolist(xc_interface *xch, uint32_t first, unsigned most, xc_domaininfo_t *info) {
    unsigned count = 0;
    for (uint32_t domain = first; count < most && domain < first + DOMAINS_LOOKED_AT; domain++) {
        if (!lives(domain)) continue;
        memset(&info[count], 0, sizeof info[count]);
        info[count].domain = domain;
        info[count].flags = XEN_DOMINF_running;
        count++;
    }
    return (int)count;
}

void *xc_map_foreign_range(xc_interface *xch, uint32_t domain, int size, int prot, unsigned long frame) {
    return map_ring(domain);
}

/* libxengnttab: the rings */

xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned flags) {
    return (xengnttab_handle *)&handle;
}

int xengnttab_close(xengnttab_handle *xgt) { return 0; }

int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t count) { return 0; }

void *xengnttab_map_grant_ref(xengnttab_handle *xgt, uint32_t domain, uint32_t ref, int prot) {
    return map_ring(domain);
}

int xengnttab_unmap(xengnttab_handle *xgt, void *address, uint32_t count) {
    return munmap(address, (size_t)count * PAGE_BYTES);
}

/* libxenevtchn: one FIFO for all ports */

static int events = -1;

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned flags) {
    mkfifo(file_of("evtchn", 0), 0600);
    /* Read and write: a FIFO without writers would be readable all the time. */
    events = open(file_of("evtchn", 0), O_RDWR);
    return events < 0 ? NULL : (xenevtchn_handle *)&handle;
}

xenevtchn_handle *xenevtchn_fdopen(struct xentoollog_logger *logger, int fd, unsigned flags) {
    events = fd;
    return (xenevtchn_handle *)&handle;
}

int xenevtchn_close(xenevtchn_handle *xce) { return close(events); }

int xenevtchn_fd(xenevtchn_handle *xce) { return events; }

int xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned virq) { return VIRQ_PORT; }

int xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domain, evtchn_port_t remote) {
    static int last = VIRQ_PORT;
    return ++last;
}

int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port) { return 0; }

int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port) { return 0; }

int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port) { return 0; }

int xenevtchn_pending(xenevtchn_handle *xce) {
    evtchn_port_t port;
    return read(events, &port, sizeof port) == sizeof port ? (int)port : -1;
}

/* libc: the two files by which Xen's kernel tells domain 0's ring, and a limit that only root may raise */

static int open_store_port(void) {
    int ends[2];
    if (pipe(ends) != 0) return -1;
    const ssize_t written = write(ends[1], "1", 1);
    close(ends[1]);
    if (written == 1) return ends[0];
    close(ends[0]);
    return -1;
}

static int open_as(const char *name, const char *path, int flags, mode_t mode) {
    int (*next)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name);
    if (strcmp(path, "/proc/xen/xsd_port") == 0) return open_store_port();
    if (strcmp(path, "/proc/xen/xsd_kva") != 0) return next(path, flags, mode);
    const int fd = next(file_of("ring.%u", 0), O_RDWR | O_CREAT, 0600);
    if (fd >= 0 && ftruncate(fd, PAGE_BYTES) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return open_as("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return open_as("open64", path, flags, mode);
}

int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit) { return 0; }

int setrlimit64(__rlimit_resource_t resource, const struct rlimit64 *limit) { return 0; }
