# SPDX-License-Identifier: GPL-2.0-or-later
"""Address spaces between the stages of real boots, word by word against the model's.

Where memory that the stages do not account for went is taken from the dump (one frame number, see
linuxcases.reserve_unmodelled), as is where Xen put the pages; all else comes from the plan.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import goldendata
import numpy as np
from linuxcases import Frames, boot_of, reserve_unmodelled, version

from xenpt.abi import ENTRIES, LEVELS, PAGE_SHIFT, XEN_SLOTS
from xenpt.image import PageTableImage
from xenpt.inputs.config import Ram
from xenpt.linux import Boot, Stage
from xenpt.linux.addressspace import address_space
from xenpt.p2m import P2M

STAGES = {
    "setup": Stage.SETUP_KERNEL_PAGETABLE,
    "pre": Stage.P2M_COPIED,
    "mid": Stage.P2M_FREE,
    "post": Stage.REMAP_MEMORY,
}
VMEMMAP = 0xFFFFEA0000000000
DIRECT_MAP = 0xFFFF888000000000
FIXMAP_L2, EARLY_IOREMAP, FIXMAP_L1 = 0xFFFFFFFFC0000000, 0xFFFFFFFFFF200000, 0xFFFFFFFFFF400000
#: What Linux does between the stages, as frames of its GDT and of early_ioremap's table (bm_pte).
BETWEEN = {"6.1": (0x304F, 0x3315), "6.12": (0x3325, 0x373D)}
#: Cases whose dump lacks the host's frames: those of the same boot, taken again.
SAME_FRAMES = {"marks-6.1": "c512m"}
#: Boots with mem=, as xen_memory_setup() does not know it.
MEM_OPTION = {"c520g": 4 << 30}
#: All dumps between the stages but those of marks-5.10: where Xen put its pages is not known.
CASES = [
    (case, point)
    for case in goldendata.cases()
    for point in STAGES
    if version(case) in BETWEEN and f"{point}_mfn" in goldendata.arrays(case)
]
Place = tuple[int, int, int]  # level, first address of the table, slot


@dataclass(frozen=True)
class Comparison:
    """One dump against the model.

    :ivar words: words compared, those left out not counted
    :ivar differing: (place, real word, model's word), and tables that only one side has
    :ivar left_out: places that are not compared because no stage writes them
    """

    words: int
    differing: list[tuple[object, ...]]
    left_out: list[Place]


def unmodelled(case: str, point: str) -> set[Place]:
    """Words that Linux writes between the stages, or that name a frame of the host's.

    The GDT's page is made read-only before the first stage. Later ones: early_ioremap's table, the
    entry that points to it, its own page made read-only; two entries of the fixmap (shared_info,
    and one of Linux's own pages).
    """
    gdt, early = BETWEEN[version(case)]
    places = {_of_direct_map(gdt)}
    if point == "setup":
        return places
    places |= {_of_direct_map(early), (2, FIXMAP_L2, 505), (1, FIXMAP_L1, 380), (1, FIXMAP_L1, 509)}
    return places | {(1, EARLY_IOREMAP, slot) for slot in range(ENTRIES)}


def _of_direct_map(pfn: int) -> Place:
    return 1, DIRECT_MAP + (pfn // ENTRIES * ENTRIES << PAGE_SHIFT), pfn % ENTRIES


def compare(case: str, point: str) -> Comparison:
    """Every guest word of every dumped table of one point of one boot."""
    image = _images(case)[point]
    arrays = goldendata.arrays(case)
    columns = [arrays[f"{point}_{name}"] for name in ("level", "va", "mfn", "pages")]
    skipped = unmodelled(case, point)
    words, left_out = 0, list[Place]()
    differing: list[tuple[object, ...]] = []
    for level, vaddr, mfn, real in zip(*columns, strict=True):
        level, vaddr = int(level), int(vaddr)
        at = image.index(int(mfn))
        ours = np.zeros(ENTRIES, np.uint64) if at is None else image.pages[at]
        slots = np.ones(ENTRIES, bool)
        if level == LEVELS:
            slots[XEN_SLOTS] = False
        here = [place for place in skipped if place[:2] == (level, vaddr)]
        slots[[slot for _, _, slot in here]] = False
        left_out += here
        words += int(slots.sum())
        if at is None and slots.any():
            differing.append(((level, vaddr), "table of the dump alone"))
        for slot in np.flatnonzero((real != ours) & slots).tolist():
            differing.append(((level, vaddr, slot), hex(int(real[slot])), hex(int(ours[slot]))))
    facts = goldendata.facts(case)["dump"][point]
    if facts["pages"] == facts["pages_saved"]:  # tables that only the model has
        real_mfns = set(columns[2].tolist())
        for i in np.flatnonzero([int(mfn) not in real_mfns for mfn in image.mfn]).tolist():
            differing.append(((int(image.level[i]), int(image.vaddr[i])), "table of ours alone"))
    return Comparison(words, differing, left_out)


@lru_cache(maxsize=3)
def _images(case: str) -> dict[str, PageTableImage]:
    arrays = goldendata.arrays(case)
    hosts = SAME_FRAMES.get(case, case)
    p2m = P2M.from_rows(goldendata.arrays(hosts)["entry_p2m_runs"].astype(np.int64))
    boot = boot_of(case, record=False).run_to(Stage.SETUP_KERNEL_PAGETABLE)
    images = {}
    for point, stage in STAGES.items():
        if point == "pre":
            boot.run_to(Stage.MEMORY_SETUP)
            _obey_mem_option(boot, MEM_OPTION.get(case))
            boot.run_to(Stage.INIT_MEM_MAPPING)
            found = _vmemmap_table(arrays, hosts)
            if found is not None:
                reserve_unmodelled(boot, found)
        if f"{point}_mfn" in arrays:
            images[point] = address_space(boot.run_to(stage).state).image(p2m)
    return images


def _vmemmap_table(arrays: goldendata.Arrays, hosts: str) -> int | None:
    """Frame of the first table that paging_init() made: the L3 table of the vmemmap."""
    for point in ("pre", "post"):
        if f"{point}_mfn" in arrays:
            at = (arrays[f"{point}_level"] == 3) & (arrays[f"{point}_va"] == VMEMMAP)
            [mfn] = arrays[f"{point}_mfn"][at].tolist()
            pfn = Frames(hosts).pfn(mfn)
            assert isinstance(pfn, int), pfn
            return pfn
    return None


def _obey_mem_option(boot: Boot, most: int | None) -> None:
    """mem= takes all RAM behind `most` bytes out of Linux's map, after xen_memory_setup()."""
    if most is None:
        return
    state = boot.state
    table = tuple(
        Ram(e.start, min(e.end, most) if e.type == "usable" else e.end, e.type)
        for e in state.linux_e820
        if e.type != "usable" or e.start < most
    )
    memory = state.memblock.memory.clip(0, most)
    boot.state = replace(state, linux_e820=table, memblock=replace(state.memblock, memory=memory))
