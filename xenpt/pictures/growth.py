# SPDX-License-Identifier: GPL-2.0-or-later
"""The costs of a sweep against memory: of the walk alone, and of the whole cleanup.

Two panels on purpose: large leaves make the walk cheap, and hardly change the whole, for every
4 KiB frame of the list is made writable whatever its leaf is. One panel alone would mislead.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from xenpt.errors import UsageError
from xenpt.listshape import LEAVES
from xenpt.pictures.picture import COUNTED, MODELLED, Picture, Sheet
from xenpt.pictures.style import INK, LINES, MARKERS, MUTED, PAPER, STROKES
from xenpt.report import Table
from xenpt.sweeprow import INPUTS, Row, list_outside
from xenpt.sweeptable import Sweep
from xenpt.timing import TimeModel
from xenpt.units import format_pages, format_seconds, format_size, pages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Sizes that people ask for: above 512 GiB the list needs the note; 12 TiB is the largest
#: supported host.
MARKS: Final = ("512 GiB", "12 TiB")
FEW: Final = 3  # series have a legend inside of each panel
_OUTSIDE: Final = """\
Large leaves make the walk cheap, but change little of the whole: each 4 KiB frame of the list is \
made writable by a hypercall of its own, whatever its leaf is. """
_INSIDE: Final = """\
A list in the initial mapping is freed in one piece: 2 MiB a hypercall, and nothing is made \
writable. """
_SLOPES: Final = "slope between the two largest sizes"
_TIME: Final = "cleanup_seconds_modelled"


class Panel(NamedTuple):
    """One quantity of a sweep against memory."""

    quantity: str
    title: str
    unit: str


_WALK: Final = Panel("entries_walked", "The walk alone", "page-table entries read")
_WHOLE: Final = Panel(_TIME, "The whole cleanup", "seconds, modelled")
_CALLS: Final = Panel("cleanup_hypercalls", "The whole cleanup", "hypercalls")


def growth_picture(sweep: Sweep) -> Picture:
    """What freeing the initial P->M list costs, by memory size, for each series of a sweep.

    :raises UsageError: no guest of the sweep boots
    """
    series = [one for one in sweep.series if np.isfinite(one.quantity(_CALLS.quantity)).any()]
    if not series:
        raise UsageError("no guest of the sweep boots: there is no cost to plot")
    timed = any(np.isfinite(one.quantity(_TIME)).any() for one in series)
    panels = (_WALK, _WHOLE if timed else _CALLS)
    names = _names(series)

    few = len(series) <= FEW

    def draw(sheet: Sheet) -> None:
        for axes, panel in zip(sheet.panels(len(panels)), panels, strict=True):
            _draw_panel(sheet, axes, panel, series, names)
            if few:
                _legend_inside(axes, panel, series, names)
        if not few:
            _legend_below(sheet, panels, series, names)

    outside = {list_outside(one.rows[0]) for one in series}
    why = _OUTSIDE * (True in outside) + _INSIDE * (False in outside)
    times = f" Seconds are {model_of(sweep).in_words()}." if timed else ""
    return Picture(
        name="cleanup",
        title="Cost of freeing the initial P->M list",
        kinds=(COUNTED, MODELLED) if timed else (COUNTED,),
        caption=f"{why}Entries and hypercalls are counted.{times}",
        draw=draw,
        table=_table(series, names, timed=timed),
        height=4.0 if few else 4.3 + 0.2 * len(series),
        narrow_height=7.4 if few else 7.7 + 0.2 * len(series),
    )


def model_of(sweep: Sweep) -> TimeModel:
    """What the sweep's modelled times assume, by its rows, which do not have the constants."""
    row = sweep.rows[0]
    return TimeModel({}, row["model_cpi"], row["model_ghz"], row["model_source"])


