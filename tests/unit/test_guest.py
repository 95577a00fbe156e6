# SPDX-License-Identifier: GPL-2.0-or-later
"""A built domain under Xen's rules: where its frames are, and what its stores do."""

from dataclasses import replace
from errno import EINVAL, EPERM

import numpy as np
import pytest

from xenpt.abi import (
    MMU_MACHPHYS_UPDATE,
    MMUEXT_TLB_FLUSH_LOCAL,
    PGC_COUNT_MASK,
    PGT_COUNT_MASK,
    PTE_RW,
    START_KERNEL_MAP,
    XENMEM_DECREASE_RESERVATION,
)
from xenpt.errors import RefusedError
from xenpt.extents import IDENTITY
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import default_kernel
from xenpt.p2m import P2M
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build
from xenpt.xen.guest import Guest
from xenpt.xen.hypercalls import Call

NR_PAGES = 160 << 8  # 160 MiB
E820 = (Ram(0, 0x9FC00), Ram(0x100000, 0x4000000), Ram(0x4000000, 1 << 29, "reserved"),
        Ram(1 << 32, 1 << 33))  # fmt: skip
KERNEL_PAGE = 0x8000000000000063


@pytest.fixture(scope="module")
def domain():
    return build(plan_dom0(default_kernel(), Host(), nr_pages=NR_PAGES))


def table_pfn(domain, level):
    """The only table of a level of the initial mapping, or its first L1 table."""
    tables = domain.initial.tables
    return int(tables["pfn"][tables["level"] == level][0])


def test_frames_stay_where_a_host_put_them_and_else_move_behind_memory_that_is_no_ram(domain):
    guest = Guest(domain)
    assert guest.mfn(5) == int(domain.p2m.mfn([5])[0])
    assert guest.mfn(IDENTITY + 77) == 77
    moved = Guest(domain, E820)
    assert moved.mfn(5) == guest.mfn(5) + (1 << 20)
    assert moved.machine.tables.frames.io == ((0, 0x100), (0x4000, 1 << 20))
    assert moved.machine.tables.frames.nr_frames == 1 << (33 - 12)
    given = replace(domain, given_p2m=P2M.linear(NR_PAGES, 1 << 20))
    assert Guest(given, E820).mfn(5) == (1 << 20) + 5


def test_a_pfn_without_a_frame_names_none(domain):
    guest = Guest(domain)
    assert guest.mfn(NR_PAGES) == (1 << 40) - 1
    guest.machine.tables.iomem = False
    vaddr = START_KERNEL_MAP + (9 << 12)
    with pytest.raises(RefusedError) as refused:
        guest.call(Call("update_va_mapping", vaddr=vaddr, pfn=NR_PAGES, flags=KERNEL_PAGE))
    assert refused.value.errno == EINVAL


def test_calls_do_what_they_say_and_are_counted(domain):
    guest = Guest(domain)
    frames, mfn = guest.machine.tables.frames, guest.mfn(9)
    vaddr = START_KERNEL_MAP + (9 << 12)
    assert frames.get(mfn)[1] & PGT_COUNT_MASK == 1
    guest.call(Call("update_va_mapping", vaddr=vaddr, pfn=9, flags=KERNEL_PAGE & ~PTE_RW))
    assert frames.get(mfn)[1] & PGT_COUNT_MASK == 0
    l1 = table_pfn(domain, 1)
    guest.call(Call("mmu_update", table=l1, slot=9, level=1, pfn=None))
    assert frames.get(mfn)[0] & PGC_COUNT_MASK == 1
    guest.call(Call("mmu_update", command=MMU_MACHPHYS_UPDATE, pfn=9, slot=1234))
    assert guest.machine.tables.m2p == {mfn: 1234}
    guest.call(Call("memory_op", command=XENMEM_DECREASE_RESERVATION, pfn=9))
    assert frames.get(mfn) == (0, 0)
    guest.call(Call("mmuext_op", command=MMUEXT_TLB_FLUSH_LOCAL))
    guest.call(Call("multicall"))
    assert guest.nr_calls == 6


def test_stores_need_a_writable_mapping_or_a_live_l1_table(domain):
    guest = Guest(domain)
    words = guest.machine.tables.memory.words
    guest.store(9, 3, 7, KERNEL_PAGE, 4, 2)
    stored = [guest.mfn(pfn) << 12 | KERNEL_PAGE for pfn in (7, 9, 11, 13)]
    assert words(guest.mfn(9))[2:8].tolist() == [0, *stored, 0]
    guest.store(9, 0, IDENTITY + 0xA0, KERNEL_PAGE, 2, 1)
    assert words(guest.mfn(9))[:2].tolist() == [0xA0 << 12 | KERNEL_PAGE, 0xA1 << 12 | KERNEL_PAGE]
    guest.store(9, 0, NR_PAGES - 1, 1, 2, 1)
    assert words(guest.mfn(9))[:2].tolist() == [guest.mfn(NR_PAGES - 1) << 12 | 1, 0xFFFFFFFFFF001]
    guest.store(9, 0, None, 0, 512, 1)
    assert not np.any(words(guest.mfn(9)))
    l1 = table_pfn(domain, 1)
    guest.store(l1, 9, 10, KERNEL_PAGE, 1, 1)  # traps, and Xen makes it
    assert guest.machine.tables.frames.get(guest.mfn(10))[1] & PGT_COUNT_MASK == 2
    with pytest.raises(RefusedError, match="-EBUSY"):
        guest.store(l1, 10, l1, KERNEL_PAGE, 1, 1)
    unmapped = NR_PAGES - 1  # behind the initial mapping
    for pfn in (table_pfn(domain, 2), table_pfn(domain, 4), unmapped, NR_PAGES + 5):
        with pytest.raises(RefusedError, match="page fault: store to") as refused:
            guest.store(pfn, 0, 7, KERNEL_PAGE, 1, 1)
        assert refused.value.errno == EPERM
