# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure what each operation of a boot takes, in instructions of real Xen and Linux, under QEMU.

    python tools/calibrate.py            boot, count, fit; write the constants and their grounds
    python tools/calibrate.py CASE ...   boot these, and hold them against the shipped constants
    python tools/calibrate.py --fit      fit again to the counts in tests/golden; no boot

Run by `make calibrate`. Exit status: 0 all is predicted within 2 %; 1 something is not; 2 it cannot
be run here. A boot takes half a minute, those of 32 GiB and 520 GiB some minutes.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]

import calibration  # noqa: E402
from calibration import FITTED, PREDICTED, Record  # noqa: E402

from xenpt.inputs.kernel import Kernel, default_kernel, kernel_from_bytes  # noqa: E402
from xenpt.timing import OPERATIONS, Instructions, TimeModel, time_model  # noqa: E402
from xenpt.units import format_pages  # noqa: E402

COUNTS = ROOT / "tests" / "golden" / "instructions"
CONSTANTS = ROOT / "xenpt" / "data" / "constants.toml"
MODEL = ROOT / "docs" / "model.md"
BEGIN, END = "<!-- constants: make calibrate -->", "<!-- end of constants -->"
LIMIT_PERCENT = 2.0
CPI, GHZ = 1.0, 3.0  # assumed, not measured
Errors = dict[str, dict[str, float]]  # stage -> case -> percent


def main() -> int:
    """Boot, fit and write, as the arguments ask."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("case", nargs="*", help="of those in tests/oracle/counting.py")
    parser.add_argument("--fit", action="store_true", help="no boot")
    options = parser.parse_args()
    machine, packages = import_module("oracle.machine"), import_module("oracle.packages")
    try:
        if options.case:
            return hold(options.case)
        if not options.fit:
            measure(ROOT / "build" / "calibrate")
    except (packages.UnavailableError, machine.BootEndedError) as reason:
        print(f"calibrate: not run: {reason}")
        return 2
    return write()


def hold(names: Sequence[str]) -> int:
    """Boot these and compare with the shipped constants."""
    software, kernel, records = count(names)
    found = errors(time_model(), records, kernel, software)
    print(f"\nErrors of the shipped constants in percent\n{error_table(found, names)}")
    return status(found)


def measure(folder: Path) -> None:
    """Boot all that the constants rest on; the counts go to `folder`, then to tests/golden."""
    software, _, records = count([*FITTED, *PREDICTED])
    target = folder / COUNTS.name
    target.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record) + "\n" for record in records.values()]
    (target / "counts.jsonl").write_text("".join(lines), "utf-8")
    (target / "software.json").write_text(json.dumps(software, indent=1) + "\n", "utf-8")
    import_module("import_golden").store(folder, COUNTS.parent)


def count(names: Sequence[str]) -> tuple[dict[str, Any], Kernel, dict[str, Record]]:
    """What was booted, its kernel, and the counts of each case."""
    counting, machine = import_module("oracle.counting"), import_module("oracle.machine")
    observe, packages = import_module("oracle.observe"), import_module("oracle.packages")
    unknown = [name for name in names if name not in counting.CASES]
    if unknown:
        raise packages.UnavailableError(f"no case {unknown[0]!r}: {', '.join(counting.CASES)}")
    version = ".".join(map(str, machine.qemu_version()))
    fetched = packages.fetch()
    kernel, symbols = observe.read_linux(fetched.linux)
    software = {
        "packages": {k: v for k, v in fetched.versions.items() if not k.endswith("-dbg")},
        "qemu": version,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "kernel": kernel.as_dict(),
    }
    records = {}
    for name in names:
        records[name] = counting.count(counting.CASES[name], fetched, symbols)
        nr = sum(calibration.instructions(records[name], s) for s in records[name]["stages"])
        print(f"{name:<10} {nr:>15,} instructions in the stages", flush=True)
    return software, kernel, records


def write() -> int:
    """Fit to the counts in tests/golden; write the constants and the tables of docs/model.md."""
    software, kernel, records = golden()
    operations = fitted(records, kernel, software)
    found = errors(TimeModel(operations, CPI, GHZ, ""), records, kernel, software)
    CONSTANTS.write_text(constants_text(operations, software, found), "utf-8")
    text = MODEL.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    text = page(operations, found)
    MODEL.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")
    print(text)
    return status(found)


def golden() -> tuple[dict[str, Any], Kernel, dict[str, Record]]:
    """As `count`, from tests/golden."""
    software = json.loads((COUNTS / "software.json").read_text("utf-8"))
    kernel = kernel_from_bytes(json.dumps(software["kernel"]).encode(), "software.json")
    return software, kernel, calibration.read_records(COUNTS)


def fitted(
    records: dict[str, Record], kernel: Kernel, software: dict[str, Any]
) -> dict[str, Instructions]:
    """The constants, to a hundredth of an instruction."""
    xen = xen_version(software)
    boots = [(records[name], calibration.works(records[name], kernel, xen)) for name in FITTED]
    return {
        name: Instructions(round(one.linux, 2), round(one.xen, 2))
        for name, one in calibration.fit(boots).items()
    }


def errors(
    model: TimeModel, records: dict[str, Record], kernel: Kernel, software: dict[str, Any]
) -> Errors:
    """How far the model is off, in percent of what was counted."""
    found: Errors = {}
    for name, record in records.items():
        work = calibration.works(record, kernel, xen_version(software))
        for stage, _, percent in calibration.errors(model, record, work):
            found.setdefault(stage, {})[name] = percent
    return found


def xen_version(software: dict[str, Any]) -> str:
    """4.17.7 of Debian's 4.17.7+13-g2445b30a44-0+deb12u1."""
    (version,) = (v for name, v in software["packages"].items() if name.startswith("xen-"))
    return str(version).partition("+")[0].partition("-")[0]


