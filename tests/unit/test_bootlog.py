# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot logs -> facts: whatever the console did to the lines."""

import pytest

from xenpt.errors import InputError
from xenpt.inputs.bootlog import parse_boots, read_boots

BANNER = "Xen version 4.17.7 (Debian 4.17.7-1) (someone@example.org) debug=n"
P2M = " Phys-Mach map: 0000008000000000->0000008000200000"
RANGE = (0x8000000000, 0x8000200000)


def boot(*lines):
    [found] = parse_boots("".join(f"{line}\n" for line in lines))
    return found


@pytest.mark.parametrize(
    "before",
    [
        "(XEN) ",
        "(XEN) [00000000212aad1a] ",
        "(XEN) [    7.041234] ",
        "(XEN) [2021-05-04 10:11:12.345] ",
        "Nov 23 22:00:00 host hypervisor: (XEN) ",
        "2026-11-23T22:00:00.123456+00:00 host xen[12]: (XEN) ",
        "[2021-05-04 10:11:12] (XEN) ",
        "> (XEN) ",
        "\x1b[0m\x1bc\x1b[?7l\x1b[2J(XEN) ",
        "Booting from ROM..(XEN) ",
        "[    0.10] half a line of Linux(XEN) ",
        "",
    ],
)
def test_what_stands_before_a_line_of_xen_does_not_matter(before):
    found = boot(f"{before}{BANNER}", f"{before}{P2M}\r")
    assert found.first("xen_version").values == ("4.17.7",)
    assert found.first("p2m").span == RANGE
    assert found.first("p2m").line == 2


@pytest.mark.parametrize(
    "before",
    [
        "[    0.083130] ",
        "<6>[    0.083130] ",
        "[    0.083130][    T0] ",
        "Nov 23 22:00:00 dom0 kernel: ",
        "Nov 23 22:00:00 dom0 kernel: [    0.083130] ",
        "",
    ],
)
def test_what_stands_before_a_line_of_linux_does_not_matter(before):
    found = boot(
        f"{before}Linux version 6.1.0-56-amd64 (gcc)",
        f"{before}Command line: root=/dev/xvda mem=4G",
        f"{before}Xen: [mem 0x0000000000100000-0x0000000040060fff] usable",
        f"{before}last_pfn = 0x40061 max_arch_pfn = 0x400000000",
    )
    assert found.first("linux_version").values == ("6.1.0-56-amd64",)
    assert found.first("linux_command_line").values == ("root=/dev/xvda mem=4G",)
    assert found.first("map").values == (0x100000, 0x40060FFF, "usable")
    assert found.first("last_pfn").number() == 0x40061


def test_a_reboot_begins_another_boot_and_dmesg_belongs_to_the_xen_before_it():
    first, second, third = parse_boots(
        "\n".join(
            [
                f"(XEN) {BANNER}",
                "[    0.000000] Linux version 6.1.0 (gcc)",
                "[    0.000000] Released 0 page(s)",
                f"(XEN) {BANNER.replace('4.17', '4.20')}",
                f"(XEN) {P2M}",
                "[    0.000000] Linux version 6.12.1 (gcc)",
                "[    0.000000] Linux version 6.1.0 (gcc)",
                "[    0.000000] Remapped 97 page(s)",
                "",
            ]
        )
    )
    assert (first.first_line, second.first_line, third.first_line) == (1, 4, 7)
    assert first.first("linux_version").values == ("6.1.0",)
    assert second.first("xen_version").values == ("4.20.7",)
    assert second.has("p2m", "linux_version")
    assert not third.has("xen_version")


def test_a_log_that_begins_in_the_middle_has_a_boot_from_there_on():
    found = boot("(XEN) frames", f"(XEN) {P2M}")
    assert found.first("p2m").span == RANGE
    assert found.first_line == 2


def test_the_panic_is_what_xen_says_next():
    found = boot(
        f"(XEN) {BANNER}",
        "(XEN) ****************************************",
        "(XEN) [   40.964792] Panic on CPU 0:",
        "",
        "(XEN) [   40.964884] Not enough RAM for domain 0 allocation",
        "(XEN) ****************************************",
    )
    fact = found.first("xen_panic")
    assert (fact.line, fact.values) == (5, ("Not enough RAM for domain 0 allocation",))


