# SPDX-License-Identifier: GPL-2.0-or-later
"""Which code counted, and on which machine: what makes a row of results speak for itself."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

NOT_INSTALLED = "(not installed)"
_CPUINFO = Path("/proc/cpuinfo")


@cache
def version() -> str:
    """Version of xenpt."""
    try:
        return metadata.version("xenpt")
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


@cache
def commit() -> str | None:
    """Commit of the checkout that this code runs from, `-dirty` if changed; None if unknown."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # installed: a repository further up is somebody else's
        return None
    describe = ("git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*")
    try:
        done = subprocess.run(
            [*describe, "--abbrev=12"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@cache
def cpu_model() -> str:
    """The processor as the kernel names it."""
    try:
        lines = _CPUINFO.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()
