# SPDX-License-Identifier: GPL-2.0-or-later
"""The builder on a modelled host; tests/golden/test_entry.py compares it with real dumps."""

from dataclasses import replace

import numpy as np
import pytest

from xenpt import abi
from xenpt.errors import MappingError, PanicError
from xenpt.extents import expand
from xenpt.inputs.config import Host
from xenpt.inputs.kernel import default_kernel
from xenpt.plan import Plan, plan_dom0
from xenpt.units import pages
from xenpt.xen.dom0 import Domain, build

LEGACY = replace(default_kernel(), init_p2m=None)
MAPPED_INITRD = replace(default_kernel(), mod_start_pfn=False)
PAE = replace(
    default_kernel(),
    bits=32,
    machine=3,
    pae="extcr3",
    virt_base=0xC0000000,
    virt_kstart=0xC1000000,
    virt_kend=0xC4A00000,
    entry=0xC3079000,
    init_p2m=None,
    hv_start_low=None,
    payload=None,
)


def domain(size: str, **kwargs: object) -> Domain:
    return build(plan(size, **kwargs))


def plan(size: str, *, kernel: object = None, host: Host | None = None, **kwargs: object) -> Plan:
    return plan_dom0(kernel or default_kernel(), host or Host(), nr_pages=pages(size), **kwargs)


@pytest.mark.parametrize(
    "built",
    [
        domain("512 MiB"),
        domain("4 GiB", initrd_bytes=12345678),
        domain("4 GiB", kernel=MAPPED_INITRD, initrd_bytes=12345678),
        domain("4 GiB", kernel=LEGACY),
        domain("2 TiB", host=Host(superpages="4k")),
    ],
    ids=["512m", "unmapped-initrd", "mapped-initrd", "legacy", "2t-4k"],
)
def test_every_pfn_has_a_frame_of_its_own_and_m2p_is_the_inverse(built: Domain) -> None:
    p2m, nr_pages = built.p2m, built.plan.nr_pages
    assert p2m.nr_pages == nr_pages
    p2m.check()
    pfns = np.unique(np.linspace(0, nr_pages - 1, 9999).astype(np.uint64))
    assert np.array_equal(p2m.pfn(p2m.mfn(pfns)), pfns)


def test_superpages_of_the_list_are_aligned_host_memory_but_not_aligned_pfns() -> None:
    built = domain("514 GiB")
    leaves = expand(built.p2m_map.leaves)
    large = leaves[leaves["level"] > 1]
    mfns, size = built.p2m.mfn(large["pfn"]), np.uint64(512) ** (large["level"] - np.uint64(1))
    assert large["level"].tolist() == [3, 2, 2]  # 1028 MiB of list: 1 GiB, then 2 x 2 MiB
    assert not np.any(mfns % size)
    assert np.all(large["pfn"] % size)


def test_frames_of_the_list_follow_chunk_and_initrd_in_allocation_order() -> None:
    # 4 GiB and one page (SPEC B9): L3, L2, 4 x 2 MiB, L1, 4 KiB
    built = build(plan_dom0(default_kernel(), nr_pages=pages("4 GiB") + 1, initrd_bytes=4097))
    first = built.plan.first_p2m_pfn
    assert first == 32768 + 2
    tables = expand(built.p2m_map.tables, tables=True)
    assert dict(zip(tables["level"].tolist(), tables["pfn"].tolist(), strict=True)) == {
        3: first,
        2: first + 1,
        1: first + 2 + 4 * 512,
    }
    leaves = expand(built.p2m_map.leaves)
    assert leaves["pfn"].tolist() == [
        first + 2,
        first + 2 + 512,
        first + 2 + 2 * 512,
        first + 2 + 3 * 512,
        first + 3 + 4 * 512,
    ]


def test_only_the_table_pages_of_the_initial_mapping_are_read_only() -> None:
    built = domain("4 GiB", kernel=LEGACY, initrd_bytes=1000)
    leaves = expand(built.initial.leaves)
    read_only = leaves["pfn"][leaves["flags"] & np.uint64(abi.PTE_RW) == 0]
    tables = expand(built.initial.tables, tables=True)
    assert sorted(read_only.tolist()) == sorted(tables["pfn"].tolist())
    assert len(read_only) == built.plan.nr_pt_frames


def _levels_in_frame_order(built: Domain) -> list[int]:
    tables = expand(built.initial.tables, tables=True)
    return tables["level"][np.argsort(tables["pfn"])].tolist()


def test_a_64_bit_dom0s_tables_start_with_l4_l1_l2_l3() -> None:
    assert _levels_in_frame_order(domain("512 MiB"))[:5] == [4, 1, 2, 3, 1]


def test_a_32_bit_dom0s_tables_start_with_l3_l1_l2_and_end_with_the_missing_l2s() -> None:
    levels = _levels_in_frame_order(domain("512 MiB", kernel=PAE, host=Host(xen="4.3")))
    assert levels[:4] == [3, 1, 2, 1]
    assert levels[-3:] == [2, 2, 2]


def test_before_xen_4_2_1_a_32_bit_dom0s_tables_start_with_l1_l2_l3_below_pt_base() -> None:
    built = domain("512 MiB", kernel=PAE, host=Host(xen="4.1"))
    levels = _levels_in_frame_order(built)
    assert levels[:4] == [1, 2, 3, 1]
    assert built.plan.pt_base - built.plan.page_tables[0] == 8192
    assert built.plan.nr_pt_frames == len(levels) + 1  # the spare page


def test_a_base_within_a_page_is_not_built() -> None:
    kernel = replace(default_kernel(), virt_base=0xFFFFFFFF7FFFFFEC)
    with pytest.raises(MappingError, match="VIRT_BASE 0xffffffff7fffffec is no multiple of 4096"):
        build(plan_dom0(kernel, nr_pages=pages("1G")))


@pytest.mark.parametrize("field", ["virt_kstart", "virt_kend"])
def test_a_kernel_that_ends_before_it_begins_is_not_built(field: str) -> None:
    begins_too_late = {"virt_kstart": 0xFFFFFFFFC0000000, "virt_kend": 0x8000000000}
    kernel = replace(default_kernel(), **{field: begins_too_late[field]})
    with pytest.raises(MappingError, match="not an area behind VIRT_BASE 0xffffffff80000000"):
        build(plan_dom0(kernel, nr_pages=pages("1G")))


def test_a_plan_that_panics_cannot_be_built() -> None:
    with pytest.raises(PanicError, match=r"^Not enough RAM for domain 0 allocation$"):
        domain("474 GiB", kernel=LEGACY)
