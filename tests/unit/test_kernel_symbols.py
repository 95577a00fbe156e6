# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols of a kernel: symbol table, System.map, section borders of a stripped image."""

from dataclasses import replace

import elfbuilder
import pytest
from elfbuilder import KA, Image, Section, notes, symbol_sections

from xenpt.errors import InputError
from xenpt.inputs.kernel import default_kernel, kernel_from_bytes, read_kernel, with_system_map

STUB = "The real System.map is in the linux-image-<version>-dbg package"
TEXT, BRK = KA + 0x100_0000, KA + 0x100_1000


def kernel_with(sections, bits=64):
    image = Image(bits=bits, note_segment=notes(), sections=sections)
    return kernel_from_bytes(image.build(), "test")


def test_a_symbol_table_gives_what_linux_boot_needs():
    symbols = [
        ("_text", TEXT, True, True),
        ("a_function", 5, True, True),
        ("_brk_end", 6, True, True),  # the address of a variable: of no use
        ("level3_user_vsyscall", 7, False, True),
        ("__brk_base", 8, True, False),  # undefined
        ("init_top_pgt", 9, False, True),  # a local namesake
        ("init_top_pgt", 10, True, True),
        ("init_top_pgt", 11, False, True),
    ]
    kernel = kernel_with(symbol_sections(symbols, first=1))
    expected = {"_text": TEXT, "level3_user_vsyscall": 7, "init_top_pgt": 10}
    assert kernel.symbols == expected


def test_a_32_bit_symbol_table():
    sections = symbol_sections([("_text", 0xC100_0000, True, True)], first=1, bits=32)
    values = notes({"VIRT_BASE": 0xC000_0000, "ENTRY": 0xC100_0000}, size=4)
    image = Image(bits=32, note_segment=values, sections=sections)
    assert kernel_from_bytes(image.build(), "test").symbols == {"_text": 0xC100_0000}


def test_a_symbol_table_without_its_strings_is_none():
    table = symbol_sections([("_text", TEXT, True, True)], first=77)[:1]
    assert kernel_with(table).symbols is None


def test_a_stripped_image_still_has_its_borders():
    sections = [
        Section(".text", vaddr=TEXT, data=b"text"),
        Section(".brk", vaddr=BRK, nobits_bytes=0x2_0010),
    ]
    assert kernel_with(sections).symbols == {
        "_text": TEXT,
        "__bss_stop": BRK,
        "__brk_base": BRK,
        "__brk_limit": BRK + 0x2_0010,
        "_end": BRK + 0x2_1000,
    }


def test_sections_of_something_else_are_no_borders():
    assert kernel_with([Section(".text", vaddr=TEXT, data=b"text")]).symbols is None


@pytest.fixture
def system_map(tmp_path):
    def write(text):
        path = tmp_path / "System.map"
        path.write_text(text)
        return path

    return write


def test_a_system_map_adds_its_symbols(system_map, tmp_path):
    path = system_map(
        f"0000000000000000 D __per_cpu_start\n{TEXT:x} T _text\n{BRK:x} D init_top_pgt\n"
        f"{BRK + 8:x} B _brk_end\n"
    )
    (tmp_path / "vmlinux").write_bytes(elfbuilder.kernel())
    kernel = read_kernel(tmp_path / "vmlinux", system_map=path)
    assert kernel.symbols == {"_text": TEXT, "init_top_pgt": BRK}


def test_a_system_map_keeps_what_only_the_image_has(system_map):
    kernel = replace(kernel_with([]), symbols={"_brk_end": 5, "_text": TEXT})
    path = system_map(f"{TEXT:x} T _text\n{BRK:x} B __brk_base\n")
    assert with_system_map(kernel, path).symbols == {
        "_brk_end": 5,
        "_text": TEXT,
        "__brk_base": BRK,
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            f"ffffffffffffffff B {STUB}\n",
            f"a stub without symbols: {STUB}",
        ),
        (f"{TEXT:x} T _text\nxyz T b\n", "line 2 is not 'address type name'"),
        (f"{TEXT:x} T\n", "line 1 is not 'address type name'"),
        (f"{TEXT:x} Type _text\n", "line 1 is not 'address type name'"),
        (f"1{TEXT:x} T _text\n", "line 1 is not 'address type name'"),
        (f"{TEXT:x} T main\n", "no symbol _text: not a System.map of Linux"),
        (f"{KA:x} T _text\n", f"of another kernel: _text {KA:#x} is not in it"),
        ("", "empty file"),
    ],
)
def test_refusals_of_a_system_map(system_map, text, reason):
    path = system_map(text)
    with pytest.raises(InputError) as caught:
        with_system_map(default_kernel(), path)
    assert str(caught.value) == f"{path}: {reason}"


def test_a_system_map_of_another_build(system_map):
    path = system_map(f"{TEXT:x} T _text\n{BRK:x} D init_top_pgt\n")
    with pytest.raises(InputError, match=f"of another kernel: init_top_pgt is {BRK:#x} here"):
        with_system_map(default_kernel(), path)
