# SPDX-License-Identifier: GPL-2.0-or-later
"""Every hypercall of the modelled stages against the traces of real boots, in order.

A trace has machine frames; they are named by the pfn that they had at dom0's entry. Calls that
Xen pre-empted and restarted are taken once; console output and pending-event upcalls are left out.
"""

from itertools import islice

import goldendata
import pytest
from linuxcases import boot_of, reserve_unmodelled, traced

from xenpt.abi import PTE_RW
from xenpt.linux import Stage

COMPLETE = ("c512m", "c1g", "c2g", "c1g-k6.12", "c512m-x4.20")
#: Phase of a trace, and of hypercalls_per_phase, by stage.
PHASES = {
    "setup_kernel_pagetable": "xen_setup_kernel_pagetable",
    "memory_setup": "xen_memory_setup",
    "init_mem_mapping": "init_mem_mapping",
    "paging_init": "xen_pagetable_init",
    "vmalloc_p2m_tree": "xen_vmalloc_p2m_tree",
    "p2m_free": "<xen_vmalloc_p2m_tree",
    "remap_memory": "xen_remap_memory",
}
MMUEXT = (
    "PIN_L1", "PIN_L2", "PIN_L3", "PIN_L4", "UNPIN", "NEW_BASEPTR", "TLB_FLUSH_LOCAL",
    "INVLPG_LOCAL",
)  # fmt: skip


def modelled(result, most=None):
    """The recorded calls of a stage, or the first `most` of them, in the same form."""
    calls = []
    for call in islice((one for run in result.calls for one in run.each()), most):
        entry = call.pfn, bool(call.flags & PTE_RW)
        match call.op:
            case "update_va_mapping":
                calls.append((call.op, call.vaddr, *entry, call.uvmf))
            case "mmu_update" if call.command:
                calls.append(("machphys", call.pfn, call.slot))
            case "mmu_update":
                calls.append((call.op, call.table, call.slot, *entry))
            case "mmuext_op":
                calls.append((call.op, call.command, call.pfn))
            case "memory_op":
                calls.append((call.op, call.command))
            case "multicall":
                calls.append((call.op,))
    return calls


@pytest.fixture(scope="module")
def booted():
    """Boots of the cases, each run once, with what the model leaves out taken from the trace."""
    boots = {}

    def run(case):
        if case not in boots:
            boot = boot_of(case, record=case in COMPLETE).run_to(Stage.INIT_MEM_MAPPING)
            if case in COMPLETE:
                reserve_unmodelled(boot, traced(case, PHASES["paging_init"])[0][2])
            boots[case] = {result.name: result for result in boot.run().results}
        return boots[case]

    return run


@pytest.mark.parametrize("stage", PHASES)
@pytest.mark.parametrize("case", COMPLETE)
def test_every_call_of_a_stage_equals_the_trace_in_order(booted, case, stage):
    real, model = traced(case, PHASES[stage]), modelled(booted(case)[stage])
    assert len(real) > 0
    differing = next(
        (i for i, pair in enumerate(zip(real, model, strict=False)) if pair[0] != pair[1]), None
    )
    assert differing is None, f"call {differing}: real {real[differing]}, model {model[differing]}"
    assert len(model) == len(real)


@pytest.mark.parametrize("stage", PHASES)
@pytest.mark.parametrize("case", [*COMPLETE, "c8g", "c8g-relocate"])
def test_counts_of_a_stage_equal_what_was_counted(booted, case, stage):
    counted = goldendata.facts(case)["dump"]["hypercalls_per_phase"].get(PHASES[stage], {})
    result = booted(case)[stage]
    pinned = {MMUEXT[command]: nr for command, nr in result.mmuext.items()}
    assert result.cost.by_type["mmu_update"] == counted.get("mmu_update", 0)
    assert result.cost.by_type["update_va_mapping"] == counted.get("update_va_mapping", 0)
    assert result.cost.by_type["memory_op"] == counted.get("memory_op", 0)
    # A restart of a long operation is counted with the operation here; see golden/README.
    for command in ("PIN_L1", "PIN_L2", "PIN_L3", "UNPIN", "NEW_BASEPTR", "INVLPG_LOCAL"):
        if (case, stage) != ("c8g", "vmalloc_p2m_tree"):
            assert pinned.get(command, 0) == counted.get(f"mmuext.{command}", 0)


@pytest.mark.parametrize("case", ["c8g", "c8g-relocate", "c520g"])
def test_the_list_is_freed_in_the_order_of_the_trace(case):
    """These traces hold the free alone; that of c520g ends after 120000 rows."""
    real = traced(case, PHASES["p2m_free"])
    boot = boot_of(case, record=False).run_to(Stage.P2M_COPIED)
    boot.record = True
    boot.run_to(Stage.P2M_FREE)
    assert len(real) > 4000
    assert modelled(boot.results[-1], len(real)) == real


@pytest.mark.parametrize("case", ["c520g"])
def test_the_list_of_520_gib_costs_what_was_counted(case):
    counted = goldendata.facts(case)["dump"]["hypercalls_per_phase"]
    results = {result.name: result.cost for result in boot_of(case, record=False).run().results}
    for stage in ("p2m_free", "vmalloc_p2m_tree"):
        for op in ("mmu_update", "update_va_mapping"):
            assert results[stage].by_type[op] == counted[PHASES[stage]][op]
