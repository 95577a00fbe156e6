# SPDX-License-Identifier: GPL-2.0-or-later
import json
from dataclasses import replace

import pytest

from xenpt.arrangement import JSON_KEYS, UNKNOWN_ADDRESS, kernel_lines
from xenpt.errors import UsageError
from xenpt.inputs.config import Host
from xenpt.inputs.kernel import Kernel, default_kernel
from xenpt.plan import Plan, plan_dom0
from xenpt.units import pages

KA = 0xFFFFFFFF80000000
DEFAULT = default_kernel()
LEGACY = replace(DEFAULT, init_p2m=None)

# SPEC Z, rows of real logs: Xen of the row, then its columns, relative to KA where virtual:
# kstart, kend, initrd bytes and mode, N, p2m, start_info, page tables, n, stack end, v_end, order
ROWS_OF_Z = {
    "A": ("4.12", 0x1000000, 0x2A2C000, 0, "-", 262144, None, (0x2A2C000, 0x2A2C4B4),
          (0x2A2D000, 0x2A46000), 25, 0x2A47000, 0x2C00000, 14),
    "B": ("4.14", 0x1000000, 0x4800000, 63458930, "U", 1048576, None, (0x4800000, 0x48004B8),
          (0x4801000, 0x482A000), 41, 0x482B000, 0x4C00000, 15),
    "C": ("4.14", 0x1000000, 0x4A00000, 23142598, "U", 1572864, None, (0x4A00000, 0x4A004B8),
          (0x4A01000, 0x4A2A000), 41, 0x4A2B000, 0x4C00000, 15),
    "D": ("4.14", 0x1000000, 0x5000000, 34944476, "U", 1048576, None, (0x5000000, 0x50004B8),
          (0x5001000, 0x502E000), 45, 0x502F000, 0x5400000, 15),
    "E": ("4.14", 0x200000, 0x3C00000, 41153975, "U", 1048576, None, (0x3C00000, 0x3C004B8),
          (0x3C01000, 0x3C24000), 35, 0x3C25000, 0x4000000, 14),
    "F": ("4.19", 0x200000, 0x7600000, 42721799, "U", 1048576, None, (0x7600000, 0x76004B8),
          (0x7601000, 0x7640000), 63, 0x7641000, 0x7800000, 15),
    "G": ("4.17", 0x1000000, 0x3E26000, 30646712, "U", 524288, None, (0x3E26000, 0x3E264B8),
          (0x3E27000, 0x3E4A000), 35, 0x3E4B000, 0x4000000, 14),
    "H": ("4.14", 0x1000000, 0x3A00000, 30820004, "U", 196608, None, (0x3A00000, 0x3A004B8),
          (0x3A01000, 0x3A22000), 33, 0x3A23000, 0x3C00000, 14),
    "I": ("4.1", 0x1000000, 0x2043000, 55802880, "M", 2037690, (0x557B000, 0x6506DD0),
          (0x6507000, 0x65074B4), (0x6508000, 0x653F000), 55, 0x6540000, 0x6800000, 14),
    "J": ("3.3", 0x200000, 0x5D87EC, 7629312, "C", 2030315, (0xD20000, 0x1C9D758),
          (0x1C9E000, 0x1C9E4A4), (0x1C9F000, 0x1CB2000), 19, 0x1CB3000, 0x2000000, 13),
    "K": ("4.0", 0x1000000, 0x1706000, 30238208, "C", 196608, (0x33DD000, 0x355D000),
          (0x355D000, 0x355D4B4), (0x355E000, 0x357D000), 31, 0x357E000, 0x3800000, 14),
    "L": ("3.0.2", 0x200000, 0x59F008, 16101376, "C", 113538, (0x14FB000, 0x15D8C10),
          (0x15D9000, 0x15D949C), (0x15DA000, 0x15E9000), 15, 0x15EA000, 0x1800000, 13),
    "M": ("4.1", 0x1000000, 0x205F000, 39919104, "M", 2025323, (0x4671000, 0x55E4B58),
          (0x55E5000, 0x55E54B4), (0x55E6000, 0x5615000), 47, 0x5616000, 0x5800000, 14),
    "N": ("4.1", 0x1000000, 0x1E42000, 39909376, "M", 485086, (0x4452000, 0x48056F0),
          (0x4806000, 0x48064B4), (0x4807000, 0x4830000), 41, 0x4831000, 0x4C00000, 14),
    "O": ("4.1", 0x1000000, 0x234D000, 41846784, "M", 4090275, (0x4B36000, 0x6A6AD18),
          (0x6A6B000, 0x6A6B4B4), (0x6A6C000, 0x6AA5000), 57, 0x6AA6000, 0x6C00000, 15),
}  # fmt: skip


def at_ka(where):
    return tuple(KA + offset for offset in where)


