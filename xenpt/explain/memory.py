# SPDX-License-Identifier: GPL-2.0-or-later
"""What Linux makes of dom0's memory, as far as it prints it: map, memblock, moved pages, frees."""

import re
from dataclasses import dataclass, replace

import numpy as np

from xenpt.abi import ENTRIES, ISA_END_ADDRESS, PAGE_SHIFT, PAGE_SIZE, START_KERNEL_MAP
from xenpt.extents import column
from xenpt.inputs.config import Ram
from xenpt.linux.cleanup import walk_of_list
from xenpt.linux.e820 import holes, in_one_ram_entry
from xenpt.linux.entry import initial_state
from xenpt.linux.memblock import Memblock, Regions
from xenpt.linux.p2mtree import area_bytes
from xenpt.linux.pagetable import setup_kernel_pagetable
from xenpt.linux.rules import V4_1, V4_3, V6_1, V6_12, LinuxRules
from xenpt.linux.setup import memory_setup, remap_size
from xenpt.linux.state import PMD_SIZE, BootState
from xenpt.plan import Plan
from xenpt.room import require_room
from xenpt.xen.dom0 import build
from xenpt.xen.hypercalls import Hypercalls

GIB4 = 1 << 32
FREE_BYTES = 200  # of memory that one freed range takes here: two pairs of numbers, and columns

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the lines say of Linux; what they do not say is a choice between several of these.

    :ivar rules: the profile of its version
    :ivar brk_start: start of the kernel's brk area, physical; None if nothing says it
    :ivar brk_end: end of the part of it that is in use, likewise
    :ivar leaf: largest leaf of the list that Xen built
    :ivar mem_limit: bytes of mem= on the command line, or None
    """

    rules: LinuxRules
    brk_start: int | None
    brk_end: int | None
    leaf: str
    mem_limit: int | None = None


def profiles(version: tuple[int, int] | None) -> list[LinuxRules]:
    """The profiles that a version of Linux may have, the likeliest first.

    Between 6.1 and 6.12 no boot was looked at: either may be right (SPEC, HISTORY section 3).
    """
    if version is None or (6, 1) < version < (6, 12):
        return [V6_1, V6_12]
    if version >= (6, 12):
        return [V6_12]
    return [V4_1 if version < (4, 3) else V4_3 if version < (4, 12) else V6_1]


@dataclass(frozen=True, slots=True)
class Memory:
    """The prediction. Ranges are bytes [start, end) of guest-physical addresses.

    :ivar usable: RAM of the map that Linux prints
    :ivar memory: memblock.memory, `reserved` likewise at e820__memblock_setup()
    :ivar parts: name -> range of what is reserved, before ranges that touch are merged
    :ivar released: pages given back to Xen; `remapped`: pages moved out of holes
    :ivar probe: the free large page that init_mem_mapping() finds
    :ivar frees: of the list's pages, in order
    :ivar remap_frees: of the pages that took those from holes
    :ivar initrd: as Linux uses it; `initrd_moved_from` where it was before, both exact
    :ivar list_moved: the list was in a hole
    :ivar area_bytes: virtual area of the new list
    :ivar failing_pfn: the page at which mem= kills xen_remap_memory(), or None
    """

    usable: Regions
    memory: Regions
    reserved: Regions
    parts: dict[str, Range]
    released: int
    remapped: int
    probe: Range | None
    frees: tuple[Range, ...]
    remap_frees: Regions
    initrd: Range | None
    initrd_moved_from: Range | None
    list_moved: bool
    area_bytes: int
    failing_pfn: int | None

    @property
    def last_pfns(self) -> tuple[int, ...]:
        """See the function of that name."""
        return last_pfns(self.memory)


def last_pfns(memory: Regions) -> tuple[int, ...]:
    """End of RAM, and of RAM below 4 GiB if there is more, in pages."""
    end = max((end for _, end in memory), default=0)
    low = max((min(end, GIB4) for start, end in memory if start < GIB4), default=0)
    return (end >> PAGE_SHIFT,) + ((low >> PAGE_SHIFT,) if end > GIB4 else ())


def predict(plan: Plan, machine_map: tuple[Ram, ...], max_pages: int, setting: Setting) -> Memory:
    """Run the part of Linux's early boot that prints about memory.

    :raises LinuxPanic: something that Xen put into a hole of the map cannot be moved
    """
    entry = _initial(plan, machine_map, max_pages, setting)
    early, _ = setup_kernel_pagetable(entry, Hypercalls())
    state, _ = memory_setup(early, Hypercalls())
    memory = usable = state.memblock.memory
    if in_one_ram_entry(state.e820, 0, PAGE_SIZE):
        usable = usable.add(0, PAGE_SIZE)
    if setting.mem_limit is not None:
        memory = memory.clip(0, setting.mem_limit)
    moved = sum(remap.nr for remap in state.remaps)
    in_holes = sum(
        min(end, state.max_pfn) - start for start, end in holes(state.e820) if start < state.max_pfn
    )
    return Memory(
        usable=usable,
        memory=memory,
        reserved=state.memblock.reserved,
        parts=_parts(early, state),
        released=in_holes - moved,
        remapped=moved,
        probe=_probe(Memblock(memory, state.memblock.reserved)),
        frees=_frees(state) if list_is_seen(plan) else (),
        remap_frees=Regions.of(
            (r.target_pfn << PAGE_SHIFT, (r.target_pfn + r.nr) << PAGE_SHIFT) for r in state.remaps
        ),
        initrd=state.initrd,
        initrd_moved_from=entry.initrd if entry.initrd != state.initrd else None,
        list_moved=entry.initial_list.vaddr != state.initial_list.vaddr,
        area_bytes=area_bytes(state),
        failing_pfn=_failing_pfn(state, setting),
    )


def list_is_seen(plan: Plan) -> bool:
    """Linux finds the whole list: it takes over one L4 slot of it, and never slot 0 (SPEC I13)."""
    if not plan.list_outside:
        return True
    slot_bytes = PAGE_SIZE * ENTRIES**3
    start, end = plan.p2m
    return 0 < start // slot_bytes == (end - 1) // slot_bytes


def mem_limit(command_line: str) -> int | None:
    """Bytes of Linux's mem= option, None without it."""
    found = re.search(
        r"(?<!\S)mem=(0x[0-9a-fA-F]{1,16}|[0-9]{1,20})([kKmMgGtT]?)(?!\S)", command_line
    )
    if not found:
        return None
    number, unit = found[1], found[2].lower()
    is_octal = re.fullmatch("0[0-7]+", number)  # to memparse() as to C
    base = 16 if number.startswith("0x") else 8 if is_octal else 10
    return int(number, base) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[unit]


