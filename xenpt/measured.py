# SPDX-License-Identifier: GPL-2.0-or-later
"""Time, measured on this machine: the engine's walk over the words of a P->M list's page tables."""

from time import perf_counter
from typing import Final

from xenpt.image import materialise
from xenpt.p2m import P2M
from xenpt.xen.dom0 import Domain

MAX_TABLES: Final = 1 << 14  # 64 MiB of words; a list of more tables is not worth the wait
ROUNDS: Final = 3
IN_WORDS: Final = (
    "measured on this machine: our engine reads every word of these page tables in memory, "
    f"one thread, best of {ROUNDS}"
)


def walk_seconds(domain: Domain) -> float | None:
    """Time to read every entry of the list's own page tables once; None without such tables.

    None also for more than `MAX_TABLES` tables. The list's frames are taken to lie in one piece.
    """
    mapping = domain.p2m_map
    if mapping is None or mapping.nr_tables() > MAX_TABLES:
        return None
    image = materialise(mapping, P2M.linear(domain.plan.nr_pages, 0))
    times = []
    for _ in range(ROUNDS):
        begin = perf_counter()
        image.walk()
        times.append(perf_counter() - begin)
    return min(times)
