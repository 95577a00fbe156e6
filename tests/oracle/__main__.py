# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot real Xen and Linux, have the real toolstack build guests, and compare them with the model:
python -m oracle [CASE ...].

Run by `make oracle`. Exit status: 0 all equal; 1 there are differences; 2 it cannot be run here.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import chain

from oracle.cases import BY_HAND, CASES, DEFAULT, QUICK
from oracle.compare import Result, compare
from oracle.guestboot import build_guests
from oracle.guestcompare import compare_guest
from oracle.guests import GUESTS
from oracle.machine import qemu_version
from oracle.observe import observe, read_linux
from oracle.packages import Software, UnavailableError, fetch, fetch_toolstack

from xenpt.inputs.kernel import read_kernel


def main() -> int:
    """Run the cases that are named, print a table, and say whether all was equal."""
    parser = argparse.ArgumentParser("oracle", description=__doc__.split("\n\n")[0])
    usual = [name for name in CASES if name not in BY_HAND]
    groups = {
        "quick": QUICK, "default": DEFAULT, "domu": tuple(GUESTS), "all": (*usual, *GUESTS),
    }  # fmt: skip
    known = ", ".join([*groups, *CASES, *GUESTS])
    parser.add_argument("case", nargs="*", help=f"of: {known}")
    asked = parser.parse_args().case or ["default"]
    names = list(dict.fromkeys(name for group in asked for name in groups.get(group, (group,))))
    for name in names:
        if name not in CASES and name not in GUESTS:
            parser.error(f"no case {name!r}")
    try:
        return _run(names)
    except UnavailableError as reason:
        _say(f"oracle: not run: {reason}")
        return 2


def _run(names: Sequence[str]) -> int:
    version = ".".join(map(str, qemu_version()))
    software = fetch()
    guests = [name for name in names if name in GUESTS]
    built = _guests(guests, software) if guests else iter(())
    for package, number in software.versions.items():
        if not package.endswith("-dbg"):
            _say(f"{package} {number}")
    _say(f"QEMU {version}, emulating\n")
    _say(f"{'case':<20}{'seconds':>8}{'words compared':>16}{'differences':>13}")
    per_subject: dict[str, list[Result]] = {}
    nr_different = 0
    booted = _boots([name for name in names if name in CASES], software)
    for name, seconds, results in chain(booted, built):
        words, different = sum(r.words for r in results), sum(len(r.differences) for r in results)
        nr_different += different
        _say(f"{name:<20}{seconds:>8.1f}{words:>16,}{different:>13}")
        for result in results:
            per_subject.setdefault(result.subject, []).append(result)
            for line in result.differences:
                _say(f"  {result.subject}: {line}")
    _say(f"\n{'compared':<34}{'cases':>8}{'words':>14}{'left out':>10}{'differences':>13}")
    for subject, results in per_subject.items():
        words = sum(result.words for result in results)
        left_out = sum(result.left_out for result in results)
        different = sum(len(result.differences) for result in results)
        _say(f"{subject:<34}{len(results):>8}{words:>14,}{left_out:>10,}{different:>13}")
    return min(nr_different, 1)


def _boots(names: Sequence[str], software: Software) -> Iterator[tuple[str, float, list[Result]]]:
    """Boot a dom0 of each case."""
    if names:
        kernel, symbols = read_linux(software.linux)
    for name in names:
        seen = observe(CASES[name], software, kernel, symbols)
        yield name, seen.seconds, compare(seen, kernel)


def _guests(names: Sequence[str], software: Software) -> Iterator[tuple[str, float, list[Result]]]:
    """Have one dom0's toolstack build a guest of each case."""
    debian = read_kernel(software.linux)
    for built in build_guests([GUESTS[name] for name in names], software, fetch_toolstack()):
        yield built.guest.name, built.seconds, compare_guest(built, debian)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
