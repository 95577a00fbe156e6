# SPDX-License-Identifier: GPL-2.0-or-later
"""Explained logs, and the differences of two answers, in words."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from xenpt.differ import Change, show, show_delta
from xenpt.explain.findings import Check, End, Explained
from xenpt.output import printable
from xenpt.report import BAD, GOOD, NOTE, TITLE, WIDTH, Block, Line, Prose, Report, Table
from xenpt.units import counted

INDENT = " " * 11
MOST_LINES_NAMED = 20


def explained_report(boots: Sequence[Explained], name: str) -> Report:
    """Every boot of a log: inputs, lines that agree, lines that differ, how it ended."""
    report: Report = []
    for boot in boots:
        report += [
            Line(printable(f"{boot.title} (from line {boot.first_line})"), TITLE),
            *_inputs(boot),
            *_checks(boot.checks),
            *_ends(boot.ends),
            *(Prose(f"Note: {note}", NOTE, "      ") for note in boot.notes),
            _verdict(boot),
            Line(),
        ]
    if len(boots) == 1:
        return report[:-1]
    differing = sum(not boot.agrees for boot in boots)
    said = f"{len(boots)} boots in {name}, {differing} with differences."
    return [*report, Prose(said, BAD if differing else GOOD)]


def _inputs(boot: Explained) -> Report:
    rows = [
        (label, printable(text), ", ".join(map(str, lines)) or "usual")
        for label, (text, lines) in boot.inputs.items()
    ]
    return (
        [Table(("taken from the log", "value", "lines"), rows, nr_left=3), Line()] if rows else []
    )


def _checks(checks: Sequence[Check]) -> Iterator[Block]:
    """Lines that agree are told together if they are of one kind, others one by one."""
    for (what, agrees), group in groupby(checks, key=lambda check: (check.what, check.agrees)):
        alike = list(group)
        if not agrees:
            for check in alike:
                yield from _difference(check)
            continue
        first, last = alike[0].line, alike[-1].line
        numbers = f"{first}" if len(alike) == 1 else f"{first}-{last}"
        told = alike[0].log if len(alike) == 1 else f"{len(alike)} lines"
        result = "given" if all(check.given for check in alike) else "match"
        text = f" line {numbers:<9} {result}  {what}:"
        if len(text) + 1 + len(told) <= WIDTH:
            yield Line(printable(f"{text} {told}"), GOOD)
        else:
            yield from (Line(printable(text), GOOD), Line(printable(f"{INDENT}{told}"), GOOD))


def _difference(check: Check) -> Report:
    return [
        Line(printable(f" line {check.line:<9} DIFFERENCE  {check.what}"), BAD),
        Line(printable(f"{INDENT}log:   {check.log}"), BAD),
        Line(printable(f"{INDENT}model: {check.model}")),
        Prose(f"{INDENT}why:   {check.why}", "", INDENT + "       "),
    ]


def _ends(ends: Sequence[End]) -> Iterator[Block]:
    said = {True: "The model has it, too.", False: "NOT in the model.", None: "Not modelled."}
    for end in ends:
        style = BAD if end.predicted is False else TITLE
        yield Prose(f' line {end.line}  "{end.text}"', style, INDENT)
        yield Line(f"{INDENT}{said[end.predicted]}")
        for reason in end.why:
            yield Prose(f"{INDENT}Why: {reason}", "", INDENT + "     ")
        if end.fix:
            yield Prose(f" Fix: {end.fix}", GOOD, "      ")


def _verdict(boot: Explained) -> Prose:
    differing = boot.differences
    if differing:
        named = ", ".join(str(check.line) for check in differing[:MOST_LINES_NAMED])
        more = " ..." if len(differing) > MOST_LINES_NAMED else ""
        return Prose(f"Log and model differ in line {named}{more}.", BAD, "  ")
    if not boot.agrees:
        return Prose("Log and model differ in how it ended.", BAD)
    if not boot.checks and not boot.ends:
        return Prose("Nothing in it could be compared.", NOTE)
    compared = sum(not check.given for check in boot.checks)
    how = f"in {compared:,} lines" if compared != 1 else "in one line"
    ends = ", and in how it ended" if any(end.predicted for end in boot.ends) else ""
    return Prose(f"Log and model agree {how}{ends}.", GOOD)


def diff_report(kind: str, found: Sequence[Change], names: tuple[str, str]) -> Report:
    """What changed between two answers."""
    if not found:
        return [Prose(f"The two {kind}s are equal.", GOOD)]
    rows = [
        (
            printable(change.key),
            printable(show(change, change.before, present=change.only_in != "b")),
            printable(show(change, change.after, present=change.only_in != "a")),
            show_delta(change),
        )
        for change in found
    ]
    title = f"{kind}: {counted(len(rows), 'change')} from {names[0]} to {names[1]}"
    header = ("key", "before", "after", "change")
    return [Line(printable(title), TITLE), Table(header, rows)]
