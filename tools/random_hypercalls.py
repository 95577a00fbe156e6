# SPDX-License-Identifier: GPL-2.0-or-later
"""Random hypercalls to Xen's rules and to a plain model of them, call by call.

    python tools/random_hypercalls.py 1000000 --seed 0

Says how many calls had which answer; ends with a traceback at the first difference. Runs from the
repository's root with the packages of the tests.
"""

import argparse
import sys
from collections import Counter
from errno import errorcode
from importlib import import_module
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

hypercallpair = import_module("hypercallpair")


def main() -> None:
    """Run them, and say what came of it."""
    parser = argparse.ArgumentParser(description="random hypercalls against the plain model")
    parser.add_argument("number", type=int, help="calls at the least")
    parser.add_argument("--seed", type=int, default=0, help="of the first 1000 calls; default: 0")
    options = parser.parse_args()
    begin = perf_counter()
    answers = hypercallpair.run(options.number, options.seed)
    seconds = perf_counter() - begin
    by_answer: Counter[str] = Counter()
    for (_, answer), nr in answers.items():
        by_answer["accepted" if answer >= 0 else f"-{errorcode[-answer]}"] += nr
    print(f"{answers.total():,} hypercalls from seed {options.seed} on: no difference")
    print(", ".join(f"{nr:,} {answer}" for answer, nr in by_answer.most_common()))
    print(f"{seconds:.0f} s")


if __name__ == "__main__":
    main()
