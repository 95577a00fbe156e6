# SPDX-License-Identifier: GPL-2.0-or-later
"""What a fresh Debian lacks is named in one line, before anything is built."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ADVICE = "xenpt: something to build with is missing; install it with: sudo apt-get install -y"


def fake_python(folder: Path, *, lacks: str = "", headers: bool = True, old: bool = False) -> Path:
    """Write a python3 that is this interpreter, but fails to import modules named in `lacks`."""
    path = folder / "python3"
    cases = {
        "*version_info*": "exit 1" if old else "exit 0",
        "*ensurepip*": "exit 1" if "ensurepip" in lacks else "exit 0",
        "*include*": f"echo {folder / 'include'}",
        "*CC*": "echo sh -pthread",
        "-V*": "echo Python 3.9.2",
    }
    lines = "\n".join(f"{pattern}) {action};;" for pattern, action in cases.items())
    path.write_text(f'#!/bin/sh\ncase "$*" in\n{lines}\n*) exec {sys.executable} "$@";;\nesac\n')
    path.chmod(0o755)
    (folder / "include").mkdir()
    if headers:
        (folder / "include" / "Python.h").touch()
    return path


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in {"CC", "MAKEFLAGS"}}
    return subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def preflight(python: Path | str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("sh", ROOT / "tools" / "preflight.sh", python, **environment)


def test_complete_machine_passes_in_silence(tmp_path):
    done = preflight(fake_python(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("fault", "environment", "packages"),
    [
        ({"lacks": "ensurepip"}, {}, "python3-venv"),
        ({"headers": False}, {}, "python3-dev"),
        ({}, {"CC": "/no/such/cc -O2"}, "gcc"),
        (
            {"lacks": "ensurepip", "headers": False},
            {"CC": "/no/such/cc"},
            "python3-venv python3-dev gcc",
        ),
    ],
    ids=["venv", "headers", "compiler", "all"],
)
def test_missing_packages_are_named_in_one_line(tmp_path, fault, environment, packages):
    done = preflight(fake_python(tmp_path, **fault), **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{ADVICE} {packages}\n"


def test_old_python_is_refused(tmp_path):
    python = fake_python(tmp_path, old=True)
    done = preflight(python)
    assert done.returncode == 1
    assert done.stderr == (
        f"xenpt needs Python 3.11 or newer, {python} is Python 3.9.2; try: make PYTHON=python3.11\n"
    )


def test_no_python_at_all(tmp_path):
    done = preflight(tmp_path / "python3", CC="sh")
    assert done.returncode == 1
    assert done.stderr == f"{ADVICE} python3 python3-venv python3-dev\n"


@pytest.mark.skipif(not shutil.which("make"), reason="make is missing: apt-get install make")
def test_make_run_stops_before_it_makes_a_venv(tmp_path):
    python, venv = fake_python(tmp_path, headers=False), tmp_path / "venv"
    done = run("make", "run", f"PYTHON={python}", f"VENV={venv}")
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == f"{ADVICE} python3-dev"
    assert not venv.exists()
