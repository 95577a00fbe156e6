# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from xenpt.errors import InputError, UsageError
from xenpt.inputs.config import (
    Dom0Mem,
    Host,
    MemSize,
    Ram,
    flat_e820,
    parse_dom0_mem,
    parse_e820,
    read_e820,
)

G = 262144  # pages of 1 GiB
UNLIMITED = MemSize(pages=(1 << 63) - 1)


@pytest.mark.parametrize(
    "text, amount",
    [
        ("1G", MemSize(G)),
        ("1048576", MemSize(G)),  # a bare number is in KiB
        ("4096b", MemSize(1)),
        ("4095b", MemSize(0)),
        ("8t", MemSize(8192 * G)),
        ("0x400M", MemSize(G)),
        ("010G", MemSize(8 * G)),  # octal, as simple_strtoull() has it
        ("-256M", MemSize(65536, minus=True)),
        ("10%", MemSize(percent=10)),
        ("-10%", MemSize(percent=10, minus=True)),
        ("1G+10%", MemSize(G, 10)),
        ("-1G+10%", MemSize(G, 10, minus=True)),
        ("0", MemSize()),
        ("99%", MemSize(percent=99)),
        ("1G,2G", MemSize(2 * G)),  # the later one wins
    ],
)
def test_dom0_mem_amount(text, amount):
    assert parse_dom0_mem(text) == Dom0Mem(amount=amount)


def test_dom0_mem_bounds():
    assert parse_dom0_mem("min:1G,max:2G,50%") == Dom0Mem(
        MemSize(percent=50), MemSize(G), MemSize(2 * G)
    )
    assert parse_dom0_mem("1G") == Dom0Mem(MemSize(G), MemSize(), UNLIMITED)
    assert parse_dom0_mem("max:-1G").max == MemSize(G, minus=True)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("100%", "percentage must be below 100"),
        ("10%+1G", "a percentage must come last"),  # SPEC I15: the size must come first
        ("10%+10%", "a percentage must come last"),
        ("1G+1G", "only one size, and it must come first"),
        ("1G+", "'' is no size and no percentage"),
        ("", "'' is no size and no percentage"),
        ("1G,", "'' is no size and no percentage"),
        ("--1G", "'-1G' is no size and no percentage"),
        ("1G+-1%", "'-1%' is no size and no percentage"),
        ("1P", "'1P' is no size and no percentage"),  # Xen knows up to T
        ("1GiB", "'1GiB' is no size and no percentage"),
        ("1.5G", "'1.5G' is no size and no percentage"),
        ("09G", "'09' begins like octal"),
        ("mem:1G", "'mem:' is neither min: nor max:"),
        ("min:max:1G", "'min:max:' is neither min: nor max:"),
        ("9" * 41, f"'{'9' * 41}' is no size and no percentage"),
        ("1G 2G", "'1G 2G' is no size and no percentage"),
    ],
)
def test_dom0_mem_that_xen_refuses(text, reason):
    with pytest.raises(UsageError) as caught:
        parse_dom0_mem(text)
    assert str(caught.value) == f"dom0_mem {text!r}: {reason}"


def test_one_page_is_an_absolute_wish_and_a_percentage_is_none():
    assert MemSize(1).is_absolute
    assert MemSize(1, 10).is_absolute
    assert not MemSize(percent=10).is_absolute
    assert not MemSize(1, minus=True).is_absolute


def test_percentages_are_refused_by_xen_before_4_12():
    with pytest.raises(UsageError, match=r"dom0_mem '10%': percentages need Xen 4\.12 or later"):
        parse_dom0_mem("10%", percent=False)


def test_an_amount_wraps_as_xens_unsigned_long_does():
    assert MemSize(10, minus=True).of(4) == (1 << 64) - 6
    assert MemSize(G, 10).of(1000) == G + 100
    assert MemSize(percent=33).of(10) == 3


XEN_LINES = """\
(XEN) Xen-e820 RAM map:
(XEN)  [0000000000000000, 000000000009fbff] (usable)
(XEN) [    0.000001]  [0000000000100000, 00000000bffdefff] (usable)
(XEN)  [00000000bffdf000, 00000000bfffffff] (ACPI NVS)
(XEN)  [00000000fd000000, 00000000fdffffff] type 20
"""
MAP = (
    Ram(0, 0x9FC00),
    Ram(0x100000, 0xBFFDF000),
    Ram(0xBFFDF000, 0xC0000000, "ACPI NVS"),
    Ram(0xFD000000, 0xFE000000, "type 20"),
)


def test_e820_of_xens_log_is_half_open():
    assert parse_e820(XEN_LINES.splitlines()) == MAP


def test_e820_of_xen_before_4_14_has_no_brackets_and_open_ends():
    lines = [
        "(XEN)  0000000000000000 - 000000000009fc00 (usable)",
        "(XEN)  0000000000100000 - 00000000bffdf000 (usable)",
    ]
    assert parse_e820(lines) == MAP[:2]


def test_e820_of_linux_log():
    lines = [
        "[    0.000000] Xen: [mem 0x0000000000000000-0x000000000009fbff] usable",
        "[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x00000000bffdefff] usable",
        "[    0.000000] Xen: [mem 0x00000000bffdf000-0x00000000bfffffff] ACPI NVS",
    ]
    assert parse_e820(lines) == MAP[:3]


def test_e820_of_xen_wins_over_that_of_its_dom0():
    lines = [*XEN_LINES.splitlines(), "Xen: [mem 0x00000000-0x000fffff] usable"]
    assert parse_e820(lines) == MAP


def test_e820_printed_twice_counts_once():
    assert parse_e820(XEN_LINES.splitlines() * 2) == MAP


@pytest.mark.parametrize(
    "lines, reason",
    [
        ([], "no e820 line of Xen or Linux in it"),
        (
            ["Xen: [mem 0x0-0xfff] usable", "Xen: [mem 0x800-0xfff] usable"],
            "e820 entry 0x800 overlaps 0x0",
        ),
        (["Xen: [mem 0x1000-0xff] usable"], "e820 entry 0x1000 ends before it starts"),
    ],
)  # fmt: skip
def test_e820_that_makes_no_sense(lines, reason):
    with pytest.raises(InputError) as caught:
        parse_e820(lines, source="host.log")
    assert str(caught.value) == f"host.log: {reason}"


def test_e820_file(tmp_path):
    path = tmp_path / "dmesg"
    path.write_bytes(b"\xff\xfe junk\r\n" + XEN_LINES.replace("\n", "\r\n").encode())
    assert read_e820(path) == MAP


def test_e820_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="Is a directory"):
        read_e820(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read_e820(tmp_path / "nothing")


def test_e820_file_without_an_end_is_refused_in_time():
    with pytest.raises(InputError, match="more than the 64 MiB that a log may have"):
        read_e820("/dev/zero")


def test_host_takes_texts_and_knows_its_map():
    host = Host(memory="2 TiB", superpages="1G")
    assert (host.memory, host.superpages) == (1 << 29, "1g")
    assert host.map == flat_e820(1 << 29) == (Ram(0, 2 << 40),)
    assert Host().map is None
    assert Host(memory=5, e820=MAP).map == MAP


def test_shadowed_dom0_gets_no_1g_leaf():
    assert Host().largest_leaf == "1g"
    assert Host(shadow=True).largest_leaf == "2m"
    assert Host(shadow=True, superpages="4k").largest_leaf == "4k"


def test_leaf_size_that_does_not_exist():
    with pytest.raises(UsageError, match="leaf size '4m': expected 4k, 2m or 1g"):
        Host(superpages="4M")
