# SPDX-License-Identifier: GPL-2.0-or-later
"""The stages of Linux's early boot in their order, each with the function that models it."""

from collections.abc import Callable
from enum import Enum
from typing import Final

from xenpt.cost import Cost
from xenpt.linux.cleanup import Cleanup, p2m_free
from xenpt.linux.directmap import init_mem_mapping
from xenpt.linux.p2mtree import vmalloc_p2m_tree
from xenpt.linux.pagetable import cleanup_highmap, setup_kernel_pagetable
from xenpt.linux.setup import memory_setup, remap_memory
from xenpt.linux.state import BootState
from xenpt.linux.vmemmap import paging_init
from xenpt.xen.hypercalls import Hypercalls

#: What a stage returns: the new state, and its cost, or the cleanup that has the cost in it.
Outcome = tuple[BootState, Cost | Cleanup]
StageFunction = Callable[[BootState, Hypercalls], Outcome]


class Stage(Enum):
    """A stage by its name in the `boot` JSON object."""

    SETUP_KERNEL_PAGETABLE = "setup_kernel_pagetable"
    MEMORY_SETUP = "memory_setup"
    INIT_MEM_MAPPING = "init_mem_mapping"
    PAGING_INIT = "paging_init"
    P2M_COPIED = "vmalloc_p2m_tree"
    P2M_FREE = "p2m_free"
    REMAP_MEMORY = "remap_memory"


def _init_mem_mapping(state: BootState, hc: Hypercalls) -> Outcome:
    return init_mem_mapping(cleanup_highmap(state, hc.aside()), hc)


#: In order; the same in all profiles.
STAGES: Final[dict[Stage, StageFunction]] = {
    Stage.SETUP_KERNEL_PAGETABLE: setup_kernel_pagetable,
    Stage.MEMORY_SETUP: memory_setup,
    Stage.INIT_MEM_MAPPING: _init_mem_mapping,
    Stage.PAGING_INIT: paging_init,
    Stage.P2M_COPIED: vmalloc_p2m_tree,
    Stage.P2M_FREE: p2m_free,
    Stage.REMAP_MEMORY: remap_memory,
}
