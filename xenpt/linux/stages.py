# SPDX-License-Identifier: GPL-2.0-or-later
"""The stages of Linux's early boot in their order, each with the function that models it."""

from collections.abc import Callable
from enum import Enum
from typing import Final

from xenpt.cost import Cost
from xenpt.linux import bits32
from xenpt.linux.cleanup import Cleanup, p2m_free
from xenpt.linux.directmap import init_mem_mapping
from xenpt.linux.p2mtree import vmalloc_p2m_tree
from xenpt.linux.pagetable import cleanup_highmap, setup_kernel_pagetable
from xenpt.linux.setup import auto_xlated_memory_setup, memory_setup, remap_memory
from xenpt.linux.state import BootState, NotModelled
from xenpt.linux.vmemmap import paging_init
from xenpt.xen.hypercalls import Hypercalls

#: What a stage returns: the new state, and its cost, or the cleanup that has the cost in it.
Result = tuple[BootState, Cost | Cleanup]
_NOT_32_BIT = (
    "how a 32-bit Linux maps its memory, and what follows, is not modelled; of it is known that no "
    "page becomes writable that was read-only before"
)
_NOT_TRANSLATED = (
    "an auto-translated guest goes on as on bare hardware, without hypercalls for its page tables, "
    "and that is not modelled"
)
StageFunction = Callable[[BootState, Hypercalls], Result]


class Stage(Enum):
    """A stage by its name in the `boot` JSON object."""

    SETUP_KERNEL_PAGETABLE = "setup_kernel_pagetable"
    MEMORY_SETUP = "memory_setup"
    INIT_MEM_MAPPING = "init_mem_mapping"
    PAGING_INIT = "paging_init"
    P2M_COPIED = "vmalloc_p2m_tree"
    P2M_FREE = "p2m_free"
    REMAP_MEMORY = "remap_memory"


def _setup_kernel_pagetable(state: BootState, hc: Hypercalls) -> Result:
    if state.bits == 32:
        return bits32.setup_kernel_pagetable(state, hc)
    return setup_kernel_pagetable(state, hc)


def _memory_setup(state: BootState, hc: Hypercalls) -> Result:
    if state.rules.auto_translated:
        return auto_xlated_memory_setup(state, hc)
    return memory_setup(state, hc)


def _init_mem_mapping(state: BootState, hc: Hypercalls) -> Result:
    if state.bits == 32:
        raise NotModelled(_NOT_32_BIT)
    if state.rules.auto_translated:
        raise NotModelled(_NOT_TRANSLATED)
    return init_mem_mapping(cleanup_highmap(state, hc.aside()), hc)


#: In order; the same in all profiles.
STAGES: Final[dict[Stage, StageFunction]] = {
    Stage.SETUP_KERNEL_PAGETABLE: _setup_kernel_pagetable,
    Stage.MEMORY_SETUP: _memory_setup,
    Stage.INIT_MEM_MAPPING: _init_mem_mapping,
    Stage.PAGING_INIT: paging_init,
    Stage.P2M_COPIED: vmalloc_p2m_tree,
    Stage.P2M_FREE: p2m_free,
    Stage.REMAP_MEMORY: remap_memory,
}
