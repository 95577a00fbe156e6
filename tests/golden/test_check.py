# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's rules on built domains and on dumps of real ones: none is broken, each breach is found."""

import goldendata
import numpy as np
import pytest
from domucases import domu_plan
from goldenmachine import domu_p2m, host_of
from goldenplan import entry_plan

from xenpt.abi import PAGE_SHIFT, PTE_MFN_MASK, PTE_PRESENT, PTE_RW
from xenpt.image import PageTableImage
from xenpt.p2m import P2M
from xenpt.xen.audit import check_image
from xenpt.xen.dom0 import build
from xenpt.xen.domu import build_domu

DOM0 = goldendata.cases("oracle", dump="entry")
DOMU = [case for case in goldendata.cases("domu", dump="entry") if not case.startswith("pae")]
#: The dump has the list's first nr_pages entries only, but the list has a hole and goes on.
LIST_CUT = ("s-vnuma-hole",)
#: Dumps whose tables are all there; c8g-relocate's leave out the direct map.
BOOTED = [
    (case, point)
    for point in ("setup", "pre", "mid", "post")
    for case in goldendata.cases("oracle", dump=point)
    if "entry_p2m_runs" in goldendata.arrays(case)
    and (case, point) not in (("c8g-relocate", "pre"), ("c8g-relocate", "mid"))
]


def dom0_p2m(case):
    return P2M.from_rows(goldendata.arrays(case)["entry_p2m_runs"].astype(np.int64))


def image_of(arrays, point):
    return PageTableImage(
        arrays[f"{point}_pages"].copy(),
        arrays[f"{point}_mfn"],
        arrays[f"{point}_level"],
        arrays[f"{point}_va"],
    )


def dom0_check(case, point):
    """The image of a dump, and a function that checks it as that domain's."""
    arrays, facts = goldendata.arrays(case), goldendata.facts(case)
    start_info = facts["dump"]["start_info"]
    listed = start_info["mfn_list"], start_info["mfn_list"] + 8 * start_info["nr_pages"]
    shared_info = start_info["shared_info"] >> PAGE_SHIFT
    _, io = host_of(case)
    p2m, image = dom0_p2m(case), image_of(arrays, point)
    return image, lambda: check_image(
        image,
        p2m,
        other=[*io, (shared_info, shared_info + 1)],
        superpages=[(listed[0] >> PAGE_SHIFT, -(-listed[1] >> PAGE_SHIFT))],
    )


def domu_check(case, point):
    """As dom0_check(); 32-bit tables stay as the toolstack writes them."""
    image = image_of(goldendata.arrays(case, "domu"), point)
    p2m = domu_p2m(case)
    return image, lambda: check_image(image, p2m, adjusted=point == "entry")


def table_mappings(image):
    """(row, slot, vaddr) of each leaf that maps a table page."""
    tables = set(image.mfn.tolist())
    for row in image.tables(1).tolist():
        words = image.pages[row]
        mfns = (words & np.uint64(PTE_MFN_MASK)) >> np.uint64(PAGE_SHIFT)
        for slot in np.flatnonzero(words & PTE_PRESENT).tolist():
            if int(mfns[slot]) in tables:
                yield row, slot, int(image.vaddr[row]) + (slot << PAGE_SHIFT)


@pytest.mark.parametrize("case", DOM0)
def test_a_built_dom0_breaks_no_rule(case):
    build(entry_plan(case), p2m=dom0_p2m(case)).check()


@pytest.mark.parametrize(
    "case",
    [c for c in goldendata.cases("domu", dump="prepin") if c not in LIST_CUT and "b-xen" not in c],
)
@pytest.mark.parametrize("pinned", [False, True])
def test_a_built_guest_of_the_toolstack_breaks_no_rule(case, pinned):
    build_domu(domu_plan(case), p2m=domu_p2m(case), pinned=pinned).check()


@pytest.mark.parametrize("pinned, rule", [(False, "Xen's slots"), (True, "list frames")])
def test_a_list_in_xens_slots_is_found_though_the_toolstack_builds_it(pinned, rule):
    """SPEC C12; the pin then puts Xen's own tables there."""
    domain = build_domu(domu_plan("b-xen"), p2m=domu_p2m("b-xen"), pinned=pinned)
    assert rule in {violation.rule for violation in domain.violations()}


@pytest.mark.parametrize("case", DOM0)
def test_a_real_dom0_breaks_no_rule_at_its_entry(case):
    assert dom0_check(case, "entry")[1]() == []


@pytest.mark.parametrize("case, point", BOOTED)
def test_a_real_dom0_breaks_no_rule_while_linux_boots(case, point):
    assert dom0_check(case, point)[1]() == []


@pytest.mark.parametrize("case", DOMU)
def test_a_real_guest_of_the_toolstack_breaks_no_rule(case):
    assert domu_check(case, "entry")[1]() == []


@pytest.mark.parametrize("case", DOM0)
def test_each_single_writable_mapping_of_a_table_page_is_found(case):
    image, check = dom0_check(case, "entry")
    mappings = list(table_mappings(image))
    assert len(mappings) == goldendata.facts(case)["dump"]["start_info"]["nr_pt_frames"]
    for row, slot, vaddr in mappings:
        image.pages[row, slot] |= PTE_RW
        (violation,) = check()
        assert violation.rule == "writable page table"
        assert (violation.vaddr, violation.entry) == (vaddr, int(image.pages[row, slot]))
        image.pages[row, slot] &= ~np.uint64(PTE_RW)


@pytest.mark.parametrize(
    "of, case, point",
    [
        *((domu_check, case, "entry") for case in DOMU),
        *((domu_check, case, "prepin") for case in goldendata.cases("domu", dump="prepin")),
        *((dom0_check, case, point) for case, point in BOOTED),
    ],
)
def test_all_writable_mappings_of_table_pages_are_found_each_by_its_address(of, case, point):
    """While Linux boots, its kernel's mapping and its direct map share Xen's L1 tables: entries of
    these are found at both addresses.
    """
    image, check = of(case, point)
    mappings = list(table_mappings(image))
    assert mappings
    for row, slot, _ in mappings:
        image.pages[row, slot] |= PTE_RW
    found = check()
    assert {violation.rule for violation in found} == {"writable page table"}
    assert {violation.entry for violation in found} == {
        int(image.pages[row, slot]) for row, slot, _ in mappings
    }
    at, expected = {violation.vaddr for violation in found}, {vaddr for _, _, vaddr in mappings}
    if point in ("entry", "prepin"):
        assert (at, len(found)) == (expected, len(mappings))
    else:
        assert at > expected
