# SPDX-License-Identifier: GPL-2.0-or-later
"""Counters of the plugin, and where stages begin and end; no boot."""

import numpy as np
import pytest
from calibration import FITTED, PARTS, PREDICTED, non_negative_least_squares
from oracle.counting import CALIBRATION, COUNTS, HELD_OUT, KINDS, STOPS, difference

from xenpt.linux import Stage
from xenpt.timing import OPERATIONS


def counters(guest=0, steps=(0, 0), pending=0, **kinds):
    """struct counts with (instructions, entries) of some kinds."""
    found = np.zeros(1, COUNTS)[0]
    found["guest"], found["guest_steps"], found["xen_steps"] = guest, *steps
    found["pending"] = pending
    for kind, (instructions, entries) in kinds.items():
        found["xen"][KINDS.index(kind)] = instructions
        found["entries"][KINDS.index(kind)] = entries
    return found


def test_a_stage_is_what_was_counted_in_it():
    before = counters(100, (1, 2), mmu_update=(50, 1), other=(7, 1))
    after = counters(130, (5, 9), mmu_update=(90, 3), other=(7, 1), multicall=(8, 1))
    found = difference(before, after)
    assert (found["linux"], found["string_steps"]) == (30, 11)
    assert found["xen"] == dict.fromkeys(KINDS, 0) | {"mmu_update": 40, "multicall": 8}
    assert found["entries"] == dict.fromkeys(KINDS, 0) | {"mmu_update": 2, "multicall": 1}


def test_xen_at_work_without_a_guest_is_other():
    found = difference(counters(pending=1000), counters(pending=5000))
    assert found["xen"]["other"] == 4000


def test_stops_are_the_stages_in_their_order():
    assert [stop.begins for stop in STOPS if stop.begins] == [stage.value for stage in Stage]


def test_cases_are_those_that_the_constants_rest_on():
    assert tuple(case.name for case in CALIBRATION) == FITTED
    assert tuple(case.name for case in HELD_OUT) == PREDICTED


def test_each_operation_has_a_part_somewhere():
    assert {name for names in PARTS.values() for name in names} == set(OPERATIONS)
    assert set(PARTS) - {"linux", "build"} <= set(KINDS)


def test_fit_finds_what_there_is_and_nothing_below_zero():
    matrix = np.array([[1, 0, 2], [1, 1, 0], [1, 5, 1], [1, 2, 9]], float)
    assert non_negative_least_squares(matrix, matrix @ [3, 0.5, 7]) == pytest.approx([3, 0.5, 7])
    found = non_negative_least_squares(matrix, matrix @ [3, -0.5, 7])
    assert found[1] == 0
    assert found.min() >= 0
