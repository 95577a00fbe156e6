# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel images by their ELF notes: values, defaults and refusals of libelf (SPEC section D)."""

import json
import os
from dataclasses import replace

import elfbuilder
import goldendata
import pytest
from elfbuilder import GOOD, KA, R_X, RW_, SHT_NOTE, Image, Section, note, notes

from xenpt.errors import InputError
from xenpt.inputs.kernel import Kernel, default_kernel, kernel_from_bytes, read_kernel


def read(image: bytes) -> Kernel:
    return kernel_from_bytes(image, "test")


def read_notes(changes):
    return read(elfbuilder.kernel(changes))


def refusal(image: bytes) -> str:
    with pytest.raises(InputError) as caught:
        read(image)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_default_kernel_is_the_one_that_was_booted():
    image = goldendata.facts("c512m")["kernel_image"]
    kernel = default_kernel()
    assert kernel.as_dict()["notes"] == image["xen_notes_raw"]
    assert kernel.segments == tuple((p["paddr"], p["filesz"], p["memsz"]) for p in image["load"])
    assert kernel.entry == image["xen_notes"]["ENTRY"]
    assert kernel.init_p2m == image["xen_notes"]["INIT_P2M"] == 0x80_0000_0000
    assert kernel.hv_start_low == image["xen_notes"]["HV_START_LOW"]
    assert kernel.supported_features == image["xen_notes"]["SUPPORTED_FEATURES"]
    assert (kernel.payload, kernel.machine) == (image["payload"], image["e_machine"])


def test_the_default_kernels_tables_are_those_that_linux_made_read_only():
    trace = goldendata.arrays("c512m")["trace"]
    setup = [name for name, _ in goldendata.facts("c512m")["dump"]["hypercall_phases"]].index(
        "xen_setup_kernel_pagetable"
    ) + 1  # phases of a trace are 1-based
    calls = trace[(trace["phase"] == setup) & (trace["op"] == 14)]  # update_va_mapping
    vaddrs = [int(vaddr) for vaddr in calls["a"][:, 0]]
    symbols = default_kernel().symbols
    names = ["init_top_pgt", "level3_ident_pgt", "level3_kernel_pgt", "level2_ident_pgt",
             "level2_kernel_pgt", "level2_fixmap_pgt", "level1_fixmap_pgt"]  # fmt: skip
    assert vaddrs[:7] == [symbols[name] for name in names]
    assert vaddrs[7] == symbols["level1_fixmap_pgt"] + 4096
    assert vaddrs[8] == symbols["level3_user_vsyscall"]


def test_the_default_kernels_brk_is_what_setup_arch_reserved():
    reserved = goldendata.facts("m1g")["linux"]["setup_reserves"][0]
    symbols = default_kernel().symbols
    assert reserved == ["memblock_reserve", symbols["__brk_base"] - KA,
                        symbols["_brk_end"] - KA - 1, "setup_arch"]  # fmt: skip


def test_a_kernel_survives_its_json():
    assert Kernel.from_dict(json.loads(json.dumps(default_kernel().as_dict()))) == default_kernel()


def test_json_has_the_keys_in_the_promised_order():
    assert list(default_kernel().as_dict()) == [
        "bits", "pae", "virt_base", "virt_kstart", "virt_kend", "entry", "paddr", "segments",
        "symbols", "init_p2m", "mod_start_pfn", "features", "supported_features",
        "hypercall_page", "hv_start_low", "notes", "payload",
    ]  # fmt: skip


def test_a_kernel_can_be_hashed_and_changed():
    legacy = replace(default_kernel(), init_p2m=None)
    assert hash(legacy) != hash(default_kernel())
    assert legacy.as_dict()["init_p2m"] is None


