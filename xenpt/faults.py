# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults that a plan or a boot can be given: what goes wrong, and what came of it.

A `Fault` says what fails and nothing of how that ends: Xen's builder, Linux's stages and their
allocators meet it where the real ones would. docs/model.md, "Faults", says what each ends as.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from xenpt.abi import PAGE_SHIFT, WORD
from xenpt.cost import HYPERCALL_TYPES
from xenpt.errors import UsageError

PLACES: Final = ("kernel", "start_info", "tables", "list", "initrd")
PANIC, FALLBACK, LEAK, UNNOTICED = "panic", "fallback", "leak", "unnoticed"


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """From the `nth` request for memory on, none is served.

    :ivar who: "xen" for what the domain's builder asks of Xen, "linux" for what the stages ask of
        memblock
    """

    who: str
    nth: int

    def __str__(self) -> str:
        return f"oom={self.who}:{self.nth}"


@dataclass(frozen=True, slots=True)
class Fragmented:
    """The host has `larger` free blocks of more than 2**`order` pages, and no more."""

    order: int
    larger: int = 1

    def __str__(self) -> str:
        return f"fragmented={self.order}:{self.larger}"


@dataclass(frozen=True, slots=True)
class Refused:
    """Xen refuses the `nth` hypercall with -EINVAL; those of a multicall count, too.

    :ivar where: a type or a stage of which they are counted; None: all of the boot's
    """

    nth: int
    where: str | None = None

    def __str__(self) -> str:
        return f"refuse={self.nth}" if self.where is None else f"refuse={self.where}:{self.nth}"


@dataclass(frozen=True, slots=True)
class Corrupted:
    """A page-table entry is not what the builder wrote.

    :ivar level: of its table, 1 to 4
    :ivar vaddr: any address that it maps
    :ivar flip: bit that is flipped, or None where `word` is put in its place
    """

    level: int
    vaddr: int
    flip: int | None = None
    word: int | None = None

    def __str__(self) -> str:
        change = f"{self.word:#x}" if self.flip is None else f"^{self.flip}"
        return f"corrupt={self.level}:{self.vaddr:#x}:{change}"


@dataclass(frozen=True, slots=True)
class Hole:
    """The P->M list has INVALID_P2M_ENTRY for the pfns [pfn, pfn + nr)."""

    pfn: int
    nr: int = 1

    def __str__(self) -> str:
        return f"hole={self.pfn:#x}:{self.nr}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """The domain's e820 map has no RAM where something of the domain is.

    :ivar place: one of `PLACES`, or None for the bytes [start, end)
    """

    place: str | None = None
    start: int = 0
    end: int = 0

    def __str__(self) -> str:
        return f"e820={self.place or f'{self.start:#x}-{self.end:#x}'}"


Fault = OutOfMemory | Fragmented | Refused | Corrupted | Hole | Conflict
AnyFault = TypeVar("AnyFault", bound=Fault)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a fault.

    :ivar where: stage that it struck in, "build" for the builder; None: it did not strike
    :ivar end: PANIC, FALLBACK, LEAK or UNNOTICED; None: it did not strike
    :ivar text: the same in words; a panic's begins with the text of whoever gave up
    """

    fault: Fault
    where: str | None
    end: str | None
    text: str

    @classmethod
    def none(cls, fault: Fault, text: str) -> "Outcome":
        """The fault did not strike; `text` says why."""
        return cls(fault, None, None, text)

    def as_dict(self) -> dict[str, Any]:
        """One element of `faults` of a JSON object."""
        return {
            "fault": str(self.fault),
            "struck": self.where is not None,
            "where": self.where,
            "end": self.end,
            "text": self.text,
        }


def is_of_host(fault: Fault) -> bool:
    """Whether it is about the memory of whoever builds the domain, and so a matter of its host."""
    return isinstance(fault, Fragmented) or (isinstance(fault, OutOfMemory) and fault.who == "xen")


def of_kind(faults: Iterable[Fault], kind: type[AnyFault]) -> list[AnyFault]:
    """The faults of one class, in order."""
    return [fault for fault in faults if isinstance(fault, kind)]


# --- Texts -> faults ------------------------------------------------------------------------------

