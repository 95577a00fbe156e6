# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep as a report: a table for each series of memory sizes, and how its columns grow."""

from typing import Final

from xenpt.listshape import LEAVES
from xenpt.output import printable
from xenpt.report import BAD, NOTE, TITLE, Line, Prose, Report, Table
from xenpt.scenario import DEFAULT, FLAT
from xenpt.sweeprow import Row, list_outside
from xenpt.sweeptable import Sweep
from xenpt.timing import TimeModel
from xenpt.units import format_pages, format_seconds, format_size

#: Header of each column whose growth is fitted, by the quantity that it shows.
GROWING: Final = {
    "entries_walked": "walked",
    "tables_freed": "tables",
    "pages_made_writable": "made RW",
    "cleanup_hypercalls": "hypercalls",
    "cleanup_seconds_modelled": "whole*",
    "boot_hypercalls": "whole boot",
    "boot_seconds_modelled": "boot*",
}
ABSENT = "-"
_TIMES: Final = ("cleanup_seconds_modelled", "boot_seconds_modelled")
_USUAL: Final = (None, FLAT)


def sweep_report(sweep: Sweep, model: TimeModel) -> Report:
    """All series, and what the columns mean."""
    report: Report = []
    for one in sweep.series:
        report += _series_report(one)
    timed = any(row[name] for row in sweep.rows for name in _TIMES)
    return [*report, *_notes(model if timed else None)]


def _series_report(one: Sweep) -> Report:
    """The table of one series, with its panics and the limits that it passes below."""
    growth = [
        _growth_row("growth", one, one.exponents()),
        _growth_row("  at end", one, one.exponents(nr_largest=2)),
    ]
    if not any(cell.startswith("^") for cells in growth for cell in cells):
        growth = []
    styles = [BAD if row["panic"] else "" for row in one.rows] + [TITLE] * len(growth)
    header = (*(["host"] if _by_host(one) else []), "memory", *GROWING.values())
    return [
        Prose(_title(one.rows[0]), TITLE),
        Table(header, [*_cells(one), *growth], styles=styles),
        *_grouped("panics", one.rows, "panic"),
        *_grouped("beyond", one.rows, "beyond"),
        Line(),
    ]


def _by_host(one: Sweep) -> bool:
    return len({row["host_pages"] for row in one.rows}) > 1


def _title(row: Row) -> str:
    """What the rows of a series have in common."""
    who = "dom0" if row["builder"] == "dom0" else "guest of the toolstack"
    facts = [f"{who}, Linux {row['linux']} on Xen {row['xen']}"]
    if row["kernel"] != DEFAULT:
        facts.append(f"kernel {row['kernel']}")
    if not row["init_p2m"]:
        facts.append("without INIT_P2M")
    facts.append(
        f"list in at most {LEAVES[row['p2m_leaf']]} pages"
        if list_outside(row)
        else "list in the initial mapping"
    )
    if row["host_pages"] is not None and row["memory_pages"] is not None:
        facts.append(f"host of {format_pages(row['host_pages'])}")
    facts += [f"{name} {row[name]}" for name in ("e820", "dom0_mem") if row[name] not in _USUAL]
    if row["initrd_bytes"] is not None:
        facts.append(f"initrd of {format_size(row['initrd_bytes'])}")
    name = f"{row['group']}: " if row["group"] else ""
    return printable(f"{name}{', '.join(facts)}")


def _cells(one: Sweep) -> list[list[str]]:
    columns = [_texts(name, one) for name in GROWING]
    hosts = [[format_pages(row["host_pages"])] if _by_host(one) else [] for row in one.rows]
    return [
        [*host, format_pages(row["nr_pages"]), *texts]
        for host, row, *texts in zip(hosts, one.rows, *columns, strict=True)
    ]


def _texts(quantity: str, one: Sweep) -> list[str]:
    form = format_seconds if quantity.endswith("_modelled") else "{:,.0f}".format
    return [ABSENT if value != value else form(value) for value in one.quantity(quantity).tolist()]


def _growth_row(name: str, one: Sweep, exponents: dict[str, float | None]) -> list[str]:
    values = (exponents[quantity] for quantity in GROWING)
    cells = [ABSENT if e is None else f"^{round(e, 2) + 0.0:.2f}" for e in values]
    return [name, *([""] if _by_host(one) else []), *cells]


def _grouped(word: str, rows: tuple[Row, ...], column: str) -> Report:
    """One sentence for each text of a column, with the sizes that it holds for."""
    sizes: dict[str, list[int]] = {}
    for row in rows:
        if row[column]:
            sizes.setdefault(row[column], []).append(row["nr_pages"])
    report: Report = []
    for text, nr_pages in sizes.items():
        first, last = format_pages(min(nr_pages)), format_pages(max(nr_pages))
        where = first if first == last else f"{first} to {last}"
        report.append(Prose(f"{word}, {where}: {text}", BAD, indent="  "))
    return report


def _notes(model: TimeModel | None) -> Report:
    text = (
        "Freeing the initial P->M list: entries walked, table pages freed, pages made writable, "
        "hypercalls; whole boot: hypercalls of all its stages. All but times are counted. Growth "
        "is the e of memory^e, fitted to the logarithms by least squares: of all sizes, and of "
        "the two largest."
    )
    note = [] if model is None else [Prose(f"* {model.in_words()}.", NOTE, indent="  ")]
    return [Prose(text, NOTE), *note]
