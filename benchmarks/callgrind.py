# SPDX-License-Identifier: GPL-2.0-or-later
"""Count the instructions of each loop of `_core` under callgrind; compare with the baseline.

    python benchmarks/callgrind.py [--write]

Instruction counts do not depend on neighbours or clock: the same build gives the same count. They
are compared exactly where compiler, Cython, Python, NumPy and instruction set are those of a
baseline; for others one line says that there is none. Only what runs inside `_core` is counted,
since whole processes differ from run to run. callgrind knows no AVX-512, so the v3 kernels are
measured; it sees neither cache misses nor what prefetch gains. A change of callgrind.json is a line
of a diff, to be reviewed.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from guests import direct_map, spread

from xenpt import _core
from xenpt.abi import PTE_RW
from xenpt.engine import WalkRules
from xenpt.extents import coalesce
from xenpt.image import materialise
from xenpt.stream import stream

BASELINES = Path(__file__).with_name("callgrind.json")
NR_PAGES = 1 << 18
SYMBOL = "__pyx_pw_5xenpt_5_core_*"
Counts = dict[str, int]


def workload() -> None:
    """Each loop over 1 GiB of guest: 262144 entries in 512 tables."""
    mapping, p2m = direct_map(NR_PAGES)
    image = materialise(mapping, p2m)
    image.mark_read_only(spread(NR_PAGES, 16), p2m)
    image.walk()
    root = image.tables(3)[0]
    image.walk_to_free(int(image.vaddr[root]), WalkRules(True, False), p2m)
    m2p, pfns = p2m.m2p(), spread(NR_PAGES, 16).view(np.uint64)
    _core.mark_gather(image.pages, image.tables(1), m2p, pfns, 0, PTE_RW)
    stream(mapping, p2m, pfn_ranges=spread(NR_PAGES, 16))
    coalesce(mapping.tables, tables=True)


def key(simd: str) -> str:
    """What the counts depend on."""
    text = subprocess.run(
        [os.environ.get("CC", "cc"), "-dumpfullversion"], capture_output=True, text=True, check=True
    ).stdout.strip()
    import Cython

    python = ".".join(platform.python_version_tuple()[:2])
    return (
        f"gcc {text}, Cython {Cython.__version__}, Python {python}, NumPy {np.__version__}, {simd}"
    )


def count() -> tuple[str, Counts]:
    """Run the workload under callgrind: (instruction set, instructions by function)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind", "--tool=callgrind", "--collect-atstart=no", f"--toggle-collect={SYMBOL}",
            f"--callgrind-out-file={folder}/out", sys.executable, __file__, "--workload",
        ]  # fmt: skip
        environ = os.environ | {"PYTHONHASHSEED": "0"}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"callgrind: {done.stderr.strip().splitlines()[-1]}")
        profile = Path(folder, "out").read_text(encoding="utf-8")
        return done.stdout.strip(), inclusive(profile)


def inclusive(profile: str) -> Counts:
    """Instructions of each function of `_core`, what it calls included, of a callgrind profile."""
    names: dict[str, str] = {}
    counts: Counts = {}
    callee = ""
    lines = iter(profile.splitlines())
    for line in lines:
        named = re.match(r"c?fn=\((\d+)\)(?: (.*))?", line)
        if named:
            callee = names.setdefault(named[1], named[2] or "")
        elif line.startswith("calls="):
            cost = int(next(lines).split()[1])  # the line behind says what the calls cost
            function = re.fullmatch(r"__pyx_pw_5xenpt_5_core_\d+(\w+)", callee)
            if function and function[1] != "simd":
                counts[function[1]] = counts.get(function[1], 0) + cost
    return counts


def main() -> int:
    """Compare with the baseline of this compiler, or write it; 1 if a count has changed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="make these counts the baseline")
    parser.add_argument("--workload", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    say = partial(print, file=sys.stdout)
    if options.workload:
        workload()
        say(_core.simd())
        return 0
    if shutil.which("valgrind") is None:
        say("callgrind: valgrind is not installed: apt install valgrind")
        return 0
    simd, counts = count()
    name, known = key(simd), json.loads(BASELINES.read_text(encoding="utf-8"))
    if options.write:
        known[name] = counts
        BASELINES.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if name not in known:
        say(f"callgrind: no baseline for {name}")
        return 0
    changed = {f for f in counts.keys() | known[name].keys() if counts.get(f) != known[name].get(f)}
    for function in sorted(counts.keys() | known[name].keys()):
        was, now = known[name].get(function), counts.get(function)
        mark = f"  was {was}" if function in changed else ""
        say(f"{function:14} {now} instructions, {(now or 0) / NR_PAGES:.3f} an entry{mark}")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
