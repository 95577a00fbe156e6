# SPDX-License-Identifier: GPL-2.0-or-later
"""The address space of a domain between two stages: every table and entry, as Xen stores it.

Linux's own tables share Xen's L1 tables: level2_ident_pgt and level2_kernel_pgt point to the same
ones, and a page of the P->M list's copy that nobody needs is one filler, mapped over and over. So
each table page is in the mapping once, and further entries that point to it are aliases.
"""

from dataclasses import dataclass

import numpy as np

from xenpt.abi import (
    ENTRIES,
    ISA_END_ADDRESS,
    LEVELS,
    PAGE_SHIFT,
    PTE_DIRTY,
    PTE_NX,
    PTE_PCD,
    PTE_PWT,
    PTE_RW,
    START_KERNEL_MAP,
    TABLE_PROT,
    TABLE_SHIFT,
)
from xenpt.engine import mark_read_only
from xenpt.errors import UsageError
from xenpt.extents import (
    EMPTY,
    P2M,
    Mapping,
    Runs,
    clip,
    coalesce,
    column,
    expand,
    make_runs,
    sort_tables,
    tables_of,
)
from xenpt.image import PageTableImage, materialise
from xenpt.linux.directmap import KERNEL_PTE, kernel_ro_pte
from xenpt.linux.memblock import Regions
from xenpt.linux.state import BootState

