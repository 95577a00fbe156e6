# SPDX-License-Identifier: GPL-2.0-or-later
"""All page tables of a guest before and after its initial P->M list is freed, equal tables once.

A guest of a TiB has half a million tables, but few that differ in what they hold: a table is runs
of equal entries, and tables with equal runs are one. So the whole tree has some hundred nodes, and
each was computed from the extents, none from another one's look.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from xenpt.abi import ENTRIES, LEVELS, PAGE_SHIFT, PTE_RW, table_slot
from xenpt.errors import UsageError
from xenpt.extents import (
    EMPTY,
    Ints,
    Mapping,
    Runs,
    coalesce,
    column,
    entries_in,
    entry_pages,
)
from xenpt.image import UPPER_HALF
from xenpt.linux import Boot, Stage
from xenpt.linux.addressspace import AddressSpace, address_space
from xenpt.linux.memblock import Regions
from xenpt.linux.state import BootState

NONE, READ_ONLY, WRITABLE, TABLE = ".rwt"  # entries, as they are
FREED, LEAKED, FREED_TABLE, LEAKED_TABLE = "flFL"  # entries that are gone, by what became of them
TABLES: Final = TABLE + FREED_TABLE + LEAKED_TABLE
_KINDS: Final = NONE + READ_ONLY + WRITABLE + TABLE + FREED + LEAKED + FREED_TABLE + LEAKED_TABLE


class Entries(NamedTuple):
    """`nr` entries of one kind; `child` is the node that tables of them have, or -1."""

    nr: int
    kind: str
    child: int = -1


class Node(NamedTuple):
    """What a page table of one level holds: 512 entries, in runs."""

    level: int
    entries: tuple[Entries, ...]

    def slots(self) -> Iterator[tuple[int, Entries]]:
        """Each run with its first slot."""
        at = 0
        for run in self.entries:
            yield at, run
            at += run.nr

    def at(self, slot: int) -> Entries:
        """The run that `slot` is in."""
        return next(run for first, run in self.slots() if first <= slot < first + run.nr)


@dataclass(frozen=True)
class Occupancy:
    """The trees of page tables before and after the free.

    :ivar nodes: tables that differ
    :ivar pages: 4 KiB pages that each node maps, or mapped before it went
    :ivar before: node of the root
    :ivar after: node of the root; what went is in its place, as FREED or LEAKED
    :ivar list_vaddr: where the list was
    :ivar freed_tables: table pages that went back
    :ivar leaked_tables: table pages that are lost
    :ivar complete: with Linux's own tables; else only those that the guest began with
    """

    nodes: tuple[Node, ...]
    pages: tuple[int, ...]
    before: int
    after: int
    list_vaddr: int
    freed_tables: int
    leaked_tables: int
    complete: bool

    @cached_property
    def path(self) -> tuple[int, ...]:
        """Slots that lead from the root to the list's tables, as far down as there are any."""
        slot, found = table_slot(self.list_vaddr, LEVELS), []
        run = self.nodes[self.before].at(slot)
        while run.kind in TABLES:
            found.append(slot)
            node = self.nodes[run.child]
            slot, run = next(
                ((first, run) for first, run in node.slots() if run.kind in TABLES),
                (0, Entries(ENTRIES, NONE)),
            )
        return tuple(found)

    def tables(self, root: int, path: tuple[int, ...]) -> list[int]:
        """Nodes on a path: the root, and the table that each slot leads to."""
        found = [root]
        for slot in path:
            run = self.nodes[found[-1]].at(slot)
            if run.kind not in TABLES:
                break
            found.append(run.child)
        return found

    def share(self, run: Entries, level: int) -> float:
        """Part of the memory that one of these entries of a table of `level` covers."""
        if run.kind == NONE:
            return 0.0
        if run.kind not in TABLES:
            return 1.0
        return self.pages[run.child] / float(ENTRIES ** (level - 1))

    def count(self, node: int) -> dict[str, int]:
        """Entries of each kind in one table."""
        counts: dict[str, int] = {}
        for run in self.nodes[node].entries:
            counts[run.kind] = counts.get(run.kind, 0) + run.nr
        return counts


def occupancy(boot: Boot) -> Occupancy:
    """The page tables around p2m_free of a boot that comes so far; it is run again.

    Where a symbol of the kernel's static tables is not known, only the tables that it began with.

    :raises UsageError: it panics before
    """
    state = boot.state
    again = Boot(
        boot.domain,
        rules=boot.rules,
        e820=state.e820 or None,
        max_reservation=state.max_reservation,
        check=False,
    )
    before = again.run_to(Stage.P2M_COPIED).state
    after = again.run_to(Stage.P2M_FREE).state
    if again.panic:
        raise UsageError(f"no page tables to plot: {again.panic}")
    complete = all(before.symbol(name) is not None for name, _ in boot.rules.ro_tables)
    spaces = _first_tables(boot)
    if complete:
        spaces = [address_space(state) for state in (before, after)]
    trees = _Trees()
    roots = []
    for space in spaces:
        leaves = space.mapping.leaves.copy()
        writable = leaves["flags"] & np.uint64(PTE_RW) != 0
        leaves["flags"] = np.where(writable, _KINDS.index(WRITABLE), _KINDS.index(READ_ONLY))
        tables = space.mapping.tables.copy()
        tables["flags"] = _KINDS.index(TABLE)
        roots.append(trees.add(leaves, tables, space.aliases))
    gone, nr_tables = _gone(before, after)
    if gone is not None:
        roots[1] = trees.overlay(roots[1], trees.add(gone.leaves, gone.tables, EMPTY))
    return Occupancy(
        nodes=tuple(trees.nodes),
        pages=tuple(trees.pages),
        before=roots[0],
        after=roots[1],
        list_vaddr=before.initial_list.vaddr,
        freed_tables=nr_tables[0],
        leaked_tables=nr_tables[1],
        complete=complete,
    )


