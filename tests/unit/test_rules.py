# SPDX-License-Identifier: GPL-2.0-or-later
"""Each refusal of Xen: when, with which errno, and what Xen's log says. SPEC A4, A5, E1 to E9."""

from errno import EBUSY, EINVAL, ENOSYS, EPERM, ESRCH

import pytest

from xenpt.abi import (
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L2_TABLE,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_TLB_FLUSH_LOCAL,
    MMUEXT_UNPIN_TABLE,
    PGC_ALLOCATED,
    PGT_L1_PAGE_TABLE,
    PGT_VALIDATED,
    PGT_WRITABLE_PAGE,
)
from xenpt.errors import RefusedError
from xenpt.xen.adopt import ALLOCATED
from xenpt.xen.checked import CheckedMachine
from xenpt.xen.frames import FrameTable
from xenpt.xen.memory import Memory
from xenpt.xen.rules import PageTables

L4, L3, L2, L1, DATA, OTHER_L1 = range(16, 22)  # frames of the domain, which has [16, 32)
FOREIGN, IO = 40, 2
TABLE, WRITABLE, READ_ONLY = 0x67, 0x63, 0x61
VADDR = 5 << 12  # slot 5 of L1


def machine(*, iomem=True):
    """A domain with one table of each level, [0, 2 MiB) mapped by L1, and L4 pinned and current."""
    frames = FrameTable(64, [(0, 8)])
    frames.fill(16, 32, ALLOCATED, 0)
    domain = CheckedMachine(PageTables(frames, Memory(), iomem=iomem))
    for upper, lower in ((L4, L3), (L3, L2), (L2, L1)):
        domain.store(upper, 0, lower << 12 | TABLE)
    domain.mmuext_op([(MMUEXT_PIN_L4_TABLE, L4, 0), (MMUEXT_NEW_BASEPTR, L4, 0)])
    return domain


def refusal(call, *args, **kwargs):
    with pytest.raises(RefusedError) as refused:
        call(*args, **kwargs)
    return refused.value.errno, refused.value.lines


def ptr(mfn, slot, command=0):
    return mfn << 12 | slot << 3 | command


def test_flags_are_added_as_xen_does():
    """A4: a kernel's mapping gets USER and GUEST_KERNEL, a user's gets GLOBAL; L4 is accessed."""
    domain = machine()
    words = domain.tables.memory.words
    domain.update_va_mapping(VADDR, DATA << 12 | 0x3)
    assert words(L1)[5] == 1 << 52 | DATA << 12 | 0x7
    domain.update_va_mapping(VADDR, DATA << 12 | 0x7)
    assert words(L1)[5] == DATA << 12 | 0x107
    domain.mmu_update([(ptr(L2, 1), OTHER_L1 << 12 | 0x1)])
    assert words(L2)[1] == OTHER_L1 << 12 | 0x5
    domain.mmu_update([(ptr(L4, 1), L3 << 12 | 0x1)])
    assert words(L4)[1] == L3 << 12 | 0x25


def test_a_mapping_takes_a_reference_and_a_writable_one_a_type():
    domain = machine()
    domain.update_va_mapping(VADDR, DATA << 12 | WRITABLE)
    assert domain.tables.frames.get(DATA) == (ALLOCATED + 1, PGT_WRITABLE_PAGE | PGT_VALIDATED | 1)
    domain.update_va_mapping(VADDR, DATA << 12 | READ_ONLY)
    assert domain.tables.frames.get(DATA)[0] == ALLOCATED + 1
    assert domain.tables.frames.get(DATA)[1] & 0xFF == 0
    domain.update_va_mapping(VADDR, 0)
    assert domain.tables.frames.get(DATA)[0] == ALLOCATED


def test_bad_flags_are_refused_at_each_level():
    domain = machine(iomem=False)
    got = refusal(domain.update_va_mapping, VADDR, DATA << 12 | WRITABLE | 0x18)
    assert got == (EINVAL, ("Bad L1 flags 0x18",))
    for level, table in ((2, L2), (3, L3), (4, L4)):  # PSE: a guest cannot have superpages
        got = refusal(domain.mmu_update, [(ptr(table, 1), DATA << 12 | 0xE7)])
        assert got == (EINVAL, (f"Bad L{level} flags 80",))


