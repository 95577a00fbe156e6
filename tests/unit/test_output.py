# SPDX-License-Identifier: GPL-2.0-or-later
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from xenpt import output
from xenpt.errors import OutputError, StoppedError


def directory(path):
    return sorted(p.name for p in path.iterdir())


def test_new_file_holds_the_text_and_nothing_is_left_beside_it(tmp_path):
    output.write("plan\n", str(tmp_path / "out.txt"))
    assert (tmp_path / "out.txt").read_text() == "plan\n"
    assert directory(tmp_path) == ["out.txt"]


def test_new_file_has_the_mode_that_umask_asks_for(tmp_path):
    umask = os.umask(0o027)
    try:
        output.write("plan\n", str(tmp_path / "out.txt"))
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "out.txt").stat().st_mode) == 0o640


def test_old_file_keeps_its_mode(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    path.chmod(0o604)
    output.write("new", str(path))
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_symbolic_link_stays_a_link(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    output.write("new", str(tmp_path / "link.txt"))
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_name_of_the_longest_length_can_be_written(tmp_path):
    path = tmp_path / ("x" * 255)
    output.write("new", str(path))
    assert path.read_text() == "new"


@pytest.mark.parametrize("step", ["fsync", "fchmod"])
def test_failure_on_the_way_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
    path = tmp_path / "out.txt"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.os, step, full)
    with pytest.raises(OutputError, match=r"out.txt: No space left on device$"):
        output.write("new", str(path))
    assert path.read_text() == "old"
    assert directory(tmp_path) == ["out.txt"]


def test_stop_on_the_way_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "out.txt"
    path.write_text("old")
    monkeypatch.setattr(output.os, "fsync", lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(StoppedError, match="stopped by SIGTERM"), output.stop_signals():
        output.write("new", str(path))
    assert path.read_text() == "old"
    assert directory(tmp_path) == ["out.txt"]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("missing/out.txt", "No such file or directory"),
        (".", "Is a directory"),
        ("file/out.txt", "Not a directory"),
        ("a\0b", "embedded null byte"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, name, reason):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        output.write("new", f"{tmp_path}/{name}")
    assert str(caught.value).endswith(f": {reason}")
    assert caught.value.target.endswith(name)


def test_file_that_may_not_be_written_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "out.txt"
    path.write_text("old")
    monkeypatch.setattr(output.os, "access", lambda *_: False)  # root may write everything
    with pytest.raises(OutputError, match="Permission denied"):
        output.write("new", str(path))
    assert path.read_text() == "old"


def test_device_is_written_to_and_not_replaced():
    output.write("new", "/dev/null")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(OutputError, match=r"^/dev/full: No space left on device$"):
        output.write("new", "/dev/full")


def test_fifo_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "fifo").read_text()))
    reader.start()
    output.write("new", str(tmp_path / "fifo"))
    reader.join()
    assert read == ["new"]
    assert directory(tmp_path) == ["fifo"]


def test_closed_standard_output_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputError, match="standard output: it is closed"):
        output.write("text")


def test_complaint_is_one_printable_line(capsys):
    output.complain("file\x1b[31m\n\udcff\u20ac: gone")
    assert capsys.readouterr().err == "xenpt: file\\x1b[31m\\n\\udcff\\u20ac: gone\n"


def test_complaint_needs_no_standard_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    output.complain("nobody hears it")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_and_their_handlers_come_back(number):
    before = [signal.getsignal(n) for n in output.STOP_SIGNALS]
    with pytest.raises(StoppedError, match=number.name) as caught, output.stop_signals():
        signal.raise_signal(number)
    assert caught.value.number == number
    assert [signal.getsignal(n) for n in output.STOP_SIGNALS] == before


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with output.stop_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_have_no_signals_to_handle():
    entered = []

    def enter():
        with output.stop_signals():
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered


SCRIPT = """
import sys, time
from xenpt import output
from xenpt.errors import StoppedError
try:
    with output.stop_signals():
        print("ready", flush=True)
        time.sleep(60)
except StoppedError as stopped:
    output.complain(str(stopped))
    output.end_by_signal(stopped.number)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_process_ends_by_the_signal_with_one_line(number):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=10)
    assert complaint == f"xenpt: stopped by {number.name}\n"
    assert process.returncode == -number


def test_signal_inside_what_may_not_raise_is_not_lost(capfd):
    class Held:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def drop_and_wait():
        Held()
        time.sleep(30)

    with pytest.raises(StoppedError), output.stop_signals():
        drop_and_wait()
    assert capfd.readouterr().err == ""
