# SPDX-License-Identifier: GPL-2.0-or-later
"""A report as HTML, for notebooks and for the page of `xenpt report`."""

from collections.abc import Iterable
from html import escape
from itertools import groupby

from xenpt.report import BAD, GOOD, NOTE, TITLE, Block, Line, Prose, Table

_CLASSES = {GOOD: "good", BAD: "bad", TITLE: "title", NOTE: "note"}


def as_html(report: Iterable[Block]) -> str:
    """The blocks as elements; lines that follow one another are one `<pre>`."""
    parts = []
    for kind, blocks in groupby(report, type):
        if kind is Line:
            lines = [line for line in blocks if isinstance(line, Line)]
            text = "\n".join(_styled(line.text, line.style) for line in lines).strip("\n")
            parts.append(f"<pre>{text}</pre>" if text else "")
        else:
            parts += [_block(block) for block in blocks]
    return "\n".join(filter(None, parts))


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return table_html(block)
    text = block.text if isinstance(block, Prose | Line) else ""
    return f"<p>{_styled(text, block.style)}</p>"


def _styled(text: str, style: str) -> str:
    name = _CLASSES.get(style)
    return f'<span class="{name}">{escape(text)}</span>' if name and text else escape(text)


def table_html(table: Table) -> str:
    """A `<table>`; cells of the columns behind the first `nr_left` have the class `number`."""
    styles = table.styles or [""] * len(table.rows)
    head = "".join(_cell("th", i, text, table) for i, text in enumerate(table.header))
    rows = "\n".join(
        f"<tr{_class(style)}>"
        + "".join(_cell("td", i, text, table) for i, text in enumerate(row))
        + "</tr>"
        for row, style in zip(table.rows, styles, strict=True)
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _class(style: str) -> str:
    return f' class="{_CLASSES[style]}"' if style in _CLASSES else ""


def _cell(tag: str, column: int, text: str, table: Table) -> str:
    side = "" if column < table.nr_left else ' class="number"'
    return f"<{tag}{side}>{escape(text)}</{tag}>"
