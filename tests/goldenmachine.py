# SPDX-License-Identifier: GPL-2.0-or-later
"""Checked machines that stand where a dump of a real boot stands."""

import goldendata
import numpy as np

from xenpt.abi import (
    ENTRIES,
    LEVELS,
    PAGE_SHIFT,
    PGC_ALLOCATED,
    PGC_XEN_HEAP,
    PGT_PINNED,
    PGT_VALIDATED,
    PGT_WRITABLE_PAGE,
)
from xenpt.p2m import P2M
from xenpt.xen.adopt import frames_of, machine_of
from xenpt.xen.checked import CheckedMachine
from xenpt.xen.frames import FrameTable

ISA_END = 0x100  # Xen takes the first MiB as I/O, whatever the map says (arch_init_memory)


def host_of(case: str) -> tuple[int, list[tuple[int, int]]]:
    """End of a host's memory in frames, and the ranges below it that are no RAM, by Xen's log."""
    ram = [
        (start >> PAGE_SHIFT, (last + 1) >> PAGE_SHIFT)
        for start, last, kind in goldendata.facts(case)["xen"]["e820"]
        if kind == "usable"
    ]
    io, at = [(0, ISA_END)], ISA_END
    for start, end in sorted(ram):
        if start > at:
            io.append((at, start))
        at = max(at, end)
    return at, io


def dom0_frames(case: str) -> FrameTable:
    """dom0's frames, all unmapped, and the one page of Xen's that it may map: shared_info."""
    end, io = host_of(case)
    rows = goldendata.arrays(case)["entry_p2m_runs"].astype(np.int64)
    frames = frames_of(P2M.from_rows(rows), end, io)
    shared_info = goldendata.facts(case)["dump"]["start_info"]["shared_info"] >> PAGE_SHIFT
    # share_xen_page_with_guest(): Xen's own page, which the domain owns and may write.
    typed = PGT_WRITABLE_PAGE | PGT_VALIDATED | 1
    frames.set(shared_info, PGC_ALLOCATED | PGC_XEN_HEAP | 1, typed)
    return frames


def domu_p2m(case: str) -> P2M:
    """Frames of a guest of the toolstack, as its list said before the pin; holes have none."""
    arrays = goldendata.arrays(case, "domu")
    rows = arrays["prepin_p2m_runs" if "prepin_p2m_runs" in arrays else "entry_p2m_runs"]
    return P2M.from_rows(rows[rows[:, 1] >= 0].astype(np.int64))


def machine_at(case: str, point: str) -> CheckedMachine:
    """dom0 as a dump shows it; of the dump's page_info only the pins are taken."""
    arrays = goldendata.arrays(case)
    frames, mfns = dom0_frames(case), arrays[f"{point}_mfn"].tolist()
    machine = machine_of(frames, mfns, arrays[f"{point}_level"], arrays[f"{point}_pages"])
    pinned = arrays[f"{point}_page_info"][:, 1] & PGT_PINNED != 0
    for mfn in [mfn for mfn, pin in zip(mfns, pinned, strict=True) if pin][1:]:
        count_info, type_info = frames.get(mfn)
        frames.set(mfn, count_info + 1, (type_info + 1) | PGT_PINNED)
    return machine


def differing_words(machine: CheckedMachine, arrays: goldendata.Arrays, point: str) -> list[str]:
    """Every guest word of the dumped tables that is another in the machine's memory."""
    differing = []
    rows = zip(*(arrays[f"{point}_{key}"] for key in ("mfn", "level", "pages")), strict=True)
    for mfn, level, page in rows:
        words = machine.tables.memory.words(int(mfn))
        for slot in np.flatnonzero(words != page).tolist():
            if level == LEVELS and ENTRIES // 2 <= slot < ENTRIES // 2 + 16:
                continue  # Xen's own
            ours, real = int(words[slot]), int(page[slot])
            differing.append(f"mfn {mfn:#x} L{level} slot {slot}: {ours:#018x}, real {real:#018x}")
    return differing


def differing_frames(machine: CheckedMachine, arrays: goldendata.Arrays, point: str) -> list[str]:
    """Every dumped table page whose count_info or type_info is another in the frame table."""
    differing = []
    rows = zip(arrays[f"{point}_mfn"].tolist(), arrays[f"{point}_page_info"].tolist(), strict=True)
    for mfn, real in rows:
        ours = machine.tables.frames.get(mfn)
        if ours != tuple(real):
            words = [f"{word:#x}" for word in (*ours, *real)]
            differing.append(f"mfn {mfn:#x}: {words[0]} {words[1]}, real {words[2]} {words[3]}")
    return differing
