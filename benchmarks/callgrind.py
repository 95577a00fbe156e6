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
        # Where buffers lie changes a few instructions at their ends: nothing of the caller's
        # environment, folder or late binding may move them.
        environ = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "LD_BIND_NOW": "1"}
        if "PYTHONPATH" in os.environ:
            environ["PYTHONPATH"] = os.environ["PYTHONPATH"]
        done = subprocess.run(
            command, env=environ, cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"callgrind: {done.stderr.strip().splitlines()[-1]}")
        profile = Path(folder, "out").read_text(encoding="utf-8")
        return done.stdout.strip(), own_costs(profile)


def own_costs(profile: str) -> Counts:
    """Instructions that each function of `_core` runs itself, of a callgrind profile.

    What it calls in Python and NumPy depends on where their buffers lie, and is left out.
    """
    names: dict[tuple[str, str], str] = {}
    here = {"ob": "", "fn": ""}
    counts: Counts = {}
    lines = iter(profile.splitlines())
    for line in lines:
        named = re.match(r"(c?)(ob|fn)=\((\d+)\)(?: (.*))?", line)
        if named:
            called, kind, number, text = named.groups()
            name = names.setdefault((kind, number), text or "")
            if not called:
                here[kind] = name
        elif line.startswith("calls="):
            next(lines)  # the cost of what is called
        elif re.match(r"[\d+*-]", line) and "/_core." in here["ob"]:
            function = re.sub(r"^__pyx_\w+?_5xenpt_5_core_\d*", "", here["fn"])
            counts[function] = counts.get(function, 0) + int(line.split()[1])
    kept = {f: n for f, n in counts.items() if n >= 1000 and not f.startswith("_")}
    return dict(sorted(kept.items()))


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
        say(f"{function:24} {now} instructions, {(now or 0) / NR_PAGES:.3f} an entry{mark}")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