def test_cache_flags_are_for_domains_with_devices():
    machine().update_va_mapping(VADDR, DATA << 12 | WRITABLE | 0x18)


def test_a_table_cannot_be_mapped_writable():
    """E3: -EBUSY, with what Xen prints."""
    errno, lines = refusal(machine().update_va_mapping, VADDR, L2 << 12 | WRITABLE)
    assert errno == EBUSY
    nothing = "(pfn ffffffffffffffff)"  # the M2P is empty
    owners = "for l1e_owner d0, pg_owner d0"
    assert lines == (
        f"Bad type (saw 4400000000000001 != exp e000000000000000) for mfn 00012 {nothing}",
        "Could not get page type PGT_writable_page",
        f"Error getting mfn 00012 {nothing} from L1 entry 0010000000012067 {owners}",
    )


def test_a_writable_page_cannot_become_a_table():
    domain = machine()
    domain.update_va_mapping(VADDR, OTHER_L1 << 12 | WRITABLE)
    errno, lines = refusal(domain.mmu_update, [(ptr(L2, 1), OTHER_L1 << 12 | TABLE)])
    assert errno == EINVAL
    assert lines[0].startswith("Bad type (saw e400000000000001 != exp 2000000000000000)")
    errno, lines = refusal(domain.mmuext_op, [(MMUEXT_PIN_L1_TABLE, OTHER_L1, 0)])
    assert (errno, lines[-1]) == (EINVAL, "Error -22 while pinning mfn 00015")
    domain.update_va_mapping(VADDR, OTHER_L1 << 12 | READ_ONLY)
    domain.mmuext_op([(MMUEXT_PIN_L1_TABLE, OTHER_L1, 0)])


def test_a_table_with_a_bad_entry_is_not_pinned_and_leaves_nothing_behind():
    domain = machine()
    domain.store(OTHER_L1, 3, DATA << 12 | WRITABLE)
    domain.store(OTHER_L1, 7, L4 << 12 | WRITABLE)
    errno, lines = refusal(domain.mmuext_op, [(MMUEXT_PIN_L1_TABLE, OTHER_L1, 0)])
    assert errno == EBUSY
    assert lines[3] == "Failure -16 in promote_l1_table: slot 0x7"
    assert lines[4].startswith("Error while validating mfn 00015 (pfn ffffffffffffffff) for type")
    assert domain.tables.frames.get(OTHER_L1) == (ALLOCATED, 0)
    assert domain.tables.frames.get(DATA)[0] == ALLOCATED


def test_a_table_of_level_2_that_fails_keeps_its_type_behind_slot_0():
    """A partly validated table is torn down as such; at slot 0 there is nothing to tear down."""
    for slot, type_info in ((0, 0), (1, 2 << 61)):
        domain = machine()
        domain.store(OTHER_L1, slot, FOREIGN << 12 | TABLE)
        assert refusal(domain.mmuext_op, [(MMUEXT_PIN_L2_TABLE, OTHER_L1, 0)])[0] == EINVAL
        assert domain.tables.frames.get(OTHER_L1) == (ALLOCATED, type_info)


def test_frames_of_others_are_refused():
    domain = machine()
    errno, lines = refusal(domain.update_va_mapping, VADDR, FOREIGN << 12 | READ_ONLY)
    assert (errno, lines[0]) == (EBUSY, "pg_owner d0 l1e_owner d0, but real_pg_owner d-1")
    errno, lines = refusal(domain.mmu_update, [(ptr(FOREIGN, 0), 0)])
    assert (errno, lines[-1]) == (EINVAL, "Could not get page for normal update")
    errno, lines = refusal(domain.mmu_update, [(ptr(FOREIGN, 0, 1), 7)])
    assert (errno, lines[-1]) == (EINVAL, "Could not get page for mach->phys update")
    assert refusal(domain.mmuext_op, [(MMUEXT_PIN_L1_TABLE, FOREIGN, 0)])[0] == EINVAL
    errno, lines = refusal(domain.mmuext_op, [(MMUEXT_UNPIN_TABLE, FOREIGN, 0)])
    assert (errno, lines[-1]) == (EINVAL, "mfn 00028 bad, or bad owner d0")


