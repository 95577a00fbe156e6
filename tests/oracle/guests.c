/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Builds guests with the real libxenguest, by libxl's calls in libxl's order; it is dom0's init.
 *
 * A line of /guests is one guest:
 *   KERNEL PAGES RAMDISK HOLE SECOND PRETEND
 * PAGES of memory, then a HOLE and SECOND pages more if SECOND is not 0; RAMDISK is a file or "-".
 * PRETEND 1 lets the library take a hypervisor without 32-bit guests for one that has them, and
 * ends before that would be noticed.
 *
 * Each guest is built by a process of its own, as the library can abort or log for ever. Where
 * there is something to see the program calls look(), which does nothing: the machine is stopped
 * there from outside, and `seen` and whatever it points to are read from its memory.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xenctrl.h>
#include <xenguest.h>

enum { BEFORE_PIN = 1, AFTER_PIN, ENDED };
enum { LOG_BYTES = 1 << 18, SECONDS = 60 };
static const char cmd_line[] = "console=hvc0 root=/dev/xvda1 ro", log_file[] = "/log";

/* 64-bit words, in shared memory. */
static struct seen {
    uint64_t what, status, domid;
    uint64_t log, log_bytes;
    uint64_t p2m, p2m_size; /* array of mfns; its elements */
    uint64_t root, start_info, shared_info; /* mfns */
    uint64_t store_evtchn, console_evtchn;
    uint64_t cr3, rip, rsi, rsp, rflags, cs, ss;
} *seen;

struct guest {
    char kernel[64], ramdisk[64];
    unsigned long nr_pages, hole, second;
    int pretend;
};

static int (*bootlate)(struct xc_dom_image *);
static int pretend;

__attribute__((noinline)) void look(const struct seen *at)
{
    __asm__ volatile("" : : "r"(at) : "memory");
}

static void must(int failed, const char *what)
{
    if (failed) {
        printf("failed: %s\n", what);
        exit(1);
    }
}
#define MUST(call) must((call) != 0, #call)

static void show(struct xc_dom_image *dom, int what)
{
    seen->what = what;
    seen->p2m = (uintptr_t)dom->pv_p2m;
    seen->p2m_size = dom->p2m_size;
    seen->root = dom->pv_p2m[dom->pgtables_seg.pfn];
    seen->start_info = dom->pv_p2m[dom->start_info_pfn];
    seen->shared_info = dom->shared_info_mfn;
    seen->store_evtchn = dom->xenstore_evtchn;
    seen->console_evtchn = dom->console_evtchn;
    look(seen);
}

/* In place of the library's own function, which pins the root table first of all. */
static int before_pin(struct xc_dom_image *dom)
{
    show(dom, BEFORE_PIN);
    return pretend ? -1 : bootlate(dom);
}

static void read_registers(xc_interface *xch)
{
    vcpu_guest_context_any_t context;

    MUST(xc_vcpu_getcontext(xch, seen->domid, 0, &context));
    seen->cr3 = context.x64.ctrlreg[3];
    seen->rip = context.x64.user_regs.rip;
    seen->rsi = context.x64.user_regs.rsi;
    seen->rsp = context.x64.user_regs.rsp;
    seen->rflags = context.x64.user_regs.rflags;
    seen->cs = context.x64.user_regs.cs;
    seen->ss = context.x64.user_regs.ss;
}