@pytest.mark.parametrize("row", ROWS_OF_Z)
def test_golden_vectors_of_spec_z(row):
    (xen, kstart, kend, initrd, mode, nr_pages, p2m, start_info, tables, nr, stack_end, v_end,
     order) = ROWS_OF_Z[row]  # fmt: skip
    kernel = Kernel(
        bits=64, pae="extcr3", virt_base=KA, virt_kstart=KA + kstart, virt_kend=KA + kend,
        entry=KA + kstart, paddr=(kstart, kend), segments=(),
        init_p2m=0x8000000000 if p2m is None else None, mod_start_pfn=mode == "U",
    )  # fmt: skip
    plan = plan_dom0(kernel, Host(xen=xen), nr_pages=nr_pages, initrd_bytes=initrd or None)
    listed = (1 << 39, (1 << 39) + 8 * nr_pages) if p2m is None else at_ka(p2m)
    assert (plan.panic, plan.p2m) == (None, listed)
    assert (plan.start_info, plan.page_tables) == (at_ka(start_info), at_ka(tables))
    assert (plan.nr_pt_frames, plan.boot_stack[1]) == (nr, KA + stack_end)
    assert (plan.total, plan.alloc_order) == ((KA, KA + v_end), order)
    own = -(-initrd // 4096) if mode in "UM" else 0
    assert plan.pages_to_be_allocated == nr_pages - (1 << order) - own


def test_600_gib_of_the_founding_question():
    plan = plan_dom0(DEFAULT, nr_pages=pages("600G"))
    assert plan.p2m == (0x8000000000, 0x804B000000)
    assert plan.nr_pt_frames == 41
    assert (plan.p2m_leaves, plan.p2m_tables) == (
        {"4k": 0, "2m": 88, "1g": 1}, {"l1": 0, "l2": 1, "l3": 1},
    )  # fmt: skip
    assert plan.nr_p2m_frames == 307202


def test_largest_dom0_without_the_note():
    assert plan_dom0(LEGACY, nr_pages=pages("473G")).total == (KA, 0xFFFFFFFFC0000000)
    assert plan_dom0(LEGACY, nr_pages=pages("473G")).nr_pt_frames == 515
    assert plan_dom0(LEGACY, nr_pages=124188160).panic is None
    refused = plan_dom0(LEGACY, nr_pages=124188161)
    assert refused.panic == "Not enough RAM for domain 0 allocation"
    assert refused.alloc_order == 19


def test_limits_of_spec_f8():
    kernel = replace(LEGACY, virt_kend=KA + (46 << 20))
    assert plan_dom0(kernel, nr_pages=127858176).panic is None
    assert plan_dom0(kernel, nr_pages=127858177).panic is not None
    # Xen before 4.0 had chunks of 4 GiB: there the end of the address space is the limit
    kernel = replace(kernel, payload=None)  # which unpacks no bzImage either
    two_gib = plan_dom0(kernel, Host(xen="3.3"), nr_pages=261813248)
    assert (two_gib.panic, two_gib.beyond) == (None, ())
    wraps = plan_dom0(kernel, Host(xen="3.3"), nr_pages=261813249)
    assert [row["limit"] for row in wraps.beyond] == ["end of the address space"]


def test_clipped_dom0_says_so_before_it_panics():
    plan = plan_dom0(LEGACY, Host(memory="620G"))
    assert plan.nr_pages == 129368064
    assert str(plan) == (
        "Dom0 memory clipped to 129368064 pages\nNot enough RAM for domain 0 allocation"
    )


def test_clip_through_the_plan_counts_a_mapped_initrd():
    kernel = replace(LEGACY, mod_start_pfn=False)
    plan = plan_dom0(kernel, Host(memory="1T"), initrd_bytes=4097)
    assert plan.nr_pages == 129368064 - 512


def test_symbol_table_starts_at_the_next_word_behind_the_image():
    kernel = replace(DEFAULT, virt_kend=KA + 0x4B00000, paddr=(0x1000000, 0x49FFFF9))
    lines = kernel_lines(plan_dom0(kernel, nr_pages=262144))
    assert lines[1:] == [" Dom0 symbol map 0x4a00000 -> 0x4b00000"]
    compat = replace(COMPAT, virt_kend=0xC0700000, paddr=(0x100000, 0x679B01))
    lines = kernel_lines(plan_dom0(compat, nr_pages=262144))
    assert lines[1:] == [" Dom0 symbol map 0x679b04 -> 0x700000"]


def test_memory_alone_is_exact_and_with_a_host_goes_through_xen():
    assert plan_dom0(DEFAULT, nr_pages=pages("8G")).nr_pages == 2097152
    assert plan_dom0(DEFAULT, Host(memory="16G"), nr_pages=pages("8G")).nr_pages == 2097152
    # 8 GiB less frame table 16384, M2P 4096 and 943 pages of Xen itself
    assert plan_dom0(DEFAULT, Host(memory="8G"), nr_pages=pages("8G")).nr_pages == 2075729
    assert plan_dom0(LEGACY, Host(memory="1T"), nr_pages=pages("600G")).notices == ()


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "the size of dom0 depends on the host, whose memory is not given"),
        ({"dom0_mem": "1G"}, "the size of dom0 depends on the host, whose memory is not given"),
        ({"nr_pages": 1, "dom0_mem": "1G"}, "give the size of dom0 or dom0_mem, not both"),
        ({"nr_pages": 0}, "a dom0 of 0 pages: it needs at least one"),
        ({"nr_pages": -1}, "a dom0 of -1 pages: it needs at least one"),
    ],
)
def test_size_that_is_missing_or_given_twice(options, message):
    with pytest.raises(UsageError) as caught:
        plan_dom0(DEFAULT, **options)
    assert str(caught.value) == message