GRAMMAR: Final = {
    "oom": "oom=xen:N or oom=linux:N",
    "fragmented": "fragmented=ORDER[:LARGER]",
    "refuse": "refuse=[TYPE:|STAGE:]N",
    "corrupt": "corrupt=LEVEL:VADDR:^BIT or corrupt=LEVEL:VADDR:WORD",
    "hole": "hole=PFN[:NR]",
    "e820": f"e820={'|'.join(PLACES)} or e820=START-END",
}


def parse_faults(texts: Iterable[str], stages: Iterable[str]) -> tuple[Fault, ...]:
    """The faults that `--fault` options name.

    :param stages: names of the stages that a `refuse` may be about
    :raises UsageError: a text that is none, or two faults that cannot be told apart
    """
    faults = tuple(parse_fault(text, stages) for text in texts)
    for kind, key in ((OutOfMemory, "who"), (Fragmented, None), (Refused, None), (Conflict, None)):
        seen = [getattr(f, key) if key else kind for f in of_kind(faults, kind)]
        if len(seen) > len(set(seen)):
            text = str(next(f for f in reversed(faults) if isinstance(f, kind)))
            raise UsageError(f"--fault {text}: there is one such fault already")
    return faults


def parse_fault(text: str, stages: Iterable[str]) -> Fault:
    """One fault.

    :raises UsageError: not of the form that `GRAMMAR` gives
    """
    kind, _, rest = text.partition("=")
    if kind not in _PARSERS:
        raise UsageError(f"--fault {text}: expected one of {', '.join(GRAMMAR)} and =...")
    fault = _PARSERS[kind](rest, tuple(stages))
    if fault is None:
        raise UsageError(f"--fault {text}: expected {GRAMMAR[kind]}")
    return fault


def _oom(text: str, _: tuple[str, ...]) -> Fault | None:
    who, count = (*text.split(":", 1), "")[:2]
    nth = _number(count)
    return OutOfMemory(who, nth) if who in ("xen", "linux") and nth else None


def _fragmented(text: str, _: tuple[str, ...]) -> Fault | None:
    order, colon, count = text.partition(":")
    numbers = _number(order), _number(count) if colon else 1
    if numbers[0] is None or numbers[1] is None:
        return None
    return Fragmented(numbers[0], numbers[1])


def _refuse(text: str, stages: tuple[str, ...]) -> Fault | None:
    where, colon, count = text.rpartition(":")
    nth = _number(count)
    if not nth or (colon and where not in (*HYPERCALL_TYPES, *stages)):
        return None
    return Refused(nth, where if colon else None)


def _corrupt(text: str, _: tuple[str, ...]) -> Fault | None:
    level, vaddr, change = (*text.split(":"), "", "", "")[:3]
    numbers = _number(level), _number(vaddr)
    if text.count(":") != 2 or numbers[0] not in (1, 2, 3, 4) or numbers[1] is None:
        return None
    bit = _number(change[1:]) if change.startswith("^") else None
    if bit is not None and bit < 64:
        return Corrupted(numbers[0], numbers[1], flip=bit)
    word = _number(change)
    return None if word is None else Corrupted(numbers[0], numbers[1], word=word)


def _hole(text: str, _: tuple[str, ...]) -> Fault | None:
    pfn, colon, count = text.partition(":")
    numbers = _number(pfn), _number(count) if colon else 1
    if numbers[0] is None or not numbers[1] or numbers[0] >> (64 - PAGE_SHIFT):
        return None
    return Hole(numbers[0], numbers[1])


def _e820(text: str, _: tuple[str, ...]) -> Fault | None:
    if text in PLACES:
        return Conflict(text)
    first, last = (*text.split("-", 1), "")[:2]
    start, end = _number(first), _number(last)
    return Conflict(None, start, end) if start is not None and end and start < end else None


def _number(text: str) -> int | None:
    """A number as C writes it, decimal or with 0x, of at most 64 bits; None if it is none."""
    if not re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}", text, re.ASCII):
        return None
    value = int(text, 16 if text[:2] in ("0x", "0X") else 10)
    return value if value < WORD else None


_PARSERS: Final[dict[str, Callable[[str, tuple[str, ...]], Fault | None]]] = {
    "oom": _oom, "fragmented": _fragmented, "refuse": _refuse, "corrupt": _corrupt, "hole": _hole,
    "e820": _e820,
}  # fmt: skip