def test_memory_that_is_no_ram_is_for_dom0_and_made_uncached():
    domain = machine()
    domain.update_va_mapping(VADDR, IO << 12 | WRITABLE)
    assert domain.tables.memory.words(L1)[5] == 1 << 52 | IO << 12 | 0x7F
    guest = machine(iomem=False)
    got = refusal(guest.update_va_mapping, VADDR, IO << 12 | WRITABLE)
    assert got == (EPERM, ("d0 non-privileged attempt to map MMIO space 00002",))
    everything = (1 << 52) - (1 << 12)
    assert refusal(guest.update_va_mapping, VADDR, everything | WRITABLE) == (EINVAL, ())


def test_memory_that_nobody_may_write_is_mapped_read_only():
    """E3, mmio_ro_ranges: RW is taken from the entry, and the call succeeds."""
    frames = FrameTable(64, [(0, 8)], [(3, 4), (70, 80)])
    frames.fill(16, 32, ALLOCATED, 0)
    domain = CheckedMachine(PageTables(frames, Memory()))
    domain.store(L1, 1, 3 << 12 | 0x63)  # validated with the table
    domain.mmuext_op([(MMUEXT_PIN_L1_TABLE, L1, 0)])
    domain.mmu_update([(ptr(L1, 2), 3 << 12 | 0x63), (ptr(L1, 3), 75 << 12 | 0x67)])
    domain.mmu_update([(ptr(L1, 4), 3 << 12 | 0x61), (ptr(L1, 5), 2 << 12 | 0x63)])
    words = domain.tables.memory.words(L1)
    assert [int(word) & 0xFFF for word in words[1:6]] == [0x7D, 0x7D, 0x17D, 0x7D, 0x7F]


def test_pins_are_set_and_taken_once():
    domain = machine()
    assert refusal(domain.mmuext_op, [(MMUEXT_PIN_L4_TABLE, L4, 0)]) == (
        EINVAL, ("mfn 00010 already pinned",),
    )  # fmt: skip
    domain.mmuext_op([(MMUEXT_UNPIN_TABLE, L4, 0)])
    assert refusal(domain.mmuext_op, [(MMUEXT_UNPIN_TABLE, L4, 0)]) == (
        EINVAL, ("mfn 00010 not pinned",),
    )  # fmt: skip
    assert domain.tables.frames.get(L4) == (ALLOCATED + 1, 4 << 61 | PGT_VALIDATED | 1)


def test_the_l4_slots_of_xen_are_refused():
    for slot in (256, 271):
        got = refusal(machine().mmu_update, [(ptr(L4, slot), L3 << 12 | TABLE)])
        assert got == (EINVAL, (f"L4 update in Xen-private area, slot {slot:#x}",))
    machine().mmu_update([(ptr(L4, 255), L3 << 12 | TABLE), (ptr(L4, 272), L3 << 12 | TABLE)])


def test_update_va_mapping_needs_a_table_of_level_1():
    domain = machine()
    for vaddr in (1 << 21, 1 << 30, 1 << 39, 1 << 47, 0xFFFF_8000_0000_0000):
        assert refusal(domain.update_va_mapping, vaddr, 0) == (EINVAL, ())


def test_unknown_commands_and_domains():
    domain = machine()
    assert refusal(domain.mmu_update, [(ptr(L1, 0, 4), 0)]) == (ENOSYS, ())
    assert refusal(domain.mmuext_op, [(14, 0, 0)]) == (ENOSYS, ())
    assert refusal(domain.mmuext_op, [(20, 0, 0)]) == (ENOSYS, ())
    assert refusal(domain.mmu_update, [], domid=7) == (ESRCH, ())
    assert refusal(domain.mmuext_op, [], domid=7) == (ESRCH, ())
    assert refusal(domain.update_va_mapping, 0, 0, domid=7) == (ESRCH, ())
    domain.mmuext_op([(MMUEXT_TLB_FLUSH_LOCAL, 0, 0)])


