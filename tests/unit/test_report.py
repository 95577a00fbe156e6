# SPDX-License-Identifier: GPL-2.0-or-later
import io
import sys

import pytest

from xenpt.report import BAD, TITLE, Line, Prose, Table, coloured, plain, progress_bar

TABLE = Table(
    ("memory", "list", "tables"), [("64 GiB", "128 MiB", "3"), ("1 TiB", "2 GiB", "1,027")]
)


def test_plain_table_aligns_names_left_and_numbers_right():
    assert plain([Line("Cleanup:", TITLE), TABLE]) == (
        "Cleanup:\n"
        "  memory     list  tables\n"
        "  64 GiB  128 MiB       3\n"
        "  1 TiB     2 GiB   1,027\n"
    )


def test_table_that_is_too_wide_becomes_lists():
    assert [line.text for line in TABLE.lines(20)] == [
        "64 GiB", "  list: 128 MiB", "  tables: 3",
        "1 TiB", "  list: 2 GiB", "  tables: 1,027",
    ]  # fmt: skip


@pytest.mark.parametrize("width, nr_lines", [(25, 3), (24, 6)])
def test_table_is_a_table_exactly_where_it_fits(width, nr_lines):
    assert max(len(line.text) for line in TABLE.lines(99)) == 25
    assert len(list(TABLE.lines(width))) == nr_lines


def test_prose_is_wrapped_with_its_indent_and_made_printable():
    lines = list(Prose("a\x1b b" + " word" * 30, BAD, indent="    ").lines(96))
    assert lines[0].text.startswith("a\\x1b b word")
    assert len(lines) > 1
    assert all(len(line.text) <= 78 and line.style == BAD for line in lines)
    assert all(line.text.startswith("    word") for line in lines[1:])


def test_prose_is_no_wider_than_the_terminal():
    text = "sixteen columns of a sentence"
    assert [line.text for line in Prose(text).lines(16)] == ["sixteen columns", "of a sentence"]
    assert next(line.text for line in Prose(text).lines(1)) == "sixteen"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, report, **environment):
    """What a terminal gets; pytest's own standard output is set anew for each phase of a test."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Terminal())
    return coloured(report)


def test_terminal_gets_the_plain_text_in_colour(monkeypatch):
    text = shown(monkeypatch, [Line("Not enough RAM [bold]", BAD), Line("plain")])
    assert text == "\x1b[1;31mNot enough RAM [bold]\x1b[0m\nplain\n"


def test_no_color_is_respected(monkeypatch):
    report = [Line("Not enough RAM", BAD)]
    assert shown(monkeypatch, report, NO_COLOR="1") == "\x1b[1mNot enough RAM\x1b[0m\n"


def test_dumb_terminal_gets_plain_text(monkeypatch):
    report = [Line("Not enough RAM", BAD), TABLE]
    assert shown(monkeypatch, report, TERM="dumb") == plain(report)


def test_tiny_terminal_gets_lists_and_loses_nothing(monkeypatch):
    report = [TABLE, Line("a line of more than twelve columns")]
    lines = shown(monkeypatch, report, COLUMNS="12", NO_COLOR="1").splitlines()
    assert lines[:3] == ["\x1b[1m64 GiB\x1b[0m", "  list: 128 MiB", "  tables: 3"]
    assert lines[-1] == "a line of more than twelve columns"


@pytest.mark.parametrize("quiet, terminal, shown", [(0, 1, 1), (1, 1, 0), (0, 0, 0)])
def test_progress_is_shown_on_a_terminal_only(monkeypatch, quiet, terminal, shown):
    monkeypatch.setenv("TERM", "xterm")
    stderr = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress_bar("direct map", quiet=bool(quiet)) as progress:
        assert (progress is not None) == bool(shown)
        if progress is not None:
            progress(1, 2)
    assert ("direct map" in stderr.getvalue()) == bool(shown)
