# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a guest's memory lies at its entry, to scale: without and with the INIT_P2M note."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpt.abi import L4_SHIFT, L4_SIZE, PAGE_SHIFT, WORD, table_slot
from xenpt.domuplan import DomuPlan
from xenpt.listshape import Range
from xenpt.pictures.picture import COUNTED, Picture, Sheet
from xenpt.pictures.style import BAD, FILLS, GRID, HATCHES, INK, MUTED, PAPER
from xenpt.plan import Plan
from xenpt.report import Table
from xenpt.scenario import case_of_plan
from xenpt.units import format_address, format_pages, format_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIB: Final = 1 << 30
KERNEL, INITRD, LIST, TABLES, SPARE = (
    "kernel",
    "initrd",
    "P->M list",
    "start_info, page tables, stack",
    "mapped, not used",
)
_KINDS: Final = (KERNEL, LIST, TABLES, INITRD, SPARE)
_BAR_HEIGHT: Final = 0.42


class Part(NamedTuple):
    """A piece of a bar: bytes [start, end) of the address space."""

    what: str
    start: int
    end: int

    @property
    def size(self) -> str:
        """For people."""
        return format_size(self.end - self.start)


class Bar(NamedTuple):
    """A piece of the address space from `start` on.

    :ivar texts: what it is, and what becomes of it
    :ivar chunk_bytes: Xen must have so much in one piece for it; 0 where that is no matter
    :ivar limits: (bytes from `start`, what ends there)
    """

    texts: tuple[str, ...]
    start: int
    parts: tuple[Part, ...]
    bad: bool = False
    chunk_bytes: int = 0
    limits: tuple[tuple[int, str], ...] = ()

    @property
    def end(self) -> int:
        """Of its last part, or of the piece of host memory for it."""
        return max(self.start + self.chunk_bytes, *(part.end for part in self.parts))


def layout_picture(plan: Plan) -> Picture:
    """The plan of a guest; where it honours INIT_P2M, beside the same guest without the note."""
    other = without_note(plan)
    plans = [plan] if other is None else [other, plan]
    bars = [bar for one in plans for bar in _bars(one)]

    def draw(sheet: Sheet) -> None:
        (axes,) = sheet.panels(1)
        _draw(sheet, axes, bars)

    return Picture(
        name="layout",
        title=f"Memory layout of a guest of {format_pages(plan.nr_pages)}",
        kinds=(COUNTED,),
        caption=_caption(plans),
        draw=draw,
        table=_table(plans),
        height=0.95 + 0.95 * len(bars),
        narrow_height=1.6 + 1.15 * len(bars),
    )


def without_note(plan: Plan) -> Plan | None:
    """The same guest as if its kernel had no INIT_P2M note; None if the list is inside anyway.

    None, too, for what a plan does not keep of how it was made: an initrd of the toolstack, vNUMA.
    """
    if not plan.list_outside:
        return None
    if isinstance(plan, DomuPlan) and (plan.guest.initrd_bytes or len(plan.pfn_ranges) > 1):
        return None
    case = case_of_plan(plan)
    return replace(case, kernel=replace(plan.image, init_p2m=None)).plan()


def _caption(plans: Sequence[Plan]) -> str:
    text = "Addresses to scale, each bar from its own start. "
    if any(plan.alloc_order for plan in plans):
        text += (
            "Xen's dom0 builder takes the whole initial mapping from one piece of host memory, a "
            "power of two (dashed), of 1 GiB at most; "
        )
    text += "the last 2 GiB of the address space are all that a kernel has. "
    if plans[-1].list_outside:
        text += "With the note, the list lies in an L4 slot of its own, where nothing limits it."
    return text


# --- What is drawn -----------------------------------------------------------------------------


def _bars(plan: Plan) -> list[Bar]:
    """The initial mapping, and the list where it lies elsewhere."""
    note = _note(plan)
    start, end = plan.total
    chunk = 1 << plan.alloc_order + PAGE_SHIFT if plan.alloc_order else 0
    limits = [(WORD - start, f"{format_size(WORD - start)}: end of the address space")]
    if chunk:
        largest = 1 << plan.era.max_order + PAGE_SHIFT
        limits.insert(0, (largest, f"{format_size(largest)}: Xen's largest piece"))
    text = f"{note}: initial mapping of {format_size(end - start)}:"
    bars = [
        Bar(
            texts=(text, plan.panic or "is built"),
            start=start,
            parts=tuple(_parts(plan)),
            bad=bool(plan.panic),
            chunk_bytes=chunk,
            limits=tuple(limits) if plan.image.bits == 64 else (),
        )
    ]
    if plan.list_outside:
        slot = table_slot(plan.p2m[0], 4)
        bars.append(
            Bar(
                (f"{note}: the P->M list in L4 slot {slot},", f"at {format_address(plan.p2m[0])}"),
                plan.p2m[0], (Part(LIST, *plan.p2m),),
                limits=((L4_SIZE - plan.p2m[0] % (1 << L4_SHIFT), "end of the L4 slot"),),
            )
        )  # fmt: skip
    return bars


def _note(plan: Plan) -> str:
    if plan.list_outside:
        return "with INIT_P2M"
    return "without INIT_P2M" if plan.image.init_p2m is None else "list inside"


