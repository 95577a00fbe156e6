# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the memory of hosts goes: a bar for each, in percent, with GiB as labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from xenpt.budget import Row
from xenpt.capacity import Capacity
from xenpt.capacitytexts import IN_WORDS
from xenpt.pictures.picture import COUNTED, MEASURED, Picture, Sheet
from xenpt.pictures.style import BAD, FILLS, GRID, HATCHES, INK, PAPER
from xenpt.report import Table
from xenpt.units import GIB_PAGES, format_pages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUPPORTED: Final = "pages of RAM with security support"
#: What is not for guests, from the left; the words of the legend.
OVERHEAD: Final = {
    "ignored": "not used by Xen",
    "frame_table": "frame table",
    "m2p": "M2P table",
    "xen": "Xen's own",
    "dom0": "dom0",
    "pools": "paging pools",
    "slack": "slack per guest",
}
TAKEN: Final = tuple(name for name in OVERHEAD if name != "ignored")
REST: Final = {"guests": "guests", "left": "left"}
_LOOKS: Final[dict[str, dict[str, Any]]] = {
    name: {"color": FILLS[i], "hatch": HATCHES[i], "edgecolor": INK}
    for i, name in enumerate(("frame_table", "m2p", "pools", "dom0", "xen", "slack", "ignored"))
} | {
    "guests": {"color": GRID, "edgecolor": INK},
    "left": {"color": PAPER, "edgecolor": INK},
}


def budget_picture(budgets: Sequence[Capacity]) -> Picture:
    """The budget of each host: all of it, and what is not for guests once more, larger."""

    def draw(sheet: Sheet) -> None:
        whole, overhead = sheet.panels(2)
        _draw_whole(sheet, whole, budgets)
        _draw_overhead(sheet, overhead, budgets)
        _legend(sheet, budgets)

    rows = 0.34 * len(budgets)
    return Picture(
        name="capacity",
        title="Where the memory of a host goes",
        kinds=(COUNTED, MEASURED),
        caption=_caption(budgets),
        draw=draw,
        table=_table(budgets),
        height=2.2 + rows,
        narrow_height=3.7 + 2 * rows,
    )


def _caption(budgets: Sequence[Capacity]) -> str:
    guests = {
        f"{IN_WORDS[group.kind]} guests of {format_pages(group.nr_pages)}"
        for budget in budgets
        for group in budget.guests
    }
    full = f"Hosts with {' and '.join(sorted(guests))}. " if guests else ""
    return (
        f"{full}Frame table and M2P are counted; Xen's own image, heap and tables are measured on "
        "a real boot; the sizes of dom0, pools and slack are rules of those who set them, named in "
        "the numbers. Both axes are percent of the host's RAM, the labels GiB."
    )


def _draw_whole(sheet: Sheet, axes: "Axes", budgets: Sequence[Capacity]) -> None:
    for row, budget in enumerate(budgets):
        _bar(sheet, axes, row, budget, (*OVERHEAD, *REST))
        if budget.left < 0:
            axes.axvline(100, color=BAD, lw=1.4)
            axes.text(
                99, row, f"{format_pages(-budget.left)} too much", color=BAD, ha="right",
                va="center", bbox={"facecolor": PAPER, "linewidth": 0, "pad": 2},
            )  # fmt: skip
    top = max(100, *(100 * (1 - budget.left / budget.nr_pages) for budget in budgets))
    axes.set_xlim(0, top * 1.001)
    axes.set_title("The whole host")
    _finish(axes, budgets)


def _draw_overhead(sheet: Sheet, axes: "Axes", budgets: Sequence[Capacity]) -> None:
    most = 0.0
    for row, budget in enumerate(budgets):
        end = _bar(sheet, axes, row, budget, TAKEN)
        taken = sum(part.pages for part in budget.rows if part.name in TAKEN)
        axes.annotate(
            f"{taken / GIB_PAGES:,.1f} GiB", (end, row), (4, 0), textcoords="offset points",
            va="center",
        )  # fmt: skip
        most = max(most, end)
    axes.set_xlim(0, most * 1.28)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= max(most, 1)])
    axes.set_xlim(0, most * 1.28)
    axes.set_title("What Xen, dom0 and pools take")
    _finish(axes, budgets)
    _mark_support(axes, budgets)


