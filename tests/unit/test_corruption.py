# SPDX-License-Identifier: GPL-2.0-or-later
"""One wrong word in a built guest's page tables: found by the check, and how the boot ends.

dom0 of 4 GiB, default kernel: [0xffffffff80000000, ...84c00000) is mapped, the kernel from
...81000000 on, start_info at ...84a00000, its 41 tables from ...84a01000 (L4, L1, L2, L3, L1, ...);
the list of 8 MiB at 0x8000000000, entry of pfn p at 8 p.
"""

import pytest

from xenpt.abi import PAGE_SIZE
from xenpt.domuplan import plan_domu
from xenpt.errors import UsageError
from xenpt.faults import PANIC, UNNOTICED, Corrupted
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import V4_3, V6_1, Boot
from xenpt.plan import plan_dom0
from xenpt.xen.corruption import entry_of, refusal_of_pin, violations
from xenpt.xen.dom0 import build
from xenpt.xen.domu import build_domu

BASE = 0xFFFF_FFFF_8000_0000
LIST = 0x80_0000_0000
DIES = "Hardware Dom0 halted: halting machine"
PIN = "kernel BUG in pin_pagetable_pfn(): Xen refuses mmuext_op"
FAULT = "BUG: unable to handle page fault for address: {:016x}"
SETUP, INIT, COPY = "setup_kernel_pagetable", "init_mem_mapping", "vmalloc_p2m_tree"


def dom0(nr_pages=1 << 20, leaf="2m"):
    return build(plan_dom0(default_kernel(), Host(superpages=leaf), nr_pages=nr_pages))


def domu(nr_pages=1 << 18):
    return build_domu(plan_domu(default_kernel(), Host(), nr_pages=nr_pages))


def end_of(fault, built, rules=V6_1, **boot):
    booted = Boot(built, rules=rules, faults=[fault], **boot).run()
    (outcome,) = booted.faults
    return booted.panic, outcome


def test_every_writable_mapping_of_a_table_page_is_found():
    """Also where nobody refuses it: Xen does not validate what its own builder wrote."""
    built = dom0()
    assert violations(built, entry_of(built, Corrupted(1, BASE, flip=6))) == []
    start, end = built.plan.page_tables
    assert (end - start) // PAGE_SIZE == 41
    for vaddr in range(start, end, PAGE_SIZE):
        fault = Corrupted(1, vaddr, flip=1)
        found = violations(built, entry_of(built, fault))
        assert [(v.rule, v.vaddr) for v in found] == [("writable page table", vaddr)]
    panic, outcome = end_of(fault, built)
    assert (panic, outcome.end, outcome.where) == (None, UNNOTICED, "build")
    assert outcome.text.startswith("the guest can write one of its own page tables")
    assert "Xen's rules: writable page table at " in outcome.text


def test_a_writable_table_page_makes_the_toolstack_s_pin_fail():
    built = domu()
    start, end = built.plan.page_tables
    pfn = (start - BASE) >> 12
    for vaddr in range(start, end, PAGE_SIZE):
        fault = Corrupted(1, vaddr, flip=1)
        assert refusal_of_pin(built, fault) is not None
    panic, outcome = end_of(fault, built)
    assert panic == f"bootlate_pv: pin_table failed (pfn {pfn:#x}, rc=-1)"
    assert (outcome.end, outcome.where) == (PANIC, "build")
    assert "while pinning mfn" in outcome.text


@pytest.mark.parametrize(
    ("level", "vaddr", "bit", "line"),
    [
        (1, BASE, 7, "Bad L1 flags 0x80"),  # PAT is for domains with I/O memory
        (2, BASE, 7, "Bad L2 flags 80"),
        (3, LIST, 8, "Bad L3 flags 100"),
        (4, LIST, 4, "Bad L4 flags 10"),
    ],
)
def test_xen_says_which_flags_the_toolstack_may_not_have_set(level, vaddr, bit, line):
    refused = refusal_of_pin(domu(), Corrupted(level, vaddr, flip=bit))
    assert refused is not None
    assert line in refused.lines


def test_what_the_pin_lets_pass_goes_on_to_linux():
    """An empty entry behind the kernel: no rule is broken."""
    panic, outcome = end_of(Corrupted(1, BASE, word=0), domu())
    assert (panic, outcome.end) == (None, UNNOTICED)
    assert outcome.text.startswith("a page fault at the first use of what is behind it")


