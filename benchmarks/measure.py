# SPDX-License-Identifier: GPL-2.0-or-later
"""Timing in rounds: every variant once a round, in turning order; the best of all rounds counts.

On a shared machine interference only adds time, so the minimum is the least disturbed figure, and
variants that are timed in the same rounds have seen the same neighbours.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Step = Callable[[], object]


@dataclass
class Variant:
    """Something to time over `entries` entries: `prepare` runs before each call, untimed."""

    name: str
    entries: int
    run: Step
    prepare: Step | None = None
    seconds: list[float] = field(default_factory=list)
    result: object = None

    @property
    def best(self) -> float:
        """Seconds of the best round."""
        return min(self.seconds)

    @property
    def rate(self) -> float:
        """Billions of entries a second in the best round (Gpte/s)."""
        return self.entries / self.best / 1e9


def rounds(variants: list[Variant], count: int) -> dict[str, Variant]:
    """Time all variants `count` times; by name."""
    for turn in range(count):
        for variant in variants if turn % 2 == 0 else reversed(variants):
            if variant.prepare is not None:
                variant.prepare()
            start = time.perf_counter()
            variant.result = variant.run()
            variant.seconds.append(time.perf_counter() - start)
    return {variant.name: variant for variant in variants}
