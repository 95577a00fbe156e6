# SPDX-License-Identifier: GPL-2.0-or-later
"""How full the page tables on the way to the initial P->M list are, before and after its free."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from xenpt.abi import ENTRIES, LEVELS, PAGE_SHIFT, TABLE_SHIFT, XEN_SLOTS, canonical
from xenpt.occupancy import (
    FREED,
    FREED_TABLE,
    LEAKED,
    LEAKED_TABLE,
    NONE,
    READ_ONLY,
    TABLE,
    TABLES,
    WRITABLE,
    Entries,
    Occupancy,
)
from xenpt.pictures.picture import COUNTED, Picture, Sheet
from xenpt.pictures.style import BAD, GRID, INK, MUTED, PAPER
from xenpt.report import Table
from xenpt.units import format_address, format_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS: Final = 64  # slots in a line; a table has eight lines
#: Of a kind of entry, the words for it.
WORDS: Final = {
    NONE: "empty",
    READ_ONLY: "page, read-only",
    WRITABLE: "page, writable",
    TABLE: "page table",
    FREED: "page, freed",
    LEAKED: "page, leaked",
    FREED_TABLE: "page table, freed",
    LEAKED_TABLE: "page table, leaked",
}
#: Colours of a share from 0 to 1: viridis, without the end that is as dark as a hatch.
SHARES: Final = ("#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")
GONE, LOST = FREED + FREED_TABLE, LEAKED + LEAKED_TABLE


def heatmap_picture(found: Occupancy) -> Picture:
    """The tables from the root to the list's lowest ones, each as 8 lines of 64 entries."""
    whose = "All page tables" if found.complete else "The page tables that the guest began with"
    lost = f"{found.leaked_tables:,} are leaked" if found.leaked_tables else "none is leaked"
    return Picture(
        name="tables",
        title="Page tables before and after the free of the P->M list",
        kinds=(COUNTED,),
        caption=f"{whose}, from the root (L4) to the list's own: 512 entries each, line by line. "
        "Colour: how much of the memory that an entry covers is mapped. "
        f"{found.freed_tables:,} table pages of the list are freed (hatched), {lost}.",
        draw=lambda sheet: _draw(sheet, found),
        table=_table(found),
        height=5.2,
        narrow_height=7.6,
    )


def colour(share: float) -> str:
    """Of an entry that maps such a share of what it covers."""
    return SHARES[min(int(share * len(SHARES)), len(SHARES) - 1)]


def names(path: tuple[int, ...]) -> list[str]:
    """What the root is called, and each table that the slots of `path` lead to."""
    return ["L4, the root"] + [
        f"L{LEVELS - 1 - i} of L{LEVELS - i} entry {slot}" for i, slot in enumerate(path)
    ]


def table_start(path: tuple[int, ...]) -> int:
    """First virtual address that the table at the end of `path` covers."""
    shifts = [PAGE_SHIFT + TABLE_SHIFT * (LEVELS - 1 - i) for i in range(len(path))]
    return canonical(sum(slot << shift for slot, shift in zip(path, shifts, strict=True)))


def _draw(sheet: Sheet, found: Occupancy) -> None:
    nr = len(found.path) + 1
    axes = sheet.figure.subplots(nr, 2, squeeze=False)
    for column, (root, when) in enumerate(((found.before, "before"), (found.after, "after"))):
        tables = found.tables(root, found.path)
        for row, name in enumerate(names(found.path)):
            one = axes[row, column]
            if row < len(tables):
                _draw_table(sheet, one, found, tables[row], found.path[:row])
            else:
                one.set_axis_off()
            if row == 0:
                one.set_title(when)
            if column == 0:
                text = name.replace(" of ", "\nof ").replace(", ", ",\n")
                one.set_ylabel(text, rotation=0, ha="right", va="center")
    _legend(sheet)