@pytest.mark.parametrize(
    ("fault", "panic", "where"),
    [
        # The kernel cannot run: its page is gone, or is another; NX where it begins.
        (Corrupted(1, BASE + 0x1000000, flip=0), DIES, SETUP),
        (Corrupted(1, BASE + 0x1000000, flip=20), DIES, SETUP),
        (Corrupted(2, BASE + 0x1000000, flip=7), DIES, SETUP),
        (Corrupted(4, BASE, word=0), DIES, SETUP),
        (Corrupted(1, 0xFFFF_FFFF_8307_91C0, flip=63), DIES, SETUP),
        # Static tables are filled before they are made read-only.
        (Corrupted(1, default_kernel().symbols["init_top_pgt"], flip=1), DIES, SETUP),
        # Xen's L4 and L3 pages are read; L1 pages (the second, the fifth) are not.
        (Corrupted(1, BASE + 0x4A01000, flip=0), DIES, SETUP),
        (Corrupted(1, BASE + 0x4A04000, flip=0), DIES, SETUP),
        (Corrupted(1, BASE + 0x4A02000, flip=0), None, "build"),
        # start_info gets the new list's address, at offset 104, when the old one is freed.
        (Corrupted(1, BASE + 0x4A00000, flip=1), FAULT.format(0xFFFF_8880_04A0_0068),
         "remap_memory"),
        # Linux's copies of the L2 table are validated with its root; nobody uses what is below
        # 16 MiB.
        (Corrupted(2, BASE + 0x200000, flip=7), PIN, SETUP),
        (Corrupted(2, BASE + 0x200000, flip=8), PIN, SETUP),
        (Corrupted(2, BASE + 0x200000, flip=14), PIN, SETUP),
        (Corrupted(2, BASE + 0x200000, flip=0), None, "build"),
        (Corrupted(2, BASE + 0x200000, flip=6), None, "build"),
        (Corrupted(1, BASE + 0x1000, flip=0), None, "build"),
    ],
)  # fmt: skip
def test_a_wrong_word_of_the_initial_mapping(fault, panic, where):
    found, outcome = end_of(fault, dom0())
    assert (found, outcome.where) == (panic, where)
    assert outcome.end == (PANIC if panic else UNNOTICED)


@pytest.mark.parametrize(
    ("fault", "panic", "where"),
    [
        # A list page is read when one of its 512 pfns is needed: own tables (pfn 0x4a01 is in page
        # 37), pages of the direct map that Xen did not map, or at the latest by the copy.
        (Corrupted(1, LIST + 37 * 4096, word=0), DIES, SETUP),
        (Corrupted(1, LIST + 64 * 4096, word=0), DIES, INIT),
        (Corrupted(1, LIST, word=0), FAULT.format(LIST), COPY),
        (Corrupted(2, LIST + (2 << 20), flip=0), DIES, INIT),
        (Corrupted(3, LIST, flip=2), DIES, SETUP),  # USER: a PV kernel runs in ring 3
        # Another page is read in its place: frames that are not the domain's cannot be pinned.
        (Corrupted(1, LIST + 64 * 4096, flip=13), PIN, INIT),
        (Corrupted(1, LIST, flip=13), None, "build"),
        # It is written when it is freed.
        (Corrupted(1, LIST + 64 * 4096, flip=1), FAULT.format(LIST + 64 * 4096), "p2m_free"),
        # The L4 entry alone is copied, and so validated.
        (Corrupted(4, LIST, flip=8), PIN, SETUP),
        (Corrupted(4, LIST, flip=0), DIES, SETUP),
        (Corrupted(4, LIST, flip=9), None, "build"),
        (Corrupted(1, LIST, flip=63), None, "build"),
    ],
)
def test_a_wrong_word_of_the_list_s_mapping(fault, panic, where):
    found, outcome = end_of(fault, dom0(leaf="4k"))
    assert (found, outcome.where) == (panic, where)


def test_entries_behind_nr_pages_are_written_first_of_all():
    """One page more than 4 GiB: its list page is filled up (xen_build_dynamic_phys_to_machine)."""
    fault = Corrupted(1, LIST + (8 << 20), flip=1)
    assert end_of(fault, dom0((1 << 20) + 1))[0] == DIES


def test_a_hole_of_the_map_is_written_into_the_list():
    """Pages 0x9f to 0x100 become identity entries in the first page of the list."""
    e820 = [Ram(0, 0x9FC00), Ram(1 << 20, 1 << 40)]
    for page, panic, where in ((0, DIES, "memory_setup"), (1, FAULT.format(LIST + 4096), None)):
        fault = Corrupted(1, LIST + page * 4096, flip=1)
        found, outcome = end_of(fault, dom0(leaf="4k"), e820=e820)
        assert found == panic
        assert outcome.where == (where or "p2m_free")


def test_v4_3_speaks_of_a_paging_request():
    found, _ = end_of(Corrupted(1, LIST, word=0), dom0(leaf="4k"), rules=V4_3)
    assert found == "BUG: unable to handle kernel paging request at 0000008000000000"


def test_the_word_that_is_there_anyway_does_not_strike():
    built = dom0()
    old = entry_of(built, Corrupted(1, BASE, word=0)).old
    panic, outcome = end_of(Corrupted(1, BASE, word=old), built)
    assert (panic, outcome.end) == (None, None)


@pytest.mark.parametrize(
    "fault", [Corrupted(1, LIST, word=0), Corrupted(3, 0, word=0), Corrupted(1, 1 << 63, word=0)]
)
def test_an_entry_of_a_table_that_is_not_there_is_refused(fault):
    """A list in 2 MiB leaves has no L1 table."""
    with pytest.raises(UsageError, match=rf"^--fault corrupt=.*: no L{fault.level} table maps"):
        Boot(dom0(), faults=[fault])


def test_an_entry_that_was_empty_maps_what_nobody_uses():
    fault = Corrupted(4, 0, word=0x67)
    assert end_of(fault, dom0())[1].text.startswith("an address that nobody uses is mapped")