# --- The start of the boot ----------------------------------------------------------------------


def _initial(
    plan: Plan, machine_map: tuple[Ram, ...], max_pages: int, setting: Setting
) -> BootState:
    symbols = {"_text": plan.image.virt_kstart}
    if setting.brk_end is not None:
        symbols["_brk_end"] = START_KERNEL_MAP + setting.brk_end
    if setting.brk_start is not None:
        symbols["__brk_base"] = START_KERNEL_MAP + setting.brk_start
    plan = replace(
        plan,
        image=replace(plan.image, symbols=symbols),
        host=replace(plan.host, superpages=setting.leaf),
    )
    return initial_state(build(plan), setting.rules, e820=machine_map, max_reservation=max_pages)


# --- What is in the state ------------------------------------------------------------------------


def _parts(early: BootState, state: BootState) -> dict[str, Range]:
    """What is reserved by name; `early` has nothing reserved yet but the page tables."""
    start_info = state.pfn(state.domain.plan.start_info[0]) << PAGE_SHIFT
    [tables] = early.memblock.reserved
    first, end = state.p2m_frames
    parts = {
        "kernel": (state.text - START_KERNEL_MAP, state.brk_end - START_KERNEL_MAP),
        "start_info": (start_info, start_info + PAGE_SIZE),
        "page tables": tables,
        "P->M list": (first << PAGE_SHIFT, end << PAGE_SHIFT),
    }
    return parts | ({"initrd": state.initrd} if state.initrd else {})


def _probe(memblock: Memblock) -> Range | None:
    """The free large page that init_mem_mapping() asks memblock for."""
    end = max((end for _, end in memblock.memory), default=0)
    start = memblock.find(PMD_SIZE, PMD_SIZE, ISA_END_ADDRESS, end)
    return None if start is None else (start, start + PMD_SIZE)


def _frees(state: BootState) -> tuple[Range, ...]:
    """xen_pagetable_p2m_free(): what goes back, in order."""
    initial = state.initial_list
    if initial.mapping is None:
        first, end = initial.pfns
        return ((first << PAGE_SHIFT, end << PAGE_SHIFT),)
    events = walk_of_list(state, initial.mapping).events
    nr = column(events, "nr")
    require_room(int(nr.sum()) * FREE_BYTES, "the pages that Linux frees of the P->M list")
    i = np.arange(int(nr.sum())) - np.repeat(np.cumsum(nr) - nr, nr)
    pfns = np.repeat(column(events, "pfn"), nr) + i * np.repeat(column(events, "step"), nr)
    sizes = np.repeat(column(events, "pages"), nr)
    return tuple(
        (pfn << PAGE_SHIFT, (pfn + pages) << PAGE_SHIFT)
        for pfn, pages in zip(pfns.tolist(), sizes.tolist(), strict=True)
    )


def _failing_pfn(state: BootState, setting: Setting) -> int | None:
    """The groups are taken last first; the first of them that lies beyond mem= is the end."""
    if setting.mem_limit is None or not state.remaps:
        return None
    last = state.remaps[-1]
    size = remap_size(state)
    pfn = last.target_pfn + (last.nr - 1) // size * size
    return pfn if pfn << PAGE_SHIFT >= setting.mem_limit else None
