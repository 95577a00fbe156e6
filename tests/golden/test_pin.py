# SPDX-License-Identifier: GPL-2.0-or-later
"""Pinning the root of built domains: what real Xen made of it, and what one writable bit does.

The toolstack's builder leaves plain tables and pins the root; both sides of that pin are dumped.
dom0's builder sets types by hand, so its tables are pinned here without its P->M list, whose
superpages no guest may make (SPEC A5). All dumps of built 64-bit domains are here, and those of the
tables that Linux pins first; Xen's rules for the pin of a PAE root are not modelled.
"""

from errno import EBUSY, EINVAL

import goldendata
import numpy as np
import pytest
from goldenmachine import differing_frames, differing_words, dom0_frames, domu_p2m, machine_at

from xenpt.abi import (
    LEVELS,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L4_TABLE,
    PAGE_SHIFT,
    PTE_MFN_MASK,
    PTE_PRESENT,
    PTE_RW,
    XEN_SLOTS,
)
from xenpt.errors import RefusedError
from xenpt.xen.adopt import frames_of
from xenpt.xen.checked import CheckedMachine
from xenpt.xen.memory import Memory
from xenpt.xen.rules import PageTables

DOM0 = goldendata.cases("oracle", dump="entry")
#: 4-level domains of which both sides of the pin were dumped.
DOMU = [
    case
    for case in goldendata.cases("domu", dump="prepin")
    if "entry" in goldendata.facts(case, "domu")["dump"]
]
#: Guests of xl, which are dumped behind the pin alone.
ONLY_PINNED = [case for case in goldendata.cases("domu", dump="entry") if case not in DOMU]
#: dom0 on Linux's own tables, where the host's frames are known.
TAKEN_OVER = [
    case
    for case in goldendata.cases("oracle", dump="setup")
    if "entry_p2m_runs" in goldendata.arrays(case)
]


def unpinned_domu(case, point="prepin"):
    """The tables as the toolstack wrote them, on frames of which none has a type."""
    arrays = goldendata.arrays(case, "domu")
    tables = PageTables(frames_of(domu_p2m(case)), Memory(), iomem=False, domid=1)
    tables.memory.put(arrays[f"{point}_mfn"].tolist(), arrays[f"{point}_pages"])
    return CheckedMachine(tables), int(arrays[f"{point}_mfn"][0])


def unpinned_dom0(case, point="entry"):
    """The tables of a dom0 but for those of its first list, on frames of which none has a type."""
    arrays = goldendata.arrays(case)
    tables = PageTables(dom0_frames(case), Memory())
    tables.memory.put(arrays[f"{point}_mfn"].tolist(), arrays[f"{point}_pages"])
    root = int(arrays[f"{point}_mfn"][0])
    dump = goldendata.facts(case)["dump"]
    if dump["start_info"]["nr_p2m_frames"]:
        vaddr = dump["start_info"]["mfn_list"]
        tables.memory.words(root)[vaddr >> 39 & 511] = 0
        tables.memory.words(root)[(vaddr + 8 * dump["start_info"]["nr_pages"] - 1) >> 39 & 511] = 0
    return CheckedMachine(tables), root


def walk(machine, top, level=LEVELS):
    """A table and those below, in the order in which Xen validates them: {mfn: level}."""
    found = {}

    def visit(mfn, level):
        found.setdefault(mfn, level)
        if level == 1:
            return
        for slot, word in enumerate(machine.tables.memory.words(mfn).tolist()):
            if word & PTE_PRESENT and not (level == LEVELS and slot in XEN_SLOTS):
                visit((word & PTE_MFN_MASK) >> PAGE_SHIFT, level - 1)

    visit(top, level)
    return found


def mappings_of_tables(machine, order):
    """(L1 table, slot, mapped table) of every leaf that maps a table page of the domain."""
    for l1, level in order.items():
        if level == 1:
            words = machine.tables.memory.words(l1)
            mfns = (words & np.uint64(PTE_MFN_MASK)) >> np.uint64(PAGE_SHIFT)
            for slot in np.flatnonzero(words & PTE_PRESENT).tolist():
                if int(mfns[slot]) in order:
                    yield l1, slot, int(mfns[slot])


@pytest.mark.parametrize("case", DOMU)
def test_pinning_gives_the_words_types_and_counts_that_real_xen_gave(case):
    arrays, (machine, root) = goldendata.arrays(case, "domu"), unpinned_domu(case)
    machine.mmuext_op([(MMUEXT_PIN_L4_TABLE, root, 0), (MMUEXT_NEW_BASEPTR, root, 0)])
    assert differing_words(machine, arrays, "entry") == []
    assert differing_frames(machine, arrays, "entry") == []