_THIN: Final = 0.005  # percent that no screen shows


def _bar(sheet: Sheet, axes: "Axes", row: int, budget: Capacity, names: tuple[str, ...]) -> float:
    """One host, in percent; where the bar ends."""
    at = 0.0
    held = {part.name: part for part in budget.rows}
    for name in names:
        part = held.get(name)
        if part is None or part.pages <= 0:
            continue
        percent = 100 * part.pages / budget.nr_pages
        if percent > _THIN:
            (patch,) = axes.barh(row, percent, 0.66, at, **_LOOKS[name])
            sheet.tip(patch, _describe(part, budget))
        at += percent
    return at


def _describe(part: Row, budget: Capacity) -> str:
    percent = 100 * part.pages / budget.nr_pages
    host = format_pages(budget.nr_pages)
    return (
        f"{host}, {part.text}: {part.pages / GIB_PAGES:,.2f} GiB, {percent:.2f} % ({part.origin})"
    )


def _finish(axes: "Axes", budgets: Sequence[Capacity]) -> None:
    hosts = [format_pages(budget.nr_pages) for budget in budgets]
    if len(set(hosts)) < len(hosts):  # one host by several rules, or as several kinds
        hosts = [_unlike(budget, host) for budget, host in zip(budgets, hosts, strict=True)]
    axes.set_yticks(range(len(budgets)), hosts)
    axes.set_ylim(len(budgets) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("% of the host's RAM")


def _unlike(budget: Capacity, host: str) -> str:
    kinds = "+".join(dict.fromkeys(IN_WORDS[group.kind] for group in budget.guests))
    dom0 = budget.dom0_rule.name if budget.dom0_rule else budget.dom0.guest.dom0_mem
    return ", ".join(filter(None, (host, kinds, dom0)))


def _mark_support(axes: "Axes", budgets: Sequence[Capacity]) -> None:
    """A line below the last host that has security support, where the hosts come by size."""
    passed = [
        any(limit.passed for limit in budget.limits if limit.limit == SUPPORTED)
        for budget in budgets
    ]
    if not any(passed) or passed != sorted(passed):
        return
    limit = next(one for one in budgets[-1].limits if one.limit == SUPPORTED)
    row = passed.index(True) - 0.5
    axes.axhline(row, color=BAD, lw=1.2, ls="--")
    axes.annotate(
        f"no security support beyond {format_pages(limit.value)}", (1, row), (0, 2),
        xycoords=("axes fraction", "data"), textcoords="offset points", color=BAD, ha="right",
        va="bottom", bbox={"facecolor": PAPER, "linewidth": 0, "pad": 0.5}, in_layout=False,
    )  # fmt: skip


def _legend(sheet: Sheet, budgets: Sequence[Capacity]) -> None:
    from matplotlib.patches import Patch

    there = {
        part.name
        for budget in budgets
        for part in budget.rows
        if 100 * part.pages > _THIN * budget.nr_pages
    }
    words = OVERHEAD | REST
    handles = [
        Patch(facecolor=look["color"], hatch=look.get("hatch"), edgecolor=INK, label=words[name])
        for name, look in ((name, _LOOKS[name]) for name in words)
        if name in there
    ]
    sheet.figure.legend(
        handles=handles, loc="outside lower left", ncols=2 if sheet.narrow else 8,
        handlelength=1.6, columnspacing=1.2,
    )  # fmt: skip


def _table(budgets: Sequence[Capacity]) -> Table:
    rows = [
        [
            format_pages(budget.nr_pages), part.text,
            part.origin, f"{part.pages:,}",
            f"{part.pages / GIB_PAGES:,.2f}", f"{100 * part.pages / budget.nr_pages:.2f}",
        ]
        for budget in budgets
        for part in budget.rows
    ]  # fmt: skip
    return Table(("host", "what", "from", "pages", "GiB", "%"), rows, nr_left=3)
