# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables of real boots between Linux's stages, word for word.

setup: after xen_setup_kernel_pagetable(); pre, mid: before and after the free of the initial P->M
list; post: after xen_pagetable_init().
"""

from pathlib import Path

import pytest
from addressspaces import CASES, compare

MODEL = Path(__file__).resolve().parents[2] / "docs" / "model.md"
ROWS = {
    "setup": "| dom0 after xen_setup_kernel_pagetable |",
    "pre": "| dom0 before the free of the list |",
    "mid": "| dom0 after the free of the list |",
    "post": "| dom0 after xen_pagetable_init |",
}


@pytest.mark.parametrize("case, point", CASES)
def test_every_word_equals_the_dump(case, point):
    found = compare(case, point)
    assert found.differing[:5] == []
    assert found.words > 10_000


def test_enough_points_are_compared():
    assert {point for _, point in CASES} == {"setup", "pre", "mid", "post"}
    assert len(CASES) >= 18


@pytest.mark.parametrize("case, point", CASES)
def test_few_words_are_left_out(case, point):
    """One of the direct map; later another, three of the fixmap, and early_ioremap's table."""
    assert len(compare(case, point).left_out) <= (1 if point == "setup" else 5 + 512)


@pytest.mark.parametrize("point, row", ROWS.items())
def test_the_table_of_agreement_says_what_is_compared(point, row):
    """docs/model.md; python tools/agreement.py writes it."""
    [line] = [line for line in MODEL.read_text(encoding="utf-8").splitlines() if row in line]
    shown = [int(cell.replace(",", "")) for cell in line.split("|")[2:-1]]
    found = [compare(*one) for one in CASES if one[1] == point]
    assert shown == [
        len(found),
        sum(one.words for one in found),
        0,
        sum(len(one.left_out) for one in found),
    ]
