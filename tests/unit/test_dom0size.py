# SPDX-License-Identifier: GPL-2.0-or-later
from dataclasses import replace

import pytest

from xenpt.dom0size import dom0_compute_nr_pages, host_memory, paging_pages
from xenpt.eras import era_of
from xenpt.errors import UsageError
from xenpt.inputs.config import Host, Ram, flat_e820
from xenpt.inputs.kernel import Kernel, default_kernel

KA = 0xFFFFFFFF80000000
E417 = era_of("4.17")
LEGACY = replace(default_kernel(), init_p2m=None)
COMPAT = Kernel(
    bits=32, pae="extcr3", virt_base=0xC0000000, virt_kstart=0xC0100000, virt_kend=0xC0800000,
    entry=0xC0100000, paddr=(0x100000, 0x800000), segments=(), machine=3,
)  # fmt: skip


def size(dom0_mem, avail, *, kernel=None, host=None, era=E417, initrd_bytes=0):
    return dom0_compute_nr_pages(
        kernel or default_kernel(), host or Host(), era, dom0_mem,
        available=avail, initrd_bytes=initrd_bytes,
    )  # fmt: skip


@pytest.mark.parametrize(
    "dom0_mem, avail, nr_pages",
    [
        (None, 1000000, 967232),  # SPEC B1, worked: 128 MiB are kept
        (None, 400000, 375000),  # 1/16 is less than that
        ("0", 400000, 375000),  # nothing is the default
        ("4095b", 400000, 375000),
        ("1G", 1000000, 262144),
        ("1G", 100000, 100000),  # what is available wins over the amount (SPEC I15)
        ("-1G", 1000000, 737856),
        ("-8G", 1000000, 1000000),  # wraps to a huge number in Xen, too
        ("10%", 1000000, 100000),
        ("1G+10%", 1000000, 362144),
        ("-1G+10%", 1000000, 637856),
        ("min:2G,max:1G,1G", 1000000, 262144),  # max wins over min (SPEC I15)
        ("min:2G,1G", 1000000, 524288),
        ("max:1G", 1000000, 262144),
        ("min:1G", 100000, 100000),
        ("max:-1G", 1000000, 737856),
        ("max:50%,2G", 1000000, 500000),
    ],
)
def test_amount_and_bounds(dom0_mem, avail, nr_pages):
    assert size(dom0_mem, avail).nr_pages == nr_pages


def test_max_pages_is_the_upper_bound_capped_at_32_bits():
    assert size("1G,max:2G", 1000000).max_pages == 524288
    assert size("1G", 1000000).max_pages == 4294967295


def test_vcpus_take_a_page_each_and_a_32_bit_dom0_another():
    assert size("90%", 1000, host=Host(max_vcpus=5)).nr_pages == 896  # 90 % of 996
    assert size("100G", 1000, host=Host(max_vcpus=5)).nr_pages == 996
    assert size("100G", 1000, host=Host(max_vcpus=5), kernel=COMPAT).nr_pages == 992


def test_iommu_keeps_pages_for_its_tables():
    host = Host(memory="4G", iommu=True)  # 1048576 >> 9 = 2048, >> 18 = 4
    assert size("100G", 900000, host=host).nr_pages == 900000 - 2052
    assert size("100G", 900000, host=host, era=era_of("4.0")).nr_pages == 900000
    assert size("100G", 900000, host=Host(iommu=True)).nr_pages == 900000


def test_shadow_pool_is_taken_from_what_is_available():
    # 4 vCPUs: 4 MiB; 1 GiB: 1024 MiB at 4 KiB each = 4 MiB; together 8 MiB = 2048 pages
    assert paging_pages(262144, 4) == 2048
    assert paging_pages(262145, 1) == 1280
    assert size("100G", 262144 + 3, host=Host(shadow=True, max_vcpus=4)).nr_pages == 262144 - 2048


def test_shim_ignores_dom0_mem_and_keeps_1_mib():
    found = size("1G", 1000000, host=Host(pv_shim=True))
    assert found.nr_pages == 1000000 - 256
    assert found.notices == ("Ignoring dom0_mem param in pv-shim mode",)


def test_clip_worked_in_spec_b1():
    kernel = replace(LEGACY, virt_kend=KA + 0x2E00000)
    found = size(None, 1 << 29, kernel=kernel)
    assert found.nr_pages == 131203072
    assert found.notices == ("Dom0 memory clipped to 131203072 pages",)


@pytest.mark.parametrize(
    "dom0_mem, clipped",
    [
        (None, True),
        ("90%", True),  # SPEC H24: a percentage alone does not protect
        ("-1G", True),
        ("600G", False),  # a positive size does
        ("600G+1%", False),
        ("min:600G,max:600G", False),  # a minimum does if dom0 gets no more than that
        ("min:600G", True),
        ("max:600G", True),
        ("min:-1G", True),
    ],
)
def test_what_protects_from_the_clip(dom0_mem, clipped):
    found = size(dom0_mem, 1 << 29, kernel=LEGACY)
    assert bool(found.notices) == clipped
    assert not size(dom0_mem, 1 << 29).notices  # a kernel with the note is never clipped
    assert not size(dom0_mem, 1 << 29, kernel=LEGACY, era=replace(E417, legacy_clip=False)).notices


