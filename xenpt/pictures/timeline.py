# SPDX-License-Identifier: GPL-2.0-or-later
"""The stages of a boot in their order: how long each takes, and which hypercalls it makes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from xenpt.boottime import StageTime, stage_times
from xenpt.cost import HYPERCALL_TYPES
from xenpt.errors import UsageError
from xenpt.linux import Boot
from xenpt.pictures.picture import COUNTED, MODELLED, Picture, Sheet
from xenpt.pictures.style import FILLS, GRID, HATCHES, INK, PAPER
from xenpt.report import Table
from xenpt.timing import TimeModel
from xenpt.units import format_pages, format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINUX, _XEN = 1, 2  # of FILLS and HATCHES
_MARGIN: Final = 1.02  # of the axis behind the last stage
_ROOM: Final = 0.17  # share of the width that a label of a bar may take


def timeline_picture(boot: Boot, model: TimeModel) -> Picture:
    """Xen's build and the stages of a boot: when each runs, and its hypercalls by type.

    :raises UsageError: no stage was run
    """
    times = stage_times(boot, model)
    if not times:
        raise UsageError(f"no stage of a boot to plot: {boot.panic or 'none was run'}")

    def draw(sheet: Sheet) -> None:
        upper, lower = sheet.figure.subplots(2, 1, height_ratios=(len(times) + 1, 5))
        _draw_times(sheet, upper, times)
        _draw_calls(sheet, lower, times)

    return Picture(
        name="boot",
        title=f"Stages of Linux {boot.rules.name} in {format_pages(boot.state.nr_pages)}",
        kinds=(COUNTED, MODELLED),
        caption="Above: Xen's build of the domain and the stages of Linux's early boot, one after "
        "the other, each with its part in Linux and its part in Xen, though in truth they "
        "alternate with every hypercall. Below: all hypercalls, those of each stage, and their "
        "types, as wide as their number. Hypercalls are counted. Seconds are "
        f"{model.in_words()}.",
        draw=draw,
        table=_table(times),
        height=5.4,
        narrow_height=6.6,
    )


def _draw_times(sheet: Sheet, axes: "Axes", times: Sequence[StageTime]) -> None:
    at, whole = 0.0, sum(time.seconds or 0.0 for time in times) or 1e-9
    unit, scale = ("seconds", 1.0) if whole >= 1 else ("milliseconds", 1e3)
    axes.set_xlim(0, whole * scale * _MARGIN)
    for row, time in enumerate(times):
        begin = at
        for what, i, part in (("Linux", _LINUX, time.linux), ("Xen", _XEN, time.xen)):
            seconds = part or 0.0
            (patch,) = axes.barh(
                row, seconds * scale, 0.62, at * scale, color=FILLS[i], hatch=HATCHES[i],
                edgecolor=INK, label=f"in {what}" if row == 0 else None,
            )  # fmt: skip
            sheet.tip(patch, f"{time.name}, in {what}: {_seconds(part)}; {_calls(time)}")
            at += seconds
        _label(axes, row, _seconds(time.seconds), (begin / whole, at / whole), narrow=sheet.narrow)
    axes.set_yticks(range(len(times)), [time.name for time in times])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_title("Time, modelled")
    axes.set_xlabel(f"{unit} from the start of the build")
    axes.legend()


def _label(axes: "Axes", row: int, text: str, ends: tuple[float, float], *, narrow: bool) -> None:
    """A text behind its bar, or before it, or on it: where there is room.

    :param ends: of the bar, as shares of the whole
    """
    begin, end = ends
    room = _ROOM * (2 if narrow else 1)
    x, offset, side = (begin + end) / 2, 0, "center"
    if end + room < 1:
        x, offset, side = end, 4, "left"
    elif begin > room:
        x, offset, side = begin, -4, "right"
    axes.annotate(
        text, (x * axes.get_xlim()[1] / _MARGIN, row), (offset, 0), textcoords="offset points",
        ha=side, va="center",
        bbox={"facecolor": PAPER, "linewidth": 0, "pad": 1.5} if side == "center" else None,
    )  # fmt: skip


def _draw_calls(sheet: Sheet, axes: "Axes", times: Sequence[StageTime]) -> None:
    """Like a flame graph from above: all, stages, types."""
    whole = sum(time.cost.hypercalls for time in times)
    _cell(sheet, axes, 0, 0, whole, GRID, "", f"{whole:,}", f"all hypercalls: {whole:,}", whole)
    at = 0
    for time in times:
        nr = time.cost.hypercalls
        _cell(sheet, axes, 1, at, nr, GRID, "", time.name, f"{time.name}: {nr:,} hypercalls", whole)
        start = at
        for i, kind in enumerate(HYPERCALL_TYPES):
            calls = time.cost.by_type[kind]
            tip = f"{kind} in {time.name}: {calls:,}"
            _cell(sheet, axes, 2, start, calls, FILLS[i], HATCHES[i], "", tip, whole)
            start += calls
        at += nr
    axes.set_xlim(0, max(whole, 1))
    axes.set_ylim(2.5, -0.5)
    axes.set_yticks([0, 1, 2], ["all", "stages", "types"])
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title("Hypercalls, counted")
    _legend(sheet, times)


def _cell(
    sheet: Sheet, axes: "Axes", row: int, at: int, nr: int, colour: str, hatch: str, text: str,
    tip: str, whole: int,
) -> None:  # fmt: skip
    if not nr:
        return
    (patch,) = axes.barh(row, nr, 0.86, at, color=colour, hatch=hatch, edgecolor=INK, lw=0.5)
    sheet.tip(patch, tip)
    room = (36 if sheet.narrow else 95) * nr / whole  # characters
    if text and len(text) + 1 < room:
        axes.text(at + nr / 2, row, text, ha="center", va="center", clip_on=True)


def _legend(sheet: Sheet, times: Sequence[StageTime]) -> None:
    from matplotlib.patches import Patch

    there = [any(time.cost.by_type[kind] for time in times) for kind in HYPERCALL_TYPES]
    handles = [
        Patch(facecolor=FILLS[i], hatch=HATCHES[i], edgecolor=INK, label=kind)
        for i, kind in enumerate(HYPERCALL_TYPES)
        if there[i]
    ]
    sheet.figure.legend(
        handles=handles, loc="outside lower left", ncols=2 if sheet.narrow else 5, handlelength=1.6
    )


def _seconds(seconds: float | None) -> str:
    return "never measured" if seconds is None else format_seconds(seconds)


def _calls(time: StageTime) -> str:
    """The hypercalls of a stage in words."""
    by_type = {kind: nr for kind, nr in time.cost.by_type.items() if nr}
    parts = ", ".join(f"{nr:,} {kind}" for kind, nr in by_type.items())
    return f"{time.cost.hypercalls:,} hypercalls" + (f": {parts}" if parts else "")


def _table(times: Sequence[StageTime]) -> Table:
    rows = [
        [
            time.name, *map(_seconds, (time.seconds, time.linux, time.xen)),
            f"{time.cost.hypercalls:,}",
            *(f"{time.cost.by_type[kind]:,}" for kind in HYPERCALL_TYPES),
            f"{time.cost.entries_written:,}", f"{time.cost.pages_freed:,}",
        ]
        for time in times
    ]  # fmt: skip
    header = (
        "stage", "time", "in Linux", "in Xen", "hypercalls", *HYPERCALL_TYPES, "entries written",
        "pages freed",
    )  # fmt: skip
    return Table(header, rows)
