# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads tests/golden: what real boots of Xen and Linux said. Nothing here is computed by xenpt.

Folders of cases are ``oracle`` (dom0 under QEMU) and ``domu`` (libxenguest builds). What the keys
of the facts and the arrays mean is written in tests/golden/SOURCES.md.
"""

import io
import json
import lzma
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

GOLDEN = Path(__file__).resolve().parent / "golden"
Arrays = dict[str, npt.NDArray[Any]]


def cases(folder: str = "oracle", *, dump: str | None = None) -> list[str]:
    """Names of all cases of a folder, sorted; with `dump` only those dumped at that point.

    Points are entry, setup, pre, mid, post in ``oracle`` and prepin, entry in ``domu``; for
    ``trace``, the cases that have a trace of hypercalls.
    """
    names = sorted(path.stem for path in (GOLDEN / folder).glob("*.json"))
    key = "trace_events" if dump == "trace" else dump
    return [name for name in names if key is None or key in (facts(name, folder).get("dump") or {})]


@cache
def facts(name: str, folder: str = "oracle") -> dict[str, Any]:
    """The JSON facts of a case. Shared by all callers: do not change it."""
    loaded: dict[str, Any] = json.loads(_path(name, ".json", folder).read_text(encoding="utf-8"))
    return loaded


@lru_cache(maxsize=4)
def arrays(name: str, folder: str = "oracle") -> Arrays:
    """All arrays of a case by name, read-only; empty if the case was not dumped.

    The last four cases stay in memory; the largest, c520g, takes 22 MB.
    """
    path = _path(name, ".npz.xz", folder)
    if not path.exists():
        facts(name, folder)  # a misspelt name is an error, not an empty case
        return {}
    with np.load(io.BytesIO(lzma.decompress(path.read_bytes())), allow_pickle=False) as archive:
        loaded = {key: archive[key] for key in archive.files}
    for array in loaded.values():
        array.flags.writeable = False
    return loaded


def log(name: str, folder: str = "oracle") -> str:
    """The serial log of a case, or of a file of ``logs-large`` (name without ``.log.xz``)."""
    return lzma.decompress(_path(name, ".log.xz", folder).read_bytes()).decode("utf-8", "replace")


def boot_logs(kind: str) -> list[dict[str, Any]]:
    """Records of public boot logs; `kind` is dom0, domu or failures. None means: not printed."""
    lines = (GOLDEN / "boot-logs" / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _path(name: str, suffix: str, folder: str) -> Path:
    return GOLDEN / folder / f"{name}{suffix}"
