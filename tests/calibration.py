# SPDX-License-Identifier: GPL-2.0-or-later
"""Constants of the time model, fitted to counts of real boots; and how well they predict others.

The counts are those of tests/oracle/counting.py. What Linux executes, and what Xen executes in each
kind of entry, are fitted one by one, so that every constant has parts of one meaning; what Xen does
in interrupts of a stage is Linux's. Residuals and predictions are of the sums.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xenpt.boottime import BootWork
from xenpt.inputs.config import Host, parse_e820
from xenpt.inputs.kernel import Kernel
from xenpt.linux import PROFILES, Boot
from xenpt.plan import plan_dom0
from xenpt.timing import OPERATIONS, Instructions, TimeModel, Work
from xenpt.xen import build

#: What the constants are fitted to, and what they then have to predict.
FITTED = "512m", "1000m", "2g", "8g"
PREDICTED = "4g", "1535m", "2g-initrd"
#: Operations in which the guest takes part, or an entry into Xen of the kind.
PARTS = {
    "linux": (
        "setup_kernel_pagetable", "memory_setup", "hole_frame", "direct_map_pte", "absent_pte",
        "upper_entry", "paging_init", "set_pte", "list_page", "scanned_entry", "extra_page",
        "freed_frame", "freed_block", "walked_entry", "remap_memory", "moved_frame",
    ),
    "build": ("build", "build_page"),
    "update_va_mapping": (
        "setup_kernel_pagetable", "hole_page", "hole_group", "new_table", "freed_frame",
        "moved_frame", "first_mapped",
    ),
    "mmu_update": (
        "upper_entry", "set_pte", "freed_frame", "freed_block", "dropped_l1", "dropped_table",
        "moved_frame",
    ),
    "mmuext_op": ("setup_kernel_pagetable", "pinned_l1", "pinned_entry"),
    "multicall": ("list_table", "extra_table"),
    "memory_op": ("memory_setup",),
}  # fmt: skip
#: Stages that a Linux with mem= does as the model says.
_STAGES_OF_PART = "setup_kernel_pagetable", "p2m_free"
_SHARE = 1e-9  # of the largest: what is left of a part that rounding alone has made
Record = dict[str, Any]
Array = npt.NDArray[np.float64]


class Published(NamedTuple):
    """What somebody else's machine took between two lines of its log.

    :ivar stages: what goes on between the lines
    :ivar seconds: measured there
    :ivar instructions: modelled
    """

    record: Record
    stages: str
    seconds: float
    instructions: float

    @property
    def cpi(self) -> float:
        """With which the model would have met the measured time, at the clock that Xen printed."""
        return self.seconds * float(self.record["ghz"]) * 1e9 / self.instructions


def read_records(folder: Path) -> dict[str, Record]:
    """Counts of a calibrating run, by case."""
    lines = (folder / "counts.jsonl").read_text("utf-8").splitlines()
    return {record["case"]: record for record in map(json.loads, lines)}


def read_published(folder: Path) -> list[Record]:
    """Boots of other people's machines whose logs have times."""
    lines = (folder / "published.jsonl").read_text("utf-8").splitlines()
    return list(map(json.loads, lines))


def published_boot(record: Record, kernel: Kernel) -> Boot:
    """The model of such a boot, with another kernel image than it had."""
    e820 = parse_e820(record["e820"])
    plan = plan_dom0(
        kernel,
        Host(xen=record["xen"], e820=e820),
        nr_pages=record["nr_pages"],
        initrd_bytes=record["initrd_bytes"],
    )
    profile = PROFILES[record["linux_profile"]]
    rules = replace(profile, hotplug_limit_gib=record["hotplug_limit_gib"])
    limit = record["max_reservation"] or record["nr_pages"]
    return Boot(build(plan), rules=rules, e820=e820, max_reservation=limit).run()


def published(model: TimeModel, record: Record, kernel: Kernel) -> Iterator[Published]:
    """Each span of its log that the model has a time for."""
    work = BootWork.of(published_boot(record, kernel)).stages
    for stages, ((first, _), (last, _)) in record["lines"].items():
        total = sum(model.instructions(work[stage] or {}) for stage in stages.split())
        yield Published(record, stages.replace(" ", ", "), last - first, total)


def boot_of(record: Record, kernel: Kernel, xen: str) -> Boot:
    """The model of the same boot.

    :param xen: version of the hypervisor
    """
    plan = plan_dom0(
        kernel,
        Host(xen=xen, e820=parse_e820(record["e820"])),
        dom0_mem=record["dom0_mem"],
        initrd_bytes=record["initrd_bytes"],
    )
    return Boot(build(plan), e820=plan.host.map).run()


def works(record: Record, kernel: Kernel, xen: str) -> dict[str, Work]:
    """What the model counts of the same boot, by stage; of a Linux with mem=, some of them."""
    work = BootWork.of(boot_of(record, kernel, xen))
    stages = {"build": work.build, **work.stages}
    if "mem=" in record["linux_options"]:
        stages = {stage: stages[stage] for stage in _STAGES_OF_PART}
    return {stage: one for stage, one in stages.items() if one is not None}


def instructions(record: Record, stage: str) -> int:
    """All instructions of a stage."""
    counts = record["stages"][stage]
    return int(counts["linux"] + sum(counts["xen"].values()))


def fit(
    boots: Sequence[tuple[Record, Mapping[str, Work]]],
) -> dict[str, Instructions]:
    """Constants from (record, works): least squares of the shares of each stage, none negative."""
    found = {name: {"linux": 0.0, "xen": 0.0} for name in OPERATIONS}
    for kind, names in PARTS.items():
        rows, sums = [], []
        for record, work in boots:
            for stage, counts in work.items():
                if (kind == "build") == (stage == "build") and set(counts) & set(names):
                    whole = instructions(record, stage)
                    rows.append([counts.get(name, 0) / whole for name in names])
                    sums.append(_of_kind(record["stages"][stage], kind) / whole)
        solved = non_negative_least_squares(np.array(rows), np.array(sums))
        who = "linux" if kind == "linux" else "xen"
        for name, value in zip(names, solved.tolist(), strict=True):
            found[name][who] += value
    return {name: Instructions(**parts) for name, parts in found.items()}


def _of_kind(counts: dict[str, Any], kind: str) -> int:
    xen = counts["xen"]
    if kind == "linux":
        return int(counts["linux"] + xen["other"])
    return int(xen["other" if kind == "build" else kind])


def non_negative_least_squares(matrix: Array, sums: Array) -> Array:
    """Least squares of matrix @ x = sums; columns whose x would be negative are left out, x = 0."""
    scale = matrix.max(axis=0)
    used = np.flatnonzero(scale)
    while True:
        solved, *_ = np.linalg.lstsq(matrix[:, used] / scale[used], sums, rcond=None)
        kept = solved > _SHARE * solved.max()
        if kept.all():
            break
        used = used[kept]
    found = np.zeros(matrix.shape[1])
    found[used] = solved / scale[used]
    return found


def errors(
    model: TimeModel, record: Record, work: Mapping[str, Work]
) -> Iterator[tuple[str, int, float]]:
    """(stage, instructions counted, error of the model in percent) of each stage, then of all."""
    counted_in_all = 0
    modelled_in_all = 0.0
    for stage, counts in work.items():
        counted, modelled = instructions(record, stage), model.instructions(counts)
        counted_in_all, modelled_in_all = counted_in_all + counted, modelled_in_all + modelled
        yield stage, counted, 100 * (modelled / counted - 1)
    yield "all", counted_in_all, 100 * (modelled_in_all / counted_in_all - 1)
