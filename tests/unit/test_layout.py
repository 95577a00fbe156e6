# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpt.eras import era_of
from xenpt.inputs.kernel import Kernel
from xenpt.layout import initial_layout, mapping_end, nr_pt_pages

KA = 0xFFFFFFFF80000000
MIB, GIB = 1 << 20, 1 << 30


def kernel(virt_kend, *, virt_base=KA, bits=64, **more):
    facts = {"pae": "extcr3", "entry": virt_base, "paddr": (0, 0), "segments": ()} | more
    return Kernel(
        bits=bits, virt_base=virt_base, virt_kstart=virt_base, virt_kend=virt_kend, **facts
    )


def slots(v_start, v_end, shift):
    """Slots of 2**shift bytes that [v_start, v_end) touches."""
    return ((v_end - 1) >> shift) - (v_start >> shift) + 1


def exhaustive(v_start, pt_start, need):
    """Xen's search, one page after the other; an independent end of the mapping."""
    n = 2
    while True:
        stack_end = pt_start + (n + 1) * 4096
        v_end = (stack_end + 4 * MIB - 1) // (4 * MIB) * (4 * MIB)
        if v_end - stack_end < 512 << 10:
            v_end += 4 * MIB
        if need(v_start, v_end) <= n:
            return n, v_end, stack_end
        n += 1


def need_64(v_start, v_end):
    return 1 + sum(slots(v_start, v_end, shift) for shift in (39, 30, 21))


def need_compat(v_start, v_end):
    return 4 + slots(v_start, v_end, 39) + slots(v_start, v_end, 21)


@given(
    v_start=st.sampled_from(
        [0, KA, KA - 4096, KA + 2 * MIB + 4096, (1 << 39) - 2 * MIB, 512 * GIB]
    ),
    pages=st.one_of(
        st.integers(0, 1 << 12),
        st.builds(
            lambda edge, off: max(0, edge + off),
            st.sampled_from([1 << 10, 1 << 15, 1 << 18, 1 << 19]),
            st.integers(-1200, 1200),
        ),
    ),
)
def test_search_equals_the_exhaustive_one(v_start, pages):
    pt_start = v_start + pages * 4096
    n, v_end, stack_end = exhaustive(v_start, pt_start, need_64)
    assert nr_pt_pages(v_start, pt_start) == n
    assert need_64(v_start, v_end) == n  # SPEC I1: no spare table page
    assert v_end % (4 * MIB) == 0
    assert 512 << 10 <= v_end - stack_end < (4 << 20) + (512 << 10)


@given(st.integers(0, 1 << 17), st.sampled_from([0xC0000000, 0, 0x80000000]), st.booleans())
def test_search_of_a_compat_guest_equals_the_exhaustive_one(pages, v_start, spare):
    pt_start = v_start + pages * 4096
    extra = 1 if spare else 0
    n, _, _ = exhaustive(v_start, pt_start, lambda a, b: need_compat(a, b) + extra)
    assert nr_pt_pages(v_start, pt_start, 4 + extra) == n


def test_padding_of_exactly_512_kib_stays_and_one_page_less_does_not():
    # golden cases p-grow155000 and p-grow156000: stack ends and TOTAL ends
    assert mapping_end(KA + 0x4B80000) == KA + 0x4C00000
    assert mapping_end(KA + 0x4B83000) == KA + 0x5000000
    assert mapping_end(0x380000) == 0x400000
    assert mapping_end(0x381000) == 0x800000
    assert mapping_end(0x400000) == 0x800000


def test_worked_example_of_spec_b4():
    layout = initial_layout(kernel(KA + 0x2E00000), era_of("4.17"), list_bytes=0)
    assert (layout.nr_pt_frames, layout.total) == (27, (KA, KA + 0x3000000))


def test_worked_example_of_spec_b5():
    image = kernel(KA + 0x2E00000, mod_start_pfn=True)
    layout = initial_layout(image, era_of("4.17"), list_bytes=0, initrd_bytes=40 * MIB)
    assert layout.alloc_order == 14
    assert layout.initrd is None


def test_mapped_initrd_lies_in_the_mapping_but_not_in_the_chunk():
    layout = initial_layout(kernel(KA + 5 * MIB), era_of("4.17"), list_bytes=0, initrd_bytes=4097)
    assert layout.initrd == (KA + 5 * MIB, KA + 5 * MIB + 4097)
    assert layout.start_info[0] == KA + 5 * MIB + 8192
    assert layout.total[1] == KA + 8 * MIB
    assert layout.alloc_order == 11  # 2048 pages less 2
    copied = initial_layout(kernel(KA + 5 * MIB), era_of("4.0"), list_bytes=0, initrd_bytes=4 * MIB)
    assigned = initial_layout(
        kernel(KA + 5 * MIB), era_of("4.1"), list_bytes=0, initrd_bytes=4 * MIB
    )
    assert (copied.total, copied.alloc_order) == ((KA, KA + 12 * MIB), 12)
    assert (assigned.total, assigned.alloc_order) == ((KA, KA + 12 * MIB), 11)


def test_xen_before_4_1_maps_the_initrd_whatever_the_note_says():
    image = kernel(KA + 5 * MIB, mod_start_pfn=True)
    assert initial_layout(image, era_of("4.0.4"), list_bytes=0, initrd_bytes=1).initrd is not None
    assert initial_layout(image, era_of("4.1.0"), list_bytes=0, initrd_bytes=1).initrd is None


@pytest.mark.parametrize(
    "xen, end",  # golden boot-logs and SPEC B3
    [
        ("3.0.2", 0x49C), ("3.1", 0x49C), ("3.3", 0x4A4), ("3.4.1", 0x4B4), ("4.12", 0x4B4),
        ("4.13", 0x4B8),
    ],
)  # fmt: skip
def test_printed_end_of_start_info(xen, end):
    layout = initial_layout(kernel(KA + 5 * MIB), era_of(xen), list_bytes=0)
    assert layout.start_info == (KA + 5 * MIB, KA + 5 * MIB + end)


def test_shim_has_two_rings_and_no_console_information():
    layout = initial_layout(kernel(KA + 5 * MIB), era_of("4.17"), list_bytes=0, pv_shim=True)
    start = KA + 5 * MIB
    assert layout.start_info == (start, start + 1168)
    assert layout.xenstore == (start + 0x1000, start + 0x2000)
    assert layout.console == (start + 0x2000, start + 0x3000)
    assert layout.page_tables[0] == start + 0x3000


def test_kernel_end_inside_a_page_is_rounded_for_what_follows():
    layout = initial_layout(kernel(KA + 5 * MIB + 1), era_of("4.17"), list_bytes=8)
    assert layout.kernel[1] == KA + 5 * MIB + 1
    assert layout.p2m == (KA + 5 * MIB + 4096, KA + 5 * MIB + 4104)
    assert layout.start_info[0] == KA + 5 * MIB + 8192


def test_32_bit_row_of_spec_z_on_64_bit_xen_4_1():
    # start_info 0xcf831000 is given; the list before it may be of any size that ends there
    image = kernel(0xCF831000, virt_base=0xC0000000, bits=32, machine=3)
    layout = initial_layout(image, era_of("4.1"), list_bytes=0)
    assert layout.start_info == (0xCF831000, 0xCF8314B4)
    assert layout.page_tables == (0xCF832000, 0xCF8B6000)
    assert layout.nr_pt_frames == 132
    assert layout.total == (0xC0000000, 0xCFC00000)
    assert initial_layout(image, era_of("4.2.1"), list_bytes=0).nr_pt_frames == 131
