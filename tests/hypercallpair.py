# SPDX-License-Identifier: GPL-2.0-or-later
"""The same hypercalls to xenpt.xen.checked and to the plain model of xenmodel.py, compared.

After every call both must have given the same answer and have the same references and types of
every frame; words are compared at the end of a run. What is used by
tests/property/test_rules_stateful.py and by tools/random_hypercalls.py.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from xenmodel import XenModel

from xenpt.abi import (
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_UNPIN_TABLE,
    PGC_ALLOCATED,
    PGC_COUNT_MASK,
    PGT_COUNT_MASK,
    PGT_PINNED,
    PGT_TYPE_MASK,
    PGT_VALIDATED,
)
from xenpt.errors import RefusedError
from xenpt.xen.adopt import ALLOCATED
from xenpt.xen.checked import CheckedMachine
from xenpt.xen.frames import FrameTable
from xenpt.xen.memory import Memory
from xenpt.xen.rules import PageTables

FIRST, END, TOP = 16, 40, 64  # the domain's frames; the end of host memory
IO, READ_ONLY = range(8, 10), range(9, 10)
MFNS = [
    *range(FIRST, END),
    5,
    8,
    9,
    45,
    TOP,
    (1 << 40) - 1,
]  # foreign, I/O, foreign, none, all ones
SLOTS = (0, 1, 2, 255, 256, 271, 272, 511)
#: What Linux uses, with and without each bit that decides something; and every bit that is refused.
FLAGS = (
    0, 0x1, 0x3, 0x5, 0x7, 0x21, 0x23, 0x25, 0x27, 0x61, 0x63, 0x65, 0x67, 0x2, 0x66,
    0x101, 0x127, 0x8 | 0x67, 0x10 | 0x67, 0x18 | 0x27, 0x80 | 0x67, 0x98 | 0x67, 0xE01,
    1 << 52 | 0x25, 1 << 52 | 0x27, 1 << 52 | 0x127, 1 << 63 | 0x63, 1 << 63 | 0x61, 1 << 62 | 0x27,
)  # fmt: skip
TYPES = {None: 0, 1: 1, 2: 2, 3: 3, 4: 4, "gdt": 5, "writable": 7}
CALLS = {
    "mmu_update": 12, "update_va_mapping": 4, "pin": 3, "unpin": 2, "new_baseptr": 1,
    "new_user_baseptr": 1, "clear_page": 1, "copy_page": 1, "set_gdt": 1, "store": 4,
}  # fmt: skip


class Pair:
    """The model and the machine, which get the same calls."""

    def __init__(self, *, privileged: bool) -> None:
        frames = FrameTable(TOP, [(IO.start, IO.stop)], [(READ_ONLY.start, READ_ONLY.stop)])
        frames.fill(FIRST, END, ALLOCATED, 0)
        self.machine = CheckedMachine(PageTables(frames, Memory(), iomem=privileged))
        self.model = XenModel(
            FIRST, END, io=IO, top=TOP, privileged=privileged, read_only=READ_ONLY
        )
        self.answers: list[tuple[str, int]] = []

    def call(self, name: str, *args: Any) -> None:
        expected = getattr(self.model, name)(*args)
        assert self.answer(name, *args) == expected, f"{name}{args}"
        self.answers.append((name, expected))

    def answer(self, name: str, *args: Any) -> int:
        machine = self.machine
        try:
            match name:
                case "mmu_update":
                    machine.mmu_update([args])
                case "pin":
                    machine.mmuext_op([(MMUEXT_PIN_L1_TABLE + args[0] - 1, args[1], 0)])
                case "unpin":
                    machine.mmuext_op([(MMUEXT_UNPIN_TABLE, args[0], 0)])
                case "new_baseptr":
                    machine.mmuext_op([(MMUEXT_NEW_BASEPTR, args[0], 0)])
                case "new_user_baseptr":
                    machine.mmuext_op([(MMUEXT_NEW_USER_BASEPTR, args[0], 0)])
                case "clear_page":
                    machine.mmuext_op([(MMUEXT_CLEAR_PAGE, args[0], 0)])
                case "copy_page":
                    machine.mmuext_op([(MMUEXT_COPY_PAGE, *args)])
                case "decrease_reservation":
                    return machine.decrease_reservation(*args)
                case _:
                    getattr(machine, name)(*args)
        except RefusedError as refused:
            return -refused.errno
        return 0

    def compare_frames(self) -> None:
        for mfn, frame in self.model.frames.items():
            count_info, x = self.machine.tables.frames.get(mfn)
            assert count_info & PGC_COUNT_MASK == frame.refs, f"references of {mfn}"
            assert bool(count_info & PGC_ALLOCATED) == (frame.allocated and frame.refs > 0)
            assert x & PGT_COUNT_MASK == frame.count, f"type references of {mfn}"
            if frame.count:
                assert (x & PGT_TYPE_MASK) >> 61 == TYPES[frame.type], f"type of {mfn}"
                assert bool(x & PGT_PINNED) == frame.pinned
                assert x & PGT_VALIDATED
        assert (self.machine.base, self.machine.user_base) == (
            self.model.base, self.model.user_base,
        )  # fmt: skip

    def compare_words(self) -> None:
        for mfn, words in self.model.words.items():
            ours = self.machine.tables.memory.words(mfn)
            nonzero = {slot: int(ours[slot]) for slot in np.flatnonzero(ours).tolist()}
            assert nonzero == {slot: word for slot, word in words.items() if word}, f"page {mfn}"
        assert self.machine.tables.m2p == self.model.m2p
        linear = {
            mfn: n for mfn, n in self.model.linear.items() if n and self.model.frames[mfn].count
        }
        assert {m: n for m, n in self.machine.tables.linear.items() if n} == linear

    def recount(self) -> None:
        """References that live tables, pins, roots and the GDT make; no history, no model."""
        refs = {
            mfn: int(bool(self.machine.tables.frames.get(mfn)[0] & PGC_ALLOCATED))
            for mfn in range(FIRST, END)
        }
        types = dict.fromkeys(refs, 0)
        held = [
            mfn for mfn in (self.machine.base, self.machine.user_base, *self.machine.gdt) if mfn
        ]
        for mfn in refs:
            count_info, x = self.machine.tables.frames.get(mfn)
            level = x >> 61 if x & PGT_COUNT_MASK and x >> 61 <= 4 else 0
            held += [mfn] if x & PGT_PINNED else []
            words = self.machine.tables.memory.words(mfn)
            for slot in np.flatnonzero(words & 1).tolist() if level else []:
                target = (int(words[slot]) & 0x000F_FFFF_FFFF_F000) >> 12
                if target not in refs or (level == 4 and 256 <= slot < 272):
                    continue
                if level > 1 and target != mfn:
                    held.append(target)
                elif level == 1:
                    refs[target] += 1
                    types[target] += bool(int(words[slot]) & 2)
        for mfn in held:
            refs[mfn] += 1
            types[mfn] += 1
        for mfn in refs:
            count_info, x = self.machine.tables.frames.get(mfn)
            assert (count_info & PGC_COUNT_MASK, x & PGT_COUNT_MASK) == (refs[mfn], types[mfn]), mfn


def address(slots: Sequence[int], *, canonical: bool = True) -> int:
    vaddr = sum(slot << shift for slot, shift in zip(slots, (39, 30, 21, 12), strict=True))
    return vaddr | (0xFFFF << 48 if canonical and slots[0] >= 256 else 0)


class RandomCalls:
    """Calls that mostly make sense: tables are given what a table of their level may hold."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pair = Pair(privileged=seed % 2 == 0)

    def of_level(self, *levels: int | str | None) -> int:
        frames = self.pair.model.frames
        found: list[int] = [
            m
            for m, f in frames.items()
            if f.refs and (f.type in levels if f.count else None in levels)
        ]
        return self.random.choice(found) if found and self.random.random() < 0.9 else self.any()

    def any(self) -> int:
        mfn: int = self.random.choice(MFNS)
        return mfn

    def word(self, level: int) -> int:
        r = self.random
        if r.random() < 0.25:
            return 0
        if level == 1:
            mfn = self.of_level(None, "writable", *((1, 2, 3, 4) if r.random() < 0.2 else ()))
            flags = r.choice((0x27, 0x25, 0x63, 0x61, 1 << 52 | 0x27, 1 << 52 | 0x25))
        else:
            mfn = self.of_level(
                level - 1,
                *((None,) if r.random() < 0.5 else ()),
                *((level,) if r.random() < 0.2 else ()),
            )
            flags = r.choice((0x67, 0x67, 0x27, 0x65))
        return mfn << 12 | (r.choice(FLAGS) if r.random() < 0.1 else flags)

    def step(self) -> None:
        r, pair = self.random, self.pair
        name = r.choices(list(CALLS), list(CALLS.values()))[0]
        slot = r.choice(SLOTS)
        level = r.choice((1, 1, 2, 3, 4))
        match name:
            case "mmu_update" | "store":
                kind = r.choice((level, level, None, "writable"))
                mfn = self.of_level(kind)
                if name == "mmu_update":
                    command = r.choice((0, 0, 0, 0, 0, 2, 3, 1, 4))
                    pair.call(name, mfn << 12 | slot << 3 | command, self.word(level))
                elif mfn in pair.model.frames:
                    pair.call(name, mfn, slot, self.word(level))
            case "update_va_mapping":
                pair.call(name, address(self.mapped_slots()), self.word(1))
            case "pin":
                pair.call(name, level, self.of_level(None, level))
            case "unpin":
                pair.call(name, self.of_level(1, 2, 3, 4))
            case "new_baseptr" | "new_user_baseptr":
                pair.call(name, self.of_level(None, 4))
            case "copy_page":
                pair.call(name, self.of_level(None, "writable"), self.any())
            case "set_gdt":
                pair.call(name, [self.of_level(None, "gdt") for _ in range(r.randrange(3))])
            case _:
                pair.call(name, self.of_level(None, "writable"))
        if r.random() < 0.0002:
            pair.call("decrease_reservation", [self.any() for _ in range(r.randrange(3))])

    def mapped_slots(self) -> list[int]:
        """Slots that lead to an L1 entry from the current root, where there is such a path."""
        slots, mfn = [], self.pair.model.base
        for _ in range(3):
            words = self.pair.model.words.get(mfn, {})
            held = [slot for slot, word in words.items() if word & 1]
            slots.append(self.random.choice(held or SLOTS))
            mfn = (words.get(slots[-1], 0) & 0x000F_FFFF_FFFF_F000) >> 12
        return [*slots, self.random.choice(SLOTS)]


CALLS_OF_A_RUN = 1000


def run(nr_calls: int, seed: int = 0) -> Counter[tuple[str, int]]:
    """At least `nr_calls` calls to fresh domains of 1000 calls each; answers by call and errno.

    :param seed: of the first domain; each next one has the next number
    :raises AssertionError: the two differ
    """
    answers: Counter[tuple[str, int]] = Counter()
    while answers.total() < nr_calls:
        calls = RandomCalls(seed)
        for _ in range(CALLS_OF_A_RUN):
            calls.step()
            calls.pair.compare_frames()
        calls.pair.compare_words()
        calls.pair.recount()
        answers.update(calls.pair.answers)
        seed += 1
    return answers