static void build(const struct guest *guest)
{
    xentoollog_logger *logger = (void *)xtl_createlogger_stdiostream(stdout, XTL_DETAIL, 0);
    xc_interface *xch = xc_interface_open(logger, logger, 0);
    struct xen_domctl_createdomain config = {
        .max_vcpus = 1,
        .max_evtchn_port = 1023,
        .max_grant_frames = 64,
        .max_maptrack_frames = 1024,
#ifdef XEN_DOMCTL_GRANT_version
        .grant_opts = XEN_DOMCTL_GRANT_version(2),
#endif
    };
    unsigned long total = guest->nr_pages + guest->second;
    uint64_t second_at = (uint64_t)(guest->nr_pages + guest->hole) << 12;
    xen_vmemrange_t ranges[] = {
        {.start = 0, .end = (uint64_t)guest->nr_pages << 12, .nid = 0},
        {.start = second_at, .end = second_at + ((uint64_t)guest->second << 12), .nid = 1},
    };
    unsigned int nodes[] = {XC_NUMA_NO_NODE, XC_NUMA_NO_NODE};
    struct xc_dom_image *dom;
    uint32_t domid = 0;

    must(!xch, "xc_interface_open");
    MUST(xc_domain_create(xch, &domid, &config));
    seen->domid = domid;
    MUST(xc_domain_max_vcpus(xch, domid, 1));
    MUST(xc_domain_setmaxmem(xch, domid, total * 4 + 1024));

    dom = xc_dom_allocate(xch, cmd_line, NULL);
    must(!dom, "xc_dom_allocate");
    dom->container_type = XC_DOM_PV_CONTAINER;
    dom->claim_enabled = 1;
    MUST(xc_dom_kernel_file(dom, guest->kernel));
    if (strcmp(guest->ramdisk, "-"))
        MUST(xc_dom_module_file(dom, guest->ramdisk, NULL));
    dom->flags = 0;
    dom->console_evtchn = xc_evtchn_alloc_unbound(xch, domid, 0);
    dom->xenstore_evtchn = xc_evtchn_alloc_unbound(xch, domid, 0);
    if (guest->second) {
        dom->vmemranges = ranges;
        dom->vnode_to_pnode = nodes;
        dom->nr_vmemranges = dom->nr_vnodes = 2;
    }
    MUST(xc_dom_boot_xen_init(dom, xch, domid));
    if (pretend)
        strcat(dom->xen_caps, " xen-3.0-x86_32p ");
    printf("guests that Xen knows: %s\n", dom->xen_caps);
    MUST(xc_dom_parse_image(dom));
    MUST(xc_dom_mem_init(dom, total >> 8));
    dom->total_pages = total; /* xl cannot ask for less than 1 MiB */
    if (pretend) {
        const char *type = dom->guest_type;

        dom->guest_type = "xen-3.0-x86_64"; /* the hypervisor is not asked for a 32-bit guest */
        MUST(xc_dom_boot_mem_init(dom));
        dom->guest_type = type;
    } else
        MUST(xc_dom_boot_mem_init(dom));
    MUST(xc_dom_build_image(dom));
    bootlate = dom->arch_hooks->bootlate;
    dom->arch_hooks->bootlate = before_pin;
    MUST(xc_dom_boot_image(dom));
    read_registers(xch);
    show(dom, AFTER_PIN);
}

/* Build it in another process, whose log is limited; then show how that went. */
static void run(xc_interface *xch, const struct guest *guest)
{
    static char log[LOG_BYTES];
    const struct rlimit limit = {LOG_BYTES, LOG_BYTES};
    int status, file = open(log_file, O_RDWR | O_CREAT | O_TRUNC | O_APPEND, 0600);
    pid_t child;

    memset(seen, 0, sizeof(*seen));
    child = fork();
    if (!child) {
        setrlimit(RLIMIT_FSIZE, &limit); /* the signal of a log that never ends: SIGXFSZ */
        alarm(SECONDS);
        dup2(file, STDOUT_FILENO);
        dup2(file, STDERR_FILENO);
        pretend = guest->pretend;
        build(guest);
        exit(0);
    }
    waitpid(child, &status, 0);
    seen->what = ENDED;
    seen->status = status;
    seen->log = (uintptr_t)log;
    seen->log_bytes = pread(file, log, LOG_BYTES, 0);
    close(file);
    look(seen);
    if (seen->domid)
        xc_domain_destroy(xch, seen->domid);
}

int main(void)
{
    int module = open("/xen-privcmd.ko", O_RDONLY);
    xc_interface *xch;
    struct guest guest;
    FILE *guests;

    mount("dev", "/dev", "devtmpfs", 0, NULL);
    if (syscall(SYS_finit_module, module, "", 0))
        perror("xen-privcmd");
    seen = mmap(NULL, sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    xch = xc_interface_open(NULL, NULL, 0);
    guests = fopen("/guests", "r");
    while (fscanf(guests, "%63s %lu %63s %lu %lu %d", guest.kernel, &guest.nr_pages, guest.ramdisk,
                  &guest.hole, &guest.second, &guest.pretend) == 6)
        run(xch, &guest);
    return 0; /* Linux panics, but by then nobody looks */
}
