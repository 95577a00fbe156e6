# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes out when a log is held against the model: checks of lines, and how a boot ended."""

from dataclasses import dataclass, field
from typing import Any

from xenpt.inputs.bootlog import Fact

#: Values of one input that are tried; a log that was not made up has two or three.
MAX_CANDIDATES = 8


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the log against what the model says in its place.

    :ivar line: its number in the file
    :ivar what: what the line is about
    :ivar log: what it says; None for a line that the model expects and the log lacks
    :ivar model: what the model says
    :ivar given: nothing else in the log says it, so that it was taken as an input
    :ivar why: where the model has it from
    """

    line: int
    what: str
    log: str
    model: str
    given: bool = False
    why: str = ""

    @property
    def agrees(self) -> bool:
        """The log says what the model says."""
        return self.log == self.model

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `result` is match, given or difference."""
        result = "difference" if not self.agrees else "given" if self.given else "match"
        return {
            "line": self.line,
            "what": self.what,
            "result": result,
            "log": self.log,
            "model": self.model,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class End:
    """How a boot ended, as far as memory has to do with it.

    :ivar line: number of the line that says so
    :ivar text: what it says
    :ivar predicted: the model says so, too; None where it cannot know
    :ivar why: reasons, one sentence each, with the arithmetic
    :ivar fix: what helps; empty if nothing is known
    :ivar nr_pages: the size nearest to what was asked for with which the model builds
    """

    line: int
    text: str
    predicted: bool | None
    why: tuple[str, ...]
    fix: str = ""
    nr_pages: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "line": self.line,
            "text": self.text,
            "predicted": self.predicted,
            "why": list(self.why),
            "fix": self.fix or None,
            "nr_pages": self.nr_pages,
        }


@dataclass(frozen=True, slots=True)
class Explained:
    """One boot, explained.

    :ivar title: what booted what
    :ivar inputs: what the model was given, and which lines say so: name -> (text, lines)
    :ivar checks: in the order of the log
    :ivar ends: panics and the like
    :ivar notes: what could not be compared, and why
    """

    first_line: int
    title: str
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    checks: tuple[Check, ...]
    ends: tuple[End, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def differences(self) -> list[Check]:
        """Checks that do not agree."""
        return [check for check in self.checks if not check.agrees]

    @property
    def agrees(self) -> bool:
        """Log and model agree in every line, and in how it ended."""
        return not self.differences and all(end.predicted is not False for end in self.ends)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "first_line": self.first_line,
            "title": self.title,
            "agrees": self.agrees,
            "inputs": {
                name: {"value": text, "lines": list(lines)}
                for name, (text, lines) in self.inputs.items()
            },
            "checks": [check.as_dict() for check in self.checks],
            "ends": [end.as_dict() for end in self.ends],
            "notes": list(self.notes),
        }


@dataclass(slots=True)
class Evidence:
    """Values for one input, in the order in which they are trusted, and the lines that say so.

    Line 0 stands for what is usual.
    """

    candidates: dict[Any, list[int]] = field(default_factory=dict)

    def add(self, value: Any, fact: Fact | None) -> None:
        """A line gives this value; without a line it is the usual one."""
        if value in self.candidates or len(self.candidates) < MAX_CANDIDATES:
            self.candidates.setdefault(value, []).append(fact.line if fact else 0)

    @property
    def values(self) -> list[Any]:
        """The distinct values, the most trusted first."""
        return list(self.candidates)

    def lines(self, value: Any) -> tuple[int, ...]:
        """Numbers of the lines that give this value."""
        return tuple(self.candidates.get(value, ()))


def span(start: int, end: int) -> str:
    """A half-open range as Xen prints it."""
    return f"{start % (1 << 64):016x}->{end % (1 << 64):016x}"


def region(start: int, end: int) -> str:
    """A half-open range as Linux prints it, last byte included."""
    return f"[{start:#018x}-{end - 1:#018x}]"