def test_all_values_of_a_64_bit_kernel():
    kernel = read_notes(
        {
            "INIT_P2M": 0x80_0000_0000, "MOD_START_PFN": 1, "HV_START_LOW": 0xFFFF_8000_0000_0000,
            "HYPERCALL_PAGE": KA + 0x100_1000, "FEATURES": "!writable_page_tables|dom0",
            "SUPPORTED_FEATURES": 0x8801, "PAE_MODE": "yes",
        }
    )  # fmt: skip
    assert kernel == Kernel(
        bits=64,
        pae="extcr3",
        virt_base=KA,
        virt_kstart=KA + 0x100_0000,
        virt_kend=KA + 0x100_2000,
        entry=KA + 0x100_0100,
        paddr=(0x100_0000, 0x100_2000),
        segments=((0x100_0000, 4, 0x2000),),
        init_p2m=0x80_0000_0000,
        mod_start_pfn=True,
        features="!writable_page_tables|dom0",
        supported_features=0x8801,
        hypercall_page=KA + 0x100_1000,
        hv_start_low=0xFFFF_8000_0000_0000,
        notes=kernel.notes,
    )
    assert kernel.notes[:3] == (
        ("GUEST_OS", 6, "linux"),
        ("XEN_VERSION", 8, "xen-3.0"),
        ("VIRT_BASE", 8, KA),
    )
    assert kernel.notes[-1] == ("PAE_MODE", 4, "yes")


def test_absent_notes_take_libelfs_defaults():
    image = Image(note_segment=note("LOADER", "generic") + note("XEN_VERSION", "xen-3.0x"))
    kernel = read(image.build())
    assert (kernel.virt_base, kernel.virt_kstart, kernel.virt_kend) == (0, 0x100_0000, 0x100_2000)
    assert kernel.entry == image.entry  # of the ELF header
    assert kernel.pae == "no"
    assert kernel.init_p2m is kernel.features is kernel.supported_features is None
    assert kernel.hypercall_page is kernel.hv_start_low is kernel.symbols is kernel.payload is None
    assert kernel.mod_start_pfn is False


def test_only_p_paddr_counts_and_only_loadable_segments():
    segments = [
        (0x304_4000, b"percpu", 0x3_5000, RW_),
        (0x100_0000, b"text", 0x123, R_X),
        (0x900_0000, b"no permission", 0x1000, 0),
    ]
    kernel = read(Image(segments=segments, note_segment=notes()).build())
    assert kernel.paddr == (0x100_0000, 0x307_9000)
    assert (kernel.virt_kstart, kernel.virt_kend) == (KA + 0x100_0000, KA + 0x307_9000)
    assert kernel.segments == ((0x304_4000, 6, 0x3_5000), (0x100_0000, 4, 0x123))


def test_a_32_bit_kernel_with_its_paddr_offset():
    base = 0xC000_0000
    values = {"VIRT_BASE": base, "ENTRY": base + 0x10_0000, "PADDR_OFFSET": 0x1000,
              "HV_START_LOW": 0xF580_0000, "PAE_MODE": "yes,bimodal"}  # fmt: skip
    image = Image(
        bits=32, segments=[(0x10_1000, b"x", 0x5000, R_X)], note_segment=notes(values, size=4)
    )
    kernel = read(image.build())
    assert (kernel.bits, kernel.machine, kernel.pae) == (32, 3, "bimodal")
    assert (kernel.virt_kstart, kernel.virt_kend) == (base + 0x10_0000, base + 0x10_5000)
    assert kernel.hv_start_low == 0xF580_0000
    assert ("VIRT_BASE", 4, base) in kernel.notes


def test_another_machine_or_byte_order_is_told_not_refused():
    """Xen itself refuses it later: "Mismatch between Xen and DOM0 kernel" (SPEC B2)."""
    values = notes(order="big")
    kernel = read(Image(big_endian=True, machine=21, note_segment=values).build())
    assert (kernel.machine, kernel.big_endian) == (21, True)
    assert kernel.virt_kstart == KA + 0x100_0000
    assert Kernel.from_dict(kernel.as_dict()) == kernel
    assert kernel.as_dict()["machine"] == 21


def test_notes_of_sections_count_only_without_any_in_segments():
    values = notes({"INIT_P2M": 0x80_0000_0000})
    sections = [Section(".notes", SHT_NOTE, data=values)]
    assert read(Image(sections=sections).build()).init_p2m == 0x80_0000_0000
    other_owner = note(1, b"GNU's", owner=b"GNU\0")
    image = Image(sections=sections, note_segment=other_owner)
    assert read(image.build()).init_p2m == 0x80_0000_0000
    image = Image(sections=sections, note_segment=notes())
    assert read(image.build()).init_p2m is None


def test_a_name_that_only_starts_like_xens_is_another_owner():
    foreign = note("INIT_P2M", 0x1234_5000, owner=b"Xenia\0")
    assert read(Image(note_segment=foreign + notes()).build()).init_p2m is None