def _draw_table(
    sheet: Sheet, axes: "Axes", found: Occupancy, node: int, path: tuple[int, ...]
) -> None:
    level = found.nodes[node].level
    for first, run in found.nodes[node].slots():
        if run.kind == NONE:
            continue
        for start, end in _lines(first, first + run.nr):
            (patch,) = axes.barh(
                start // COLUMNS + 0.5, end - start, 1, start % COLUMNS,
                **_look(found, run, level),
            )  # fmt: skip
            sheet.tip(patch, describe(found, run, level, path, first))
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(ENTRIES // COLUMNS, 0)
    axes.set_xticks(range(0, COLUMNS + 1, 8), [])
    axes.set_yticks(range(ENTRIES // COLUMNS + 1), [])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set(visible=True, color=MUTED)
    if level == LEVELS:
        for start, end in _lines(XEN_SLOTS.start, XEN_SLOTS.stop):
            axes.barh(start // COLUMNS + 0.5, end - start, 1, start % COLUMNS, color=GRID, zorder=0)


def _lines(first: int, end: int) -> list[tuple[int, int]]:
    """Slots [first, end) cut into lines."""
    edges = [first, *range((first // COLUMNS + 1) * COLUMNS, end, COLUMNS), end]
    return list(pairwise(edges))


def _look(found: Occupancy, run: Entries, level: int) -> dict[str, Any]:
    if run.kind in LOST:
        return {"color": BAD, "hatch": "xxxx", "edgecolor": PAPER, "lw": 0.4}
    if run.kind in GONE:
        return {"color": PAPER, "hatch": "/////", "edgecolor": INK, "lw": 0.6}
    return {"color": colour(found.share(run, level)), "edgecolor": INK, "lw": 0.4}


def describe(found: Occupancy, run: Entries, level: int, path: tuple[int, ...], slot: int) -> str:
    """One run of entries in words."""
    vaddr = format_address(table_start((*path, slot)))
    which = f"entry {slot}" if run.nr == 1 else f"entries {slot} to {slot + run.nr - 1}"
    text = f"L{level} {which}, from {vaddr}, {_entry_size(level)} each: {WORDS[run.kind]}"
    if run.kind in TABLES:
        was = "" if run.kind == TABLE else "was "
        text += f", {was}{found.share(run, level):.1%} mapped"
    return text


def explorer(found: Occupancy) -> dict[str, object]:
    """The same for the page's JavaScript, with all other tables; addresses are made there."""
    sizes = {level: _entry_size(level) for level in range(1, LEVELS + 1)}
    return {
        "nodes": [" ".join(map(_short, node.entries)) for node in found.nodes],
        "before": found.before,
        "after": found.after,
        "path": found.path,
        "words": WORDS,
        "tables": TABLES,
        "shares": SHARES,
        "xen": (XEN_SLOTS.start, XEN_SLOTS.stop),
        "sizes": sizes,
    }


def _short(run: Entries) -> str:
    """A run as `512w`, or `3t17` if its tables are node 17."""
    return f"{run.nr}{run.kind}{run.child if run.child >= 0 else ''}"


def _entry_size(level: int) -> str:
    return format_size(1 << (PAGE_SHIFT + TABLE_SHIFT * (level - 1)))


def _legend(sheet: Sheet) -> None:
    from matplotlib.patches import Patch

    looks = [
        Patch(facecolor=shade, edgecolor=INK, lw=0.4, label=f"up to {20 * (i + 1)} % mapped")
        for i, shade in enumerate(SHARES)
    ]
    looks += [
        Patch(facecolor=PAPER, hatch="/////", edgecolor=INK, label="freed"),
        Patch(facecolor=BAD, hatch="xxxx", edgecolor=PAPER, label="leaked"),
        Patch(facecolor=GRID, label="Xen's own slots"),
    ]
    sheet.figure.legend(
        handles=looks, loc="outside lower left", ncols=2 if sheet.narrow else 4, handlelength=1.6
    )


def _table(found: Occupancy) -> Table:
    rows = []
    for when, root in (("before", found.before), ("after", found.after)):
        tables = found.tables(root, found.path)
        for node, name in zip(tables, names(found.path), strict=False):
            counts = found.count(node)
            cells = [f"{counts.get(kind, 0):,}" for kind in WORDS if kind != NONE]
            rows.append([when, name, *cells])
    header = ("", "table", *(words for kind, words in WORDS.items() if kind != NONE))
    return Table(header, rows, nr_left=2)