# SPEC B5, golden i0, i1, i4096: a module of 0 bytes counts as none, but is printed
@pytest.mark.parametrize(
    "initrd_bytes, first_p2m_pfn, mod, flags",
    [
        (None, 32768, (0, 0), 0x303),
        (0, 32768, (0, 0), 0x303),
        (1, 32769, (32768, 1), 0x30B),
        (4096, 32769, (32768, 4096), 0x30B),
        (4097, 32770, (32768, 4097), 0x30B),
    ],
)
def test_unmapped_initrd(initrd_bytes, first_p2m_pfn, mod, flags):
    plan = plan_dom0(DEFAULT, nr_pages=262144, initrd_bytes=initrd_bytes)
    assert plan.first_p2m_pfn == first_p2m_pfn
    assert ((plan.mod_start, plan.mod_len), plan.flags) == (mod, flags)
    assert plan.initrd is None
    assert (" Init. ramdisk:" in str(plan)) == (initrd_bytes is not None)


def test_mapped_initrd_has_an_address_and_no_flag():
    kernel = replace(DEFAULT, mod_start_pfn=False)
    plan = plan_dom0(kernel, nr_pages=262144, initrd_bytes=4097)
    assert plan.initrd == (KA + 0x4A00000, KA + 0x4A01001)
    assert (plan.mod_start, plan.mod_len, plan.flags) == (KA + 0x4A00000, 4097, 0x303)
    assert plan.start_info[0] == KA + 0x4A02000
    assert " Init. ramdisk: ffffffff84a00000->ffffffff84a01001" in str(plan).split("\n")
    assert plan_dom0(kernel, nr_pages=262144).initrd is None


@pytest.mark.parametrize(
    "xen, bits, magic",
    [
        ("3.0", 64, "xen-3.0-x86_64"),
        ("3.1", 64, "xen-3.1-x86_64p"),
        ("4.17", 64, "xen-3.0-x86_64p"),
        ("4.18", 64, "xen-3.0-x86_64"),
        ("4.17", 32, "xen-3.0-x86_32p"),
        ("4.20", 32, "xen-3.0-x86_32p"),
    ],
)
def test_magic(xen, bits, magic):
    kernel = DEFAULT if bits == 64 else COMPAT
    assert plan_dom0(kernel, Host(xen=xen), nr_pages=262144).magic == magic


COMPAT = Kernel(
    bits=32, pae="extcr3", virt_base=0xC0000000, virt_kstart=0xC0100000, virt_kend=0xC0679B00,
    entry=0xC0100000, paddr=(0x100000, 0x679B00), segments=(), machine=3, init_p2m=0x40000000,
)  # fmt: skip


def test_32_bit_dom0_has_a_list_of_4_byte_entries_in_its_mapping():
    plan = plan_dom0(COMPAT, nr_pages=262144)
    assert plan.p2m == (0xC067A000, 0xC077A000)
    assert plan.notices == ("P2M table base ignored",)
    assert (plan.nr_p2m_frames, plan.list_outside) == (0, False)
    assert plan.pt_base == plan.page_tables[0]
    assert plan_dom0(COMPAT, Host(xen="3.3"), nr_pages=262144).notices == ()


def test_32_bit_dom0_of_old_has_pt_base_two_pages_up():
    plan = plan_dom0(COMPAT, Host(xen="4.1.6"), nr_pages=262144)
    assert plan.pt_base == plan.page_tables[0] + 8192
    new = plan_dom0(COMPAT, Host(xen="4.2.1"), nr_pages=262144)
    assert plan.nr_pt_frames == new.nr_pt_frames + 1


