# SPDX-License-Identifier: GPL-2.0-or-later
"""The counts of one stage, as bars whose lengths go by powers of ten."""

from xenpt.cost import Cost
from xenpt.errors import UsageError
from xenpt.pictures.picture import COUNTED, Picture, Sheet
from xenpt.pictures.style import FILLS, HATCHES, INK
from xenpt.report import Table


def cost_picture(cost: Cost) -> Picture:
    """Every count of a cost that is not 0.

    :raises UsageError: all are 0
    """
    counts = cost_counts(cost)
    if not counts:
        raise UsageError("nothing was counted: there is no cost to plot")

    def draw(sheet: Sheet) -> None:
        (axes,) = sheet.panels(1)
        for row, (name, nr) in enumerate(counts):
            i = 1 if "hypercalls" in name else 2
            (patch,) = axes.barh(row, nr, 0.62, color=FILLS[i], hatch=HATCHES[i], edgecolor=INK)
            sheet.tip(patch, f"{name}: {nr:,}")
            axes.annotate(f"{nr:,}", (nr, row), (4, 0), textcoords="offset points", va="center")
        axes.set_xscale("log")
        axes.set_xlim(0.8, max(nr for _, nr in counts) * (80 if sheet.narrow else 8))
        axes.set_yticks(range(len(counts)), [name for name, _ in counts])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlabel("number")
        axes.grid(visible=False, axis="y")

    return Picture(
        name="cost",
        title="What it costs",
        kinds=(COUNTED,),
        caption="All that was counted, on a logarithmic scale.",
        draw=draw,
        table=Table(("count", "number"), [(name, f"{nr:,}") for name, nr in counts]),
        height=1.0 + 0.3 * len(counts),
        narrow_height=1.0 + 0.3 * len(counts),
    )


def cost_counts(cost: Cost) -> list[tuple[str, int]]:
    """Each count of a cost that is not 0, in words."""
    counts = [(f"{kind} hypercalls", nr) for kind, nr in cost.by_type.items()]
    counts += [(f"{level.upper()} entries read", nr) for level, nr in cost.entries_read.items()]
    counts += [(f"{level.upper()} tables freed", nr) for level, nr in cost.tables_freed.items()]
    counts += [
        ("entries written", cost.entries_written),
        ("entries read by lookup_address", cost.lookup_reads),
        ("calls of memblock_free", cost.memblock_free_calls),
        ("pages freed", cost.pages_freed),
        ("pages leaked", cost.pages_leaked),
    ]
    return [(name, nr) for name, nr in counts if nr]