def _parts(plan: Plan) -> list[Part]:
    """The initial mapping in order; what nothing lies in is SPARE."""
    ranges: list[tuple[str, Range]] = [
        (KERNEL, plan.kernel),
        (TABLES, (plan.start_info[0], plan.boot_stack[1])),
    ]
    if plan.initrd is not None:
        ranges.append((INITRD, plan.initrd))
    if not plan.list_outside:
        ranges.append((LIST, plan.p2m))
    parts, at = [], plan.total[0]
    for what, (start, end) in sorted(ranges, key=lambda found: found[1]):
        parts += [Part(SPARE, at, start), Part(what, start, end)]
        at = end
    parts.append(Part(SPARE, at, plan.total[1]))
    return [part for part in parts if part.end > part.start]


def _draw(sheet: Sheet, axes: "Axes", bars: Sequence[Bar]) -> None:
    reach = max(max(bar.end - bar.start for bar in bars), int(2.05 * GIB))
    for row, bar in enumerate(bars):
        _draw_bar(sheet, axes, bar, row)
    axes.set_ylim(len(bars) - 0.4, -0.55 - 0.32 * sheet.narrow)
    axes.set_xlim(0, reach / GIB * 1.02)
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("GiB from the start of each bar")
    _draw_limits(axes, bars)
    _legend(sheet, bars)


def _draw_bar(sheet: Sheet, axes: "Axes", bar: Bar, row: int) -> None:
    for part in bar.parts:
        i = _KINDS.index(part.what)
        spare = part.what == SPARE
        left, width = (part.start - bar.start) / GIB, (part.end - part.start) / GIB
        (patch,) = axes.barh(
            row + 0.1, width, _BAR_HEIGHT, left, color=GRID if spare else FILLS[i + 1],
            hatch="" if spare else HATCHES[i], edgecolor=INK,
        )  # fmt: skip
        where = f"{format_address(part.start)}->{format_address(part.end)}"
        sheet.tip(patch, f"{part.what}, {part.size}: {where}")
    if bar.chunk_bytes:
        (patch,) = axes.barh(
            row + 0.1, bar.chunk_bytes / GIB, _BAR_HEIGHT + 0.12, 0, fill=False, ls="--",
            edgecolor=BAD if bar.bad else INK, lw=1.2,
        )  # fmt: skip
        sheet.tip(patch, f"taken in one piece: {format_size(bar.chunk_bytes)}")
    axes.text(
        0, row - 0.19, ("\n" if sheet.narrow else " ").join(bar.texts), va="bottom",
        color=BAD if bar.bad else INK, weight="bold" if bar.bad else None, in_layout=False,
        bbox={"facecolor": PAPER, "linewidth": 0, "pad": 1},
    )  # fmt: skip


def _draw_limits(axes: "Axes", bars: Sequence[Bar]) -> None:
    """Lines through all bars that have the same limit, named above them."""
    limits = dict.fromkeys(limit for bar in bars for limit in bar.limits)
    right = axes.get_xlim()[1]
    shown = [(at, text) for at, text in limits if at / GIB < right]
    for i, (at, text) in enumerate(shown):
        rows = [row for row, bar in enumerate(bars) if (at, text) in bar.limits]
        for row in rows:
            axes.plot([at / GIB] * 2, [row - 0.16, row + 0.4], color=BAD, lw=1.4)
        level = 3 + 11 * (len(shown) - 1 - i)
        late = at / GIB > right / 2
        axes.annotate(
            text, (at / GIB, 1), (0, level), xycoords=("data", "axes fraction"),
            textcoords="offset points", color=BAD, ha="right" if late else "left", va="bottom",
            annotation_clip=False,
        )  # fmt: skip
        axes.annotate(
            "", (at / GIB, rows[0] - 0.16), (at / GIB, 1), textcoords=("data", "axes fraction"),
            arrowprops={"arrowstyle": "-", "color": BAD, "lw": 0.8, "ls": ":"},
        )  # fmt: skip


def _legend(sheet: Sheet, bars: Sequence[Bar]) -> None:
    from matplotlib.patches import Patch

    there = {part.what for bar in bars for part in bar.parts}
    handles = [
        Patch(
            facecolor=GRID if what == SPARE else FILLS[i + 1],
            hatch="" if what == SPARE else HATCHES[i], edgecolor=INK, label=what,
        )
        for i, what in enumerate(_KINDS)
        if what in there
    ]  # fmt: skip
    if any(bar.chunk_bytes for bar in bars):
        handles.append(Patch(fill=False, ls="--", edgecolor=MUTED, label="taken in one piece"))
    sheet.figure.legend(
        handles=handles, loc="outside lower left", ncols=2 if sheet.narrow else len(handles),
        handlelength=1.6, columnspacing=1.2,
    )  # fmt: skip


def _table(plans: Sequence[Plan]) -> Table:
    rows = []
    for plan in plans:
        note = _note(plan)
        parts = _parts(plan)
        if plan.list_outside:
            parts.append(Part(LIST, *plan.p2m))
        for part in parts:
            span = (format_address(part.start), format_address(part.end))
            rows.append([note, part.what, *span, part.size])
        rows.append([note, "result", "", "", plan.panic or "is built"])
    return Table(("", "what", "start", "end", "size"), rows, nr_left=2)
