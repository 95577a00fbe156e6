# SPDX-License-Identifier: GPL-2.0-or-later
import numpy as np
import pytest

from xenpt.abi import INVALID_P2M_ENTRY, L1_PROT_DOM0, PTE_PSE
from xenpt.errors import MappingError
from xenpt.extents import make_runs
from xenpt.p2m import P2M

RW = L1_PROT_DOM0
#: Rows as a real dom0's: an ascending chunk, then single pages downwards, then another chunk.
ROWS = [[0, 1245184, 1, 32768], [32768, 1290535, -1, 8], [32776, 100, 1, 4]]


def test_p2m_and_its_inverse():
    p2m = P2M.from_rows(ROWS)
    assert p2m.nr_pages == 32780
    assert p2m.mfn([0, 32767, 32768, 32775, 32779]).tolist() == [
        1245184, 1277951, 1290535, 1290528, 103,
    ]  # fmt: skip
    pfns = np.arange(p2m.nr_pages)
    assert p2m.pfn(p2m.mfn(pfns)).tolist() == pfns.tolist()


def test_p2m_has_no_frame_outside_its_runs():
    p2m = P2M.from_rows([[0, 7, 1, 2], [10, 20, 1, 1]])
    assert p2m.mfn([2, 9, 11, INVALID_P2M_ENTRY]).tolist() == [INVALID_P2M_ENTRY] * 4
    assert p2m.pfn([6, 9, 21, INVALID_P2M_ENTRY]).tolist() == [INVALID_P2M_ENTRY] * 4


def test_p2m_from_list_finds_runs_and_holes():
    mfns = np.array([5, 6, INVALID_P2M_ENTRY, 3, 2, 1], np.uint64)
    p2m = P2M.from_list(mfns)
    assert p2m.nr_pages == 5
    assert p2m.mfn(np.arange(6)).tolist() == mfns.tolist()


def test_runs_are_cut_where_the_p2m_is_and_joined_where_it_goes_on():
    p2m = P2M.from_rows([[0, 100, 1, 10], [10, 110, 1, 10], [20, 50, -1, 5]])
    runs = make_runs([(0, 5, 18, 1, 1, RW)])
    assert p2m.to_mfn(runs).tolist() == [(0, 105, 15, 1, 1, RW), (15, 50, 3, -1, 1, RW)]
    assert p2m.to_pfn(p2m.to_mfn(runs)).tolist() == runs.tolist()


def test_a_superpage_needs_contiguous_frames():
    leaf = make_runs([(0, 8, 1, 512, 2, RW | PTE_PSE)])
    assert P2M.from_rows([[0, 40, 1, 100], [100, 140, 1, 900]]).to_mfn(leaf)["pfn"].tolist() == [48]
    with pytest.raises(MappingError, match="not contiguous"):
        P2M.from_rows([[0, 40, 1, 100], [100, 141, 1, 900]]).to_mfn(leaf)


def test_a_leaf_of_a_page_without_frame_is_refused():
    with pytest.raises(MappingError, match="vpn 0x7"):
        P2M.linear(10, 0).to_mfn(make_runs([(7, 9, 2, 1, 1, RW)]))


def test_mfn_ranges_follow_the_p2m():
    p2m = P2M.from_rows([[0, 100, 1, 10], [10, 59, -1, 10], [30, 110, 1, 5]])
    assert p2m.mfn_ranges([(8, 12), (29, 31)]).tolist() == [[58, 60], [108, 111]]


@pytest.mark.parametrize(
    "rows, reason",
    [
        ([[0, 5, 1, 4], [4, 8, 1, 1]], "mfn 0x8 is in the P->M list twice"),
        ([[4, 5, 1, 4], [0, 50, 1, 1]], "not sorted"),
        ([[0, 5, 2, 4]], "step"),
        ([[0, 2, -1, 4]], "below mfn 0"),
    ],
)
def test_p2m_that_is_no_permutation_is_refused(rows, reason):
    with pytest.raises(MappingError, match=reason):
        P2M.from_rows(rows)
