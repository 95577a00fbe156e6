# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of the Xen and x86 interfaces: page-table bits, hypercalls, ELF notes, start_info.

The only home of a bit or a number that Xen, Linux or the processor defines. Every name is the
field's own; the source is named beside each group. Values are plain Python integers, so they
may be used in arithmetic of any width.
"""

from typing import Final

import numpy as np

# --- Pages and tables (x86, 4-level) ---------------------------------------------------------
PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
TABLE_SHIFT: Final = 9
ENTRIES: Final = 1 << TABLE_SHIFT  # entries of one table page
LEVELS: Final = 4  # PV guests are never 5-level (SPEC A8)
VADDR_BITS: Final = 48
WORD: Final = 1 << 64  # addresses and entries are computed modulo this
HIGH_HALF: Final = WORD - (1 << VADDR_BITS)  # what sign extension adds above the lower half
VPN_END: Final = WORD >> PAGE_SHIFT  # virtual page numbers are below it, signs extended
# Address bits below the slot number of a table of level 2, 3, 4; bytes that one entry covers.
L2_SHIFT: Final = PAGE_SHIFT + TABLE_SHIFT
L3_SHIFT: Final = L2_SHIFT + TABLE_SHIFT
L4_SHIFT: Final = L3_SHIFT + TABLE_SHIFT
L2_SIZE: Final = 1 << L2_SHIFT
L3_SIZE: Final = 1 << L3_SHIFT
L4_SIZE: Final = 1 << L4_SHIFT

# --- Page-table entry (SPEC A1; Xen asm/page.h, x86_64/page.h) --------------------------------
PTE_PRESENT: Final = 0x1
PTE_RW: Final = 0x2
PTE_USER: Final = 0x4
PTE_PWT: Final = 0x8
PTE_PCD: Final = 0x10
PTE_ACCESSED: Final = 0x20
PTE_DIRTY: Final = 0x40
PTE_PSE: Final = 0x80  # level 2 and 3: a leaf of 2 MiB or 1 GiB
PTE_GLOBAL: Final = 0x100
PTE_AVAIL: Final = 0xE00
PTE_MFN_MASK: Final = 0x000F_FFFF_FFFF_F000
PTE_GUEST_KERNEL: Final = 1 << 52  # software bit of Xen, flag bit 12
PTE_SAVED_DIRTY: Final = 1 << 58  # software bit of Linux since 6.6 (_PAGE_BIT_SAVED_DIRTY)
PTE_NX: Final = 1 << 63

# --- Flags that the builders write (SPEC A3, golden/README.md rule 10) -------------------------
L1_PROT_DOM0: Final = PTE_GUEST_KERNEL | PTE_ACCESSED | PTE_USER | PTE_RW | PTE_PRESENT
L1_PROT_COMPAT: Final = PTE_ACCESSED | PTE_RW | PTE_PRESENT
TABLE_PROT: Final = PTE_DIRTY | PTE_ACCESSED | PTE_USER | PTE_RW | PTE_PRESENT

# --- Address space of a 64-bit PV guest (SPEC A7, F) -------------------------------------------
HYPERVISOR_VIRT_START: Final = 0xFFFF_8000_0000_0000  # L4 slots 256..271 are Xen's
HYPERVISOR_VIRT_END: Final = 0xFFFF_8800_0000_0000
COMPAT_HYPERVISOR_VIRT_START: Final = 0xF580_0000  # lowest start of Xen's area, 32-bit guest
START_KERNEL_MAP: Final = 0xFFFF_FFFF_8000_0000  # Linux __START_KERNEL_map
ISA_START_ADDRESS: Final = 0xA0000
ISA_END_ADDRESS: Final = 0x100000

# --- p2m entries (Linux asm/xen/page.h) --------------------------------------------------------
INVALID_P2M_ENTRY: Final = (1 << 64) - 1

# --- Hypercalls (public/xen.h; SPEC E11) --------------------------------------------------------
HYPERVISOR_MMU_UPDATE: Final = 1
HYPERVISOR_MEMORY_OP: Final = 12
HYPERVISOR_MULTICALL: Final = 13
HYPERVISOR_UPDATE_VA_MAPPING: Final = 14
HYPERVISOR_MMUEXT_OP: Final = 26
MMUEXT_PIN_L1_TABLE: Final = 0
MMUEXT_PIN_L2_TABLE: Final = 1
MMUEXT_PIN_L3_TABLE: Final = 2
MMUEXT_PIN_L4_TABLE: Final = 3
MMUEXT_UNPIN_TABLE: Final = 4
MMUEXT_NEW_BASEPTR: Final = 5
MMUEXT_TLB_FLUSH_LOCAL: Final = 6
MMUEXT_INVLPG_LOCAL: Final = 7
MMUEXT_TLB_FLUSH_MULTI: Final = 8
MMUEXT_INVLPG_MULTI: Final = 9
MMUEXT_TLB_FLUSH_ALL: Final = 10
MMUEXT_INVLPG_ALL: Final = 11
MMUEXT_FLUSH_CACHE: Final = 12
MMUEXT_SET_LDT: Final = 13
MMUEXT_NEW_USER_BASEPTR: Final = 15
MMUEXT_CLEAR_PAGE: Final = 16
MMUEXT_COPY_PAGE: Final = 17
MMU_NORMAL_PT_UPDATE: Final = 0
MMU_MACHPHYS_UPDATE: Final = 1
MMU_PT_UPDATE_PRESERVE_AD: Final = 2
MMU_PT_UPDATE_NO_TRANSLATE: Final = 3
UVMF_NONE: Final = 0
UVMF_INVLPG: Final = 2
DOMID_SELF: Final = 0x7FF0
XENMEM_DECREASE_RESERVATION: Final = 1
XENMEM_MAXIMUM_RESERVATION: Final = 4
XENMEM_MEMORY_MAP: Final = 9
XENMEM_MACHINE_MEMORY_MAP: Final = 10

# --- Page types and counts (Xen asm/mm.h of 4.17 to 4.20; SPEC E11, golden/README.md rule 13) ----
PGT_L1_PAGE_TABLE: Final = 1 << 61
PGT_L2_PAGE_TABLE: Final = 2 << 61
PGT_L3_PAGE_TABLE: Final = 3 << 61
PGT_L4_PAGE_TABLE: Final = 4 << 61
PGT_SEG_DESC_PAGE: Final = 5 << 61
PGT_WRITABLE_PAGE: Final = 7 << 61
PGT_TYPE_MASK: Final = 7 << 61
PGT_PINNED: Final = 1 << 59
PGT_VALIDATED: Final = 1 << 58
PGT_COUNT_MASK: Final = (1 << 55) - 1
PGC_ALLOCATED: Final = 1 << 63
PGC_XEN_HEAP: Final = 1 << 62
PGC_COUNT_MASK: Final = (1 << 54) - 1
MAX_ORDER: Final = 18  # largest chunk of x86 Xen: 1 GiB (CONFIG_PAGEALLOC_MAX_ORDER, SPEC B5)

# --- ELF notes of Xen (public/elfnote.h; SPEC D1) -----------------------------------------------
XEN_ELFNOTE_NAME: Final = "Xen"
XEN_ELFNOTES: Final = {
    0: "INFO",
    1: "ENTRY",
    2: "HYPERCALL_PAGE",
    3: "VIRT_BASE",
    4: "PADDR_OFFSET",
    5: "XEN_VERSION",
    6: "GUEST_OS",
    7: "GUEST_VERSION",
    8: "LOADER",
    9: "PAE_MODE",
    10: "FEATURES",
    11: "BSD_SYMTAB",
    12: "HV_START_LOW",
    13: "L1_MFN_VALID",
    14: "SUSPEND_CANCEL",
    15: "INIT_P2M",
    16: "MOD_START_PFN",
    17: "SUPPORTED_FEATURES",
    18: "PHYS32_ENTRY",
    19: "PHYS32_RELOC",
}
XEN_ELFNOTE_STRINGS: Final = frozenset({5, 6, 7, 8, 9, 10, 11})
XENFEATURES: Final = {
    "writable_page_tables": 0,
    "writable_descriptor_tables": 1,
    "auto_translated_physmap": 2,
    "supervisor_mode_kernel": 3,
    "pae_pgdir_above_4gb": 4,
    "hvm_callback_vector": 8,
    "dom0": 11,
}

# --- start_info (public/xen.h; SPEC B11) ---------------------------------------------------------
SIF_PRIVILEGED: Final = 1 << 0
SIF_INITDOMAIN: Final = 1 << 1
SIF_MULTIBOOT_MOD: Final = 1 << 2
SIF_MOD_START_PFN: Final = 1 << 3
SIF_VIRT_P2M_4TOOLS: Final = 1 << 4
SIF_PM_SHIFT: Final = 8

# --- Registers of a new 64-bit vcpu (public/arch-x86/xen-x86_64.h; SPEC C8) -----------------------
FLAT_KERNEL_CS: Final = 0xE033
FLAT_KERNEL_SS: Final = 0xE02B
X86_EFLAGS_IF: Final = 0x200

_START_INFO_FIELDS: Final = [
    "magic",
    "nr_pages",
    "shared_info",
    "flags",
    "store_mfn",
    "store_evtchn",
    "console_info_off",
    "console_info_size",
    "pt_base",
    "nr_pt_frames",
    "mfn_list",
    "mod_start",
    "mod_len",
    "cmd_line",
    "first_p2m_pfn",
    "nr_p2m_frames",
]
START_INFO_64: Final = np.dtype(
    {
        "names": _START_INFO_FIELDS,
        "formats": [
            "S32", "<u8", "<u8", "<u4", "<u8", "<u4", "<u4", "<u4",
            "<u8", "<u8", "<u8", "<u8", "<u8", "S1024", "<u8", "<u8",
        ],
        "offsets": [0, 32, 40, 48, 56, 64, 72, 76, 88, 96, 104, 112, 120, 128, 1152, 1160],
        "itemsize": 1168,
    }
)  # fmt: skip
START_INFO_32: Final = np.dtype(
    {
        "names": _START_INFO_FIELDS,
        "formats": [
            "S32", "<u4", "<u4", "<u4", "<u4", "<u4", "<u4", "<u4",
            "<u4", "<u4", "<u4", "<u4", "<u4", "S1024", "<u4", "<u4",
        ],
        "offsets": [0, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 76, 80, 1104, 1108],
        "itemsize": 1112,
    }
)  # fmt: skip


def is_canonical(vaddr: int) -> bool:
    """The bits of `vaddr` from 47 on are all alike, as the processor asks for."""
    return vaddr >> (VADDR_BITS - 1) in (0, (WORD - 1) >> (VADDR_BITS - 1))


def canonical(vaddr: int) -> int:
    """The address of whose bits `vaddr`, in [0, 2**48], has the lower 48; an end may be 2**64."""
    return vaddr + HIGH_HALF if vaddr >> (VADDR_BITS - 1) else vaddr


def table_slot(vaddr: int, level: int) -> int:
    """Index of `vaddr` in its table of `level` (1 holds 4 KiB leaves), in [0, 512)."""
    return (vaddr >> (PAGE_SHIFT + TABLE_SHIFT * (level - 1))) & (ENTRIES - 1)


def round_up(value: int, step: int) -> int:
    """Smallest multiple of `step` that is not below `value`."""
    return -(-value // step) * step


def round_down(value: int, step: int) -> int:
    """Largest multiple of `step` that is not above `value`."""
    return value // step * step


def pfn_up(nr_bytes: int) -> int:
    """Pages of 4 KiB that hold `nr_bytes`, rounded up."""
    return (nr_bytes + PAGE_SIZE - 1) >> PAGE_SHIFT


def get_order(nr_bytes: int) -> int:
    """Smallest order whose 2**order pages hold `nr_bytes` (Xen get_order_from_bytes)."""
    return max(pfn_up(nr_bytes) - 1, 0).bit_length()


#: Slots of an L4 table that belong to Xen (SPEC A7); its linear map there shows the tables again.
XEN_SLOTS: Final = range(
    table_slot(HYPERVISOR_VIRT_START, LEVELS), table_slot(HYPERVISOR_VIRT_END, LEVELS)
)