def test_clip_does_not_go_below_a_minimum():
    found = size("min:600G", 1 << 29, kernel=LEGACY)
    assert found.nr_pages == 157286400
    assert found.notices == ("Dom0 memory clipped to 157286400 pages",)


def test_clip_starts_with_the_first_page_that_does_not_fit():
    # Xen doubles what the list adds to virt_base: 2 * (kend + 8 N) - virt_base must stay below 2^64
    fits = ((1 << 64) - 1 - 2 * (KA + 0x4A00000) + KA) // 16
    assert not size("-0", fits, kernel=LEGACY).notices
    assert size("-0", fits + 1, kernel=LEGACY).notices


def test_clip_counts_a_mapped_initrd():
    mapped = replace(LEGACY, mod_start_pfn=False)
    unmapped = size(None, 1 << 29, kernel=LEGACY, initrd_bytes=4097)
    assert unmapped.nr_pages == 129368064
    assert size(None, 1 << 29, kernel=mapped, initrd_bytes=4097).nr_pages == 129368064 - 512
    old = size(None, 1 << 29, kernel=LEGACY, initrd_bytes=4097, era=era_of("4.0"))
    assert old.nr_pages == 129368064 - 512  # Xen 4.0 maps every initrd


def test_32_bit_kernel_may_fill_its_4_gib_to_the_last_byte():
    # 2 * (kend + 4 N) - virt_base == 2^32
    fits = (0x100000000 + 0xC0000000 - 2 * 0xC0800000) // 8
    assert not size("-0", fits, kernel=COMPAT).notices
    assert size("-0", fits + 1, kernel=COMPAT).notices


def test_clip_of_a_32_bit_kernel_ends_at_4_gib():
    # (2^32 - 0xc0800000) / 8 = 133169152 pages of 4-byte entries
    found = size(None, 1 << 29, kernel=COMPAT)
    assert found.nr_pages == (0x100000000 - 0xC0800000) // 8
    assert not size(None, 1 << 20, kernel=COMPAT).notices


def test_host_of_golden_case_m520g():
    # tests/golden/oracle/m520g.log.xz; SPEC B14 names the parts
    memory = host_memory(
        (
            Ram(0, 0x9FC00),
            Ram(0x9FC00, 0xA0000, "reserved"),
            Ram(0x100000, 0xBFFDF000),
            Ram(0x100000000, 0x8340000000),
            Ram(0xFD00000000, 0x10000000000, "reserved"),
        )
    )
    assert (memory.ram, memory.frame_table, memory.m2p) == (137363326, 1073152, 268288)
    assert memory.available == 136020943


def test_ranges_within_one_group_of_frames_share_its_tables():
    memory = host_memory((Ram(0, 0x9F000), Ram(0x100000, 0x200000), Ram(0x300000, 0x10000000)))
    assert (memory.frame_table, memory.m2p) == (512, 512)


def test_tables_of_a_flat_host_by_hand():
    memory = host_memory(flat_e820(1 << 20))  # 4 GiB: 32 bytes and 8 bytes a page
    assert (memory.ram, memory.frame_table, memory.m2p) == (1048576, 8192, 2048)


@pytest.mark.parametrize(
    "extra_pages, frame_table_pages",
    [
        (0, 512),
        (1, 513),  # one page of the frame table holds 128 frames
        (128, 513),
        (129, 514),
        (65536 - 5 * 128, 512 + 507),
        (65536 - 4 * 128 - 1, 512 + 508),
        (65536 - 4 * 128, 1024),  # a 2 MiB page that wastes 4 pages is taken
        (65536, 1024),
    ],
)
def test_frame_table_ends_with_small_pages_unless_they_save_next_to_nothing(
    extra_pages, frame_table_pages
):
    assert host_memory(flat_e820(65536 + extra_pages)).frame_table == frame_table_pages


def test_host_of_64_tib_takes_no_time_and_an_empty_one_no_pages():
    assert host_memory(flat_e820(1 << 34)).frame_table == 1 << 27
    assert host_memory((Ram(0, 0x1000, "reserved"),)).available == 0


def test_unknown_host_is_an_error():
    with pytest.raises(UsageError, match="the size of dom0 depends on the host"):
        dom0_compute_nr_pages(default_kernel(), Host(), E417, "1G")


def test_empty_dom0_mem_is_refused_not_ignored():
    with pytest.raises(UsageError, match="dom0_mem ''"):
        size("", 1000000)


@pytest.mark.parametrize(
    "extra_pages, frame_table_pages",
    [
        (0, 1536),  # 131072 frames of 48 bytes: 6 MiB, in three pages of 2 MiB
        (1, 1536 + 1),
        (86, 1536 + 2),  # 85 frames are 4080 bytes
        (43691, 1536 + 512 + 1),  # 43691 frames are 2 MiB and 16 bytes
        (131072, 3072),
    ],
)
def test_frame_table_with_bigmem(extra_pages, frame_table_pages):
    memory = host_memory(flat_e820(131072 + extra_pages), bigmem=True)
    assert memory.frame_table == frame_table_pages


def test_hole_of_a_group_has_no_frame_table_with_bigmem():
    e820 = (Ram(0, 512 << 20), Ram(1 << 30, 1536 << 20))  # a group is 512 MiB
    assert host_memory(e820, bigmem=True).frame_table == 2 * 1536
