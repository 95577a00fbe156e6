# SPDX-License-Identifier: GPL-2.0-or-later
"""Data flows one way: a module imports only from rows above its own (see CONTRIBUTING.md).

The rows are stated here once more on purpose: moving a module to another row is a decision, and
this test is where it is made.
"""

import ast
import re
import sys
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "xenpt"
# fmt: off
ROWS = (
    ("errors", "abi", "units", "cost", "provenance", "output", "room", "shown"),
    ("_core", "_reference"),
    ("inputs", "inputs.*", "faults"),
    (
        "plan", "arrangement", "layout", "listshape", "dom0size", "eras", "panics", "heaprequests",
        "builderfaults", "domuplan", "domulayout", "domutables", "domueras",
    ),
    ("extents", "p2m", "image", "engine", "stream"),
    ("xen", "xen.*"),
    ("linux", "linux.*"),
    (
        "scenario", "sweeprow", "sweeptable", "sweeps", "journal", "cluster", "explain",
        "explain.*", "differ", "vendors", "limits", "budget", "capacity", "fleet", "largest",
        "timing", "boottime", "measured", "occupancy", "tracing",
    ),
    ("",),  # xenpt/__init__.py: the names that a user imports
    (
        "report", "texts", "boottexts", "sweeptexts", "capacitytexts", "logtexts", "htmltext",
        "notebook", "pictures", "pictures.*", "answers", "sweepcommand", "capacitycommand",
        "reportcommand", "asked", "faultoptions", "filesbeside", "commandline", "capacityoptions",
        "pictureoptions", "cli", "__main__",
    ),
)
# fmt: on
PRINTING_ROWS = {9}
CORE_DEPENDENCIES = {"numpy", "rich"}


def row_of(module: str) -> int:
    """Row of a module, named without its leading ``xenpt.``; the package itself is ''."""
    for row, patterns in enumerate(ROWS):
        if any(fnmatchcase(module, pattern) for pattern in patterns):
            return row
    raise AssertionError(f"xenpt.{module} is in no row: give it one here and in CONTRIBUTING.md")


def sources() -> dict[str, Path]:
    """Every module of the package by its name without ``xenpt.``."""
    found = {}
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyx")]:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()
PYTHON_SOURCES = {module: path for module, path in SOURCES.items() if path.suffix == ".py"}


def imported(module: str, tree: ast.AST) -> set[str]:
    """Absolute names of all that `tree`, code of `module`, imports: modules, or names in them."""
    package = ["xenpt", *filter(None, module.split("."))]
    if SOURCES[module].stem != "__init__":
        package.pop()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            names |= {f"{start}.{alias.name}" for alias in node.names}
    return names


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(PYTHON_SOURCES[module].read_text(encoding="utf-8"))


@cache
def own_imports(module: str) -> set[str]:
    """Modules of xenpt that `module` imports: the longest part of each name that is one."""
    found = set()
    for name in imported(module, parsed(module)):
        root, *parts = name.split(".")
        while root == "xenpt" and ".".join(parts) not in SOURCES:
            parts.pop()
        if root == "xenpt":
            found.add(".".join(parts))
    return found - {module}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_every_module_has_a_row(module):
    row_of(module)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_contributing_says_what_a_module_is_for(module):
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:xenpt/)?([\w./]+)`", text))
    first, *rest = SOURCES[module].relative_to(PACKAGE).parts
    assert (f"{first}/" if rest else first) in named


@pytest.mark.parametrize("module", sorted(PYTHON_SOURCES))
def test_module_imports_only_from_rows_above_or_its_own(module):
    below = {name for name in own_imports(module) if row_of(name) > row_of(module)}
    assert not below, f"xenpt.{module} (row {row_of(module)}) imports from below: {sorted(below)}"


def test_no_modules_import_each_other_in_a_ring():
    graph = {module: own_imports(module) for module in PYTHON_SOURCES}
    while leaves := {module for module, needs in graph.items() if not needs & graph.keys()}:
        for module in leaves:
            del graph[module]
    assert not graph, f"modules in a ring, or above one: {sorted(graph)}"


@pytest.mark.parametrize("module", sorted(PYTHON_SOURCES))
def test_only_numpy_and_rich_are_imported_when_a_module_is(module):
    at_top = [n for n in parsed(module).body if isinstance(n, ast.Import | ast.ImportFrom)]
    found = imported(module, ast.Module(at_top, type_ignores=[]))
    roots = {name.split(".")[0] for name in found}
    assert roots - sys.stdlib_module_names - CORE_DEPENDENCIES <= {"xenpt"}


@pytest.mark.parametrize("module", sorted(PYTHON_SOURCES))
def test_only_report_and_cli_print(module):
    if row_of(module) in PRINTING_ROWS:
        return
    tree = parsed(module)
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [f.lineno for f in calls if isinstance(f, ast.Name) and f.id == "print"]
    assert not {name for name in imported(module, tree) if name.split(".")[0] == "rich"}


def test_core_knows_nothing_of_the_package_or_of_numpy():
    text = SOURCES["_core"].read_text(encoding="utf-8")
    imports = re.findall(r"^\s*(?:c?import|from)\s+([\w.]+)", text, flags=re.MULTILINE)
    assert {name for name in imports if name.split(".")[0] in {"xenpt", "numpy"}} <= {
        "xenpt._core",
        "xenpt.errors",
    }
