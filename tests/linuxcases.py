# SPDX-License-Identifier: GPL-2.0-or-later
"""Real boots as the model's inputs: the kernel, the plan and the maps of a golden oracle case."""

import re
from dataclasses import replace
from typing import Any

import goldendata
import numpy as np

from xenpt.abi import PAGE_SIZE, START_KERNEL_MAP
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import Kernel, default_kernel
from xenpt.linux import V6_1
from xenpt.linux.boot import Boot
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build

UNITS = {"K": 10, "M": 20, "G": 30}
#: Where a kernel's own symbols cannot be had: its brk area's end, as its boots report it.
BRK_END = {"6.12": 0x3C11000, "7.2": 0x4211000}
#: Linux 6.12 and later keep all of [0x80000, 1 MiB) out of RAM (first usable entry of their own
#: map); the profile v6.1 does not know that, so the map is given so.
LOW_RAM_END = {"6.12": 0x80000, "7.2": 0x80000}
REMAP_BUFFER = {"6.1": 0xFFFFFFFF83131000, "6.12": 0xFFFFFFFF833E9000}


def version(case: str) -> str:
    """The kernel series of a case: 6.1, 6.12, ..."""
    return ".".join(goldendata.facts(case)["linux"]["version"].split(".")[:2])


def kernel_of(case: str) -> Kernel:
    """The kernel that was booted, with the symbols that its boots give away."""
    image, default = goldendata.facts(case)["kernel_image"], default_kernel()
    notes, load = image["xen_notes"], image["load"]
    paddr = min(s["paddr"] for s in load), max(s["paddr"] + s["memsz"] for s in load)
    base = notes["VIRT_BASE"]
    series = version(case)
    symbols = dict(default.symbols or {}) if series == "6.1" else _symbols(case, base + paddr[0])
    return replace(
        default,
        virt_kstart=base + paddr[0],
        virt_kend=base + paddr[1],
        paddr=paddr,
        segments=tuple((s["paddr"], s["filesz"], s["memsz"]) for s in load),
        entry=notes["ENTRY"],
        init_p2m=notes.get("INIT_P2M"),
        mod_start_pfn=bool(notes.get("MOD_START_PFN")),
        symbols=symbols | {"xen_remap_buf": REMAP_BUFFER.get(series, START_KERNEL_MAP)},
    )


def _symbols(case: str, text: int) -> dict[str, int]:
    """Symbols of another kernel: its static tables are those that it makes read-only."""
    found = {"_text": text, "_brk_end": START_KERNEL_MAP + BRK_END[version(case)]}
    if "trace" in goldendata.arrays(case):
        trace = goldendata.arrays(case)["trace"]
        rows = trace[(trace["phase"] == 3) & (trace["op"] == 14)]
        names = [name for name, nr in V6_1.ro_tables for _ in range(nr)]
        for name, row in zip([*names, "level3_user_vsyscall"], rows, strict=False):
            found.setdefault(name, int(row["a"][0]))
    return found


def boot_of(case: str, *, record: bool = True) -> Boot:
    """The case's domain at its entry, to be booted by the profile v6.1."""
    facts = goldendata.facts(case)
    start_info: dict[str, Any] = facts["dump"]["start_info"]
    plan = plan_dom0(
        kernel_of(case),
        Host(xen=facts["xen"]["version"]),
        nr_pages=start_info["nr_pages"],
        initrd_bytes=facts["options"]["initrd_size"] or None,
    )
    low_end = LOW_RAM_END.get(version(case))
    e820 = [Ram(start, last + 1, kind) for start, last, kind in facts["xen"]["e820"]]
    if low_end:
        e820[:1] = [Ram(0, low_end), Ram(low_end, e820[0].end, "reserved")]
    limit = re.search(r"max:(\d+)([KMG])", facts["options"]["dom0_mem"])
    most = int(limit[1]) << UNITS[limit[2]] if limit else PAGE_SIZE << 32
    return Boot(build(plan), e820=e820, max_reservation=most // PAGE_SIZE, record=record)


def reserve_unmodelled(boot: Boot, first_table: int) -> None:
    """Take what a real boot allocates between init_mem_mapping and paging_init (ACPI, per-cpu).

    :param first_table: frame of the first table of paging_init: all free memory above is in use
    """
    memblock = boot.state.memblock
    top = memblock.memory.ranges[-1][1]
    boot.state = replace(boot.state, memblock=memblock.reserve((first_table + 1) * PAGE_SIZE, top))


def frames(case: str) -> np.ndarray:
    """Rows [lowest mfn, pfn of it, step, pages] of the domain's frames at entry, sorted."""
    rows = goldendata.arrays(case)["entry_p2m_runs"].astype(np.int64)
    pfn, mfn, step, nr = rows.T
    down = (step < 0) & (nr > 1)
    low = np.stack((np.where(down, mfn - nr + 1, mfn), np.where(down, pfn + nr - 1, pfn)), axis=1)
    return np.column_stack((low, np.where(down, -1, 1), nr))[np.argsort(low[:, 0])]