def _draw_panel(
    sheet: Sheet, axes: "Axes", panel: Panel, series: Sequence[Sweep], names: Sequence[str]
) -> None:
    for i, (one, name) in enumerate(zip(series, names, strict=True)):
        x, y = one["nr_pages"], one.quantity(panel.quantity)
        known = np.isfinite(y) & (y > 0)
        colour = STROKES[i % len(STROKES)]
        # The first line is the widest, so that those on top of it leave it to be seen.
        width = 1.7 + 1.5 * max(len(series) - 1 - i, 0) / max(len(series) - 1, 1)
        axes.plot(x[known], y[known], LINES[i % len(LINES)], color=colour, lw=width)
        for size, value in zip(x[known].tolist(), y[known].tolist(), strict=True):
            (point,) = axes.plot(
                size, value, MARKERS[i % len(MARKERS)], color=colour, ms=4.5 + (width - 1.7),
                mfc=PAPER if i else colour,
            )  # fmt: skip
            sheet.tip(point, f"{name}, {format_pages(size)}: {_text(panel, value)}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _mark_sizes(axes)
    axes.set_title(panel.title, pad=16)
    axes.set_ylabel(panel.unit)
    axes.set_xlabel("memory of the guest")


def _legend_inside(
    axes: "Axes", panel: Panel, series: Sequence[Sweep], names: Sequence[str]
) -> None:
    labels = [f"{name}{_slope(one, panel)}" for one, name in zip(series, names, strict=True)]
    axes.legend(
        _handles(len(series)), labels, loc="upper left", handlelength=2.6, alignment="left",
        title=_SLOPES, frameon=True, facecolor=PAPER, framealpha=1, edgecolor="none",
        borderpad=0.2,
    )  # fmt: skip
    _make_room(axes, len(series) + 1)


def _legend_below(
    sheet: Sheet, panels: Sequence[Panel], series: Sequence[Sweep], names: Sequence[str]
) -> None:
    """One legend for both panels: with many series, there is no room in them."""
    labels = [
        name + ",".join(_slope(one, panel) for panel in panels).replace(",:", ",")
        for one, name in zip(series, names, strict=True)
    ]
    sheet.figure.legend(
        _handles(len(series)), labels, loc="outside lower left", handlelength=2.6,
        alignment="left", title=f"{_SLOPES}, walk and whole",
    )  # fmt: skip


def _slope(one: Sweep, panel: Panel) -> str:
    slope = one.exponents(nr_largest=2)[panel.quantity]
    return ": -" if slope is None else f": {slope:.2f}"


def _handles(nr: int) -> list[Any]:
    """The look of each series."""
    from matplotlib.lines import Line2D

    return [
        Line2D(
            [], [], ls=LINES[i % len(LINES)], marker=MARKERS[i % len(MARKERS)], ms=4.5,
            color=STROKES[i % len(STROKES)], mfc=PAPER if i else STROKES[0],
        )
        for i in range(nr)
    ]  # fmt: skip


def _mark_sizes(axes: "Axes") -> None:
    """Ticks that are sizes, and the sizes that people ask for."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = axes.get_xlim()
    first, last = int(np.ceil(np.log2(low))), int(np.floor(np.log2(high)))
    step = max(1, -(-(last - first) // 5))
    axes.xaxis.set_major_locator(FixedLocator([2.0**e for e in range(first, last + 1, step)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: format_pages(int(size))))
    axes.xaxis.set_minor_locator(NullLocator())
    for text in MARKS:
        size = pages(text)
        if low < size < high:
            axes.axvline(size, color=MUTED, lw=0.9, ls=(0, (2, 2)))
            axes.annotate(
                text, (size, 1), (0, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", color=INK, ha="center", va="bottom",
            )  # fmt: skip


def _make_room(axes: "Axes", nr_lines: int) -> None:
    """Raise the top until the legend is above the lines."""
    low, high = axes.get_ylim()
    share = 0.09 * nr_lines + 0.06
    axes.set_ylim(low, float(low * (high / low) ** (1 / max(1 - share, 0.4))))


def _names(series: Sequence[Sweep]) -> list[str]:
    """What tells each series from the others."""
    rows = [one.rows[0] for one in series]
    free = [name for name in INPUTS if len({row[name] for row in rows}) > 1]
    free = [name for name in free if name not in ("memory_pages", "host_pages")] or ["p2m_leaf"]
    return [", ".join(filter(None, (_name(row, name) for name in free))) for row in rows]


def _name(row: Row, column: str) -> str:
    value = row[column]
    if column == "p2m_leaf":
        return f"{LEAVES[value]} leaves" if list_outside(row) else "list in the initial mapping"
    if column == "init_p2m":
        return "" if value else "without INIT_P2M"
    if column == "builder":
        return "" if value == "dom0" else "guest of the toolstack"
    if value is None:
        return ""
    if column == "initrd_bytes":
        return f"initrd of {format_size(value)}"
    words = {"linux": "Linux", "xen": "Xen"}
    return str(value) if column == "group" else f"{words.get(column, column)} {value}"


def _table(series: Sequence[Sweep], names: Sequence[str], *, timed: bool) -> Table:
    panels = [_WALK, _CALLS, *([_WHOLE] if timed else [])]
    rows = [
        [name, format_pages(size), *(_text(panel, value) for panel, value in zip(panels, values,
         strict=True))]
        for one, name in zip(series, names, strict=True)
        for size, *values in zip(
            one["nr_pages"].tolist(), *(one.quantity(p.quantity).tolist() for p in panels),
            strict=True,
        )
    ]  # fmt: skip
    header = ("series", "memory", "entries read", "hypercalls", *(["whole"] if timed else []))
    return Table(header, rows, nr_left=1)


def _text(panel: Panel, value: Any) -> str:
    if value != value:
        return "-"
    if panel.quantity != _TIME:
        return f"{value:,.0f}"
    return format_seconds(value)
