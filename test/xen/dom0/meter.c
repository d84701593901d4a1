// meter DOMID: what each domain costs between the marks that the guest DOMID sets. The guest writes anything new to its
// xenstore node data/mark; the answer is that text in data/seen, and here a line `TEXT DOM0_NS GUEST_NS`: how long dom0
// and the guest have had a processor since they were made, by Xen's own books. Ends when the guest does.
//
// Where time is counted instructions (boot.sh, CLOCK=icount) that is an exact cost: a domain that waits is charged
// nothing, and nothing but the backend runs in dom0 from one mark to the next.
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xenctrl.h>
#include <xenstore.h>

static void fail(const char *what) {
    perror(what);
    exit(1);
}

// False: there is no such domain, or it is on its way out.
static bool processor_ns(xc_interface *xc, uint32_t domid, uint64_t *ns) {
    xc_domaininfo_t info;
    if (xc_domain_getinfolist(xc, domid, 1, &info) != 1 || info.domain != domid) return false;
    if (info.flags & XEN_DOMINF_dying) return false;
    *ns = info.cpu_time;
    return true;
}

int main(int argc, char **argv) {
    if (argc != 2) return fputs("usage: meter DOMID\n", stderr), 2;
    const uint32_t domid = (uint32_t)atoi(argv[1]);
    xc_interface *xc = xc_interface_open(NULL, NULL, 0);
    if (xc == NULL) fail("opening Xen's control interface");
    struct xs_handle *store = xs_open(0);
    if (store == NULL) fail("opening xenstore");
    char mark[64], seen[64];
    snprintf(mark, sizeof mark, "/local/domain/%u/data/mark", domid);
    snprintf(seen, sizeof seen, "/local/domain/%u/data/seen", domid);
    if (!xs_watch(store, mark, "") || !xs_watch(store, "@releaseDomain", "")) fail("watching");
    char last[64] = "";
    for (;;) {
        unsigned count;
        free(xs_read_watch(store, &count));
        uint64_t dom0_ns, guest_ns;
        if (!processor_ns(xc, 0, &dom0_ns)) fail("looking at dom0");
        if (!processor_ns(xc, domid, &guest_ns)) return 0;
        char *text = xs_read(store, XBT_NULL, mark, &count);
        if (text != NULL && strcmp(text, last) != 0) {
            printf("%s %" PRIu64 " %" PRIu64 "\n", text, dom0_ns, guest_ns);
            fflush(stdout);
            snprintf(last, sizeof last, "%s", text);
            if (!xs_write(store, XBT_NULL, seen, text, (unsigned)strlen(text))) return 0;
        }
        free(text);
    }
}