def test_later_notes_override_and_feature_sets_add_up():
    twice = (
        notes({"INIT_P2M": 0x80_0000_0000, "SUPPORTED_FEATURES": 1, "FEATURES": "dom0"})
        + note("INIT_P2M", 0x100_0000_0000)
        + note("SUPPORTED_FEATURES", 0x8000, size=4)
        + note("FEATURES", "!writable_page_tables")
    )
    kernel = read(Image(note_segment=twice).build())
    assert kernel.init_p2m == 0x100_0000_0000
    assert kernel.supported_features == 0x8001
    assert kernel.features == "dom0|!writable_page_tables"


@pytest.mark.parametrize(("size", "value"), [(1, 0x7F), (2, 0x7FFF), (4, 0x7FFF_FFFF)])
def test_numbers_of_every_size(size, value):
    image = Image(note_segment=notes() + note("INIT_P2M", value & 0x7F, size=size))
    assert read(image.build()).init_p2m == value & 0x7F


def test_a_number_of_an_odd_size_reads_as_zero():
    image = Image(note_segment=notes() + note("MOD_START_PFN", b"\1\1\1"))
    kernel = read(image.build())
    assert kernel.mod_start_pfn is False
    assert kernel.notes[-1] == ("MOD_START_PFN", 3, (1, 1, 1))


def test_notes_that_are_neither_text_nor_number_are_words():
    relocation = (0x20_0000).to_bytes(4, "little") + bytes(4) + b"\xff\xff\xff\x3f"
    extra = note("L1_MFN_VALID", bytes([1] + [0] * 7) * 2) + note("PHYS32_RELOC", relocation)
    kernel = read(Image(note_segment=notes() + extra + note(99, 7, size=4)).build())
    assert kernel.notes[-3:] == (
        ("L1_MFN_VALID", 16, (1, 1)),
        ("PHYS32_RELOC", 12, (0x20_0000, 0, 0x3FFF_FFFF)),
        ("99", 4, 7),
    )


def test_a_text_without_a_nul_of_its_own_ends_in_the_padding():
    """Debian's FEATURES note is such a one: 41 bytes of text, three of padding."""
    image = Image(note_segment=notes() + note("FEATURES", b"dom0|hvm_callback_vector!"))
    assert read(image.build()).features == "dom0|hvm_callback_vector!"


@pytest.mark.parametrize(
    ("text", "mode"),
    [("yes", "extcr3"), ("no", "no"), ("bimodal", "bimodal"), ("yes,bimodal", "bimodal")],
)
def test_pae_mode(text, mode):
    assert read_notes({"PAE_MODE": text}).pae == mode


@pytest.mark.parametrize(
    ("features", "supported", "refuses"),
    [
        (None, None, False),  # no note: nothing is asked
        (None, 0x8801, False),  # bit 11
        (None, 0x8001, True),
        ("writable_page_tables|dom0", 0x8001, False),
        ("!dom0", 0, False),
    ],
)
def test_dom0_needs_its_bit_only_where_supported_features_is_given(features, supported, refuses):
    kernel = read_notes({"FEATURES": features, "SUPPORTED_FEATURES": supported})
    assert kernel.refuses_dom0 is refuses


LEGACY = (
    "GUEST_OS=linux,GUEST_VER=2.6,XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,"
    "ELF_PADDR_OFFSET=0xC0000000,VIRT_ENTRY=0xC0100000,HYPERCALL_PAGE=0x102,"
    "FEATURES=writable_page_tables|!pae_pgdir_above_4gb,PAE=yes[extended-cr3],LOADER=generic"
)


def legacy(text, *, paddr=0xC010_0000):
    image = Image(
        bits=32,
        entry=paddr,
        segments=[(paddr, b"x", 0x3000, R_X)],
        sections=[Section("__xen_guest", data=text.encode() + b"\0")],
    )
    return image.build()


def test_the_legacy_section():
    kernel = read(legacy(LEGACY))
    assert kernel.virt_base == 0xC000_0000
    assert (kernel.virt_kstart, kernel.virt_kend) == (0xC010_0000, 0xC010_3000)
    assert kernel.entry == 0xC010_0000
    assert kernel.hypercall_page == 0xC010_2000  # a page number behind VIRT_BASE
    assert kernel.pae == "extcr3"
    assert kernel.features == "writable_page_tables|!pae_pgdir_above_4gb"
    assert kernel.init_p2m is None
    assert kernel.notes[3] == ("VIRT_BASE", 10, "0xC0000000")


