# SPDX-License-Identifier: GPL-2.0-or-later
"""However a command ends, files are as they were or whole; and no end is more than a line.

`XENPT_ENDINGS=500` in the environment ends each command by that many signals, instead of 12.
"""

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
from goldendata import GOLDEN

TESTS = Path(__file__).resolve().parents[1]
TIMES = int(os.environ.get("XENPT_ENDINGS", "12"))
COMMANDS = {
    "bare": [],
    "plan": ["plan", "600G"],
    "boot": ["boot", "2G"],
    "stream": ["boot", "8G", "--engine", "stream"],
    "cleanup": ["cleanup", "1T"],
    "sweep": ["sweep", "--memory", "1G,2G,3G,4G"],
    "capacity": ["capacity", "--host", "12T", "--guests", "5x2T"],
    "kernel": ["kernel"],
    "explain": ["explain", "LOG"],
    "diff": ["diff", "A", "B"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What explain and diff read."""
    folder = tmp_path_factory.mktemp("inputs")
    log = GOLDEN / "oracle" / "c512m.log.xz"
    (folder / "LOG").write_bytes(lzma.decompress(log.read_bytes()))
    for name, size in (("A", "4G"), ("B", "8G")):
        run("plan", size, "--json", "-o", str(folder / name))
    return folder


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "xenpt", *arguments],
        **{"capture_output": True, "text": True, "timeout": 120, **options},
    )


NEARLY_FULL = """
import resource, sys
from xenpt import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
sys.exit(cli.main())
"""
SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from xenpt import answers, cli
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (600 << 20),) * 2)
sys.exit(cli.main())
"""


def run_limited(script, arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120
    )


def given(name, files):
    return [str(files / word) if word in ("LOG", "A", "B") else word for word in COMMANDS[name]]


def end(how, times, folder, command):
    """(ended, came through) of the children of tests/endings.py."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "endings.py"), str(folder), how, str(times), *command],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_at_any_moment_leaves_no_half_of_an_answer(tmp_path, files, name):
    assert sum(end("signals", TIMES, tmp_path, given(name, files))) == TIMES


@pytest.mark.parametrize("command", [["kernel"], ["sweep", "--memory", "1G"]])
def test_kill_at_each_line_that_writes_leaves_no_half_of_an_answer(tmp_path, command):
    ended, through = end("lines", 10_000, tmp_path, command)
    assert ended > 20
    assert through == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_full_disk_is_one_line_and_the_old_answer_stays(tmp_path, files, name):
    """No file may grow beyond 100 bytes here: the write ends in the middle, as on a full disk."""
    target = tmp_path / "out.json"
    target.write_text("old answer\n")

    arguments = [*given(name, files), "--json", "-o", str(target)]
    done = run_limited(NEARLY_FULL, arguments)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"xenpt: {target}")
    assert last.endswith("File too large")
    assert "Traceback" not in done.stderr
    assert target.read_text() == "old answer\n"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system: run as root")
def test_file_system_without_room_is_one_line_and_the_old_answer_stays(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(disk)])
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here: run with CAP_SYS_ADMIN")
    try:
        (disk / "out.json").write_text("old answer\n")
        done = run("boot", "2G", "--json", "-o", str(disk / "out.json"))
        assert done.returncode == 2
        assert done.stderr == f"xenpt: {disk}/out.json: No space left on device\n"
        assert (disk / "out.json").read_text() == "old answer\n"
        assert sorted(path.name for path in disk.iterdir()) == ["out.json"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_reader_that_has_gone_is_one_line(files, name):
    reader, writer = os.pipe()
    os.close(reader)
    done = run(
        *given(name, files), "--json", capture_output=False, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert done.returncode == 2
    assert done.stderr == "xenpt: standard output: its reader has gone\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("cleanup", "8P"),
        ("boot", "8P", "--p2m-leaf", "4k"),
        ("boot", "8P", "--p2m-leaf", "4k", "--engine", "stream"),
        ("sweep", "--memory", "8P", "--p2m-leaf", "4k"),
    ],
)
def test_what_memory_will_not_hold_is_refused_before_it_is_taken(tmp_path, arguments):
    target = tmp_path / "out.json"
    target.write_text("old answer\n")
    done = run_limited(SHORT_OF_MEMORY, [*arguments, "--json", "-o", str(target)])
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("xenpt: ")
    assert " of memory, " in last
    assert "Traceback" not in done.stderr
    assert target.read_text() == "old answer\n"


def test_what_memory_holds_is_not_refused():
    done = run_limited(SHORT_OF_MEMORY, ["boot", "64T", "--json"])
    assert done.stderr == ""
    assert json.loads(done.stdout)["verdict"] == "boots"