def _first_tables(boot: Boot) -> list[AddressSpace]:
    """What the guest began with, and the same without its list."""
    domain = boot.domain
    return [AddressSpace(mapping, EMPTY) for mapping in (domain.address_space, domain.initial)]


def _gone(before: BootState, after: BootState) -> tuple[Mapping | None, tuple[int, int]]:
    """The list's own mapping, each entry's flags its kind; and its tables, freed and leaked."""
    mapping = before.initial_list.mapping
    if mapping is None:
        return None, (0, 0)
    ranges = (before.memblock.reserved - after.memblock.reserved).ranges
    freed = Regions(tuple((a >> PAGE_SHIFT, b >> PAGE_SHIFT) for a, b in ranges))
    tables = mapping.tables[mapping.tables["level"] < LEVELS]
    leaves = _by_fate(mapping.leaves, freed, FREED, LEAKED, tables=False)
    tables = _by_fate(tables, freed, FREED_TABLE, LEAKED_TABLE, tables=True)
    went = tables["flags"] == _KINDS.index(FREED_TABLE)
    nr = int(tables["nr"][went].sum()), int(tables["nr"][~went].sum())
    root = np.zeros(1, tables.dtype)
    root["nr"], root["level"] = 1, LEVELS
    return Mapping(leaves, np.concatenate((tables, root))), nr


def _by_fate(runs: Runs, freed: Regions, went: str, stayed: str, *, tables: bool) -> Runs:
    """Runs cut where some of their frames were freed and others were not; flags: the kind."""
    pieces = []
    for run in runs:
        first, nr, step = (int(run[name]) for name in ("pfn", "nr", "step"))
        size = ENTRIES ** (int(run["level"]) - (not tables))
        edges, spans = {0, nr}, []
        for start, end in freed.ranges:
            (a,), (b,) = entries_in(*(np.array([v]) for v in (first, nr, step, start, end)))
            edges |= {int(a), int(b)}
            spans.append((int(a), int(b)))
        bounds = sorted(edges)
        for a, b in pairwise(bounds):
            piece = run.copy()
            piece["vpn"] = int(run["vpn"]) + a * size
            piece["pfn"], piece["nr"] = first + a * step, b - a
            gone = any(low <= a < high for low, high in spans)
            piece["flags"] = _KINDS.index(went if gone else stayed)
            pieces.append(piece)
    return np.array(pieces, runs.dtype)


