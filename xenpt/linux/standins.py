# SPDX-License-Identifier: GPL-2.0-or-later
"""Places for a kernel's static tables where no symbols say where they are.

Checked mode stores into these tables, and so each needs a frame. No rule of Xen and no count
depends on which one, as long as it is a page of the kernel's own image that nothing else needs.
"""

from dataclasses import replace

from xenpt.abi import PAGE_SHIFT, PAGE_SIZE, pfn_up
from xenpt.inputs.kernel import Kernel
from xenpt.linux.rules import LinuxRules

#: Static tables that every generation has, and two pages that it maps things in.
_NAMES = (
    "level3_ident_pgt",
    "level3_kernel_pgt",
    "level3_user_vsyscall",
    "level2_ident_pgt",
    "level2_kernel_pgt",
    "level2_fixmap_pgt",
    "level1_fixmap_pgt",
    "bm_pte",
    "xen_remap_buf",
)


def with_stand_ins(kernel: Kernel, rules: LinuxRules) -> Kernel | None:
    """`kernel` with all symbols that the stages use; unknown ones name the image's first pages.

    :returns: None where the image has too few pages
    """
    known = kernel.symbols or {}
    wanted = dict.fromkeys(_NAMES, 1) | dict(rules.ro_tables)
    taken = {
        (vaddr >> PAGE_SHIFT) + page
        for name, vaddr in known.items()
        for page in range(wanted.get(name, 0))
    }
    free = pfn_up(int(kernel.virt_kstart))
    end = int(kernel.virt_kend) >> PAGE_SHIFT
    found = dict(known)
    for name, nr in wanted.items():
        if name in found:
            continue
        while taken & set(range(free, free + nr)):
            free += 1
        found[name] = free * PAGE_SIZE
        free += nr
    return replace(kernel, symbols=found) if free <= end else None
