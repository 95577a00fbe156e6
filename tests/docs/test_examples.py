# SPDX-License-Identifier: GPL-2.0-or-later
"""Every example in the documents is executed, and what the document shows is what comes out.

In a ``pycon`` block that is a doctest. In a ``console`` block it is each ``$ xenpt`` command: its
output must equal the lines below it, where a line ``...`` stands for any lines and ``...`` in a
line for any text (a time, say); a comment ``# exit N`` behind the command gives its exit status.
"""

import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(pycon|console)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
EXIT = re.compile(r"\s+# exit (\d)$")


def blocks(language: str) -> list[object]:
    """All blocks of a language as (text, document, number of its first line)."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match[1] == language:
                line = text.count("\n", 0, match.start(2)) + 1
                found.append(pytest.param(match[2], document, line, id=f"{document.name}:{line}"))
    return found


@pytest.mark.parametrize(("text", "document", "line"), blocks("pycon"))
def test_python_example(text, document, line):
    example = doctest.DocTestParser().get_doctest(text, {}, document.name, str(document), line - 1)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    result = runner.run(example, out=said.append)
    assert result.attempted
    assert not result.failed, "".join(said)


@pytest.mark.parametrize(("text", "document", "line"), blocks("console"))
def test_command_example(text, document, line):
    commands = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert commands[0] == "", f"{document.name}:{line} does not begin with a command"
    for command in commands[1:]:
        call, _, expected = command.partition("\n")
        status = EXIT.search(call)
        words = shlex.split(EXIT.sub("", call))
        assert words[0] == "xenpt", f"{document.name}: only xenpt is run, not {words[0]}"
        done = subprocess.run(
            [sys.executable, "-m", "xenpt", *words[1:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert matches(expected, done.stdout + done.stderr), done.stdout + done.stderr
        assert done.returncode == (int(status[1]) if status else 0)


def matches(expected: str, got: str) -> bool:
    """Whether `got` is `expected`: a line ``...`` is any lines, ``...`` in a line is any text."""
    lines = expected.strip("\n").splitlines()
    pattern = "".join(
        r"(.*\n)*" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r"\n"
        for line in lines
    )
    return re.fullmatch(pattern, got.strip("\n") + "\n") is not None


@pytest.mark.parametrize(
    ("expected", "got", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\n...\nc\n", "a\nb\nb\nc\n", True),
        ("a\n...\n", "a\n", True),
        ("a\n", "a\nb\n", False),
        ("a 1 ... c\n", "a 1 b b c\n", True),
        ("a 1 ... c\n", "a 2 b c\n", False),
        ("a\nb\n", "a\n", False),
        ("a.\n", "ab\n", False),
    ],
)
def test_matches(expected, got, same):
    assert matches(expected, got) is same


def test_the_readme_shows_python():
    assert any(block.values[1].name == "README.md" for block in blocks("pycon"))
