# SPDX-License-Identifier: GPL-2.0-or-later
"""Real boots as the model's inputs: the kernel, the plan and the maps of a golden oracle case."""

import re
from dataclasses import replace
from typing import Any

import goldendata
import numpy as np
from goldenplan import kernel_of

from xenpt.abi import (
    HYPERVISOR_MEMORY_OP,
    HYPERVISOR_MMU_UPDATE,
    HYPERVISOR_MMUEXT_OP,
    HYPERVISOR_MULTICALL,
    HYPERVISOR_UPDATE_VA_MAPPING,
    MMUEXT_NEW_BASEPTR,
    PAGE_SHIFT,
    PAGE_SIZE,
    PTE_MFN_MASK,
    PTE_PRESENT,
    PTE_RW,
    START_KERNEL_MAP,
)
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import Kernel, default_kernel
from xenpt.linux import V6_1, V6_12
from xenpt.linux.boot import Boot
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build

PREEMPTED = 1 << 31  # in the count of mmu_update and mmuext_op: the rest of a call
UNITS = {"K": 10, "M": 20, "G": 30}
#: Where a kernel's own symbols cannot be had: its brk area's end, as its boots report it.
BRK_END = {"5.10": 0x400D000, "6.12": 0x3C11000, "7.2": 0x4211000}
#: Profile by kernel series; no profile is named after the others, which are like v6.1 or v6.12.
RULES = {"5.10": V6_1, "6.1": V6_1, "6.12": V6_12, "7.2": V6_12}
REMAP_BUFFER = {"6.1": 0xFFFFFFFF83131000, "6.12": 0xFFFFFFFF833E9000}


def version(case: str) -> str:
    """The kernel series of a case: 6.1, 6.12, ..."""
    found = re.match(r"\d+\.\d+", goldendata.facts(case)["options"]["linux"])
    assert found, case
    return found[0]


def linux_of(case: str) -> Kernel:
    """The kernel that was booted, with the symbols that its boots give away."""
    kernel, series = kernel_of(case), version(case)
    known = default_kernel().symbols or {}
    symbols = dict(known) if series == "6.1" else _symbols(case, kernel.virt_kstart)
    buffer = REMAP_BUFFER.get(series, START_KERNEL_MAP)
    return replace(kernel, symbols=symbols | {"xen_remap_buf": buffer})


def _symbols(case: str, text: int) -> dict[str, int]:
    """Symbols of another kernel: its static tables are those that it makes read-only."""
    found = {"_text": text, "_brk_end": START_KERNEL_MAP + BRK_END[version(case)]}
    if "trace" in goldendata.arrays(case):
        trace = goldendata.arrays(case)["trace"]
        rows = trace[(trace["phase"] == 3) & (trace["op"] == HYPERVISOR_UPDATE_VA_MAPPING)]
        names = [name for name, nr in V6_1.ro_tables for _ in range(nr)]
        for name, row in zip([*names, "level3_user_vsyscall"], rows, strict=False):
            found.setdefault(name, int(row["a"][0]))
    return found


def boot_of(case: str, *, record: bool = True) -> Boot:
    """The case's domain at its entry, to be booted by the profile of its kernel."""
    facts = goldendata.facts(case)
    start_info: dict[str, Any] = facts["dump"]["start_info"]
    plan = plan_dom0(
        linux_of(case),
        Host(xen=facts["xen"]["version"]),
        nr_pages=start_info["nr_pages"],
        initrd_bytes=facts["options"]["initrd_size"] or None,
    )
    e820 = [Ram(start, last + 1, kind) for start, last, kind in facts["xen"]["e820"]]
    limit = re.search(r"max:(\d+)([KMG])", facts["options"]["dom0_mem"])
    most = int(limit[1]) << UNITS[limit[2]] if limit else PAGE_SIZE << 32
    return Boot(
        build(plan),
        rules=RULES[version(case)],
        e820=e820,
        max_reservation=most // PAGE_SIZE,
        record=record,
    )


def reserve_unmodelled(boot: Boot, first_table: int) -> None:
    """Take what a real boot allocates between init_mem_mapping and paging_init (ACPI, per-cpu).

    :param first_table: frame of the first table of paging_init: all free memory above is in use
    """
    memblock = boot.state.memblock
    top = memblock.memory.ranges[-1][1]
    boot.state = replace(boot.state, memblock=memblock.reserve((first_table + 1) * PAGE_SIZE, top))


class Frames:
    """pfns, at dom0's entry, of machine frames; an mfn that is not dom0's is named as such."""

    def __init__(self, case: str) -> None:
        rows = goldendata.arrays(case)["entry_p2m_runs"].astype(np.int64)
        pfn, mfn, step, nr = rows.T
        down = (step < 0) & (nr > 1)
        low = np.where(down, mfn - nr + 1, mfn)
        first, pace = np.where(down, pfn + nr - 1, pfn), np.where(down, -1, 1)
        runs = np.stack((low, first, pace, nr))[:, np.argsort(low)]
        self.low, self.first, self.step, self.nr = runs.tolist()

    def pfn(self, mfn: int) -> int | str:
        """Frame of a machine frame; an mfn that is not dom0's is named as such."""
        at = int(np.searchsorted(self.low, mfn, side="right")) - 1
        i = mfn - self.low[at]
        return self.first[at] + i * self.step[at] if 0 <= i < self.nr[at] else f"mfn {mfn:#x}"

    def entry(self, word: int) -> tuple[int | str | None, bool]:
        """What an entry maps, and whether it is writable."""
        if not word & PTE_PRESENT:
            return None, False
        return self.pfn((word & PTE_MFN_MASK) >> PAGE_SHIFT), bool(word & PTE_RW)


def traced(case: str, phase: str) -> list[tuple[Any, ...]]:
    """The calls of a phase of a trace as tuples, in order."""
    trace = goldendata.arrays(case)["trace"]
    names = [name for name, _ in goldendata.facts(case)["dump"]["hypercall_phases"]]
    rows = trace[trace["phase"] == names.index(phase) + 1]
    name_of = Frames(case)
    calls: list[tuple[Any, ...]] = []
    restarted = False
    for row in rows:
        op, kind, args = int(row["op"]), int(row["kind"]), [int(a) for a in row["a"]]
        if kind in (0, 1):
            restarted = op in (HYPERVISOR_MMU_UPDATE, HYPERVISOR_MMUEXT_OP) and bool(
                args[1] & PREEMPTED
            )
            if op == HYPERVISOR_UPDATE_VA_MAPPING:
                calls.append(("update_va_mapping", args[0], *name_of.entry(args[1]), args[2]))
            elif op == HYPERVISOR_MULTICALL:
                calls.append(("multicall",))
            elif op == HYPERVISOR_MEMORY_OP:
                calls.append(("memory_op", args[0]))
        elif kind == 2 and not restarted:
            pfn = name_of.pfn(args[0] >> PAGE_SHIFT)
            if args[0] & 3:
                calls.append(("machphys", pfn, args[1]))
            else:
                calls.append(("mmu_update", pfn, args[0] % PAGE_SIZE // 8, *name_of.entry(args[1])))
        elif kind == 3 and not restarted:
            named = args[0] <= MMUEXT_NEW_BASEPTR
            calls.append(("mmuext_op", args[0], name_of.pfn(args[1]) if named else None))
    return calls
