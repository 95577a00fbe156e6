# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables of real boots between Linux's stages, word for word.

setup: after xen_setup_kernel_pagetable(); pre, mid: before and after the free of the initial P->M
list; post: after xen_pagetable_init().
"""

import pytest
from addressspaces import CASES, compare


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
