# SPDX-License-Identifier: GPL-2.0-or-later
"""The notebooks of examples/ are run cell by cell, and what they show is shown, as Jupyter does."""

import ast
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))
CELL = re.compile(r"^# %%(.*)$", flags=re.MULTILINE)


def code_cells(path):
    """The code of each cell that is not markdown, on its own lines of the file."""
    text = path.read_text(encoding="utf-8")
    marks = list(CELL.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=True):
        if "[markdown]" not in mark[1]:
            yield "\n" * text.count("\n", 0, mark.end()) + text[mark.end() : end]


def run(path):
    """The value that each cell ends with, if it ends with an expression."""
    names, values = {"__name__": "notebook"}, []
    for cell in code_cells(path):
        tree = ast.parse(cell, str(path))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(path), "exec"), names)
        if last is not None:
            values.append(eval(compile(ast.Expression(last.value), str(path), "eval"), names))
    return values


def test_there_are_two():
    assert [path.name for path in NOTEBOOKS] == ["boot_and_host.py", "cleanup_cost.py"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_tables_and_pictures(path):
    values = run(path)
    tables = [value._repr_html_() for value in values if hasattr(value, "_repr_html_")]
    pictures = [value._repr_svg_() for value in values if hasattr(value, "_repr_svg_")]
    assert len(tables) >= 2
    assert len(pictures) >= 2
    assert all("<table>" in table or "<pre>" in table for table in tables)
    assert all("<svg" in picture for picture in pictures)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_in_the_percent_format(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: GPL-2.0-or-later\n# ---\n# jupyter:\n")
    assert "# %% [markdown]" in text
