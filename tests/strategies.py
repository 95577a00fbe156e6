# SPDX-License-Identifier: GPL-2.0-or-later
"""Random domains: mappings with holes, superpages and odd bases, over scattered host memory."""

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from xenpt.abi import (
    ENTRIES,
    L1_PROT_DOM0,
    LEVELS,
    PTE_DIRTY,
    PTE_PSE,
    PTE_RW,
    TABLE_PROT,
)
from xenpt.engine import map_on_demand
from xenpt.extents import Mapping, Runs, coalesce, expand, make_runs, sort_tables
from xenpt.p2m import P2M

FLAGS = [L1_PROT_DOM0, L1_PROT_DOM0 & ~PTE_RW, L1_PROT_DOM0 | PTE_DIRTY]
#: Places of a mapping: low, across a 2 MiB, a 1 GiB and a 512 GiB border, INIT_P2M, the kernel's.
BASES = [0, 1, 509, ENTRIES**2 - 3, ENTRIES**3 - 1025, ENTRIES**3, 0xFFFFFFFF80000]


@dataclass(frozen=True)
class Host:
    """A mapping and the host memory that it lies in."""

    mapping: Mapping
    p2m: P2M
    nr_pages: int


@st.composite
def p2ms(draw: DrawFn, nr_pages: int) -> P2M:
    """A permutation of host frames: chunks of any order, some of them downwards."""
    cuts = draw(st.lists(st.integers(1, max(nr_pages - 1, 1)), max_size=12, unique=True))
    ends = [*sorted(c for c in cuts if c < nr_pages), nr_pages]
    starts = [0, *ends[:-1]]
    places = draw(st.permutations(range(len(starts))))
    gap = draw(st.integers(0, 3))
    rows, mfn = {}, draw(st.sampled_from([0, 77, 1 << 20]))
    for i in places:
        nr = ends[i] - starts[i]
        down = draw(st.booleans())
        rows[i] = [starts[i], mfn + nr - 1 if down else mfn, -1 if down else 1, nr]
        mfn += nr + gap
    return P2M.from_rows([rows[i] for i in range(len(starts))])


@st.composite
def small_leaves(draw: DrawFn, base: int | None = None, lone: bool = False) -> tuple[Runs, int]:
    """Leaves of level 1 with holes, other flags, descending and repeated frames; nr of frames."""
    vpn = draw(st.sampled_from(BASES)) if base is None else base
    rows, pfn = [], 0
    for _ in range(draw(st.integers(1, 6))):
        nr = draw(st.sampled_from([1, 2, 3, 5, 64, 511, 512, 513, 1030]))
        down = not lone and draw(st.booleans())
        first = pfn + nr - 1 if down else pfn
        rows.append((vpn, first, nr, -1 if down else 1, 1, draw(st.sampled_from(FLAGS))))
        pfn += nr + draw(st.sampled_from([0, 0, 1]))
        vpn += nr + draw(st.sampled_from([0, 0, 1, 2, 509, 512, 5000]))
    return coalesce(make_runs(rows)), pfn


def tables_of_leaves(leaves: Runs, first_pfn: int, *, by_level: bool) -> Runs:
    """Tables that small leaves need, root included, with consecutive frames from `first_pfn`.

    :param by_level: in libxenguest's order (SPEC C6), else in that of the dom0 builder (SPEC B7)
    """
    first_use: dict[tuple[int, int], int] = {}
    for vpn in expand(leaves)["vpn"].tolist():
        for level in range(1, LEVELS + 1):
            start = 0 if level == LEVELS else vpn >> 9 * level << 9 * level
            first_use.setdefault((level, start), vpn)
    order = sorted(
        first_use,
        key=lambda t: (t[0] < LEVELS, -t[0] if by_level else first_use[t], t[0], t[1]),
    )
    rows = [
        (vpn, first_pfn + i, 1, 1, level, 0 if level == LEVELS else TABLE_PROT)
        for i, (level, vpn) in enumerate(order)
    ]
    return sort_tables(make_runs(rows))


@st.composite
def scattered(draw: DrawFn) -> Host:
    """4 KiB leaves over scattered memory, tables in either builder's order."""
    leaves, nr_frames = draw(small_leaves())
    tables = tables_of_leaves(leaves, nr_frames, by_level=draw(st.booleans()))
    nr_pages = nr_frames + Mapping(leaves, tables).nr_tables()
    return Host(Mapping(leaves, tables), draw(p2ms(nr_pages)), nr_pages)


@st.composite
def lists(draw: DrawFn, l4_slot: int | None = None) -> Host:
    """A P->M list's mapping: parts of any leaf size, allocated on demand, below no root."""
    slot = draw(st.sampled_from([1, 2, 255])) if l4_slot is None else l4_slot
    vpn = slot * ENTRIES**3 + draw(st.sampled_from([0, 0, 1, 511, 512, ENTRIES**2 - 5]))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        level = draw(st.sampled_from([1, 1, 1, 2, 3]))
        size = ENTRIES ** (level - 1)
        vpn = -(-vpn // size) * size
        nr = draw(st.sampled_from([1, 2, 500, 512, 1025] if level == 1 else [1, 2, 3]))
        flags = L1_PROT_DOM0 | (PTE_PSE if level > 1 else 0)
        rows.append((vpn, 0, nr, size, level, flags))
        vpn += nr * size + draw(st.sampled_from([0, 0, 0, 1, 700]))
    first = draw(st.integers(0, 40000))
    mapping = map_on_demand(make_runs(rows), first)
    nr_pages = first + mapping.nr_pages + mapping.nr_tables()
    return Host(mapping, P2M.linear(nr_pages, draw(st.sampled_from([0, 12345]))), nr_pages)


def hosts() -> SearchStrategy[Host]:
    """Any of them."""
    return st.one_of(scattered(), lists())


@st.composite
def pfn_ranges(draw: DrawFn, nr_pages: int) -> list[tuple[int, int]]:
    """Half-open ranges of pfns, overlapping or not, some beyond the domain."""
    pairs = draw(st.lists(st.tuples(st.integers(0, nr_pages), st.integers(0, 700)), max_size=8))
    return [(start, start + nr) for start, nr in pairs]
