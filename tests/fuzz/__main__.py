# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzz every reader of untrusted input: python -m fuzz [--time SECONDS] [TARGET ...].

Run by `make fuzz`. An input that crashes a target is kept in tests/fuzz/crashes, where `make test`
finds it. Exit status: 0 no crash; 1 there are crashes; 2 it cannot be run here.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.bounds import MOST_BYTES, MOST_SECONDS
from fuzz.targets import TARGETS

CRASHES = Path(__file__).with_name("crashes")
CORPUS = Path("build/fuzz")  # what reached new branches, for the next run to begin from
#: atheris keeps some of each run (up to 230 KB of one of `size`), so no process fuzzes for longer.
CHILD_SECONDS = 60
#: A run that never ends is stopped by the clock, as one too slow is by processor time.
HANG_SECONDS = 60
_WRITTEN = re.compile(r"Test unit written to (\S+)")
_EXECUTIONS = re.compile(r"stat::number_of_executed_units: (\d+)")


@dataclass
class Tally:
    """What the runs of one target came to.

    :ivar peak_bytes: RSS of one process that reads all of its corpus without the fuzzer
    :ivar crashes: kept file -> what was raised
    """

    executions: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    crashes: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Fuzz the targets that are named, print a table, and say whether any crashed."""
    parser = argparse.ArgumentParser("fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("target", nargs="*", help=f"of: {', '.join(TARGETS)}; default: all")
    parser.add_argument("--time", type=float, default=60.0, help="processor seconds of each target")
    options = parser.parse_args()
    for name in options.target:
        if name not in TARGETS:
            parser.error(f"no target {name!r}")
    if importlib.util.find_spec("atheris") is None:
        _say("fuzz: not run: atheris is not installed; it has wheels for CPython 3.11 to 3.13")
        return 2
    _say(f"a run may take {MOST_SECONDS:g} s and {MOST_BYTES >> 20} MiB of address space\n")
    _say(f"{'target':<12}{'executions':>12}{'CPU seconds':>13}{'peak RSS':>12}{'crashes':>9}")
    nr_crashes = 0
    for name in options.target or TARGETS:
        with tempfile.TemporaryDirectory(prefix="xenpt-fuzz-") as scratch:
            tally = fuzz(name, options.time, scratch)
        peak = f"{tally.peak_bytes >> 20} MiB"
        counts = f"{tally.executions:>12,}{tally.seconds:>13.1f}{peak:>12}{len(tally.crashes):>9}"
        _say(f"{name:<12}{counts}")
        nr_crashes += len(tally.crashes)
        for path, why in tally.crashes.items():
            _say(f"{path}: {why}")
    return 1 if nr_crashes else 0


def fuzz(name: str, seconds: float, scratch: str) -> Tally:
    """Run one target for that many seconds of processor time, on after each crash.

    :param scratch: folder for the files of the children, which end without cleaning up
    """
    target, tally = TARGETS[name], Tally()
    corpus, kept = CORPUS / name, CRASHES / name
    corpus.mkdir(parents=True, exist_ok=True)
    kept.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = CORPUS / f"{name}.dict"
    words.write_text("\n".join(map(_quoted, target.words or ("0",))) + "\n")
    while tally.seconds < seconds and len(tally.crashes) < 10:
        left = min(CHILD_SECONDS, max(1, round(seconds - tally.seconds)))
        child = subprocess.Popen(
            [
                sys.executable, "-m", "fuzz.child", name, str(corpus), f"-dict={words}",
                f"-max_len={target.most_bytes}", f"-artifact_prefix={kept}/",
                f"-max_total_time={left}",
                f"-timeout={HANG_SECONDS}", "-rss_limit_mb=0", "-print_final_stats=1",
                f"-report_slow_units={HANG_SECONDS}",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env=os.environ | {"TMPDIR": scratch},
        )  # fmt: skip
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        found = _EXECUTIONS.search(said)
        tally.executions += int(found[1]) if found else 0
        tally.seconds += usage.ru_utime + usage.ru_stime
        if child.returncode == 0:
            continue
        written = _WRITTEN.search(said)
        if written is None:
            sys.exit(f"fuzz: {name} cannot be run:\n{said}")
        if written[1] in tally.crashes:
            break  # it crashes on what it begins from
        tally.crashes[written[1]] = _last_line(said)
    if not any(kept.iterdir()):
        kept.rmdir()
    tally.peak_bytes = _replayed(name, corpus)
    return tally


def _replayed(name: str, corpus: Path) -> int:
    """Peak RSS, in bytes, of a process that reads all of a corpus without the fuzzer."""
    command = [sys.executable, "-m", "fuzz.replay", name, str(corpus)]
    replay = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if replay.returncode:
        sys.exit(f"fuzz: {name}: a file of {corpus} crashes without the fuzzer")
    return int(replay.stdout)


def _last_line(said: str) -> str:
    """Of the traceback of a crash; a run that was stopped by the clock has none."""
    raised = re.findall(r"^([\w.]+(?:Error|Exception|Slow|Exit)\b.*)$", said, re.MULTILINE)
    return raised[0] if raised else f"no end in {HANG_SECONDS} s"


def _quoted(word: str) -> str:
    """A word for libFuzzer's dictionary."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word.encode("latin-1")) + '"'


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("fuzz: stopped; what crashed is in tests/fuzz/crashes")
