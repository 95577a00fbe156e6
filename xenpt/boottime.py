# SPDX-License-Identifier: GPL-2.0-or-later
"""What a boot takes in time, stage by stage, as a TimeModel has it: modelled, not measured here."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xenpt.cost import Cost
from xenpt.linux import Boot, Stage
from xenpt.linux.work import Work, build_work
from xenpt.timing import TimeModel

BUILD = "Xen's build"  # the part of a boot before its first stage


class BootWork(NamedTuple):
    """The work of a boot in operations of the time model; None for what was never measured.

    :ivar build: of Xen's builder
    :ivar stages: of each stage that was run, by name
    """

    build: Work | None
    stages: Mapping[str, Work | None]

    @classmethod
    def of(cls, boot: Boot) -> "BootWork":
        """Of a boot that has been run."""
        return cls(build_work(boot.domain.plan), {r.name: r.work for r in boot.results})


class BootTime(NamedTuple):
    """Seconds of a boot; None as in BootWork."""

    build: float | None
    stages: Mapping[str, float | None]

    @classmethod
    def of(cls, work: BootWork, model: TimeModel) -> "BootTime":
        """Of so much work."""
        stages = {name: model.seconds(one) for name, one in work.stages.items()}
        return cls(model.seconds(work.build), stages)

    @property
    def linux(self) -> float | None:
        """All stages together; None if one of them is, or was not run."""
        seconds = [self.stages.get(stage.value) for stage in Stage]
        return None if None in seconds else sum(filter(None, seconds))

    def put_into(self, answer: dict[str, Any]) -> None:
        """Add the times to a `boot` JSON object."""
        answer["build_seconds_modelled"] = self.build
        answer["boot_seconds_modelled"] = self.linux
        stages: Sequence[dict[str, Any]] = answer["stages"]
        for stage in stages:
            stage["seconds_modelled"] = self.stages[stage["name"]]


class StageTime(NamedTuple):
    """One part of a boot, and the seconds that Linux and Xen execute in it; None as in BootWork."""

    name: str
    linux: float | None
    xen: float | None
    cost: Cost

    @property
    def seconds(self) -> float | None:
        """Of both."""
        return None if self.linux is None or self.xen is None else self.linux + self.xen


def stage_times(boot: Boot, model: TimeModel) -> list[StageTime]:
    """Xen's build, and each stage that was run, in order; nothing if none was."""
    parts = [(result.name, result.work, result.cost) for result in boot.results]
    if parts:
        parts.insert(0, (BUILD, build_work(boot.domain.plan), Cost()))
    return [_stage_time(name, work, cost, model) for name, work, cost in parts]


def _stage_time(name: str, work: Work | None, cost: Cost, model: TimeModel) -> StageTime:
    if work is None:
        return StageTime(name, None, None, cost)
    per_instruction = model.cpi / (model.ghz * 1e9)
    each = [(nr, model.operations[operation]) for operation, nr in work.items()]
    linux = sum(nr * one.linux for nr, one in each) * per_instruction
    xen = sum(nr * one.xen for nr, one in each) * per_instruction
    return StageTime(name, linux, xen, cost)