def test_requests_before_a_refused_one_are_done():
    domain = machine()
    requests = [(ptr(L1, 1), DATA << 12 | WRITABLE), (ptr(L1, 2), L1 << 12 | WRITABLE)]
    with pytest.raises(RefusedError) as refused:
        domain.mmu_update([*requests, (ptr(L1, 3), 0)])
    assert refused.value.done == 1
    assert domain.tables.memory.words(L1)[1]
    assert not domain.tables.memory.words(L1)[2]


def test_a_multicall_goes_on_behind_a_refusal():
    domain = machine()
    results = domain.multicall(
        [
            lambda: domain.update_va_mapping(VADDR, L1 << 12 | WRITABLE),
            lambda: domain.update_va_mapping(VADDR, L1 << 12 | READ_ONLY),
        ]
    )
    assert results == [-EBUSY, 0]


def test_accessed_and_dirty_bits_are_kept_on_demand():
    domain = machine()
    domain.update_va_mapping(VADDR, DATA << 12 | 0x63)
    domain.mmu_update([(ptr(L1, 5, 2), DATA << 12 | 0x1)])
    assert domain.tables.memory.words(L1)[5] & 0x63 == 0x61


def test_a_linear_page_table_is_read_only_and_not_nested():
    """E4: an L4 table may name itself or another L4 table, but no chain of tables."""
    domain, other, third = machine(), 24, 25
    domain.mmuext_op([(MMUEXT_PIN_L4_TABLE, other, 0), (MMUEXT_PIN_L4_TABLE, third, 0)])
    domain.mmu_update([(ptr(L4, 300), L4 << 12 | 0x25)])
    got = refusal(domain.mmu_update, [(ptr(L4, 301), other << 12 | TABLE)])
    assert got == (EINVAL, ("Attempt to create linear p.t. with write perms",))
    domain.mmu_update([(ptr(L4, 301), other << 12 | 0x25)])
    assert domain.tables.frames.get(other) == (ALLOCATED + 2, 4 << 61 | 3 << 58 | 2)
    assert refusal(domain.mmu_update, [(ptr(other, 302), third << 12 | 0x25)])[0] == EINVAL
    assert refusal(domain.mmu_update, [(ptr(third, 302), L4 << 12 | 0x25)])[0] == EINVAL
    domain.mmu_update([(ptr(L4, 301), 0)])
    domain.mmu_update([(ptr(other, 302), third << 12 | 0x25)])


def test_a_dropped_table_drops_what_it_maps_and_is_a_continuation():
    """E8: L4[0] holds L3, L2 and L1; all lose their types, and the data its reference."""
    domain = machine()
    domain.update_va_mapping(VADDR, DATA << 12 | WRITABLE)
    domain.mmu_update([(ptr(L4, 0), 0)])
    for mfn in (L3, L2, L1, DATA):
        count_info, type_info = domain.tables.frames.get(mfn)
        assert (count_info, type_info & 0xFF) == (ALLOCATED, 0)
    assert domain.continuations == 1
    assert domain.flushes == 1
    assert domain.tables.work.puts == 4
    assert domain.tables.work.devalidated == [0, 1, 1, 1, 0]


def test_a_superpage_of_the_builder_drops_each_of_its_pages():
    """put_data_pages(): 512 pages, each with a type reference where the leaf was writable."""
    frames = FrameTable(2048)
    frames.fill(16, 1024, ALLOCATED, 0)
    frames.fill(512, 1024, ALLOCATED + 1, PGT_WRITABLE_PAGE | PGT_VALIDATED | 1)
    domain = CheckedMachine(PageTables(frames, Memory()))
    domain.mmuext_op([(MMUEXT_PIN_L2_TABLE, L2, 0)])
    domain.tables.memory.words(L2)[3] = 512 << 12 | 0xE7
    domain.mmu_update([(ptr(L2, 3), 0)])
    assert frames.get(512) == frames.get(1023) == (ALLOCATED, PGT_WRITABLE_PAGE | PGT_VALIDATED)
    assert domain.tables.work.puts == 512
    assert domain.continuations == 0