def test_shim_is_no_dom0():
    plan = plan_dom0(DEFAULT, Host(pv_shim=True), nr_pages=262144)
    assert plan.flags == 0x300
    lines = str(plan).split("\n")
    assert " Start info:    ffffffff84a00000->ffffffff84a00490" in lines
    assert " Xenstore ring: ffffffff84a01000->ffffffff84a02000" in lines
    assert " Console ring:  ffffffff84a02000->ffffffff84a03000" in lines
    assert plan.page_tables[0] == KA + 0x4A03000


def test_shadowed_dom0_has_a_list_without_1g_leaves():
    plan = plan_dom0(DEFAULT, Host(shadow=True), nr_pages=1 << 27)
    assert plan.p2m_leaves == {"4k": 0, "2m": 512, "1g": 0}


def test_json_has_exactly_the_keys_of_design():
    keys = """nr_pages panic dom0_alloc pages_to_be_allocated kernel initrd p2m start_info
        page_tables boot_stack total entry nr_pt_frames mfn_list first_p2m_pfn nr_p2m_frames
        p2m_tables p2m_leaves mod_start mod_len flags magic beyond"""
    assert list(JSON_KEYS) == keys.split()
    found = json.loads(json.dumps(plan_dom0(DEFAULT, nr_pages=262144).as_dict()))
    assert list(found) == keys.split()
    assert found["total"] == [KA, KA + 0x4C00000]
    assert found["dom0_alloc"] is None
    assert found["beyond"] == []


def test_json_of_a_panic_has_null_for_what_xen_never_decided():
    found = plan_dom0(LEGACY, nr_pages=pages("474G"), alloc_maddr=0).as_dict()
    assert found["panic"] == "Not enough RAM for domain 0 allocation"
    unknown = {key for key, value in found.items() if value is None}
    assert unknown == {
        "dom0_alloc", "pages_to_be_allocated", "initrd", "mfn_list", "first_p2m_pfn",
        "nr_p2m_frames", "p2m_tables", "p2m_leaves", "mod_start", "mod_len", "flags", "magic",
    }  # fmt: skip
    assert found["total"][1] - found["total"][0] > 1 << 30


def test_start_info_of_xen_before_3_4_does_not_speak_of_list_frames():
    kernel = replace(DEFAULT, payload=None)
    old = plan_dom0(kernel, Host(xen="3.3"), nr_pages=262144).as_dict()
    assert (old["first_p2m_pfn"], old["nr_p2m_frames"]) == (None, None)
    new = plan_dom0(kernel, Host(xen="3.4"), nr_pages=262144).as_dict()
    assert (new["first_p2m_pfn"], new["nr_p2m_frames"]) == (32768, 514)


def test_block_marks_machine_addresses_that_no_host_determines():
    plan = plan_dom0(DEFAULT, nr_pages=262144, initrd_bytes=1)
    unknown = f"{UNKNOWN_ADDRESS}->{UNKNOWN_ADDRESS}"
    assert str(plan).split("\n")[:4] == [
        "PHYSICAL MEMORY ARRANGEMENT:",
        f" Dom0 alloc.:   {unknown} (229375 pages to be allocated)",
        f" Init. ramdisk: {unknown}",
        "VIRTUAL MEMORY ARRANGEMENT:",
    ]
    assert plan.dom0_alloc is None
    known = plan_dom0(DEFAULT, nr_pages=262144, alloc_maddr=0)
    assert known.dom0_alloc == (0, 128 << 20)


def test_dom0_of_one_chunk_has_nothing_left_to_allocate():
    kernel = replace(LEGACY, virt_kend=KA + 0x1400000)
    plan = plan_dom0(kernel, nr_pages=8192, alloc_maddr=0)
    assert plan.panic is None
    assert str(plan).split("\n")[1] == " Dom0 alloc.:   0000000000000000->0000000002000000"


def rows_beyond(nr_pages, kernel=DEFAULT):
    return {row["limit"]: row["value"] for row in plan_dom0(kernel, nr_pages=nr_pages).beyond}


def test_beyond_names_each_limit_that_is_passed_and_none_that_is_reached():
    assert rows_beyond((1 << 32) - 1) == {}
    assert rows_beyond(1 << 32) == {"pages of one domain": 4294967295}
    assert rows_beyond(1 << 34) == {"pages of one domain": 4294967295}
    assert rows_beyond((1 << 34) + 1).keys() == {
        "pages of one domain",
        "pages of Linux' direct map",
    }
    assert "bytes of the P->M list" not in rows_beyond(1 << 36)
    assert rows_beyond((1 << 36) + 1)["bytes of the P->M list"] == 1 << 39
    rows = plan_dom0(DEFAULT, nr_pages=1 << 40).beyond
    assert all(row.keys() == {"limit", "value", "source"} for row in rows)


def test_plan_is_frozen():
    plan = plan_dom0(DEFAULT, nr_pages=262144)
    assert isinstance(plan, Plan)
    with pytest.raises(AttributeError):
        plan.nr_pages = 1
