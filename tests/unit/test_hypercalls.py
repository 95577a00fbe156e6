# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's hypercalls: counted by type, and kept in order on demand."""

from dataclasses import replace
from errno import EINVAL

import numpy as np
import pytest

from xenpt.abi import MMUEXT_PIN_L1_TABLE, PAGE_SHIFT, PTE_PRESENT, PTE_RW, TABLE_PROT
from xenpt.errors import RefusedError
from xenpt.extents import make_runs
from xenpt.xen.hypercalls import Call, Hypercalls


def test_a_batch_of_two_is_one_multicall_and_of_one_the_call_itself():
    hc = Hypercalls(record=True)
    with hc.multicall():
        hc.update_va_mapping(0x1000, 1, PTE_PRESENT)
        hc.mmuext_op(MMUEXT_PIN_L1_TABLE, 1)
    with hc.multicall():
        hc.mmuext_op(MMUEXT_PIN_L1_TABLE, 2)
    assert {op: nr for op, nr in hc.by_type.items() if nr} == {"multicall": 1, "mmuext_op": 1}
    assert hc.mmuext == {MMUEXT_PIN_L1_TABLE: 2}
    assert [(call.op, call.batched) for call in hc.log or ()] == [
        ("multicall", False),
        ("update_va_mapping", True),
        ("mmuext_op", True),
        ("mmuext_op", False),
    ]


def test_a_run_of_calls_goes_on_page_by_page_and_slot_by_slot():
    run = Call("update_va_mapping", 3, vaddr=0x1000, pfn=7, flags=PTE_PRESENT)
    assert [(call.vaddr, call.pfn, call.nr) for call in run.each()] == [
        (0x1000, 7, 1), (0x2000, 8, 1), (0x3000, 9, 1)
    ]  # fmt: skip
    shared = Call("mmu_update", 2, table=5, slot=510, level=2, pfn=7, step=0, flags=TABLE_PROT)
    assert [(call.slot, call.pfn) for call in shared.each()] == [(510, 7), (511, 7)]


def test_repeated_steps_are_taken_when_recorded_and_else_counted():
    for record, steps in ((True, 6), (False, 1)):
        hc, taken = Hypercalls(record=record), 0
        for _ in hc.repeat(2):
            for _ in hc.repeat(3):
                taken += 1
                hc.memory_op(1, nr=5)
        hc.memory_op(1)
        assert taken == steps
        assert hc.by_type["memory_op"] == 31
    assert list(Hypercalls().repeat(0)) == []


def test_a_new_table_is_made_read_only_pinned_and_hooked_in():
    offset = 0x1000 << PAGE_SHIFT
    tables = make_runs(
        [(0x1200, 90, 2, -1, 1, PTE_PRESENT | PTE_RW), (0x1000, 95, 1, 1, 2, PTE_PRESENT | PTE_RW)]
    )
    recorded, counted = Hypercalls(record=True), Hypercalls()
    for hc in (recorded, counted):
        hc.hook_tables(tables, np.array([95, 3]), offset)
    assert counted.by_type == recorded.by_type
    assert counted.mmuext == recorded.mmuext == {MMUEXT_PIN_L1_TABLE: 2}
    updates = [call for call in recorded.log or () if call.op == "mmu_update"]
    assert [(c.level, c.table, c.slot, c.pfn) for c in updates] == [
        (2, 95, 9, 90), (2, 95, 10, 89), (3, 3, 0, 95)
    ]  # fmt: skip
    marked = [call for call in recorded.log or () if call.op == "update_va_mapping"]
    assert [(c.vaddr, c.pfn) for c in marked] == [
        (offset + (pfn << PAGE_SHIFT), pfn) for pfn in (90, 89, 95)
    ]
    assert not any(call.flags & PTE_RW for call in marked)


def test_a_gate_is_asked_with_each_single_call_before_it_is_counted():
    asked = []

    def gate(call):
        asked.append(call)
        if len(asked) == 6:
            raise RefusedError(EINVAL)

    hc = Hypercalls(record=True, gate=gate)
    hc.update_va_mapping(0x1000, 7, PTE_PRESENT, nr=2)
    with hc.multicall():
        hc.update_va_mapping(0x3000, 9, PTE_PRESENT)
        hc.mmuext_op(MMUEXT_PIN_L1_TABLE, 9)
    with pytest.raises(RefusedError):
        hc.memory_op(1, pfn=3, nr=5)
    assert [(call.op, call.nr, call.pfn) for call in asked] == [
        ("update_va_mapping", 1, 7), ("update_va_mapping", 1, 8), ("multicall", 1, None),
        ("update_va_mapping", 1, 9), ("mmuext_op", 1, 9), ("memory_op", 1, 3),
    ]  # fmt: skip
    assert {op: nr for op, nr in hc.by_type.items() if nr} == {
        "update_va_mapping": 2, "multicall": 1
    }  # fmt: skip
    assert [(call.op, call.nr) for call in hc.log or ()] == [
        ("update_va_mapping", 2), ("multicall", 1), ("update_va_mapping", 1), ("mmuext_op", 1)
    ]  # fmt: skip


def test_with_a_gate_repeated_steps_and_new_tables_are_taken_one_by_one():
    asked = []
    gated, recorded = Hypercalls(gate=asked.append), Hypercalls(record=True)
    for hc in (gated, recorded):
        for i in hc.repeat(3):
            hc.memory_op(1, pfn=10 * i, nr=2)
        hc.hook_tables(make_runs([(0x1200, 90, 2, -1, 1, PTE_PRESENT)]), np.array([95]), 0)
    singles = [single for call in recorded.log or () for single in call.each()]
    assert asked == [replace(single, nr=1) for single in singles]
    assert gated.by_type == recorded.by_type
    assert gated.log is None
