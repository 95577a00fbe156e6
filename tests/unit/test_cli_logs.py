# SPDX-License-Identifier: GPL-2.0-or-later
"""`xenpt explain` and `xenpt diff` as a user runs them: text, JSON and exit status."""

import io
import json
from types import SimpleNamespace

import goldendata
import pytest

from xenpt.cli import main

PANICKED = "xen417_noINITP2M_nodom0mem_clipped_panic"


@pytest.fixture
def ran(capsys):
    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return run


@pytest.fixture
def log(tmp_path):
    def write(text):
        path = tmp_path / "xl-dmesg.txt"
        path.write_text(text, "utf-8")
        return path

    return write


def test_a_predicted_panic_is_explained_and_a_match(ran, log):
    """The sample answer: 493.5 GiB, 1.04 GiB, 473G of 124188160 pages."""
    result = ran("explain", log(goldendata.log(PANICKED, "logs-large")))
    assert result.status == 0
    said = " ".join(result.out.split())
    assert "line 114 match Dom0 memory clipped: 129368064 pages" in said
    assert "(0 - 0xffffffff84a00000) / 16 = 129,368,064 pages = 493.5 GiB" in said
    assert 'line 118 "Not enough RAM for domain 0 allocation"' in said
    assert "kernel + p2m = 1.04 GiB" in said
    assert "allows 2^18 pages = 1 GiB" in said
    assert "dom0_mem=473G (largest that fits this kernel: 124,188,160 pages" in said
    assert max(map(len, result.out.splitlines())) <= 96


def test_a_difference_names_line_and_reason_and_the_answer_is_no(ran, log):
    text = goldendata.log("m1g").replace("4a2a000->ffffffff84a2b000", "4a2a000->ffffffff84a2c000")
    result = ran("explain", log(text))
    line = next(i for i, line in enumerate(text.split("\n"), 1) if "Boot stack" in line)
    assert result.status == 1
    assert f"line {line}       DIFFERENCE  Boot stack" in result.out
    assert f"Log and model differ in line {line}." in result.out


def test_json_has_every_check_with_its_line(ran, log):
    result = ran("explain", log(goldendata.log("m1g")), "--json")
    data = json.loads(result.out)
    [boot] = data["boots"]
    assert data["agrees"] is True
    assert {check["result"] for check in boot["checks"]} == {"match", "given"}
    [stack] = [check for check in boot["checks"] if check["what"] == "Boot stack"]
    assert stack["log"] == stack["model"] == "ffffffff84a2a000->ffffffff84a2b000"


def test_a_log_may_come_from_standard_input(ran, monkeypatch):
    data = goldendata.log("m127m").replace("\n", "\r\n").encode()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    result = ran("explain", "-")
    assert result.status == 0
    assert "The model has it, too." in result.out


def test_a_file_without_a_boot_is_bad_input(ran, log):
    path = log("hello\n")
    result = ran("explain", path)
    assert (result.status, result.out) == (2, "")
    assert result.err == f"xenpt: {path}: no boot of Xen or of a Xen dom0 in this log\n"
    assert ran("explain", path.with_name("missing")).status == 2
    assert ran("explain").status == 2


def test_differences_of_plans_are_told_and_equal_plans_are_not(ran, tmp_path):
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    assert ran("plan", "4G", "--json", "-o", one).status == 0
    assert ran("plan", "8G", "--json", "-o", two).status == 0
    result = ran("diff", one, two)
    assert result.status == 1
    assert "p2m.end                0x8000800000  0x8001000000   +0x800000" in result.out
    assert ran("diff", one, one).out == "The two plans are equal.\n"
    assert ran("diff", one, one).status == 0
    data = json.loads(ran("diff", one, two, "--json").out)
    assert (data["kind"], data["equal"]) == ("plan", False)
    assert {"key": "nr_p2m_frames", "a": 2050, "b": 4098, "delta": 2048, "only_in": None} in data[
        "changes"
    ]


def test_boots_and_cleanups_are_compared_too(ran, tmp_path):
    for command in ("boot", "cleanup"):
        one, two = tmp_path / "1.json", tmp_path / "2.json"
        ran(command, "4G", "--json", "-o", one)
        ran(command, "4G", "--linux", "seed", "--json", "-o", two)
        result = ran("diff", one, two)
        assert result.status == 1
        assert "v6.1" in result.out
        assert "seed" in result.out


def test_what_cannot_be_compared_is_bad_input(ran, tmp_path):
    plan, cleanup = tmp_path / "plan.json", tmp_path / "cleanup.json"
    ran("plan", "4G", "--json", "-o", plan)
    ran("cleanup", "4G", "--json", "-o", cleanup)
    result = ran("diff", plan, cleanup)
    assert (result.status, result.out) == (2, "")
    assert "only like is compared with like" in result.err
    plan.write_text("{}")
    assert ran("diff", plan, cleanup).status == 2
