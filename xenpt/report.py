# SPDX-License-Identifier: GPL-2.0-or-later
"""A report is a list of lines and tables; here it becomes text, plain or for a terminal.

Plain text is ASCII of at most 96 columns, to be pasted into a mail. A terminal gets the same
characters with some of them in colour; one that is too narrow for a table gets its rows as lists.
"""

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from xenpt.output import printable

WIDTH = 96
PROSE_WIDTH = 78  # as in a mail
GOOD, BAD, TITLE, NOTE = "green", "bold red", "bold", "dim"  # styles, as rich names them


@dataclass(frozen=True, slots=True)
class Line:
    """One line, in one style; `text` is not wrapped."""

    text: str = ""
    style: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of cells. The first `nr_left` columns are aligned to the left, the others right.

    :ivar styles: of each row; empty for none
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    nr_left: int = 1
    styles: Sequence[str] = ()

    @property
    def widths(self) -> list[int]:
        """Characters of each column."""
        return [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]

    def lines(self, width: int) -> Iterator[Line]:
        """The table in lines; as a list for each row if it is wider than `width`."""
        styles = self.styles or [""] * len(self.rows)
        if sum(self.widths) + 2 * len(self.widths) > width:
            for row, style in zip(self.rows, styles, strict=True):
                yield from self._as_list(row, style)
            return
        yield Line(self._as_row(self.header), TITLE)
        for row, style in zip(self.rows, styles, strict=True):
            yield Line(self._as_row(row), style)

    def _as_row(self, cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < self.nr_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, self.widths, strict=True))
        ]
        return ("  " + "  ".join(padded)).rstrip()

    def _as_list(self, row: Sequence[str], style: str) -> Iterator[Line]:
        yield Line(row[0], style or TITLE)
        for name, cell in zip(self.header[1:], row[1:], strict=True):
            yield Line(f"  {name}: {cell}", style)


@dataclass(frozen=True, slots=True)
class Prose:
    """Sentences, wrapped; lines after the first begin with `indent`."""

    text: str
    style: str = ""
    indent: str = ""

    def lines(self, width: int) -> Iterator[Line]:
        """The wrapped lines, of at most `width` columns where that leaves room for any text."""
        room = max(min(PROSE_WIDTH, width), len(self.indent) + 8)
        wrapper = textwrap.TextWrapper(room, subsequent_indent=self.indent, break_on_hyphens=False)
        for line in wrapper.wrap(printable(self.text)):
            yield Line(line, self.style)


Block = Line | Table | Prose
Report = list[Block]


def lines(report: Iterable[Block], width: int = WIDTH) -> Iterator[Line]:
    """All lines of a report; what a terminal would obey is an escape, wherever a text is from."""
    for block in report:
        for line in [block] if isinstance(block, Line) else block.lines(width):
            yield Line(printable(line.text), line.style)


def plain(report: Iterable[Block]) -> str:
    """The report as plain text."""
    return "".join(f"{line.text}\n" for line in lines(report))


def coloured(report: Iterable[Block]) -> str:
    """The report for the terminal that standard output is; colours as it and NO_COLOR allow."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    with console.capture() as captured:
        for line in lines(report, console.width):
            console.print(Text(line.text, line.style), soft_wrap=True)
    return captured.get()


@contextmanager
def progress_bar(text: str, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error if that is a terminal: call it with (done, all); else None."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, whole: bar.update(task, completed=done, total=whole)