class _Trees:
    """Nodes of several trees, each once."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.pages: list[int] = []
        self._known: dict[Node, int] = {}
        self._merged: dict[tuple[int, int], int] = {}

    def add(self, leaves: Runs, tables: Runs, aliases: Runs) -> int:
        """The root of a tree; flags of leaves and tables say their kind.

        :param aliases: entries of level 2 that point to tables of `tables`
        """
        return _Tree(self, leaves, tables, aliases).node(LEVELS, 0)

    def node(self, level: int, kinds: Ints, children: Ints) -> int:
        """The node with these 512 entries."""
        change = np.flatnonzero((kinds[1:] != kinds[:-1]) | (children[1:] != children[:-1])) + 1
        first = np.concatenate(([0], change))
        nr = np.diff(np.append(first, ENTRIES))
        return self._once(
            level,
            [
                Entries(n, _KINDS[kind], child)
                for n, kind, child in zip(
                    nr.tolist(), kinds[first].tolist(), children[first].tolist(), strict=True
                )
            ],
        )

    def _once(self, level: int, entries: list[Entries]) -> int:
        node = Node(level, tuple(entries))
        if node not in self._known:
            size = ENTRIES ** (level - 1)
            self._known[node] = len(self.nodes)
            self.nodes.append(node)
            self.pages.append(
                sum(
                    run.nr * (self.pages[run.child] if run.child >= 0 else size)
                    for run in entries
                    if run.kind != NONE
                )
            )
        return self._known[node]

    def overlay(self, there: int, gone: int) -> int:
        """The table `there`, and in its empty entries those of `gone`."""
        if (there, gone) in self._merged:
            return self._merged[there, gone]
        left, right = self.nodes[there], self.nodes[gone]
        kinds, children = _spread(left)
        for first, run in right.slots():
            for slot in range(first, first + run.nr) if run.kind != NONE else ():
                if kinds[slot] == _KINDS.index(NONE):
                    kinds[slot], children[slot] = _KINDS.index(run.kind), run.child
                elif children[slot] >= 0 and run.child >= 0:
                    children[slot] = self.overlay(int(children[slot]), run.child)
        found = self._merged[there, gone] = self.node(left.level, kinds, children)
        return found


def _spread(node: Node) -> tuple[Ints, Ints]:
    nr = [run.nr for run in node.entries]
    kinds = np.repeat([_KINDS.index(run.kind) for run in node.entries], nr)
    return kinds, np.repeat([run.child for run in node.entries], nr)


class _Tree:
    """One tree, from extents: only where a run begins or ends is a table looked at by itself."""

    def __init__(self, trees: _Trees, leaves: Runs, tables: Runs, aliases: Runs) -> None:
        self.trees = trees
        leaves = leaves.copy()
        leaves["pfn"], leaves["step"] = 0, 0  # which frames is no matter here
        leaves = coalesce(leaves)
        self.level, self.kind = column(leaves, "level"), column(leaves, "flags")
        self.start = column(leaves, "vpn")
        self.end = self.start + column(leaves, "nr") * entry_pages(self.level)
        self.tables = {n: tables[tables["level"] == n] for n in range(1, LEVELS)}
        self.alike = len(np.unique(tables["flags"][tables["level"] < LEVELS])) <= 1
        self.aliases = aliases
        self.whole: dict[tuple[int, int, int], int] = {}
        self.shared: dict[int, int] = {}

    def node(self, level: int, first: int) -> int:
        """The table of `level` that begins at virtual page `first`."""
        size = ENTRIES ** (level - 1)
        kinds, children = np.zeros(ENTRIES, np.int64), np.full(ENTRIES, -1)
        starts = first + np.arange(ENTRIES) * size
        if level == LEVELS:
            starts[ENTRIES // 2 :] += UPPER_HALF
        run = np.searchsorted(self.end, starts, side="right")
        held = run < len(self.start)
        run[~held] = 0
        held &= self.start[run] < starts + size
        leaf = held & (self.level[run] == level) if len(run) and len(self.level) else held
        kinds[leaf] = self.kind[run[leaf]]
        if level > 1:
            self._add_tables(level, starts, run, kinds, children)
        if level == 2:
            self._add_aliases(starts, kinds, children)
        return self.trees.node(level, kinds, children)

    def _add_tables(self, level: int, starts: Ints, run: Ints, kinds: Ints, children: Ints) -> None:
        """Entries that point to tables, and the nodes of those."""
        size = ENTRIES ** (level - 1)
        tables = self.tables[level - 1]
        vpn = column(tables, "vpn")
        end = vpn + column(tables, "nr") * size
        at = np.searchsorted(end, starts, side="right")
        there = at < len(vpn)
        at[~there] = 0
        there &= vpn[at] <= starts if len(vpn) else False
        for slot in np.flatnonzero(there).tolist():
            kinds[slot] = int(tables["flags"][at[slot]])
            i, start = int(run[slot]), int(starts[slot])
            full = len(self.start) and self.start[i] <= start and self.end[i] >= start + size
            if full and (level == 2 or self.alike):
                children[slot] = self._full(level - 1, int(self.level[i]), int(self.kind[i]))
            else:
                children[slot] = self.node(level - 1, start)

    def _full(self, level: int, leaf_level: int, kind: int) -> int:
        """A table below which one run of leaves fills everything."""
        key = level, leaf_level, kind
        if key not in self.whole:
            if level == leaf_level:
                kinds, child = np.full(ENTRIES, kind), -1
            else:
                tables = self.tables[level - 1]
                kinds = np.full(ENTRIES, int(tables["flags"][0]))
                child = self._full(level - 1, leaf_level, kind)
            self.whole[key] = self.trees.node(level, kinds, np.full(ENTRIES, child))
        return self.whole[key]

    def _add_aliases(self, starts: Ints, kinds: Ints, children: Ints) -> None:
        """Entries that point to an L1 table which is somewhere else already."""
        for alias in self.aliases:
            vpn, nr = int(alias["vpn"]), int(alias["nr"])
            first = vpn // ENTRIES * ENTRIES
            slots = np.flatnonzero((starts >= first) & (starts < vpn + nr * ENTRIES))
            for slot in slots.tolist():
                i = (int(starts[slot]) - vpn) // ENTRIES
                pfn = int(alias["pfn"]) + i * int(alias["step"])
                if pfn not in self.shared:
                    self.shared[pfn] = self.node(1, self._home(pfn))
                kinds[slot], children[slot] = _KINDS.index(TABLE), self.shared[pfn]

    def _home(self, pfn: int) -> int:
        """The virtual page where the L1 table `pfn` begins."""
        tables = self.tables[1]
        first, nr, step = (column(tables, name) for name in ("pfn", "nr", "step"))
        here, after = entries_in(
            first, nr, step, np.full(len(tables), pfn), np.full(len(tables), pfn + 1)
        )
        at = int(np.argmax(after > here))
        return int(tables["vpn"][at]) + int(here[at]) * ENTRIES