def test_the_legacy_sections_paddr_offset_is_virt_base_by_default():
    text = "GUEST_OS=linux,XEN_VER=xen-3.0,VIRT_BASE=3221225472,PAE=yesterday"
    kernel = read(legacy(text))
    assert kernel.virt_kstart == 0xC010_0000  # p_paddr is taken as a virtual address
    assert kernel.pae == "yes"


def test_legacy_numbers_are_cs():
    text = "GUEST_OS=linux,XEN_VER=xen-3.0,VIRT_BASE=010,VIRT_ENTRY= 0x9junk,HYPERCALL_PAGE=no"
    kernel = read(legacy(text, paddr=9))
    assert (kernel.virt_base, kernel.entry, kernel.hypercall_page) == (8, 9, 8)


def test_elf_notes_win_over_the_legacy_section():
    image = Image(note_segment=notes(), sections=[Section("__xen_guest", data=b"VIRT_BASE=1\0")])
    assert read(image.build()).virt_base == KA


@pytest.mark.parametrize(
    ("bits", "end"),
    [
        # up(4 + 64 + 3 * 64, 8) = 264, then 3 symbols of 24 = 336, then 13 bytes = 349 -> 352
        (64, 0x100_2008 + 352),
        # up(4 + 52 + 3 * 40, 4) = 176, then 3 symbols of 16 = 224, then 13 bytes = 237 -> 240
        (32, 0x100_2004 + 240),
    ],
)
def test_bsd_symtab_makes_the_kernel_end_behind_its_symbols(bits, end):
    """Worked by hand from SPEC D8; the image ends at 0x1002001."""
    symbols = [("abc", 1, True, True), ("def", 2, True, True), ("ghi", 3, True, True)]
    values = notes({"VIRT_BASE": 0, "ENTRY": 0x100_0000, "BSD_SYMTAB": "yes"}, size=bits // 8)
    image = Image(
        bits=bits,
        segments=[(0x100_0000, b"x", 0x2001, R_X)],
        note_segment=values,
        sections=elfbuilder.symbol_sections(symbols, first=1, bits=bits),
    )
    kernel = read(image.build())
    assert kernel.virt_kend == end
    assert kernel.paddr == (0x100_0000, 0x100_2001)
    assert Kernel.from_dict(kernel.as_dict()) == kernel


def test_bsd_symtab_without_symbols_changes_nothing():
    assert read_notes({"BSD_SYMTAB": "yes"}).virt_kend == KA + 0x100_2000


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict.fromkeys(GOOD), "Not a Xen-ELF image: No ELF notes or '__xen_guest' section found"),
        (
            {"LOADER": "lilo", "GUEST_OS": "netbsd"},
            "Will only load images built for the generic loader or Linux images",
        ),
        ({"XEN_VERSION": "xen-2.0"}, "Xen will only load images built for Xen v3.0"),
        ({"XEN_VERSION": None}, "Xen will only load images built for Xen v3.0"),
        ({"VIRT_BASE": None}, "ELF_PADDR_OFFSET set, VIRT_BASE unset"),
        ({"ENTRY": KA + 0xFF_FFFF}, "ELF start or entries are out of bounds"),
        ({"ENTRY": KA + 0x100_2001}, "ELF start or entries are out of bounds"),
        ({"PADDR_OFFSET": 0x100_0001}, "ELF start or entries are out of bounds"),
        ({"INIT_P2M": KA + 0x100_0000}, "P->M table base is out of bounds"),
        ({"INIT_P2M": KA + 0x100_1FFF}, "P->M table base is out of bounds"),
        ({"FEATURES": "dom0|!time_travel"}, "FEATURES: unknown required feature 'time_travel'"),
    ],
)
def test_libelfs_refusals(changes, text):
    assert refusal(elfbuilder.kernel(changes)) == f"test: {text}"


def test_what_libelf_just_accepts():
    assert read_notes({"ENTRY": KA + 0x100_2000}).entry == KA + 0x100_2000  # the end itself
    assert read_notes({"INIT_P2M": KA + 0x100_2000}).init_p2m == KA + 0x100_2000
    assert read_notes({"FEATURES": "time_travel"}).features == "time_travel"
    assert read_notes({"LOADER": "generic-2", "GUEST_OS": None}).virt_base == KA
    assert read_notes({"LOADER": None}).virt_base == KA


