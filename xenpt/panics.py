# SPDX-License-Identifier: GPL-2.0-or-later
"""When Xen's dom0 builder gives up, in which order it checks, and in which words (SPEC B2, B14)."""

from collections.abc import Callable
from dataclasses import dataclass

from xenpt import abi
from xenpt.abi import L2_SIZE, WORD, round_up
from xenpt.arrangement import Plan
from xenpt.heaprequests import NO_CHUNK, NO_REST, blocks_left, heap_requests
from xenpt.inputs.kerneljson import natural_machine
from xenpt.listshape import last_leaf_start, list_shape

TABLE_RESERVE = 3  # setup_pv_physmap() wants room for a table of each level before each leaf
LAYOUT_KEYS = frozenset(
    {"initrd", "p2m", "start_info", "page_tables", "boot_stack", "total", "nr_pt_frames"}
)
CHUNK_KEYS = frozenset({"dom0_alloc", "pages_to_be_allocated"})
START_INFO_KEYS = frozenset(
    {"mfn_list", "first_p2m_pfn", "nr_p2m_frames", "p2m_tables", "p2m_leaves"}
    | {"mod_start", "mod_len", "flags", "magic"}
)


@dataclass(frozen=True, slots=True)
class Failure:
    """The builder gives up.

    :ivar panic: text of the panic, full stop included where this Xen has one
    :ivar complaint: line that Xen prints right before it, or None
    :ivar arranged: the arrangement block was printed before
    :ivar undecided: keys of the plan that Xen never came to decide
    :ivar sized: Xen had decided dom0's size, and printed what it says of it
    """

    panic: str
    complaint: str | None = None
    arranged: bool = False
    undecided: frozenset[str] = frozenset()
    sized: bool = True


def first_failure(plan: Plan) -> Failure | None:
    """What the builder gives up at, or None if it builds this dom0."""
    checks: tuple[Callable[[Plan], Failure | None], ...] = (
        _kernel, _hv_start, _chunk, _image, _list, _supervisor_mode, _out_of_memory,
    )  # fmt: skip
    for check in checks:
        if failure := check(plan):
            return failure
    return None


def _kernel(plan: Plan) -> Failure | None:
    if reason := kernel_refusal(plan):
        undecided = LAYOUT_KEYS | CHUNK_KEYS | START_INFO_KEYS
        return Failure(plan.era.construct_panic, reason, undecided=undecided, sized=False)
    return None


def kernel_refusal(plan: Plan) -> str | None:
    """Why this Xen will not have this kernel as dom0, in its words; None if it will."""
    kernel, host, era = plan.image, plan.host, plan.era
    if kernel.payload is not None and kernel.payload not in era.payloads:
        return era.no_elf_text
    compatible = kernel.machine == natural_machine(kernel.bits) and not kernel.big_endian
    if kernel.bits == 32:
        if not host.pv32 and era.names_missing_pv32:
            return "Found 32-bit PV kernel, but CONFIG_PV32 missing"
        compatible = compatible and host.pv32 and kernel.pae != "no"
    if not compatible:
        return "Mismatch between Xen and DOM0 kernel"
    if era.checks_dom0_feature and kernel.refuses_dom0 and not host.pv_shim:
        return "Kernel does not support Dom0 operation"
    return None


def _hv_start(plan: Plan) -> Failure | None:
    hv_start = plan.image.hv_start_low
    if plan.image.bits == 64 or hv_start is None or plan.host.pv_shim:
        return None
    if round_up(hv_start, L2_SIZE) <= abi.COMPAT_HYPERVISOR_VIRT_START:
        return None
    undecided = LAYOUT_KEYS | CHUNK_KEYS | START_INFO_KEYS
    if plan.era.hv_start_panics:
        text = "Domain 0 expects too high a hypervisor start address" + plan.era.panic_stop
        return Failure(text, undecided=undecided)
    text = "Dom0 expects too high a hypervisor start address"
    return Failure(plan.era.construct_panic, text, undecided=undecided)


def _chunk(plan: Plan) -> Failure | None:
    if (1 << plan.alloc_order) + plan.initrd_pages > plan.nr_pages:
        text = "Domain 0 allocation is too small for kernel image"
    elif plan.alloc_order > plan.era.max_order or _no_block_for_chunk(plan):
        text = NO_CHUNK
    else:
        return None
    return Failure(text + plan.era.panic_stop, undecided=CHUNK_KEYS | START_INFO_KEYS)


def _no_block_for_chunk(plan: Plan) -> bool:
    blocks = plan.host.fragmented
    too_small = blocks is not None and blocks.larger == 0 and plan.alloc_order > blocks.order
    return too_small or plan.host.oom == 1


def _image(plan: Plan) -> Failure | None:
    start, end = plan.total
    if plan.image.bits == 32:
        overlaps = end > abi.COMPAT_HYPERVISOR_VIRT_START
    else:
        overlaps = start < abi.HYPERVISOR_VIRT_END and end > abi.HYPERVISOR_VIRT_START
    hypercall_page = plan.image.hypercall_page
    if overlaps:
        text = "DOM0 image overlaps with Xen private area."
    elif hypercall_page is not None and not start <= hypercall_page < end:
        text = "Invalid HYPERCALL_PAGE field in ELF notes."
    else:
        return None
    return Failure(plan.era.construct_panic, text, arranged=True, undecided=START_INFO_KEYS)


def _list(plan: Plan) -> Failure | None:
    if not plan.list_outside:
        return None
    start, end = plan.p2m[0], plan.p2m[1] % WORD
    if plan.total[0] <= end and start <= plan.total[1] % WORD:
        # Touching counts as overlap. This one text never had a full stop.
        text = "DOM0 P->M table overlaps initial mapping"
    elif _room_for_list(plan, start, end):
        return None
    else:
        text = "Dom0 allocation too small for initial P->M table" + plan.era.panic_stop
    return Failure(text, arranged=True, undecided=START_INFO_KEYS)


def _room_for_list(plan: Plan, start: int, end: int) -> bool:
    """Xen asks before each leaf if all it has taken, the rest of the list and 3 tables fit.

    Taken and rest grow only by the tables from leaf to leaf, so the last leaf asks for most.
    """
    if start >= end:
        return True
    leaf, mapped = plan.host.largest_leaf, plan.total
    blocks = blocks_left(plan.host.fragmented, plan.alloc_order)
    last = last_leaf_start(start, end, leaf=leaf, blocks=blocks)
    before = list_shape(start, last, leaf=leaf, mapped=mapped, blocks=blocks)
    data = list_shape(start, end, leaf=leaf, mapped=mapped, blocks=blocks).nr_data_pages
    return plan.first_p2m_pfn + data + before.nr_tables + TABLE_RESERVE <= plan.nr_pages


def _supervisor_mode(plan: Plan) -> Failure | None:
    if "!supervisor_mode_kernel" not in (plan.image.features or "").split("|"):
        return None
    return Failure("Dom0 requires supervisor-mode execution" + plan.era.panic_stop, arranged=True)


def _out_of_memory(plan: Plan) -> Failure | None:
    """A host without memory from some request on (a fault); the first of all is the chunk's.

    A list for which there is no room anyway is found out by the check above.
    """
    text = None if plan.host.oom is None else heap_requests(plan).failing(plan.host.oom)
    if text is None:
        return None
    undecided = {"mod_start", "mod_len"} if text == NO_REST else START_INFO_KEYS
    return Failure(text + plan.era.panic_stop, arranged=True, undecided=frozenset(undecided))
