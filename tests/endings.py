# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends a command in the middle, many times: python endings.py FOLDER HOW TIMES COMMAND ...

Each time a process that has xenpt loaded forks, and the child runs the command with `-o` on a file
that holds an old answer. HOW is `signals` or `lines`. signals: the child gets one of them after a
random part of the time that it takes. lines: it kills itself at a line of xenpt/output.py or
journal.py, at each one in turn, until one child is through. Every time the file must hold the old
answer or the whole new one. Prints how many were ended and how many came through.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from xenpt import answers, cli, journal, output

OLD = "old answer\n"
FILES = {output.__file__, journal.__file__}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """End one command in one way, as often as was asked for."""
    folder, how, times, *command = sys.argv[1:]
    target = Path(folder) / "out.json"
    partial = Path(folder) / "out.json.partial"
    complaints = Path(folder) / "stderr"
    command += ["--json", "-o", str(target)]
    assert answers  # loaded before any child is made
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler is not what is tested
    seconds, whole, ended, through = 0.0, 0, 0, 0
    for turn in range(-1, int(times)):  # the first is left alone, and timed
        for path in Path(folder).glob(".out.json.*.tmp"):
            path.unlink()  # of a child that could not clean up
        partial.unlink(missing_ok=True)
        target.write_text(OLD)
        complaints.write_text("")
        begin = time.perf_counter()
        child = os.fork()
        if child == 0:
            _child(command, complaints, kill_at=turn if how == "lines" else -1)
        if how == "signals" and turn >= 0:
            time.sleep(random.Random(turn).uniform(0, seconds))
            os.kill(child, SIGNALS[turn % len(SIGNALS)])
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if turn < 0:
            seconds, whole = time.perf_counter() - begin, status
        _check(target, partial, complaints.read_text(), status, whole)
        if turn >= 0:
            ended, through = ended + (status != whole), through + (status == whole)
        if how == "lines" and through:
            break
    sys.stdout.write(f"{ended} {through}\n")


def _child(command: list[str], complaints: Path, *, kill_at: int) -> None:
    descriptor = os.open(complaints, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, sys.stderr.fileno())
    left = kill_at

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        code = frame.f_code
        if code.co_filename not in FILES or code.co_name in ("printable", "<genexpr>"):
            return None  # the two write nothing, and have a line for each letter
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    if kill_at >= 0:
        sys.settrace(trace)
    status = 1
    try:
        status = cli.main(command)
        if status > 128:
            signal.signal(status - 128, signal.SIG_DFL)
            os.kill(os.getpid(), status - 128)
    finally:
        os._exit(status)


def _check(target: Path, partial: Path, complaint: str, status: int, whole: int) -> None:
    """What is left behind is right, whatever the moment was; `whole` is the status of an answer."""
    found = target.read_text()
    if found != OLD:
        json.loads(found)
        assert found.endswith("}\n")
    if partial.exists():
        with journal.Journal(partial, resume=True):
            pass  # every row is whole, but perhaps the last, which is cut off
    if status == -signal.SIGKILL:
        return
    assert not list(target.parent.glob(".out.json.*.tmp"))
    lines = [line for line in complaint.splitlines() if "--resume goes on" not in line]
    if status == whole:
        assert found != OLD
        assert not lines, complaint
        assert not partial.exists()
    else:  # before and after its own handlers, a command ends by the signal without a word
        said = [f"xenpt: stopped by {signal.Signals(-status).name}"]
        assert lines in (said, []), (status, complaint)


if __name__ == "__main__":
    main()