#: Frames of the host that are not the domain's (holes that are mapped as they are), named by a
#: pfn that no domain has: IDENTITY + mfn.
IDENTITY = 1 << 44
#: Entries of such frames: Xen makes memory of devices uncached.
_IO_PTE = KERNEL_PTE | PTE_PWT | PTE_PCD
_SAVED_DIRTY = 1 << 58
_LEVEL3_KERNEL = 511 << (3 * TABLE_SHIFT) | 0xFFFF << 36  # vpn of L4 slot 511
_FIXMAP = START_KERNEL_MAP + (1 << 30)
_LEVEL1_FIXMAP = 506  # its first slot in level2_fixmap_pgt


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """Tables and leaves, each table page once.

    :ivar aliases: RUN rows of entries, of level 2, that point to L1 tables of `mapping`
    """

    mapping: Mapping
    aliases: Runs

    def image(self, p2m: P2M) -> PageTableImage:
        """All its words, with the machine frames of `p2m`."""
        rows = np.array([(IDENTITY, 0, 1, 1 << 40)], p2m.runs.dtype)
        known = P2M(np.concatenate((p2m.runs, rows)))
        image = materialise(self.mapping, known)
        tables = {
            (int(level), int(vaddr)): i
            for i, (level, vaddr) in enumerate(zip(image.level, image.vaddr, strict=True))
        }
        for row in expand(self.aliases):
            vpn, slots = int(row["vpn"]), ENTRIES * ENTRIES
            table = tables[2, (vpn & -slots) << PAGE_SHIFT]
            word = int(known.mfn([row["pfn"]])[0]) << PAGE_SHIFT | int(row["flags"])
            image.pages[table, vpn // ENTRIES % ENTRIES] = word
        return image


def address_space(state: BootState) -> AddressSpace:
    """What the root table shows at `state`, but for what Linux does between the stages.

    :raises UsageError: symbols of the static tables are not known
    """
    if not state.highmap.ranges:  # Linux has not loaded its own tables yet
        return AddressSpace(state.domain.address_space, EMPTY)
    parts = [_direct_map(state), state.initial_list.mapping, state.vmemmap, state.new_list]
    held = [part for part in parts if part is not None]
    leaves = np.concatenate([part.leaves for part in held])
    tables = np.concatenate([_static_tables(state), *(part.tables for part in held)])
    mapping = Mapping(coalesce(np.sort(leaves, order="vpn")), sort_tables(tables))
    return AddressSpace(mapping, np.concatenate((_kernel_aliases(state), state.aliases)))


def _static_tables(state: BootState) -> Runs:
    top = state.rules.page_offset >> PAGE_SHIFT
    kernel, fixmap = START_KERNEL_MAP >> PAGE_SHIFT, _FIXMAP >> PAGE_SHIFT
    names = dict(state.rules.ro_tables)
    root = state.rules.ro_tables[0][0]
    rows = [
        (0, root, 1, LEVELS, 0),
        (top, "level3_ident_pgt", 1, 3, TABLE_PROT),
        (top, "level2_ident_pgt", 1, 2, TABLE_PROT),
        (_LEVEL3_KERNEL, "level3_kernel_pgt", 1, 3, TABLE_PROT),
        (kernel, "level2_kernel_pgt", 1, 2, TABLE_PROT),
        (fixmap, "level2_fixmap_pgt", 1, 2, TABLE_PROT),
        (
            fixmap + _LEVEL1_FIXMAP * ENTRIES,
            "level1_fixmap_pgt",
            names["level1_fixmap_pgt"],
            1,
            TABLE_PROT,
        ),
    ]
    unknown = [name for _, name, *_ in rows if state.symbol(name) is None]
    if unknown:
        raise UsageError(f"the address of {unknown[0]} is not known: give --system-map")
    return make_runs(
        (vpn, state.symbol_pfn(name) or 0, nr, 1, level, flags)
        for vpn, name, nr, level, flags in rows
    )


def _kernel_aliases(state: BootState) -> Runs:
    """level2_kernel_pgt's entries: Xen's L1 tables, as far as they are still mapped."""
    rows: Runs = np.concatenate([EMPTY, *(_initial_l1(state, a, b) for a, b in state.highmap)])
    rows["level"] = 2
    return rows


def _initial_l1(state: BootState, first: int, end: int) -> Runs:
    """Xen's L1 tables of slots [first, end) of the kernel's first GiB."""
    start = START_KERNEL_MAP >> PAGE_SHIFT
    tables = state.domain.initial.tables
    found = tables_of(tables, start + first * ENTRIES, start + end * ENTRIES)
    l1: Runs = found[found["level"] == 1]
    return l1


# --- The direct map ----------------------------------------------------------------------------


def _direct_map(state: BootState) -> Mapping:
    """Xen's pages in its own L1 tables, all other RAM in Linux's, and the holes of low memory."""
    top = state.rules.page_offset >> PAGE_SHIFT
    nr_xen = state.nr_initial_l1
    leaves = _initial_leaves(state)
    if len(state.tables):
        leaves = np.concatenate((leaves, *_ram_leaves(state)))
    leaves = _protect(state, np.sort(leaves, order="vpn"))
    xen = _initial_l1(state, 0, nr_xen)
    xen["vpn"] = column(xen, "vpn") - (START_KERNEL_MAP >> PAGE_SHIFT) + top
    if state.rules.nx_ident_map:
        xen["flags"] |= np.uint64(PTE_NX)
    own = state.tables.copy()
    own["flags"] = TABLE_PROT
    return Mapping(coalesce(leaves), np.concatenate((xen, own)))


def _initial_leaves(state: BootState) -> Runs:
    """Xen's entries, in the direct map's place; of what it gave back and of static tables
    Linux's.
    """
    top, start = state.rules.page_offset >> PAGE_SHIFT, START_KERNEL_MAP >> PAGE_SHIFT
    leaves = clip(state.domain.initial.leaves, start, start + state.nr_initial_l1 * ENTRIES)
    leaves["vpn"] = column(leaves, "vpn") - start + top
    own = Regions.of((*state.own_entries, *_unmapped(state)))
    kept = _without(leaves, Regions.of((top + a, top + b) for a, b in own))
    rows = [(top + a, a, b - a, 1, 1, KERNEL_PTE) for a, b in state.own_entries]
    return np.concatenate((kept, make_runs(rows)))


def _unmapped(state: BootState) -> Regions:
    """Pages of holes: xen_memory_setup() unmaps them, or maps them as they are."""
    return state.identity.clip(0, state.nr_initial_l1 * ENTRIES)


def _ram_leaves(state: BootState) -> list[Runs]:
    top = state.rules.page_offset >> PAGE_SHIFT
    held = Regions.of([(0, _initial_pages(state))]) - _unmapped(state)
    ram = Regions.of((a >> PAGE_SHIFT, b >> PAGE_SHIFT) for a, b in state.memblock.memory)
    # Holes behind Xen's mapping have no table yet when they are mapped as they are, and get none.
    end = _initial_pages(state) if state.rules.map_holes_identity else 0
    io = state.identity.clip(0, max(end, ISA_END_ADDRESS >> PAGE_SHIFT))
    own = ram.clip(0, state.nr_pages) - held - io
    rows = [(top + a, a, b - a, 1, 1, KERNEL_PTE) for a, b in own]
    rows += [(top + a, IDENTITY + a, b - a, 1, 1, _IO_PTE) for a, b in io]
    last = state.memblock.memory.ranges[-1][1] >> PAGE_SHIFT
    moved = [(pfn, to, min(nr, last - to)) for pfn, to, nr in state.moved if to < last]
    rows += [(top + to, pfn, nr, 1, 1, KERNEL_PTE) for pfn, to, nr in moved]
    return [make_runs(rows)]


def _initial_pages(state: BootState) -> int:
    start, end = state.domain.plan.total
    return int(min((end - start) >> PAGE_SHIFT, state.nr_initial_l1 * ENTRIES))


def _protect(state: BootState, leaves: Runs) -> Runs:
    """Clear RW of the list's frames and of page tables, each in the way that Linux does it."""
    top, frames = state.rules.page_offset >> PAGE_SHIFT, state.p2m_frames
    by_list = state.ro_frames.clip(*frames)
    tables = state.ro_frames - by_list - state.ro_entries
    leaves, _ = mark_read_only(leaves, tables.ranges)
    if state.rules.saved_dirty:
        dirty = leaves["flags"] & np.uint64(PTE_RW | PTE_DIRTY) == np.uint64(PTE_DIRTY)
        leaves["flags"][dirty] += np.uint64(_SAVED_DIRTY - PTE_DIRTY)
    leaves, _ = mark_read_only(leaves, by_list.ranges)
    own = state.ro_entries.clip(0, state.nr_pages)
    rows = [(top + a, a, b - a, 1, 1, kernel_ro_pte(state.rules)) for a, b in own]
    kept = _without(leaves, Regions(tuple((top + a, top + b) for a, b in own)))
    return np.sort(np.concatenate((kept, make_runs(rows))), order="vpn")


def _without(leaves: Runs, holes: Regions) -> Runs:
    """Leaves outside ranges of virtual pages."""
    pieces, at = [], 0
    for start, end in holes:
        pieces.append(clip(leaves, at, start))
        at = end
    return np.concatenate((*pieces, clip(leaves, at, 1 << 52)))