def flip_each(machine, root, expected):
    """Make each mapping of a table page writable, alone, and pin the root."""
    memory, order = machine.tables.memory, walk(machine, root)
    rank = {mfn: i for i, mfn in enumerate(order)}
    mapped = list(mappings_of_tables(machine, order))
    for l1, slot, table in mapped:
        assert not int(memory.words(l1)[slot]) & PTE_RW
        memory.words(l1)[slot] |= PTE_RW
        with pytest.raises(RefusedError) as refused:
            machine.mmuext_op([(MMUEXT_PIN_L4_TABLE, root, 0)])
        assert refused.value.errno == expected(rank[table], rank[l1])
        memory.words(l1)[slot] &= ~np.uint64(PTE_RW)
    machine.mmuext_op([(MMUEXT_PIN_L4_TABLE, root, 0)])  # what was refused left nothing behind
    return {(l1, slot) for l1, slot, _ in mapped}


@pytest.mark.parametrize(
    "build, case",
    [
        (unpinned_dom0, "c512m"),
        (unpinned_dom0, "p-legacy-1g-i"),
        (unpinned_domu, "u512m"),
        (unpinned_domu, "l512m"),
    ],
)
def test_one_writable_mapping_of_a_table_page_makes_the_pin_fail(build, case):
    """SPEC I7. -EBUSY where the page already has its type when Xen comes to the entry; -EINVAL
    where the entry made it writable first, and it then cannot become a table.
    """
    flip_each(*build(case), lambda table, l1: EBUSY if table <= l1 else EINVAL)


@pytest.mark.parametrize(
    "build, case, point",
    [
        *((unpinned_dom0, case, "entry") for case in DOM0),
        *((unpinned_domu, case, "prepin") for case in DOMU),
        *((unpinned_domu, case, "entry") for case in ONLY_PINNED),
        *((unpinned_dom0, case, "setup") for case in TAKEN_OVER),
    ],
)
def test_every_table_page_of_every_dump_must_be_mapped_read_only(build, case, point):
    """As above for all dumps; tables that map no table page are pinned before, to save time.

    The entries that cannot be made writable are exactly those that the builder made read-only;
    Linux made two pages more read-only, which are no tables of this root.
    """
    machine, root = build(case, point)
    order = walk(machine, root)
    mapping = {l1 for l1, _, _ in mappings_of_tables(machine, order)}
    typed = set()
    for mfn, level in order.items():
        below = walk(machine, mfn, level)
        if not mapping & below.keys() and mfn not in typed:
            machine.mmuext_op([(MMUEXT_PIN_L1_TABLE + level - 1, mfn, 0)])
            typed |= below.keys()
    typed = {rank for rank, mfn in enumerate(order) if mfn in typed}
    found = flip_each(
        machine, root, lambda table, l1: EBUSY if table <= l1 or table in typed else EINVAL
    )
    words = machine.tables.memory.words
    read_only = {
        (mfn, slot)
        for mfn, level in order.items()
        if level == 1
        for slot in np.flatnonzero(words(mfn) & (PTE_PRESENT | PTE_RW) == PTE_PRESENT).tolist()
    }
    if point != "setup":
        assert found == read_only
    else:
        assert found < read_only


@pytest.mark.parametrize("case", DOM0)
def test_no_table_page_of_a_running_dom0_can_be_made_writable(case):
    machine, arrays = machine_at(case, "entry"), goldendata.arrays(case)
    tables = set(arrays["entry_mfn"].tolist())
    refusals = 0
    for k in np.flatnonzero(arrays["entry_level"] == 1).tolist():
        words = arrays["entry_pages"][k]
        for slot in np.flatnonzero(words & PTE_PRESENT).tolist():
            if (int(words[slot]) & PTE_MFN_MASK) >> PAGE_SHIFT in tables:
                vaddr = int(arrays["entry_va"][k]) + (slot << PAGE_SHIFT)
                with pytest.raises(RefusedError) as refused:
                    machine.update_va_mapping(vaddr, int(words[slot]) | PTE_RW)
                assert refused.value.errno == EBUSY
                assert "Could not get page type PGT_writable_page" in refused.value.lines
                refusals += 1
    assert refusals == goldendata.facts(case)["dump"]["start_info"]["nr_pt_frames"]
    assert differing_words(machine, arrays, "entry") == []
    assert differing_frames(machine, arrays, "entry") == []
