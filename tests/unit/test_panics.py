# SPDX-License-Identifier: GPL-2.0-or-later
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpt.inputs.config import Host
from xenpt.inputs.kernel import Kernel, default_kernel
from xenpt.plan import plan_dom0

KA = 0xFFFFFFFF80000000
V_END = KA + 0x4C00000  # of the default kernel
DEFAULT = replace(default_kernel(), payload=None)
LEGACY = replace(DEFAULT, init_p2m=None)
COMPAT = Kernel(
    bits=32, pae="extcr3", virt_base=0xC0000000, virt_kstart=0xC0100000, virt_kend=0xC0679B00,
    entry=0xC0100000, paddr=(0x100000, 0x679B00), segments=(), machine=3,
)  # fmt: skip


def ending(kernel, nr_pages=262144, xen="4.17", **options):
    """(panic, complaint, whether the block is printed) of a plan."""
    host = Host(xen=xen, **{key: options.pop(key) for key in ("pv32", "pv_shim") if key in options})
    plan = plan_dom0(kernel, host, nr_pages=nr_pages, **options)
    return plan.panic, plan.complaint, plan.arranged


def test_default_kernel_builds():
    assert ending(DEFAULT) == (None, None, True)


@pytest.mark.parametrize(
    "kernel",
    [
        replace(DEFAULT, machine=3),
        replace(DEFAULT, machine=183),
        replace(DEFAULT, big_endian=True),
        replace(COMPAT, machine=62),
        replace(COMPAT, pae="no"),
    ],
)
def test_kernel_of_another_machine(kernel):
    expected = ("Could not construct domain 0", "Mismatch between Xen and DOM0 kernel", False)
    assert ending(kernel) == expected


@pytest.mark.parametrize("pae", ["yes", "extcr3", "bimodal"])
def test_kernels_with_pae_are_taken(pae):
    assert ending(replace(COMPAT, pae=pae))[0] is None


def test_what_the_caller_of_the_builder_says_by_release():
    kernel = replace(DEFAULT, machine=3)
    assert ending(kernel, xen="4.3")[0] == "Could not set up DOM0 guest OS"
    assert ending(kernel, xen="4.14")[0] == "Could not construct domain 0"
    assert ending(kernel, xen="4.21")[0] == "Could not construct d0"


def test_32_bit_kernel_on_a_xen_without_pv32():
    panic = "Could not construct domain 0"
    text = "Found 32-bit PV kernel, but CONFIG_PV32 missing"
    assert ending(COMPAT, pv32=False) == (panic, text, False)
    assert ending(COMPAT, xen="4.15", pv32=False)[1] == "Mismatch between Xen and DOM0 kernel"
    assert ending(DEFAULT, pv32=False)[0] is None


def test_kernel_that_is_no_dom0():
    kernel = replace(DEFAULT, supported_features=1)
    text = "Kernel does not support Dom0 operation"
    assert ending(kernel) == ("Could not construct domain 0", text, False)
    assert ending(kernel, xen="4.1")[0] is None
    assert ending(kernel, pv_shim=True)[0] is None
    assert ending(replace(kernel, supported_features=None))[0] is None


def test_payload_that_this_xen_cannot_unpack():
    kernel = replace(DEFAULT, payload="zstd")
    assert ending(kernel, xen="4.14.6")[1] == "ELF: not an ELF binary"
    assert ending(kernel, xen="4.2")[1] == "elf_init: not an ELF binary"
    assert ending(kernel, xen="4.15")[0] is None


def test_refused_kernel_is_never_sized():
    kernel = replace(LEGACY, machine=3)
    plan = plan_dom0(kernel, Host(memory="1T"))
    assert str(plan) == "Mismatch between Xen and DOM0 kernel\nCould not construct domain 0"
    assert plan.notices == ()
    found = {key for key, value in plan.as_dict().items() if value is not None}
    assert found == {"nr_pages", "panic", "kernel", "entry", "beyond"}


def test_hypervisor_start_too_high():
    kernel = replace(COMPAT, hv_start_low=0xF5800001)  # rounded up to 2 MiB
    text = "Dom0 expects too high a hypervisor start address"
    assert ending(kernel) == ("Could not construct domain 0", text, False)
    old = "Domain 0 expects too high a hypervisor start address"
    assert ending(kernel, xen="4.14") == (old, None, False)
    assert ending(kernel, xen="4.3") == (old + ".", None, False)
    assert ending(replace(kernel, hv_start_low=0xF5800000))[0] is None
    assert ending(kernel, pv_shim=True)[0] is None


@pytest.mark.parametrize("xen, stop", [("4.3", "."), ("4.4", "")])
def test_allocation_too_small_and_its_full_stop(xen, stop):
    text = "Domain 0 allocation is too small for kernel image" + stop
    assert ending(LEGACY, 32767, xen) == (text, None, False)
    assert ending(LEGACY, 32768, xen) == (None, None, True)
    assert ending(LEGACY, 32768, xen, initrd_bytes=1) == (text, None, False)
    assert ending(LEGACY, 32769, xen, initrd_bytes=1)[0] is None


def test_copied_initrd_is_part_of_the_chunk():
    assert ending(LEGACY, 32768, "4.0", initrd_bytes=1 << 20)[0] is None


@pytest.mark.parametrize(
    "xen, text", [("4.17", "Not enough RAM for domain 0 allocation"), ("4.3", None)]
)
def test_chunk_beyond_1_gib(xen, text):
    text = text or "Not enough RAM for domain 0 allocation."
    assert ending(LEGACY, 124188161, xen) == (text, None, False)
    assert ending(LEGACY, 124188161, "3.4")[0] is None  # its chunks went to 4 GiB


