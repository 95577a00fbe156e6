# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot real Xen and Linux and compare them with the model: python -m oracle [CASE ...].

Run by `make oracle`. Exit status: 0 all equal; 1 there are differences; 2 it cannot be run here.
"""

import argparse
import sys
from collections.abc import Iterable

from oracle.cases import BY_HAND, CASES, DEFAULT, QUICK
from oracle.compare import Result, compare
from oracle.machine import qemu_version
from oracle.observe import observe, read_linux
from oracle.packages import UnavailableError, fetch


def main() -> int:
    """Run the cases that are named, print a table, and say whether all was equal."""
    parser = argparse.ArgumentParser("oracle", description=__doc__.split("\n")[0])
    usual = [name for name in CASES if name not in BY_HAND]
    groups = {"quick": QUICK, "default": DEFAULT, "all": usual}
    parser.add_argument("case", nargs="*", help=f"of: {', '.join([*groups, *CASES])}")
    asked = parser.parse_args().case or ["default"]
    cases = dict.fromkeys(name for group in asked for name in groups.get(group, (group,)))
    for name in cases:
        if name not in CASES:
            parser.error(f"no case {name!r}")
    try:
        return _run(cases)
    except UnavailableError as reason:
        _say(f"oracle: not run: {reason}")
        return 2


def _run(names: Iterable[str]) -> int:
    version = ".".join(map(str, qemu_version()))
    software = fetch()
    kernel, symbols = read_linux(software.linux)
    for package, number in software.versions.items():
        if not package.endswith("-dbg"):
            _say(f"{package} {number}")
    _say(f"QEMU {version}, emulating\n")
    _say(f"{'case':<18}{'seconds':>8}{'words compared':>16}{'differences':>13}")
    per_subject: dict[str, list[Result]] = {}
    nr_different = 0
    for name in names:
        seen = observe(CASES[name], software, kernel, symbols)
        results = compare(seen, kernel)
        words, different = sum(r.words for r in results), sum(len(r.differences) for r in results)
        nr_different += different
        _say(f"{name:<18}{seen.seconds:>8.1f}{words:>16,}{different:>13}")
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


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
