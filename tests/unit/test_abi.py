# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of the interfaces that others are computed from, against those of the public headers."""

import pytest

from xenpt import abi


def test_slots_of_xen_are_those_of_the_public_header():
    assert (abi.XEN_SLOTS.start, abi.XEN_SLOTS.stop) == (256, 272)  # arch-x86/xen-x86_64.h


@pytest.mark.parametrize(
    "vaddr, expected",
    [
        (0, 0),
        (0x7FFF_FFFF_FFFF, 0x7FFF_FFFF_FFFF),
        (0x8000_0000_0000, 0xFFFF_8000_0000_0000),
        (0xFFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF),
        (0x1_0000_0000_0000, 0x1_0000_0000_0000_0000),  # the end of the address space
    ],
)
def test_an_address_of_48_bits_is_extended_by_its_sign(vaddr, expected):
    assert abi.canonical(vaddr) == expected
