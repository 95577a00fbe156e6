# SPDX-License-Identifier: GPL-2.0-or-later
"""Budgets of hosts against what real Xen gave to dom0, and refused."""

import re
from dataclasses import replace

import goldendata
import pytest

from xenpt.capacity import capacity
from xenpt.inputs.config import Host, parse_e820
from xenpt.inputs.kernel import default_kernel
from xenpt.largest import largest_dom0
from xenpt.linux import V6_1
from xenpt.units import pages


def map_of(name, folder="oracle"):
    """The machine's map in a log."""
    return parse_e820(goldendata.log(name, folder).split("Linux version")[0].splitlines())


def test_dom0_that_gets_all_of_524_gib():
    found = capacity(Host(e820=map_of("m520g")), dom0_mem="520G,max:520G")
    rows = {row.name: row for row in found.rows}
    real = goldendata.facts("m520g")["dump"]["start_info"]["nr_pages"]
    assert rows["dom0"].pages == real == 136020943
    assert rows["left"].pages == 0
    # What is neither table is Xen's own, and known from this very boot alone: so far, no proof.
    assert rows["xen"].tag == "measured"
    predicted = found.nr_pages - rows["frame_table"].pages - rows["m2p"].pages
    assert 0 < predicted - real < 1500


def test_dom0_of_a_host_with_room_for_it():
    """m520g-full: 526 GiB, dom0_mem=520G is less than what there is."""
    found = capacity(Host(e820=map_of("m520g-full")), dom0_mem="520G,max:520G")
    real = goldendata.facts("m520g-full")["dump"]["start_info"]["nr_pages"]
    assert {row.name: row.pages for row in found.rows}["dom0"] == real == 136314880
    assert found.left > 0


def test_largest_dom0_without_the_note():
    name = "xen417_noINITP2M_nodom0mem_clipped_panic"
    host = Host(e820=map_of(name, "logs-large"))
    with_note, without = largest_dom0(default_kernel(), host, V6_1)
    assert (with_note.init_p2m, without.init_p2m) == (True, False)
    assert without.nr_pages == 124188160
    # Real Xen builds 473 GiB and refuses 474 (the two logs).
    assert "TOTAL:" in goldendata.log("xen417_noINITP2M_473G_ok", "logs-large")
    panic = "Not enough RAM for domain 0 allocation"
    assert panic in goldendata.log("xen417_noINITP2M_474G_panic", "logs-large")
    assert pages("473G") <= without.nr_pages < pages("474G")
    text = goldendata.log(name, "logs-large")
    assert f"Dom0 memory clipped to {without.default_pages} pages" in text
    assert (without.clipped, without.default_panic) == (True, panic)
    assert panic in text
    assert (with_note.clipped, with_note.default_panic) == (False, None)


def test_one_page_more_than_the_largest_is_refused():
    host = Host(memory="500G")
    kernel = replace(default_kernel(), init_p2m=None)
    (found,) = largest_dom0(kernel, host, V6_1)
    fits = capacity(host, kernel=kernel, dom0_mem=f"{found.nr_pages * 4}K")
    over = capacity(host, kernel=kernel, dom0_mem=f"{found.nr_pages * 4 + 4}K")
    assert fits.fits
    assert over.dom0.panic == "Not enough RAM for domain 0 allocation"


@pytest.mark.parametrize(
    "name", ["c1g", "m2g", "m4g", "m8g", "m32g", "m256g", "m520g-full", "c8g-relocate"]
)
def test_what_dom0_holds_is_what_linux_counts(name):
    """Its line `Memory: 1K/2K available (..., 3K reserved)`, printed when memblock hands over."""
    text = goldendata.log(name)
    size = goldendata.facts(name)["options"]["dom0_mem"].split(",")[0]
    found = capacity(Host(e820=map_of(name)), dom0_mem=f"{size},max:{size}").inside
    rows = {row.name: row.pages for row in found.rows}
    line = re.search(r"Memory: \d+K/(\d+)K available.* (\d+)K reserved", text)
    ram, reserved = (int(kib) // 4 for kib in line.groups())
    assert found.nr_pages - rows["unused"] == ram
    held = ram - rows["left"]
    hashes = re.findall(r"(?:Dentry|Inode)-?.* hash table entries: .* (\d+) bytes", text)
    swiotlb = 64 << 20  # IO_TLB_DEFAULT_SIZE
    others = (sum(map(int, hashes)) + swiotlb) >> 12
    # What is left is per-CPU areas and the like.
    assert 0 < reserved - held - others < 1000