def test_a_page_given_back_stays_while_it_is_mapped():
    domain = machine()
    domain.update_va_mapping(VADDR, DATA << 12 | WRITABLE)
    assert domain.decrease_reservation([DATA]) == 1
    assert domain.tables.frames.get(DATA)[0] == 1
    domain.update_va_mapping(VADDR, 0)
    assert domain.tables.frames.get(DATA) == (0, 0)
    assert domain.decrease_reservation([DATA, L1]) == 0


def test_pages_are_cleared_and_copied_only_as_data():
    domain = machine()
    domain.store(DATA, 9, 99)
    domain.mmuext_op([(MMUEXT_COPY_PAGE, OTHER_L1, DATA), (MMUEXT_CLEAR_PAGE, DATA, 0)])
    words = domain.tables.memory.words
    assert (words(OTHER_L1)[9], words(DATA)[9]) == (99, 0)
    errno, lines = refusal(domain.mmuext_op, [(MMUEXT_CLEAR_PAGE, L1, 0)])
    assert (errno, lines[-1]) == (EINVAL, "Error clearing mfn 00013")
    errno, lines = refusal(domain.mmuext_op, [(MMUEXT_COPY_PAGE, L1, DATA)])
    assert (errno, lines[-1]) == (EINVAL, "Error copying to mfn 00013")
    errno, lines = refusal(domain.mmuext_op, [(MMUEXT_COPY_PAGE, DATA, FOREIGN)])
    assert (errno, lines[-1]) == (EINVAL, "Error copying from mfn 00028")


def test_stores_into_tables():
    """E10: into level 1 emulated as a checked update, above that a fault."""
    domain = machine()
    domain.store(L1, 5, DATA << 12 | WRITABLE)
    assert domain.tables.frames.get(DATA)[0] == ALLOCATED + 1
    assert refusal(domain.store, L1, 6, L4 << 12 | WRITABLE)[0] == EBUSY
    assert refusal(domain.store, L2, 6, 0)[0] == EPERM
    assert refusal(domain.store, FOREIGN, 6, 0)[0] == EPERM


def test_a_gdt_page_is_neither_writable_nor_a_table():
    domain = machine()
    domain.set_gdt([DATA])
    assert refusal(domain.update_va_mapping, VADDR, DATA << 12 | WRITABLE)[0] == EBUSY
    assert refusal(domain.mmu_update, [(ptr(DATA, 0), 0)])[0] == EINVAL
    domain.update_va_mapping(VADDR, OTHER_L1 << 12 | WRITABLE)
    assert refusal(domain.set_gdt, [DATA, OTHER_L1])[0] == EINVAL
    assert domain.gdt == (DATA,)
    domain.set_gdt([])
    assert domain.tables.frames.get(DATA)[0] == ALLOCATED == PGC_ALLOCATED | 1


def test_a_root_must_be_a_table_of_level_4():
    domain = machine()
    errno, lines = refusal(domain.mmuext_op, [(MMUEXT_NEW_BASEPTR, L3, 0)])
    assert (errno, lines[-1]) == (EINVAL, "Error while installing new baseptr 00011")
    assert domain.base == L4
    domain.mmuext_op([(MMUEXT_NEW_BASEPTR, 24, 0)])  # an empty page is a table
    assert domain.tables.frames.get(L4)[1] & 0xFF == 1


def test_the_type_of_a_frame_without_references_may_change():
    domain = machine()
    domain.mmuext_op([(MMUEXT_PIN_L1_TABLE, OTHER_L1, 0), (MMUEXT_UNPIN_TABLE, OTHER_L1, 0)])
    assert domain.tables.frames.get(OTHER_L1)[1] == PGT_L1_PAGE_TABLE
    before = domain.tables.work.type_changes
    domain.update_va_mapping(VADDR, OTHER_L1 << 12 | WRITABLE)
    assert domain.tables.work.type_changes == before + 1