def test_too_small_is_said_before_not_enough():
    kernel = replace(LEGACY, virt_kend=KA + (1 << 30))
    assert ending(kernel, 262144)[0] == "Domain 0 allocation is too small for kernel image"
    assert ending(kernel, 524288)[0] == "Not enough RAM for domain 0 allocation"


@pytest.mark.parametrize(
    "virt_base, overlaps",
    [
        (0xFFFF800000000000 - 0x5000000, False),  # the mapping takes 0x4c00000
        (0xFFFF800000000000 - 0x4C00000, False),
        (0xFFFF800000000000 - 0x4800000, True),
        (0xFFFF87FFFFC00000, True),
        (0xFFFF880000000000, False),
    ],
)
def test_image_in_xens_own_area(virt_base, overlaps):
    kernel = replace(
        DEFAULT, virt_base=virt_base, virt_kstart=virt_base, virt_kend=virt_base + 0x4A00000
    )
    text = "DOM0 image overlaps with Xen private area."
    expected = ("Could not construct domain 0", text, True) if overlaps else (None, None, True)
    assert ending(kernel) == expected


@pytest.mark.parametrize("virt_kend, overlaps", [(0xF5600000, False), (0xF5680000, True)])
def test_compat_image_in_xens_own_area(virt_kend, overlaps):
    # 1 MiB of list and 14 other pages follow; with 512 KiB to spare the mapping ends at 0xf5800000
    kernel = replace(COMPAT, virt_base=0xF5000000, virt_kstart=0xF5000000, virt_kend=virt_kend)
    text = "DOM0 image overlaps with Xen private area."
    assert ending(kernel)[1] == (text if overlaps else None)


@pytest.mark.parametrize(
    "page, valid", [(KA, True), (V_END - 1, True), (V_END, False), (KA - 1, False)]
)
def test_hypercall_page_must_be_mapped(page, valid):
    text = "Invalid HYPERCALL_PAGE field in ELF notes."
    expected = (None, None, True) if valid else ("Could not construct domain 0", text, True)
    assert ending(replace(DEFAULT, hypercall_page=page)) == expected


@pytest.mark.parametrize(
    "init_p2m, overlaps",
    [
        (V_END, True),  # touching counts
        (V_END + 0x1000, False),
        (KA - 0x200000, True),  # the list of 262144 pages ends where the mapping starts
        (KA - 0x201000, False),
        (KA + 0x1000000, True),
    ],
)
def test_list_that_meets_the_initial_mapping(init_p2m, overlaps):
    text = "DOM0 P->M table overlaps initial mapping"
    expected = (text, None, True) if overlaps else (None, None, True)
    assert ending(replace(DEFAULT, init_p2m=init_p2m)) == expected
    old = ending(replace(DEFAULT, init_p2m=init_p2m), xen="4.1")
    assert old == expected  # this text never had a full stop


@pytest.mark.parametrize("xen, stop", [("4.3", "."), ("4.17", "")])
def test_no_room_for_the_list(xen, stop):
    text = "Dom0 allocation too small for initial P->M table" + stop
    # 65 or 66 pages of list, 3 tables before the last page and 3 in reserve
    assert ending(DEFAULT, 32768 + 65 + 3 + 2, xen) == (text, None, True)
    assert ending(DEFAULT, 32768 + 65 + 3 + 3, xen) == (None, None, True)


def refused_page_by_page(nr_pages, taken, start, leaf):
    """setup_pv_physmap(): the room that Xen asks for before each leaf."""
    end = start + 8 * nr_pages
    present = set()
    while start < end:
        rest = (-(-end // 4096) * 4096 - start) >> 12
        if taken + rest + 3 > nr_pages:
            return True
        for size in (1 << 39, 1 << 30, 1 << 21):
            may = size == 1 << 21 or (size == 1 << 30 and leaf == "1g")
            if (size, start // size) in present:
                continue
            if may and start % size == 0 and end >= start + size:
                taken += size >> 12
                start += size
                break
            present.add((size, start // size))
            taken += 1
        else:
            taken += 1
            start = (start + 4096) // 4096 * 4096
    return False


@given(
    extra=st.integers(0, 2500),
    chunk=st.sampled_from([13, 14, 15, 18]),
    start=st.sampled_from(
        [1 << 39, (1 << 39) + 4096, (1 << 40) - 4096, (1 << 39) + (1 << 30) - 4096, (1 << 39) + 8]
    ),
    leaf=st.sampled_from(["2m", "1g"]),
)
def test_room_for_the_list_is_asked_for_as_xen_asks(extra, chunk, start, leaf):
    kernel = replace(DEFAULT, virt_kend=KA + (4096 << chunk) - (2 << 20), init_p2m=start)
    plan = plan_dom0(kernel, Host(superpages=leaf), nr_pages=(1 << chunk) + extra)
    if plan.alloc_order != chunk:
        return
    refused = refused_page_by_page((1 << chunk) + extra, 1 << chunk, start, leaf)
    assert (plan.panic == "Dom0 allocation too small for initial P->M table") == refused


def test_supervisor_mode_comes_last_and_all_is_decided():
    kernel = replace(DEFAULT, features="!supervisor_mode_kernel|writable_page_tables")
    plan = plan_dom0(kernel, nr_pages=262144)
    assert plan.panic == "Dom0 requires supervisor-mode execution"
    assert plan.as_dict()["flags"] == 0x303
    assert ending(replace(DEFAULT, features="supervisor_mode_kernel"))[0] is None
