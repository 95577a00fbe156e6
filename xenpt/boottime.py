# SPDX-License-Identifier: GPL-2.0-or-later
"""What a boot takes in time, stage by stage, as a TimeModel has it: modelled, not measured here."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xenpt.linux import Boot, Stage
from xenpt.linux.work import Work, build_work
from xenpt.timing import TimeModel


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
