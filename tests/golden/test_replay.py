# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypercalls of real boots, replayed on the real boots' frames under the model's rules.

What it proves: from the page tables at dom0's entry on, every mmu_update, update_va_mapping,
mmuext_op and set_gdt of the trace is accepted; and at each later dump every count_info, type_info
and guest word of every table page is the real one.

What it cannot prove: a kernel's own stores are not in a trace. A table that the guest filled
itself is read from the next dump when Xen validates it, with one change: entries that a later
call of the trace sets are put back, to empty where that call is an mmu_update, and to a writable
mapping of the same frame where it is an update_va_mapping (which only turns RW off then). Words
that come from the very dump with which they are compared are counted as `given`, all others as
`compared`. Stores into a live L1 table trap and are emulated; they are no calls, either, and are
found as words that differ, and then made as such stores (`emulated`).
"""

from collections import Counter
from collections.abc import Iterator

import goldendata
import numpy as np
import pytest
from goldenmachine import differing_frames, differing_words, machine_at

from xenpt.abi import (
    ENTRIES,
    HYPERVISOR_MMU_UPDATE,
    HYPERVISOR_MMUEXT_OP,
    HYPERVISOR_UPDATE_VA_MAPPING,
    LEVELS,
    PAGE_SHIFT,
    PAGE_SIZE,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_MFN_MASK,
    PTE_NX,
    PTE_PRESENT,
    PTE_PSE,
    PTE_RW,
    table_slot,
)

#: Where each dump was taken: before the first call of this phase.
END_OF = {
    "setup": "<xen_setup_kernel_pagetable",
    "pre": "<xen_vmalloc_p2m_tree",
    "mid": "xen_build_mfn_list_list",
    "post": "<xen_pagetable_init",
}
HYPERVISOR_SET_GDT = 2
PREEMPTED = 1 << 31  # in the count of mmu_update and mmuext_op: the rest of a call, not a call
PAGE_KERNEL = PTE_NX | PTE_DIRTY | PTE_ACCESSED | PTE_RW | PTE_PRESENT  # what Linux stores

CASES = ("c512m", "c512m-x4.20", "c1g-k6.12", "c2g")
XEN_WORDS = 16  # of each L4 table: Xen's own slots, which are no guest's words


class Replay:
    """A case between two dumps: its machine, and the calls that lead from one to the other."""

    def __init__(self, case, start="entry"):
        self.arrays, self.facts = goldendata.arrays(case), goldendata.facts(case)
        self.machine = machine_at(case, start)
        self.names = [name for name, _ in self.facts["dump"]["hypercall_phases"]]
        self.at = 0
        self.calls = Counter()
        self.given = {}

    def rows(self, point):
        """Rows of the trace up to a dump point, from where the last call of this ended."""
        trace = self.arrays["trace"]
        phase = self.names.index(END_OF[point]) + 1
        marks = np.flatnonzero((trace["kind"] == 9) & (trace["phase"] == phase))
        end = int(marks[0]) if len(marks) else len(trace)
        rows, self.at = trace[self.at : end], end
        return rows

    def run_to(self, point):
        """Issue the calls up to a dump point, and then the stores that the dump shows."""
        requests = list(requests_of(self.rows(point)))
        tables = Dump(self.arrays, point)
        set_later = {}
        for name, args in requests:
            if name == "mmu_update" and not args[0] & 3:
                set_later.setdefault((args[0] >> PAGE_SHIFT, args[0] % PAGE_SIZE // 8), 0)
            elif name == "update_va_mapping":
                where = tables.l1_slot(args[0])
                set_later.setdefault(where, PTE_RW)
        self.given = {}
        self.machine.tables.memory.contents = lambda mfn: self.page(mfn, tables, set_later)
        for name, args in requests:
            self.issue(name, args)
        return self.emulate_stores(tables)

    def page(self, mfn, dump, set_later):
        """Words of a page that is validated for the first time."""
        if mfn not in dump.pages:
            return np.zeros(ENTRIES, np.uint64)
        words = dump.pages[mfn].copy()
        given = words != 0
        for slot in range(ENTRIES):
            if (mfn, slot) in set_later:
                bit = set_later[mfn, slot]
                words[slot] = words[slot] | np.uint64(bit) if bit else 0
                given[slot] = False
        self.given[mfn] = int(given.sum())
        return words

    def issue(self, name, args):
        self.calls[name] += 1
        match name:
            case "mmu_update":
                self.machine.mmu_update([args])
            case "update_va_mapping":
                self.machine.update_va_mapping(*args)
                self.last_mfn = (args[1] & PTE_MFN_MASK) >> PAGE_SHIFT
            case "mmuext_op":
                self.machine.mmuext_op([args])
            case "set_gdt":  # its frame list is not in the trace: the page just made read-only
                self.machine.set_gdt([self.last_mfn])

    def emulate_stores(self, dump):
        """Make the stores into live L1 tables that the dump shows; they must give its words."""
        stores = 0
        for mfn, words in dump.pages.items():
            if dump.level[mfn] != 1 or mfn not in self.machine.tables.memory:
                continue
            ours = self.machine.tables.memory.words(mfn)
            for slot in np.flatnonzero(ours != words).tolist():
                value = int(words[slot]) & PTE_MFN_MASK | PAGE_KERNEL
                self.machine.store(mfn, slot, value)
                stores += 1
        return stores


class Dump:
    """Pages and levels of a dump by mfn, and walks through it."""

    def __init__(self, arrays, point):
        mfns = arrays[f"{point}_mfn"].tolist()
        self.root = mfns[0]
        self.pages = dict(zip(mfns, arrays[f"{point}_pages"], strict=True))
        self.level = dict(zip(mfns, arrays[f"{point}_level"].tolist(), strict=True))

    def l1_slot(self, vaddr):
        """(mfn, slot) of the L1 entry of an address, or None."""
        mfn = self.root
        for level in range(LEVELS, 1, -1):
            entry = int(self.pages[mfn][table_slot(vaddr, level)])
            if not entry & PTE_PRESENT or (entry & PTE_PSE and level < LEVELS):
                return None
            mfn = (entry & PTE_MFN_MASK) >> PAGE_SHIFT
            if mfn not in self.pages:
                return None
        return mfn, table_slot(vaddr, 1)


def requests_of(rows) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The requests of a trace's rows, one by one; what Xen restarted is taken once."""
    restarted = False
    for row in rows:
        op, kind, args = int(row["op"]), int(row["kind"]), [int(a) for a in row["a"]]
        if kind in (0, 1):
            of_batch = op in (HYPERVISOR_MMU_UPDATE, HYPERVISOR_MMUEXT_OP)
            restarted = of_batch and bool(args[1] & PREEMPTED)
            if op == HYPERVISOR_UPDATE_VA_MAPPING:
                yield "update_va_mapping", (args[0], args[1], args[2])
            elif op == HYPERVISOR_SET_GDT:
                yield "set_gdt", ()
        elif kind == 2 and not restarted:
            yield "mmu_update", (args[0], args[1])
        elif kind == 3 and not restarted:
            yield "mmuext_op", (args[0], args[1], args[2])