def status(found: Errors) -> int:
    """0 if nothing is off by more than LIMIT_PERCENT."""
    return int(worst(found, [name for row in found.values() for name in row]) > LIMIT_PERCENT)


def worst(found: Errors, names: Iterable[str]) -> float:
    """The largest error of any stage of these cases."""
    return max(abs(row[name]) for row in found.values() for name in names if name in row)


def constants_text(
    operations: dict[str, Instructions], software: dict[str, Any], found: Errors
) -> str:
    """The constants as a file that xenpt.timing reads."""
    return "\n".join(_lines(operations, software, found)) + "\n"


def _lines(
    operations: dict[str, Instructions], software: dict[str, Any], found: Errors
) -> Iterator[str]:
    linux = next(v for name, v in software["packages"].items() if name.startswith("linux-"))
    yield "# Instructions of each operation of a boot. Written by `make calibrate`."
    yield f'source = "measured on Xen {xen_version(software)}, Linux {linux.partition("-")[0]}"'
    yield f"# Assumed, not measured.\ncpi = {CPI}\nghz = {GHZ}\n\n[measured]"
    yield f'date = {software["date"]}\nunder = "QEMU {software["qemu"]} -icount, one processor"'
    for package, version in software["packages"].items():
        yield f'{package} = "{version}"'
    yield f"fitted = {json.dumps(FITTED)}  # sizes of dom0"
    yield f"largest_residual_percent = {worst(found, FITTED):.2f}"
    yield f"predicted = {json.dumps(PREDICTED)}"
    yield f"largest_error_percent = {worst(found, PREDICTED):.2f}\n\n[operations]"
    for name, one in operations.items():
        yield f"# {OPERATIONS[name]}\n{name} = {{ linux = {one.linux}, xen = {one.xen} }}"


def page(operations: dict[str, Instructions], found: Errors) -> str:
    """The constants, their errors, and times of published boots as markdown."""
    lines = ["| operation | what one is | Linux | Xen |", "|---|---|---:|---:|"]
    for name, one in operations.items():
        lines.append(f"| `{name}` | {OPERATIONS[name]} | {one.linux:,.1f} | {one.xen:,.1f} |")
    names = [*FITTED, *PREDICTED]
    return "\n".join([*lines, "", error_table(found, names), "", published_table(operations)])


def published_table(operations: dict[str, Instructions]) -> str:
    """What the model says of boots of other people's machines, whose logs have times."""
    model = TimeModel(operations, CPI, GHZ, "")
    lines = [
        "| processor, GHz | Xen, Linux | dom0 | stages | modelled ms | measured ms | CPI |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    for record in calibration.read_published(COUNTS):
        machine = f"{record['processor']}, {record['ghz']:.2f}{', XPTI' if record['xpti'] else ''}"
        debug = " (debug)" if record["xen_debug"] else ""
        software = f"{record['xen']}{debug}, {record['linux']}"
        for one in calibration.published(model, record, default_kernel()):
            modelled = 1e3 * one.instructions * CPI / (record["ghz"] * 1e9)
            times = f"{modelled:,.1f} | {1e3 * one.seconds:,.1f} | {one.cpi:.2f}"
            size = format_pages(record["nr_pages"])
            lines.append(f"| {machine} | {software} | {size} | {one.stages} | {times} |")
    return "\n".join(lines)


def error_table(found: Errors, names: Sequence[str]) -> str:
    """Errors in percent, a row for each stage, a column for each case."""
    titles = [f"{name}{' (predicted)' if name in PREDICTED else ''}" for name in names]
    lines = ["| % off | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(names)]
    for stage, row in found.items():
        cells = [f"{row[name]:+.2f}" if name in row else "" for name in names]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
