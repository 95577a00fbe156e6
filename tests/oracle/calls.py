# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's hypercalls as the words that a real guest hands to Xen; their effect on tables."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from oracle.memory import Table, Words, guest_tables
from oracle.observe import Records

from xenpt.abi import (
    ENTRIES,
    HYPERVISOR_MEMORY_OP,
    HYPERVISOR_MMU_UPDATE,
    HYPERVISOR_MMUEXT_OP,
    HYPERVISOR_MULTICALL,
    HYPERVISOR_UPDATE_VA_MAPPING,
    LEVELS,
    MMUEXT_NEW_BASEPTR,
    PAGE_SHIFT,
    PAGE_SIZE,
    PTE_GUEST_KERNEL,
    PTE_MFN_MASK,
    PTE_PRESENT,
    PTE_USER,
    table_slot,
)
from xenpt.p2m import P2M
from xenpt.xen.hypercalls import Call

OPS = {
    "mmu_update": HYPERVISOR_MMU_UPDATE,
    "memory_op": HYPERVISOR_MEMORY_OP,
    "multicall": HYPERVISOR_MULTICALL,
    "update_va_mapping": HYPERVISOR_UPDATE_VA_MAPPING,
    "mmuext_op": HYPERVISOR_MMUEXT_OP,
}
_ITEMISED = HYPERVISOR_MMU_UPDATE, HYPERVISOR_MMUEXT_OP  # their requests are what is compared
_FIRST_ITEM_KIND = 2
#: One call, or one request of a call that takes a list: the op and those of its words that count.
#: update_va_mapping: address, entry, flush. mmu_update: ptr, val. mmuext_op: command, mfn (of
#: tables, else 0). memory_op: command.
CALL = np.dtype([("op", "<u8"), ("args", "<u8", 3)])
Calls = npt.NDArray[np.void]


def real_calls(records: Records) -> Calls:
    """What was recorded, console output and the like left out."""
    item = records["kind"] >= _FIRST_ITEM_KIND
    itemised = np.isin(records["op"], _ITEMISED)
    held = records[np.isin(records["op"], list(OPS.values())) & (item == itemised)]
    calls = np.zeros(len(held), CALL)
    calls["op"] = held["op"]
    calls["args"] = held["args"][:, :3]
    return _only_what_counts(calls)


def model_calls(calls: Iterable[Call], p2m: P2M) -> Calls:
    """The model's calls with real frames in place of pfns."""
    runs = list(calls)
    nr = [run.nr for run in runs]
    i = np.arange(sum(nr)) - np.repeat(np.cumsum(nr) - nr, nr)

    def column(name: str) -> npt.NDArray[np.int64]:
        values = [getattr(run, name) for run in runs]
        return np.repeat(np.array([-1 if v is None else v for v in values], object), nr)

    op = np.repeat([OPS[run.op] for run in runs], nr)
    update, va = op == HYPERVISOR_MMU_UPDATE, op == HYPERVISOR_UPDATE_VA_MAPPING
    pfn, command = column("pfn"), column("command")
    mfn = _frames(np.where(pfn < 0, -1, pfn + i * column("step")), p2m)
    entry = mfn << np.uint64(PAGE_SHIFT) | column("flags").astype("<u8")
    slot, table = column("slot") + i, _frames(column("table"), p2m)
    machphys = update & (command != 0)
    out = np.zeros(len(op), CALL)
    args = out["args"]
    out["op"] = op
    args[:, 0] = command.astype("<u8")
    args[:, 1] = mfn
    args[va, 0] = (column("vaddr") + (i << PAGE_SHIFT))[va].astype("<u8")
    args[va, 1] = entry[va]
    args[va, 2] = column("uvmf")[va].astype("<u8")
    args[update, 0] = table[update] << np.uint64(PAGE_SHIFT) | slot[update].astype("<u8") * 8
    args[update, 1] = entry[update]
    args[machphys, 0] = mfn[machphys] << np.uint64(PAGE_SHIFT) | np.uint64(1)
    args[machphys, 1] = slot[machphys].astype("<u8")
    return _only_what_counts(out)


def _frames(pfn: npt.NDArray[np.object_], p2m: P2M) -> Words:
    """Machine frames; 0 for no pfn."""
    known = pfn >= 0
    mfn = np.zeros(len(pfn), "<u8")
    mfn[known] = p2m.mfn(pfn[known].astype("<u8"))
    return mfn


def _only_what_counts(calls: Calls) -> Calls:
    """Words beyond those that CALL names become 0."""
    op, args = calls["op"], calls["args"]
    args[op != HYPERVISOR_UPDATE_VA_MAPPING, 2] = 0
    args[op == HYPERVISOR_MULTICALL] = 0
    no_frame = (op == HYPERVISOR_MMUEXT_OP) & (args[:, 0] > MMUEXT_NEW_BASEPTR)
    args[no_frame | (op == HYPERVISOR_MEMORY_OP), 1] = 0
    return calls


def describe(call: np.void) -> str:
    """One call for a message."""
    name = next(name for name, op in OPS.items() if op == call["op"])
    return f"{name}({', '.join(f'{int(word):#x}' for word in call['args'])})"


def apply_calls(tables: list[Table], calls: Calls) -> list[Table]:
    """The tables that are reachable after update_va_mapping and mmu_update calls, in their order.

    A table that is not among the given ones counts as empty.
    """
    after = defaultdict(lambda: np.zeros(ENTRIES, np.uint64))
    after |= {table.mfn: table.words.copy() for table in tables}
    root = tables[0].mfn
    for call in calls:
        target, entry = int(call["args"][0]), int(call["args"][1])
        if call["op"] == HYPERVISOR_UPDATE_VA_MAPPING:
            table = root
            for level in range(LEVELS, 1, -1):
                table = (int(after[table][table_slot(target, level)]) & PTE_MFN_MASK) >> PAGE_SHIFT
            after[table][table_slot(target, 1)] = _as_xen_stores_it(entry)
        elif call["op"] == HYPERVISOR_MMU_UPDATE and not target & 3:
            after[target >> PAGE_SHIFT][target % PAGE_SIZE // 8] = entry
    return guest_tables(after.__getitem__, root)


def _as_xen_stores_it(entry: int) -> int:
    """adjust_guest_l1e(): a page of the guest's kernel becomes a user page with a mark."""
    if entry & PTE_PRESENT and not entry & PTE_USER:
        entry |= PTE_USER | PTE_GUEST_KERNEL
    return entry
