# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the table of agreement in docs/model.md: every dumped word of a page table, compared.

    python tools/agreement.py            compare and write
    python tools/agreement.py --check    compare; exit 1 if the table says something else

Runs from the repository's root with the packages of the tests.
"""

import argparse
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "golden")]

from xenpt.abi import ENTRIES, LEVELS, XEN_SLOTS  # noqa: E402
from xenpt.image import materialise  # noqa: E402

addressspaces, goldendata, test_domu, test_entry = map(
    import_module, ("addressspaces", "goldendata", "test_domu", "test_entry")
)
MODEL = ROOT / "docs" / "model.md"
BEGIN, END = "<!-- agreement: tools/agreement.py -->", "<!-- end of agreement -->"
HEAD = ("dumped", "dumps", "words compared", "differing", "not compared")
POINTS = {
    "setup": "dom0 after xen_setup_kernel_pagetable",
    "pre": "dom0 before the free of the list",
    "mid": "dom0 after the free of the list",
    "post": "dom0 after xen_pagetable_init",
}
Row = tuple[str, int, int, int, int]


def rows() -> Iterator[Row]:
    """(what, dumps, words compared, words that differ, words not compared) of each kind of dump."""
    entries = [entry(case) for case in test_entry.CASES]
    words, differing = (sum(numbers) for numbers in zip(*entries, strict=True))
    yield "dom0 at its entry", len(entries), words, differing, 0
    for point, text in POINTS.items():
        found = [addressspaces.compare(*one) for one in addressspaces.CASES if one[1] == point]
        words, differing, left_out = (
            sum(numbers)
            for numbers in zip(
                *((f.words, len(f.differing), len(f.left_out)) for f in found), strict=True
            )
        )
        yield text, len(found), words, differing, left_out
    for point, text in (("prepin", "before"), ("entry", "after")):
        cases = [one for one in test_domu.POINTS if one[1] == point]
        words = sum(test_domu.compare(*one) for one in cases)  # raises where a word differs
        if point == "entry":
            roots = (goldendata.arrays(case, "domu")["entry_level"] == LEVELS for case, _ in cases)
            words -= len(XEN_SLOTS) * sum(int(root.sum()) for root in roots)
        yield f"domU {text} the pin of its root", len(cases), words, 0, 0


def entry(case: str) -> tuple[int, int]:
    """Words of a dom0's tables at its entry that were compared, and those that differ."""
    arrays, domain = goldendata.arrays(case), test_entry.entry_domain(case)
    image = materialise(domain.address_space, domain.p2m)
    words = differing = 0
    columns = (arrays["entry_mfn"], arrays["entry_level"], arrays["entry_pages"])
    for mfn, level, real in zip(*columns, strict=True):
        guests = np.ones(ENTRIES, bool)
        guests[XEN_SLOTS] = level != LEVELS
        at = image.index(int(mfn))
        ours = np.zeros_like(real) if at is None else image.pages[at]
        words += int(guests.sum())
        differing += int((real != ours)[guests].sum())
    return words, differing


def table() -> str:
    """The table as markdown, with a sum."""
    found = list(rows())
    total = [sum(numbers) for numbers in list(zip(*found, strict=True))[1:]]
    lines = ["| " + " | ".join(HEAD) + " |", "|---" + "|---:" * 4 + "|"]
    for text, *numbers in [*found, ("all", *total)]:
        lines.append("| " + " | ".join([text, *(f"{number:,}" for number in numbers)]) + " |")
    return "\n".join(lines)


def main() -> int:
    """Compare, and write or check the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="do not write")
    options = parser.parse_args()
    text = MODEL.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    new = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if options.check:
        return int(new != text)
    MODEL.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
