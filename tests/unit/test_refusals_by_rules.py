# SPDX-License-Identifier: GPL-2.0-or-later
"""What follows from a call that Xen refused and Linux did not notice, held against Xen's rules.

The stages run call by call on a checked guest, but for one call that is not done. Where
refusals.py says that a later call fails, Xen must refuse one; where it says that nothing follows,
Xen must take all that come.
"""

from errno import EBUSY, EINVAL

import pytest

from xenpt.abi import PTE_RW, table_slot
from xenpt.errors import RefusedError
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import V6_1, Stage
from xenpt.linux.checkedboot import CheckedBoot
from xenpt.linux.entry import initial_state
from xenpt.linux.stages import STAGES
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build
from xenpt.xen.hypercalls import Hypercalls

GIB = 1 << 18  # pages
ASIDE = 3  # calls that set up early mappings before the list moves: in no stage, but done
LIST = Ram(0x8000000, 0x8202000, "reserved")  # the list's place in a dom0 of 1 GiB


class Deaf:
    """A Xen that does every call but the nth, of which it says nothing."""

    def __init__(self, guest, nth):
        self.guest, self.left = guest, nth

    def call(self, call):
        """Do a call."""
        self.left -= 1
        if self.left:
            self.guest.call(call)

    def store(self, *arguments):
        """The guest's own stores."""
        self.guest.store(*arguments)


def refused(stage, nth, e820=()):
    """(stage, errno) of the first call that is refused after the `nth` of `stage` was not done."""
    domain = build(plan_dom0(default_kernel(), Host(), nr_pages=GIB))
    checked = CheckedBoot.of(initial_state(domain, V6_1, e820=e820))
    state, xen = checked.state, checked.guest
    for name, run in STAGES.items():
        if name is stage:
            xen = Deaf(checked.guest, nth)
        try:
            state, _ = run(state, Hypercalls(xen=xen))
        except RefusedError as refusal:
            return name, refusal.errno
        xen = checked.guest
    return None


@pytest.mark.parametrize(
    ("stage", "nth", "errno"),
    [
        (Stage.SETUP_KERNEL_PAGETABLE, 13, EBUSY),  # the new base: the old root is still in use
        (Stage.P2M_FREE, 513, EBUSY),  # the L3 entry of the list's L2 table
        (Stage.P2M_FREE, 515, EBUSY),  # the L4 entry of its L3 table
    ],
)
def test_what_stays_in_use_cannot_be_made_writable(stage, nth, errno):
    assert refused(stage, nth) == (stage, errno)


@pytest.mark.parametrize("nth", [9, 13, 17])
def test_a_new_table_that_stays_mapped_cannot_be_pinned(nth):
    """Early mappings of the moved list's L1, L2 and L3 table."""
    e820 = (Ram(0, 1 << 30), LIST)
    assert refused(Stage.MEMORY_SETUP, ASIDE + nth, e820) == (Stage.MEMORY_SETUP, EINVAL)


@pytest.mark.parametrize(
    ("start", "stage"),
    [(0x8000000, Stage.MEMORY_SETUP), (0x7FFF000, Stage.REMAP_MEMORY)],
)
def test_tables_of_an_old_list_that_stay_in_use_do_not_become_ram(start, stage):
    """As test_linux_faults.py: a group is noted in its first frame, all others move later."""
    hole = Ram(start, 0x8202000, "reserved")
    assert refused(Stage.MEMORY_SETUP, ASIDE + 34, (Ram(0, 2 << 30), hole)) == (stage, EBUSY)


def test_tables_of_an_old_list_that_go_back_to_xen_stay_until_they_are_unmapped():
    assert refused(Stage.MEMORY_SETUP, ASIDE + 34, (Ram(0, 1 << 30), LIST)) is None


@pytest.mark.parametrize(
    ("stage", "nth"),
    [
        (Stage.MEMORY_SETUP, 2),  # the maximum reservation
        (Stage.INIT_MEM_MAPPING, 3),  # an empty entry is cleared
        (Stage.P2M_COPIED, 1030),  # an entry of the table of fillers
        (Stage.PAGING_INIT, 8 * 515 + 4),  # a page of struct pages
    ],
)
def test_where_nothing_follows_xen_takes_all_that_comes(stage, nth):
    assert refused(stage, nth) is None


def test_nobody_looks_again_at_the_tables_that_xen_wrote_for_dom0():
    """A page table that dom0 can write (corrupt=1:0xffffffff84a02000:^1) gets through every pin."""
    vaddr = 0xFFFF_FFFF_84A0_2000
    domain = build(plan_dom0(default_kernel(), Host(), nr_pages=GIB))
    checked = CheckedBoot.of(initial_state(domain, V6_1))
    machine, state = checked.guest.machine, checked.state
    entry = machine.tables.memory.words(machine._l1_table(vaddr))
    assert not entry[table_slot(vaddr, 1)] & PTE_RW
    entry[table_slot(vaddr, 1)] |= PTE_RW
    for run in STAGES.values():
        state, _ = run(state, Hypercalls(xen=checked.guest))
    assert state.moved == ()
