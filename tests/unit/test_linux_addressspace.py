# SPDX-License-Identifier: GPL-2.0-or-later
"""Address spaces between the stages, of any size: what dumps of small boots cannot show."""

from dataclasses import replace

import pytest

from xenpt.abi import PTE_RW
from xenpt.errors import UsageError
from xenpt.extents import expand
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import PROFILES, V4_3, V6_1, Boot, Stage
from xenpt.linux.addressspace import IDENTITY, address_space
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build

GIB = 1 << 18  # pages
DIRECT_MAP, VMALLOC, LIST = 0xFFFF888000000000, 0xFFFFC90000000000, 1 << 39


def booted(nr_pages, stage, rules=V6_1, record=False):
    domain = build(plan_dom0(default_kernel(), Host(), nr_pages=nr_pages))
    return Boot(domain, rules=rules, record=record).run_to(stage).state


def test_before_linux_it_is_xens():
    domain = build(plan_dom0(default_kernel(), Host(), nr_pages=GIB))
    assert address_space(Boot(domain).state).mapping is domain.address_space


def test_1_tib_before_the_free():
    """The list in two 1 GiB leaves, its copy in 4 KiB pages, and 256 Mi pages of RAM."""
    found = address_space(booted(1024 * GIB, Stage.P2M_COPIED))
    mapping = found.mapping
    mapping.check()
    for pfn in (0, 1, 19455, 1 << 20, (1 << 28) - 1):
        assert mapping.translate(DIRECT_MAP + (pfn << 12))[:2] == (pfn, 1)
    first = 32768
    assert mapping.translate(LIST)[:2] == (first + 1, 3)
    assert not mapping.translate(DIRECT_MAP + (first << 12))[2] & PTE_RW
    assert mapping.translate(DIRECT_MAP + ((first - 1) << 12))[2] & PTE_RW
    copied = mapping.window(VMALLOC, VMALLOC + (8 << 28))
    assert copied.nr_pages == 1 << 19
    assert copied.nr_tables(1) == 1 << 10


def test_the_free_takes_the_list_out_and_makes_its_frames_writable():
    mapping = address_space(booted(4 * GIB, Stage.P2M_FREE)).mapping
    assert mapping.translate(LIST) is None
    assert mapping.translate(DIRECT_MAP + (32768 << 12))[2] & PTE_RW


@pytest.mark.parametrize("stage", [Stage.PAGING_INIT, Stage.P2M_COPIED, Stage.P2M_FREE])
def test_recording_makes_the_same_address_space(stage):
    """Counted loops take their pages by number; recorded ones one by one."""
    counted, recorded = (
        address_space(booted(6 * GIB + 300, stage, record=record)) for record in (False, True)
    )
    assert (counted.mapping.leaves == recorded.mapping.leaves).all()
    assert (counted.mapping.tables == recorded.mapping.tables).all()
    assert (counted.aliases == recorded.aliases).all()


@pytest.mark.parametrize("rules", list(PROFILES.values())[1:], ids=list(PROFILES)[1:])
def test_each_table_page_is_read_only_in_the_direct_map(rules):
    """SPEC I9, and no page table is mapped writable anywhere else."""
    image = default_kernel()
    names = [name for name, _ in rules.ro_tables]
    known = dict(image.symbols)
    symbols = known | {n: known["level3_ident_pgt"] + (k << 12) for k, n in enumerate(names)}
    domain = build(plan_dom0(replace(image, symbols=symbols), Host(), nr_pages=GIB))
    state = Boot(domain, rules=rules).run_to(Stage.P2M_COPIED).state
    mapping = address_space(state).mapping
    tables = expand(mapping.tables, tables=True)
    for level, pfn in zip(tables["level"], tables["pfn"], strict=True):
        found = mapping.translate(rules.page_offset + (int(pfn) << 12))
        assert not found[2] & PTE_RW, f"level {level}, pfn {pfn:#x}"


def test_unknown_symbols_are_told():
    image = replace(default_kernel(), symbols=None)
    domain = build(plan_dom0(image, Host(), nr_pages=GIB))
    state = Boot(domain).run_to(Stage.SETUP_KERNEL_PAGETABLE).state
    with pytest.raises(UsageError, match="init_top_pgt is not known: give --system-map"):
        address_space(state)


@pytest.mark.parametrize("rules", [V4_3, V6_1], ids=["v4.3", "v6.1"])
def test_holes_are_mapped_as_they_are_where_xen_had_them_mapped(rules):
    """Below 1 MiB in every generation; in Xen's mapping up to v4.3; at 3 GiB there is no table.

    The hole at 0x4b00000 lies behind tables and stack, in the padding of Xen's mapping.
    """
    known = default_kernel()
    symbols = known.symbols | {"init_level4_pgt": known.symbols["init_top_pgt"]}
    hole = 0x4B00000
    e820 = [
        Ram(0, 0x9F000),
        Ram(1 << 20, hole),
        Ram(hole + 0x10000, 3 << 30),
        Ram(4 << 30, 16 << 30),
    ]
    plan = plan_dom0(replace(known, symbols=symbols), Host(), nr_pages=8 * GIB)
    boot = Boot(build(plan), rules=rules, e820=e820, max_reservation=8 * GIB)
    mapping = address_space(boot.run_to(Stage.P2M_COPIED).state).mapping

    def frame(pfn):
        found = mapping.translate(rules.page_offset + (pfn << 12))
        return None if found is None else found[0]

    assert frame(0xA0) == IDENTITY + 0xA0
    assert frame(hole >> 12) == (IDENTITY + (hole >> 12) if rules is V4_3 else None)
    assert frame(3 * GIB) is None
    assert frame(4 * GIB) == 4 * GIB