@pytest.fixture(scope="module", params=CASES)
def replayed(request):
    """A case replayed to its last dump; what each dump point found, by name."""
    replay, found = Replay(request.param), {}
    for point in [point for point in END_OF if f"{point}_mfn" in replay.arrays]:
        emulated, given = replay.run_to(point), sum(replay.given.values())
        tables = len(replay.arrays[f"{point}_mfn"])
        roots = int((replay.arrays[f"{point}_level"] == LEVELS).sum())
        found[point] = {
            "words": differing_words(replay.machine, replay.arrays, point),
            "frames": differing_frames(replay.machine, replay.arrays, point),
            "emulated": emulated,
            "compared": ENTRIES * tables - XEN_WORDS * roots - given,
        }
    return replay, found


def test_every_dump_has_the_words_that_the_calls_give(replayed):
    _, found = replayed
    assert {point: result["words"] for point, result in found.items()} == {p: [] for p in found}


def test_every_dump_has_the_types_and_counts_that_the_calls_give(replayed):
    _, found = replayed
    assert {point: result["frames"] for point, result in found.items()} == {p: [] for p in found}


def test_most_words_are_compared_and_not_given(replayed):
    """What the kernel stored itself, its direct map above all, is given; later on, nothing is."""
    _, found = replayed
    assert found["setup"]["compared"] > 22000
    assert found["pre"]["compared"] > 31000
    assert found["mid"]["compared"] > 141000


def test_emulated_stores_are_only_those_of_the_isa_range(replayed):
    """97 pages from 0x9f on, with 6.12 the 128 from 0x80 on, stored into Xen's first L1 table.

    Xen makes these mappings uncached; that the words are equal shows that this is modelled.
    """
    replay, found = replayed
    expected = 128 if replay.facts["name"] == "c1g-k6.12" else 97
    assert found["pre"]["emulated"] == expected
    assert all(result["emulated"] == 0 for point, result in found.items() if point != "pre")


def test_as_many_calls_are_replayed_as_the_boot_issued(replayed):
    """Each mmu_update of these traces has one request; what is batched is counted apart."""
    replay, found = replayed
    last = replay.names.index(END_OF[list(found)[-1]])
    counted = Counter()
    for name in replay.names[:last]:
        counted.update(replay.facts["dump"]["hypercalls_per_phase"][name])
    updates = counted["update_va_mapping"] + counted["multicall.update_va_mapping"]
    assert replay.calls["update_va_mapping"] == updates
    assert replay.calls["mmu_update"] == counted["mmu_update"]
    pins = [k for k in ("PIN_L1", "PIN_L3", "UNPIN", "NEW_BASEPTR") if f"mmuext.{k}" in counted]
    others = [k for k in ("TLB_FLUSH_LOCAL", "INVLPG_LOCAL") if f"mmuext.{k}" in counted]
    # PIN_L4 is issued once; the counts of the trace have its restarts, too.
    assert replay.calls["mmuext_op"] == 1 + sum(counted[f"mmuext.{k}"] for k in pins + others)


def test_xen_enters_a_call_again_for_each_table_that_an_entry_held(replayed):
    """golden/README rule 19: such a continuation is mmu_update(NULL, MMU_UPDATE_PREEMPTED)."""
    replay, _ = replayed
    trace = replay.arrays["trace"][: replay.at]
    args = trace["a"][(trace["kind"] == 0) & (trace["op"] == HYPERVISOR_MMU_UPDATE)]
    dropped = (args[:, 0] == 0) & (args[:, 1] & PREEMPTED != 0)
    assert replay.machine.continuations == int(dropped.sum()) == 14


def test_the_list_of_520_gib_is_freed_under_the_rules():
    """The trace of c520g has the first 120000 calls of the free; each sets one entry that the later
    dump shows as well.
    """
    replay = Replay("c520g", "pre")
    after, memory = Dump(replay.arrays, "mid"), replay.machine.tables.memory
    requests = list(requests_of(replay.arrays["trace"]))
    assert {name for name, _ in requests} == {"update_va_mapping"}
    for name, args in requests:
        replay.issue(name, args)
    places = [after.l1_slot(args[0]) for _, args in requests]
    assert [int(memory.words(m)[s]) for m, s in places] == [
        int(after.pages[m][s]) for m, s in places
    ]
