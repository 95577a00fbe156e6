/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A QEMU plugin that counts what a PV guest executes and what Xen executes for it, by hypercall.
 *
 * counts=FD           memory file of struct counts, which the process that started QEMU reads
 * handlers=HEX:HEX... addresses of Xen's do_...() functions, one for each kind of hypercall
 *
 * An instruction counts when it is begun. A string instruction (rep stos) that QEMU begins again
 * for each of its steps counts once, as on a processor; the further steps count apart.
 *
 * What Xen executes between two instructions of the guest is one entry into Xen. It belongs to the
 * first handler that is called in it, or to kind 0 if there is none: an interrupt, a fault, or a
 * hypercall of a kind that was not asked for.
 *
 * The few functions of QEMU that are used are declared here, as in hypercalls.c.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))
#define XEN_START 0xffff800000000000ull
#define XEN_END 0xffff880000000000ull
enum { NO_REGS = 0, MAX_KINDS = 8 };

typedef uint64_t plugin_id;
typedef void tb_cb(plugin_id, void *tb);
typedef void exec_cb(unsigned cpu, void *data);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, tb_cb *);
void qemu_plugin_register_vcpu_insn_exec_cb(void *insn, exec_cb *, int flags, void *data);
size_t qemu_plugin_tb_n_insns(const void *tb);
void *qemu_plugin_tb_get_insn(const void *tb, size_t i);
uint64_t qemu_plugin_insn_vaddr(const void *insn);

EXPORT int qemu_plugin_version = PLUGIN_VERSION;

struct counts {
    uint64_t guest, guest_steps, xen_steps;
    uint64_t pending;           /* of the entry into Xen that has not come to its end */
    uint64_t xen[MAX_KINDS], entries[MAX_KINDS];
};

static struct counts *counts;
static uint64_t handlers[MAX_KINDS]; /* [0] is not used */
static int nr_kinds = 1, kind;
static void *last;

static void on_guest(unsigned cpu, void *vaddr)
{
    if (vaddr == last) {
        counts->guest_steps++;
        return;
    }
    last = vaddr;
    if (counts->pending) {
        counts->xen[kind] += counts->pending;
        counts->entries[kind]++;
        counts->pending = kind = 0;
    }
    counts->guest++;
}

static void on_xen(unsigned cpu, void *vaddr)
{
    if (vaddr == last)
        counts->xen_steps++;
    else
        counts->pending++;
    last = vaddr;
}

static void on_handler(unsigned cpu, void *vaddr)
{
    on_xen(cpu, vaddr);
    for (int i = 1; i < nr_kinds && !kind; i++)
        if (handlers[i] == (uintptr_t)vaddr)
            kind = i;
}

static exec_cb *callback_of(uint64_t vaddr)
{
    if (vaddr < XEN_START || vaddr >= XEN_END)
        return on_guest;
    for (int i = 1; i < nr_kinds; i++)
        if (handlers[i] == vaddr)
            return on_handler;
    return on_xen;
}

static void on_translate(plugin_id id, void *tb)
{
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        void *insn = qemu_plugin_tb_get_insn(tb, i);
        uint64_t vaddr = qemu_plugin_insn_vaddr(insn);

        qemu_plugin_register_vcpu_insn_exec_cb(insn, callback_of(vaddr), NO_REGS,
                                               (void *)(uintptr_t)vaddr);
    }
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        char *value = strchr(argv[i], '=') + 1;

        if (!strncmp(argv[i], "counts=", 7))
            counts = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(value), 0);
        else if (!strncmp(argv[i], "handlers=", 9))
            for (; nr_kinds < MAX_KINDS && *value; value += *value == ':')
                handlers[nr_kinds++] = strtoull(value, &value, 16);
    }
    if (!counts || counts == MAP_FAILED)
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    return 0;
}
