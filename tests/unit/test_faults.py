# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults as texts: what --fault takes, and the one line for what it does not."""

import pytest

from xenpt.errors import UsageError
from xenpt.faults import (
    Conflict,
    Corrupted,
    Fragmented,
    Hole,
    Outcome,
    OutOfMemory,
    Refused,
    parse_fault,
    parse_faults,
)
from xenpt.linux import Stage

STAGES = [stage.value for stage in Stage]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("oom=xen:17", OutOfMemory("xen", 17)),
        ("oom=linux:0x10", OutOfMemory("linux", 16)),
        ("fragmented=8", Fragmented(8, 1)),
        ("fragmented=17:0", Fragmented(17, 0)),
        ("refuse=9", Refused(9)),
        ("refuse=memory_op:2", Refused(2, "memory_op")),
        ("refuse=p2m_free:1", Refused(1, "p2m_free")),
        ("corrupt=1:0xffffffff84a02000:^1", Corrupted(1, 0xFFFF_FFFF_84A0_2000, flip=1)),
        ("corrupt=4:0x8000000000:0", Corrupted(4, 0x80_0000_0000, word=0)),
        ("hole=0x20000", Hole(0x20000, 1)),
        ("hole=131072:512", Hole(0x20000, 512)),
        ("e820=list", Conflict("list")),
        ("e820=0x1000-0x3000", Conflict(None, 0x1000, 0x3000)),
    ],
)
def test_each_form_is_read_and_written_back(text, fault):
    assert parse_fault(text, STAGES) == fault
    assert parse_fault(str(fault), STAGES) == fault


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "one of oom, fragmented, refuse, corrupt, hole, e820"),
        ("ooom=xen:1", "one of oom, fragmented, refuse, corrupt, hole, e820"),
        ("oom", "oom=xen:N or oom=linux:N"),
        ("oom=xen", "oom=xen:N"),
        ("oom=xen:0", "oom=xen:N"),
        ("oom=qemu:1", "oom=xen:N"),
        ("oom=xen:1:2", "oom=xen:N"),
        ("fragmented=", r"fragmented=ORDER\[:LARGER\]"),
        ("fragmented=9:", r"fragmented=ORDER\[:LARGER\]"),
        ("refuse=0", r"refuse=\[TYPE:\|STAGE:\]N"),
        ("refuse=:3", r"refuse=\[TYPE:\|STAGE:\]N"),
        ("refuse=pin:3", r"refuse=\[TYPE:\|STAGE:\]N"),
        ("refuse=-3", r"refuse=\[TYPE:\|STAGE:\]N"),
        ("corrupt=0:0x1000:^1", "corrupt=LEVEL:VADDR"),
        ("corrupt=5:0x1000:^1", "corrupt=LEVEL:VADDR"),
        ("corrupt=1:0x1000:^64", "corrupt=LEVEL:VADDR"),
        ("corrupt=1:0x1000", "corrupt=LEVEL:VADDR"),
        ("corrupt=1:0x1000:^", "corrupt=LEVEL:VADDR"),
        ("corrupt=1:0x1000:1:2", "corrupt=LEVEL:VADDR"),
        ("hole=", r"hole=PFN\[:NR\]"),
        ("hole=1:0", r"hole=PFN\[:NR\]"),
        ("hole=0xfffffffffffffffff", r"hole=PFN\[:NR\]"),
        ("e820=stack", "e820=kernel"),
        ("e820=0x3000-0x1000", "e820=kernel"),
        ("e820=\u0661-\u0662", "e820=kernel"),  # digits that are not ASCII
    ],
)
def test_any_other_text_is_refused_with_the_form_that_is_expected(text, expected):
    with pytest.raises(UsageError, match=rf"^--fault .*: expected {expected}"):
        parse_fault(text, STAGES)


def test_faults_that_cannot_be_told_apart_are_refused():
    texts = ["oom=xen:1", "oom=linux:1", "hole=1", "hole=2", "corrupt=1:0:0", "corrupt=1:0:1"]
    assert len(parse_faults(texts, STAGES)) == 6
    for twice in ("oom=xen:2", "refuse=1"):
        with pytest.raises(UsageError, match=f"--fault {twice}: there is one such fault already"):
            parse_faults(["oom=xen:1", "refuse=4", twice], STAGES)


def test_what_came_of_a_fault_as_json():
    found = Outcome(Hole(1), "p2m_free", "leak", "one page")
    assert found.as_dict() == {
        "fault": "hole=0x1:1", "struck": True, "where": "p2m_free", "end": "leak",
        "text": "one page",
    }  # fmt: skip
    assert Outcome.none(Hole(1), "why").as_dict()["struck"] is False
