# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a PV domain's own memory goes: counted by booting it, stage by stage.

Each stage takes pages from memblock and gives some back; the difference is what it costs.
"""

from dataclasses import asdict, dataclass
from typing import Any

from xenpt.abi import PAGE_SHIFT
from xenpt.linux import Boot, LinuxRules, Stage
from xenpt.linux.state import BootState
from xenpt.plan import Plan
from xenpt.xen import build


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a budget.

    :ivar name: key, the same in every budget
    :ivar text: the same for people
    :ivar pages: of 4 KiB
    :ivar tag: "counted" (by the model), "measured" (on a real boot), "rule" (somebody's, see the
        source), "given" (by the user) or "rest"
    """

    name: str
    text: str
    pages: int
    tag: str
    source: str

    @property
    def origin(self) -> str:
        """Tag and source in one text."""
        return f"{self.tag}: {self.source}" if self.source else self.tag

    def as_dict(self) -> dict[str, Any]:
        """One element of `rows` in JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Inside:
    """A PV domain after its early boot.

    :ivar rows: what holds its pages; their sum is `nr_pages`
    :ivar boot_pages: pages of the initial P->M list, which are in use only during the boot
    :ivar hypercalls: of the whole early boot
    :ivar beyond: limits that it passes
    """

    nr_pages: int
    rows: tuple[Row, ...]
    boot_pages: int
    hypercalls: int
    beyond: tuple[dict[str, Any], ...]

    @property
    def pv_pages(self) -> int:
        """Pages that it holds only because it is paravirtualised: all tables, and the P->M list."""
        names = ("direct_map_tables", "vmemmap_tables", "p2m_list", "p2m_leaked")
        return sum(row.pages for row in self.rows if row.name in names)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "nr_pages": self.nr_pages,
            "rows": [row.as_dict() for row in self.rows],
            "boot_pages": self.boot_pages,
            "hypercalls": self.hypercalls,
        }


def inside(plan: Plan, rules: LinuxRules) -> Inside | None:
    """What Linux makes of a domain's memory; None if it does not boot."""
    if plan.panic:
        return None
    boot = Boot(build(plan), rules=rules, e820=plan.host.map, check=False)
    after: dict[Stage, BootState] = {}
    for stage in Stage:
        after[stage] = boot.run_to(stage).state
    if boot.panic:
        return None
    return Inside(
        plan.nr_pages,
        tuple(_rows(plan.nr_pages, after, f"Linux {rules.name}")),
        _size(after[Stage.MEMORY_SETUP].initial_list.pfns),
        boot.cost.hypercalls,
        tuple(boot.beyond),
    )


def _rows(nr_pages: int, after: dict[Stage, BootState], linux: str) -> list[Row]:
    reserved = {stage: _reserved(state) for stage, state in after.items()}
    setup, last = after[Stage.MEMORY_SETUP], after[Stage.REMAP_MEMORY]
    initial_list = _size(setup.initial_list.pfns)
    leaked = initial_list - (reserved[Stage.P2M_COPIED] - reserved[Stage.P2M_FREE])
    vmemmap_tables = last.vmemmap.nr_tables() if last.vmemmap is not None else 0
    memory = (last.memblock.memory.size >> PAGE_SHIFT) - last.extra.size
    counts = (
        ("kernel", "kernel, initrd, start of day", reserved[Stage.MEMORY_SETUP] - initial_list),
        (
            "direct_map_tables",
            "page tables of the direct map",
            reserved[Stage.INIT_MEM_MAPPING] - reserved[Stage.MEMORY_SETUP],
        ),
        (
            "struct_pages",
            "struct pages (vmemmap)",
            reserved[Stage.PAGING_INIT] - reserved[Stage.INIT_MEM_MAPPING] - vmemmap_tables,
        ),
        ("vmemmap_tables", "page tables of the vmemmap", vmemmap_tables),
        (
            "p2m_list",
            "P->M list and its page tables",
            reserved[Stage.P2M_COPIED] - reserved[Stage.PAGING_INIT],
        ),
        ("p2m_leaked", "initial P->M list, leaked", leaked),
        ("unused", "not RAM to Linux: holes, or beyond its limit", nr_pages - memory),
    )
    rows = [Row(name, text, pages, "counted", linux) for name, text, pages in counts if pages]
    left = nr_pages - sum(row.pages for row in rows)
    return [*rows, Row("left", "left to Linux and its programs", left, "rest", linux)]


def _reserved(state: BootState) -> int:
    """Pages in memblock.reserved, less what is only kept for ballooning."""
    return (state.memblock.reserved.size >> PAGE_SHIFT) - state.extra.size


def _size(pfns: tuple[int, int]) -> int:
    return pfns[1] - pfns[0]
