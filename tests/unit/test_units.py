# SPDX-License-Identifier: GPL-2.0-or-later
import warnings

import pytest

from xenpt.errors import UsageError
from xenpt.units import (
    SizeWarning,
    counted,
    format_address,
    format_pages,
    format_size,
    pages,
    parse_size,
    sizes,
)


@pytest.mark.parametrize(
    "text, nr_bytes",
    [
        ("600G", 644245094400),
        ("2TiB", 2199023255552),
        ("2 TiB", 2199023255552),
        ("1234567K", 1264196608),
        ("12T", 13194139533312),
        ("1P", 1125899906842624),
        ("4096B", 4096),
        ("1.5G", 1610612736),
        ("0.5k", 512),
        ("0x40000000", 1073741824),
        ("0xfB", 251),  # B is a digit here
        ("  64gib ", 68719476736),
    ],
)
def test_sizes_are_powers_of_two(text, nr_bytes):
    assert parse_size(text) == nr_bytes


@pytest.mark.parametrize("text, meant", [("600GB", "600GiB"), ("2 TB", "2TiB"), ("5kb", "5KiB")])
def test_decimal_units_are_taken_as_binary_with_a_one_line_warning(text, meant):
    with pytest.warns(SizeWarning) as caught:
        nr_bytes = parse_size(text)
    assert str(caught[0].message) == f"size {text!r} is taken as {meant.upper().replace('I', 'i')}"
    assert nr_bytes == parse_size(meant)


def test_binary_units_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_size("600GiB") == parse_size("600G")


@pytest.mark.parametrize(
    "text, message",
    [
        ("600", "size '600': unit missing, did you mean 600G?"),
        ("1.5", "size '1.5': unit missing, did you mean 1.5G?"),
        ("600X", "size '600X': expected something like 600G, 2TiB or 0x40000000"),
        ("", "size '': expected something like 600G, 2TiB or 0x40000000"),
        ("-5G", "size '-5G': expected something like 600G, 2TiB or 0x40000000"),
        ("G", "size 'G': expected something like 600G, 2TiB or 0x40000000"),
        ("1G2M", "size '1G2M': expected something like 600G, 2TiB or 0x40000000"),
        ("1_0G", "size '1_0G': expected something like 600G, 2TiB or 0x40000000"),
        ("0x10G", "size '0x10G': a hex size is in bytes and takes no unit"),
        ("1.0001K", "size '1.0001K': not a whole number of bytes"),
        ("16384P", "size '16384P': 2**64 bytes or more"),
        ("0x10000000000000000", "size '0x10000000000000000': 2**64 bytes or more"),
    ],
)
def test_what_is_no_size_is_refused_in_one_line(text, message):
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["9" * 5000 + "G", "1." + "0" * 5000 + "G", "0x" + "f" * 5000])
def test_a_row_of_digits_without_end_is_no_size(text):
    with pytest.raises(UsageError, match="expected something like 600G"):
        parse_size(text)


def test_pages_drop_a_remainder_as_xen_does():
    assert pages("1 TiB") == 268435456
    assert pages("8195B") == 2
    assert pages(8195) == 2


@pytest.mark.parametrize("size", ["0G", "4095B", 0])
def test_less_than_a_page_is_refused(size):
    with pytest.raises(UsageError, match="less than one page of 4 KiB"):
        pages(size)


def test_sizes_double_up_to_the_last():
    assert sizes("64 GiB", "512 GiB") == [1 << 24, 1 << 25, 1 << 26, 1 << 27]
    assert sizes("3G", "11G") == [786432, 1572864]
    assert sizes("2G", "1G") == []


@pytest.mark.parametrize(
    "nr_bytes, text",
    [
        (0, "0 B"), (96, "96 B"), (4096, "4 KiB"), (1 << 40, "1 TiB"),
        (2 << 40, "2 TiB"), (600 << 30, "600 GiB"), (1023 << 30, "1,023 GiB"),
        (3 << 60, "3,072 PiB"),
    ],
)  # fmt: skip
def test_format_size(nr_bytes, text):
    assert format_size(nr_bytes) == text


def test_format_pages_as_users_md_quotes_it():
    assert format_pages(124188160) == "473.74 GiB"
    assert format_pages(157286400) == "600 GiB"


def test_numbers_of_things():
    assert counted(1, "page") == "1 page"
    assert [counted(nr, "entry", "entries") for nr in (0, 2048)] == ["0 entries", "2,048 entries"]


def test_addresses_print_as_xen_prints_them():
    assert format_address(0x8000000000) == "0000008000000000"
    assert format_address(1 << 64) == "0000000000000000"