@pytest.mark.parametrize(
    "line",
    [
        "(XEN)  Page tables:   ffffffff84a01000->ffffffff84a2",
        "(XEN)  Dom0 alloc.:   0000000130000000->0000000138000000 (229376 pages to b",
        "(XEN)  TOTAL:         ffffffff8000",
        "(XEN)  Dom0 kernel: 64-bit, PAE, lsb, paddr 0x1000000 -> ",
    ],
)
def test_a_line_that_is_cut_off_is_no_fact_but_is_told(line):
    found = boot(f"(XEN) {BANNER}", line)
    assert [fact.line for fact in found.damaged] == [2]
    assert len(found.facts) == 1


def test_numbers_are_read_by_what_they_are():
    found = boot(
        "(XEN)  Dom0 kernel: 64-bit, PAE, lsb, paddr 0x1000000 -> 0x4a00000",
        "(XEN)  Dom0 alloc.:   0000000130000000->0000000138000000 (98304 pages to be allocated)",
        "(XEN)  [0000000000100000, 00000000bffdffff] (usable)",
        "(XEN)  0000000000000000 - 000000000009fc00 (usable)",
        "(XEN) Dom0 memory clipped to 12936806 pages",
        "(XEN)  ENTRY ADDRESS: c0100000",
    )
    assert found.first("dom0_kernel").values == (64, ", PAE", "lsb", 0x1000000, 0x4A00000)
    assert found.first("dom0_alloc").values == (0x130000000, 0x138000000, 98304)
    assert found.first("xen_map").values == (0x100000, 0xBFFDFFFF, "usable")
    assert found.first("old_xen_map").values == (0, 0x9FC00, "usable")
    assert found.first("clipped").values == (12936806,)
    assert found.first("entry").values == (0xC0100000,)


def test_xens_command_line_is_not_taken_for_that_of_linux():
    found = boot(f"(XEN) {BANNER}", "(XEN) [    1.0] Command line: dom0_mem=4G", "text")
    assert found.first("xen_command_line").values == ("dom0_mem=4G",)
    assert not found.has("linux_command_line")


def test_memblock_lines_of_three_generations():
    found = boot(
        f"(XEN) {BANNER}",
        " reserved[0x1]\t[0x00000001000000-0x00000004410fff], 0x3411000 bytes flags: 0x0",
        " memory[0x0]\t[0x0000000000001000-0x000000000009efff], 0x000000000009e000 bytes on node 0",
        "__memblock_reserve: [0x0000000004200000-0x0000000004210fff] nid=-1 flags=20 setup_arch+1",
        "memblock_free: [0x0000000008000000-0x0000000008000fff] xen_pagetable_init+0x1/0x2",
        "memblock_phys_free: [0x0000000008001000-0x0000000008001fff] xen_pagetable_init+0x1/0x2",
    )
    assert found.first("reserved").values == (0x1000000, 0x4410FFF, 0x3411000)
    assert found.first("memory").values == (0x1000, 0x9EFFF, 0x9E000, " on node 0")
    assert found.first("brk").span == (0x4200000, 0x4210FFF)
    assert [fact.span[0] for fact in found.all("list_freed")] == [0x8000000, 0x8001000]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing of the kind\n",
        "[    0.000000] Linux version 6.1.0 (gcc)\n[    0.0] BIOS-e820: [mem 0x0-0x9efff] usable\n",
        "\x00\xff\x00",
    ],
)
def test_a_log_without_a_boot_is_refused(text):
    with pytest.raises(InputError, match="some file: no boot of Xen"):
        parse_boots(text, source="some file")


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="missing"):
        read_boots(tmp_path / "missing")
    log = tmp_path / "log"
    log.write_bytes(f"(XEN) {BANNER}\r\n(XEN) {P2M}\r\n\xff\xfe".encode("latin-1"))
    assert read_boots(log)[0].has("p2m")


def test_a_last_line_that_does_not_end_may_be_cut_off():
    """0x40061 may have been 0x400610: its line is told apart, and what it says is no fact."""
    [found] = parse_boots(f"(XEN) {BANNER}\nlast_pfn = 0x40061 max_arch_pfn = 0x400000000")
    assert not found.has("last_pfn")
    assert [fact.line for fact in found.damaged] == [2]
    [ended] = parse_boots(f"(XEN) {BANNER}\nlast_pfn = 0x40061 max_arch_pfn = 0x400000000\n")
    assert ended.has("last_pfn")
    assert not ended.damaged
