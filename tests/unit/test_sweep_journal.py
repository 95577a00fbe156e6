# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep goes on after any end of the process, and its rows are the same."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import xenpt
from xenpt import sweeprow
from xenpt.errors import InputError, OutputError, UsageError
from xenpt.journal import Journal

GIB = 1 << 18  # pages
SIZES = [GIB, 2 * GIB, 3 * GIB]


@pytest.fixture(scope="module")
def whole():
    return xenpt.sweep(nr_pages=SIZES)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.partial"


def test_rows_are_there_as_soon_as_they_are_counted(path):
    seen = []

    def look(done, nr_all):
        seen.append((done, nr_all, path.read_bytes().count(b"\n")))

    xenpt.sweep(nr_pages=SIZES, journal=path, progress=look)
    assert seen == [(0, 3, 0), (1, 3, 1), (2, 3, 2), (3, 3, 3)]


def test_resume_after_an_end_at_any_byte(path, whole):
    data = whole.as_json_lines().encode()
    second = data.index(b"\n", data.index(b"\n") + 1) + 1
    for end in [*range(0, second, 97), second - 1, second, second + 1, len(data)]:
        path.write_bytes(data[:end])
        assert xenpt.sweep(nr_pages=SIZES, journal=path, resume=True) == whole
        assert path.read_bytes() == data


def test_resume_counts_only_what_is_missing(path, whole, monkeypatch):
    lines = whole.as_json_lines().splitlines(keepends=True)
    path.write_text(lines[2] + lines[0])
    asked = []
    measure = sweeprow.measure
    monkeypatch.setattr(
        "xenpt.sweeps.measure", lambda case: asked.append(case.guest.nr_pages) or measure(case)
    )
    assert xenpt.sweep(nr_pages=SIZES, journal=path, resume=True) == whole
    assert asked == [2 * GIB]


def test_larger_sweep_takes_what_a_smaller_one_has(path, whole):
    xenpt.sweep(nr_pages=SIZES[1:2], journal=path)
    assert xenpt.sweep(nr_pages=SIZES, journal=path, resume=True) == whole
    assert len(xenpt.sweep(nr_pages=SIZES[:1], journal=path, resume=True)) == 1


def test_rows_are_not_overwritten_unasked(path, whole):
    path.write_text(whole.as_json_lines())
    with pytest.raises(UsageError, match=r"has 3 rows of a sweep that did not end.*--resume"):
        xenpt.sweep(nr_pages=SIZES, journal=path)
    assert path.read_text() == whole.as_json_lines()


@pytest.mark.parametrize("name, other", [("schema", 0), ("xenpt", "0.0.1"), ("commit", "abc")])
def test_rows_of_another_xenpt_are_not_mixed_with_ours(path, whole, name, other):
    path.write_text(json.dumps({**whole.rows[0], name: other}) + "\n")
    with pytest.raises(UsageError, match=f"its rows are of {name} {other}"):
        xenpt.sweep(nr_pages=SIZES, journal=path, resume=True)


def test_rows_with_other_columns_are_not_mixed_with_ours(path, whole):
    path.write_text(json.dumps({**whole.rows[0], "new": 1}) + "\n")
    with pytest.raises(UsageError, match="other columns"):
        xenpt.sweep(nr_pages=SIZES, journal=path, resume=True)


@pytest.mark.parametrize(
    "column, value",
    [("nr_pages", 1 << 63), ("nr_pages", "1"), ("nr_pages", True), ("init_p2m", 1), ("xen", [])],
)
def test_rows_with_values_of_another_kind_are_refused(path, whole, column, value):
    refused_row(path, whole, column, value)


@pytest.mark.parametrize("column, value", [("p2m_leaf", "%g"), ("memory_pages", 1), ("xen", None)])
def test_rows_with_the_inputs_of_another_guest_are_refused(path, whole, column, value):
    """Their hash says whose they are."""
    refused_row(path, whole, column, value)


def refused_row(path, whole, column, value):
    path.write_text(json.dumps({**whole.rows[0], column: value}) + "\n")
    with pytest.raises(UsageError, match=f"a row has .* in column {column}"):
        xenpt.sweep(nr_pages=SIZES, journal=path, resume=True)


@pytest.mark.parametrize(
    "content, offset",
    [("precious\n", 0), ("precious", 0), ("[1]\n", 0), ('{"schema":1}\n', 0)],
)
def test_file_that_is_no_journal_is_left_alone(path, content, offset):
    path.write_text(content)
    for resume in (False, True):
        with pytest.raises(InputError, match=f"rows.partial: offset {offset:#x}: not a"):
            xenpt.sweep(nr_pages=SIZES, journal=path, resume=resume)
    assert path.read_text() == content


def test_fault_in_the_middle_is_named_by_its_offset(path, whole):
    line = whole.as_json_lines().splitlines(keepends=True)[0]
    path.write_text(line + line[:50] + "\n" + line)
    with pytest.raises(InputError, match=f"offset {len(line):#x}: not a row"):
        Journal(path, resume=True)


def test_two_sweeps_do_not_share_a_journal(path):
    with Journal(path), pytest.raises(UsageError, match="another sweep is writing it"):
        Journal(path)
    with Journal(path):
        pass


def test_journal_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        Journal(tmp_path / "none" / "rows")
    with pytest.raises(OutputError, match="null"):
        Journal("a\0b")
    with pytest.raises(OutputError, match="/dev/null: not a regular file"):
        Journal("/dev/null")


def test_full_disk_is_one_line(path, monkeypatch):
    def write(_descriptor, _data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(path) as full:
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(OutputError, match=r"rows\.partial: No space left on device"):
            full.append({"schema": 1})


# --- The process is killed -----------------------------------------------------------------------

NR_ROWS = 100
MANY = ",".join(f"{2048 + 64 * i}M" for i in range(NR_ROWS))


def command(*arguments):
    return [sys.executable, "-m", "xenpt", "sweep", "--memory", MANY, *arguments]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The rows of a sweep that nobody stopped, as JSON Lines."""
    path = tmp_path_factory.mktemp("whole") / "rows.jsonl"
    subprocess.run(command("-o", str(path)), check=True, timeout=60)
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]
    return path.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_sweep_goes_on_with_the_same_rows(tmp_path, uninterrupted, number):
    path, journal = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.partial"
    with subprocess.Popen(command("-o", str(path)), stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == -number
    assert not path.exists()
    nr_rows = journal.read_bytes().count(b"\n")
    assert 5 <= nr_rows < NR_ROWS
    if number != signal.SIGKILL:
        assert f"{nr_rows} of {NR_ROWS} rows are in {journal}: --resume goes on from there" in said
        assert "Traceback" not in said
    with open(journal, "ab") as torn:
        torn.write(journal.read_bytes()[:300])  # as if it had been killed while writing
    subprocess.run(command("-o", str(path), "--resume"), check=True, timeout=60)
    assert path.read_bytes() == uninterrupted
    assert not journal.exists()
