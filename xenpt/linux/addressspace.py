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
    L4_SIZE,
    PAGE_SHIFT,
    PTE_DIRTY,
    PTE_NX,
    PTE_PCD,
    PTE_PWT,
    PTE_RW,
    PTE_SAVED_DIRTY,
    START_KERNEL_MAP,
    TABLE_PROT,
    VPN_END,
)
from xenpt.engine import mark_read_only
from xenpt.extents import (
    EMPTY,
    IDENTITY,
    Mapping,
    Runs,
    clip,
    coalesce,
    column,
    expand,
    make_runs,
    sort_leaves,
    sort_tables,
)
from xenpt.image import PageTableImage, materialise
from xenpt.linux.directmap import KERNEL_PTE, kernel_ro_pte
from xenpt.linux.memblock import Regions
from xenpt.linux.pagetable import initial_l1, static_tables
from xenpt.linux.state import BootState
from xenpt.p2m import P2M

#: Entries of such frames: Xen makes memory of devices uncached.
_IO_PTE = KERNEL_PTE | PTE_PWT | PTE_PCD


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
    parts = [_direct_map(state), _initial_list(state), state.vmemmap, state.new_list]
    held = [part for part in parts if part is not None]
    leaves = np.concatenate([part.leaves for part in held])
    tables = np.concatenate([static_tables(state), *(part.tables for part in held)])
    mapping = Mapping(coalesce(sort_leaves(leaves)), sort_tables(tables))
    return AddressSpace(mapping, np.concatenate((_kernel_aliases(state), state.aliases)))


def _initial_list(state: BootState) -> Mapping | None:
    """The list's mapping: of Xen's, one L4 entry was copied; Linux's own has all that it needs."""
    listed = state.initial_list
    if listed.mapping is None or listed.vaddr != int(state.domain.plan.mfn_list):
        return listed.mapping
    start = listed.vaddr // L4_SIZE * L4_SIZE
    return listed.mapping.window(start, start + L4_SIZE)


def _kernel_aliases(state: BootState) -> Runs:
    """level2_kernel_pgt's entries: Xen's L1 tables, as far as they are still mapped."""
    rows: Runs = np.concatenate([EMPTY, *(initial_l1(state, a, b) for a, b in state.highmap)])
    rows["level"] = 2
    return rows


# --- The direct map ----------------------------------------------------------------------------


def _direct_map(state: BootState) -> Mapping:
    """Xen's pages in its own L1 tables, all other RAM in Linux's, and the holes of low memory."""
    top = state.rules.page_offset >> PAGE_SHIFT
    nr_xen = state.nr_initial_l1
    leaves = _initial_leaves(state)
    if len(state.tables):
        leaves = np.concatenate((leaves, *_ram_leaves(state)))
    leaves = _protect(state, sort_leaves(leaves))
    xen = initial_l1(state, 0, nr_xen)
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
    own = Regions.of((*state.own_entries, *state.reset))
    kept = _without(leaves, Regions.of((top + a, top + b) for a, b in own))
    rows = [(top + a, a, b - a, 1, 1, KERNEL_PTE) for a, b in state.own_entries]
    if state.rules.map_holes_identity:
        rows += [(top + a, IDENTITY + a, b - a, 1, 1, _IO_PTE) for a, b in state.reset]
    return np.concatenate((kept, make_runs(rows)))


def _ram_leaves(state: BootState) -> list[Runs]:
    top = state.rules.page_offset >> PAGE_SHIFT
    held = Regions.of([(0, state.nr_initial_pages)])
    if not state.rules.map_holes_identity:
        held -= state.reset
    ram = Regions.of((a >> PAGE_SHIFT, b >> PAGE_SHIFT) for a, b in state.memblock.memory)
    io = state.identity.clip(0, ISA_END_ADDRESS >> PAGE_SHIFT) - held
    own = ram.clip(0, state.nr_pages) - held - io
    rows = [(top + a, a, b - a, 1, 1, KERNEL_PTE) for a, b in own]
    rows += [(top + a, IDENTITY + a, b - a, 1, 1, _IO_PTE) for a, b in io]
    last = state.memblock.memory.ranges[-1][1] >> PAGE_SHIFT
    moved = [(pfn, to, min(nr, last - to)) for pfn, to, nr in state.moved if to < last]
    rows += [(top + to, pfn, nr, 1, 1, KERNEL_PTE) for pfn, to, nr in moved]
    return [make_runs(rows)]


def _protect(state: BootState, leaves: Runs) -> Runs:
    """Clear RW of the list's frames and of page tables, each in the way that Linux does it."""
    top, frames = state.rules.page_offset >> PAGE_SHIFT, state.p2m_frames
    by_list = state.ro_frames.clip(max(frames[0], state.nr_initial_pages), frames[1])
    own = _ro_entries(state)
    tables = state.ro_frames - by_list - own
    leaves, _ = mark_read_only(leaves, tables.ranges)
    if state.rules.saved_dirty:  # see wrprotect()
        dirty = leaves["flags"] & np.uint64(PTE_RW | PTE_DIRTY) == np.uint64(PTE_DIRTY)
        leaves["flags"][dirty] += np.uint64(PTE_SAVED_DIRTY - PTE_DIRTY)
    leaves, _ = mark_read_only(leaves, by_list.ranges)
    own = own.clip(0, state.nr_pages)
    rows = [(top + a, a, b - a, 1, 1, kernel_ro_pte(state.rules)) for a, b in own]
    kept = _without(leaves, Regions(tuple((top + a, top + b) for a, b in own)))
    return sort_leaves(np.concatenate((kept, make_runs(rows))))


def _ro_entries(state: BootState) -> Regions:
    """`state.ro_entries`, and the tables of Linux's copy of the list."""
    if state.new_list is None:
        return state.ro_entries
    tables = column(expand(state.new_list.tables, tables=True), "pfn")
    return Regions.of((*state.ro_entries, *((pfn, pfn + 1) for pfn in tables.tolist())))


def _without(leaves: Runs, holes: Regions) -> Runs:
    """Leaves outside ranges of virtual pages."""
    pieces, at = [], 0
    for start, end in holes:
        pieces.append(clip(leaves, at, start))
        at = end
    return np.concatenate((*pieces, clip(leaves, at, VPN_END)))
