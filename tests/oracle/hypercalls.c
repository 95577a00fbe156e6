/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A QEMU plugin that records the hypercalls of a PV guest, with their argument arrays.
 *
 * out=FILE     where the records go
 * size=HEX     bytes of the emulated RAM;  below=HEX  how many of them lie below 4 GiB
 * ram=FD       its memory file
 * control=FD   memory file of struct control, which the process that started QEMU writes
 * call=HEX     address of Xen's instruction `call pv_hypercall`
 *
 * At that call Xen pushes a return address right below its struct cpu_user_regs: where the push
 * goes is where the guest's registers are.
 *
 * The few functions of QEMU that are used are declared here, because distributions do not all
 * package qemu-plugin.h; their form has not changed since QEMU 4.2.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define EXPORT __attribute__((visibility("default")))
#define MFN_MASK 0xffffffffff000ull
enum { MMU_UPDATE = 1, MULTICALL = 13, MMUEXT_OP = 26, MAX_ITEMS = 4096, MEM_W = 2 };
enum { NR_HYPERCALLS = 64 };
enum { HYPERCALL, BATCHED, UPDATE, EXTENDED }; /* kinds of records */

typedef uint64_t plugin_id;
typedef uint32_t mem_info;
typedef void tb_cb(plugin_id, void *tb);
typedef void mem_cb(unsigned cpu, mem_info, uint64_t vaddr, void *data);
typedef void exit_cb(plugin_id, void *data);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, tb_cb *);
void qemu_plugin_register_atexit_cb(plugin_id, exit_cb *, void *data);
void qemu_plugin_register_vcpu_mem_cb(void *insn, mem_cb *, int flags, int rw, void *data);
size_t qemu_plugin_tb_n_insns(const void *tb);
void *qemu_plugin_tb_get_insn(const void *tb, size_t i);
uint64_t qemu_plugin_insn_vaddr(const void *insn);

EXPORT int qemu_plugin_version = PLUGIN_VERSION;

struct control { uint64_t stage, root; }; /* stage 0: record nothing */
struct record { uint32_t stage; uint16_t op; uint8_t kind, depth; uint64_t args[4]; };
struct regs { uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi; };

static FILE *out;
static const uint8_t *ram;
static const volatile struct control *control;
static uint64_t below, call;

static const void *machine(uint64_t maddr)
{
    return ram + (maddr < below ? maddr : maddr - (1ull << 32) + below);
}

static const void *virtual(uint64_t vaddr)
{
    uint64_t entry = control->root;

    for (int shift = 39; shift >= 12; shift -= 9) {
        uint64_t inside = (1ull << shift) - 1;

        entry = ((const uint64_t *)machine(entry & MFN_MASK))[vaddr >> shift & 511];
        if (!(entry & 1))
            return NULL;
        if (shift == 12 || (shift < 39 && entry & 0x80))
            return machine((entry & MFN_MASK & ~inside) | (vaddr & inside));
    }
    return NULL;
}

/* Words that cannot be read become all ones, which no guest would write there. */
static void copy(uint64_t *to, uint64_t vaddr, int words)
{
    for (int i = 0; i < words; i++) {
        const uint64_t *from = virtual(vaddr + 8 * i);

        to[i] = from ? *from : ~0ull;
    }
}

static void emit(int kind, int depth, uint64_t op, const uint64_t *args, int words)
{
    struct record r = { control->stage, op, kind, depth, { 0 } };

    memcpy(r.args, args, 8 * words);
    fwrite(&r, sizeof r, 1, out);
}

static void hypercall(int depth, uint64_t op, const uint64_t *args)
{
    uint64_t nr = args[1] & 0xffffff, item[8];

    emit(depth ? BATCHED : HYPERCALL, depth, op, args, 4);
    if (op != MMU_UPDATE && op != MMUEXT_OP && !(op == MULTICALL && !depth))
        return;
    for (uint64_t i = 0; i < nr && i < MAX_ITEMS; i++) {
        switch (op) {
        case MMU_UPDATE: /* ptr, val */
            copy(item, args[0] + 16 * i, 2);
            emit(UPDATE, depth, op, item, 2);
            break;
        case MMUEXT_OP: /* cmd, arg1, arg2 */
            copy(item, args[0] + 24 * i, 3);
            item[0] = (uint32_t)item[0];
            emit(EXTENDED, depth, op, item, 3);
            break;
        default: /* op, result, args[6] */
            copy(item, args[0] + 64 * i, 8);
            hypercall(1, (uint32_t)item[0], item + 2);
        }
    }
}

static void on_push(unsigned cpu, mem_info info, uint64_t vaddr, void *data)
{
    /* Xen's own area is in every root of a guest, too */
    const uint64_t *pushed = control->stage ? virtual(vaddr) : NULL;

    const struct regs *r = (const void *)(pushed + 1);

    /* QEMU 7.2 may also call for other stores behind the block, which rarely look like this one */
    if (!pushed || *pushed != call + 5 || r->rax >= NR_HYPERCALLS)
        return;
    uint64_t args[4] = { r->rdi, r->rsi, r->rdx, r->r10 };
    hypercall(0, r->rax, args);
}

static void on_translate(plugin_id id, void *tb)
{
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        void *insn = qemu_plugin_tb_get_insn(tb, i);

        if (qemu_plugin_insn_vaddr(insn) == call)
            qemu_plugin_register_vcpu_mem_cb(insn, on_push, 0, MEM_W, NULL);
    }
}

static void on_exit_(plugin_id id, void *data)
{
    fclose(out);
}

static const void *map(const char *fd, size_t bytes)
{
    const void *at = mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, atoi(fd), 0);

    return at == MAP_FAILED ? NULL : at;
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    uint64_t size = 0;

    for (int i = 0; i < argc; i++) {
        char *value = strchr(argv[i], '=') + 1;

        if (!strncmp(argv[i], "out=", 4))
            out = fopen(value, "wb");
        else if (!strncmp(argv[i], "size=", 5))
            size = strtoull(value, NULL, 16);
        else if (!strncmp(argv[i], "ram=", 4))
            ram = map(value, size);
        else if (!strncmp(argv[i], "control=", 8))
            control = map(value, sizeof *control);
        else if (!strncmp(argv[i], "below=", 6))
            below = strtoull(value, NULL, 16);
        else if (!strncmp(argv[i], "call=", 5))
            call = strtoull(value, NULL, 16);
    }
    if (!out || !ram || !control || !call)
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
    qemu_plugin_register_atexit_cb(id, on_exit_, NULL);
    return 0;
}