def test_an_image_without_segments_is_out_of_bounds():
    text = refusal(Image(segments=[], note_segment=notes()).build())
    assert text == "test: ELF start or entries are out of bounds"


def test_too_many_notes():
    foreign = note(1, b"", owner=b"GNU\0")
    assert "more than 65536 notes" in refusal(Image(note_segment=foreign * 65537).build())
    image = Image(note_segment=foreign * 65530 + notes())
    assert read(image.build()).virt_base == KA


def test_a_text_that_never_ends():
    image = Image(note_segment=notes() + note("LOADER", b"g" * 8000)).build()
    offset = image.index(b"gggg")
    assert refusal(image) == f"test: offset {offset:#x}: text of note LOADER has no end"


def test_a_note_that_leaves_its_segment():
    image = Image(note_segment=notes()[:-4]).build()  # half of "generic" is missing
    offset = image.index(b"gene") - 16
    assert refusal(image) == f"test: offset {offset:#x}: note leaves its segment or section"


def test_a_note_that_is_shorter_than_its_header():
    image = Image(note_segment=notes() + b"\1\0\0\0").build()
    assert refusal(image).endswith(f"note is cut off: the file ends at {len(image):#x}")


def test_every_truncation_of_a_kernel_is_one_clear_line():
    image = Image(
        note_segment=notes(), sections=[Section(".notes", SHT_NOTE, data=notes())]
    ).build()
    assert read(image).virt_base == KA
    for nr_bytes in range(4, len(image)):
        assert "test: offset " in refusal(image[:nr_bytes])


def test_a_segment_outside_the_file_or_larger_than_its_place():
    segment = (0x100_0000, b"text", 3, R_X)
    assert "segment 0 is larger than its place" in refusal(
        Image(segments=[segment], note_segment=notes()).build()
    )
    high = ((1 << 64) - 1, b"", 2, R_X)
    assert "segment 0 is larger than its place" in refusal(
        Image(segments=[high], note_segment=notes()).build()
    )
    image = bytearray(elfbuilder.kernel())
    image[64 + 32 : 64 + 40] = (1 << 40).to_bytes(8, "little")  # p_filesz
    assert "segment 0 ends at 0x1" in refusal(bytes(image))


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (4, 3, "offset 0x4: ELF class is neither 32 nor 64 bit"),
        (5, 0, "offset 0x5: ELF data encoding is neither little nor big endian"),
        (54, 1, "program headers of 1 bytes are too small"),
        (57, 0xFF, "program headers at 0x40 ends at"),
    ],
)
def test_a_broken_elf_header(offset, value, text):
    image = bytearray(elfbuilder.kernel())
    image[offset] = value
    assert text in refusal(bytes(image))


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (b"", "empty file"),
        (b"MZ", "not a kernel image: neither ELF nor bzImage"),
        (b"\x7fELF", "offset 0x4: ELF class is neither 32 nor 64 bit"),
        (b"{", "not JSON: Expecting property name"),
        (b"[1]", "not a kernel image: neither ELF nor bzImage"),
        (b'{"bits": 64}', "needs segments, paddr or both virt_kstart and virt_kend"),
    ],
)
def test_wrong_files(tmp_path, contents, text):
    path = tmp_path / "image"
    path.write_bytes(contents)
    with pytest.raises(InputError) as caught:
        read_kernel(path)
    assert str(caught.value).startswith(f"{path}: {text}")


def test_wrong_paths(tmp_path):
    with pytest.raises(InputError, match="a directory, not a file"):
        read_kernel(tmp_path)
    with pytest.raises(InputError, match="No such file or directory"):
        read_kernel(tmp_path / "absent")
    with pytest.raises(InputError, match="not a regular file"):
        read_kernel("/dev/null")
    with pytest.raises(InputError, match="null"):
        read_kernel("a\0b")


def test_a_fifo_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="not a regular file"):
        read_kernel(tmp_path / "fifo")


def test_read_kernel_of_an_elf_and_of_its_own_json(tmp_path):
    (tmp_path / "vmlinux").write_bytes(elfbuilder.kernel())
    kernel = read_kernel(tmp_path / "vmlinux")
    (tmp_path / "kernel.json").write_text(json.dumps(kernel.as_dict(), indent=2))
    assert read_kernel(str(tmp_path / "kernel.json")) == kernel
