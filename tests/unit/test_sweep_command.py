# SPDX-License-Identifier: GPL-2.0-or-later
"""`xenpt sweep`: formats, text, bad usage, and the time that the founding sweep takes."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import xenpt
from xenpt import cli, sweeptable
from xenpt.errors import MissingExtraError

GIB = 1 << 18  # pages
FLEET = str(Path(__file__).resolve().parents[2] / "examples" / "fleet.toml")


@pytest.fixture
def sweep(capsys):
    """Run `xenpt sweep` in this process: standard output of a sweep that succeeds."""

    def run(*arguments):
        assert cli.main(["sweep", *arguments]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def rows_of(text):
    """Cells of the lines of a text's tables, by the first cell."""
    lines = [re.split(" {2,}", line.strip()) for line in text.splitlines() if line[:2] == "  "]
    return {cells[0]: cells[1:] for cells in lines}


def test_founding_sweep_is_one_object():
    done = subprocess.run(
        [sys.executable, "-m", "xenpt", "sweep", "--memory", "1G..64T", "--json"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    found = json.loads(done.stdout)
    assert done.stderr == b""
    assert [row["nr_pages"] for row in found["rows"]] == [GIB << i for i in range(17)]
    (growth,) = found["growth"]
    assert growth["exponents"]["cleanup_hypercalls"] == pytest.approx(1, abs=0.001)
    assert growth["nr_rows"] == 17
    assert found["schema"] == 2
    assert found["modelled"]["ghz"] == 3


def test_text_shows_counts_growth_and_constants(sweep):
    out = sweep("--memory", "1T..4T", "--p2m-leaf", "4k", "--linux", "seed")
    rows = rows_of(out)
    # SPEC F7 at 1 TiB, and for each doubling twice the list and its L1 and L2 tables.
    assert rows["1 TiB"][1:4] == ["1,027", "525,315", "525,316"]
    assert rows["2 TiB"][1:4] == ["2,053", "1,050,629", "1,050,630"]
    assert rows["growth"] == ["^1.00"] * 5 + rows["growth"][5:]
    assert "dom0, Linux seed on Xen 4.17, list in at most 4 KiB pages\n" in out
    assert "beyond, 1 TiB to 4 TiB: pages of a domain that Linux seed uses\n" in out
    assert "* modelled: counted operations x instructions of each" in out
    assert out.isascii()
    assert max(map(len, out.splitlines())) <= 96


def test_text_groups_panics(sweep):
    out = sweep("--memory", "473G,474G,1T", "--no-init-p2m")
    assert rows_of(out)["474 GiB"] == ["-"] * 7
    assert "panics, 474 GiB to 1 TiB: Not enough RAM for domain 0 allocation\n" in out
    assert "list in the initial mapping" in out
    assert "modelled" not in out  # the constant says nothing of such a list


def test_text_of_hosts_has_their_sizes(sweep):
    out = sweep("--host", "64G,128G", "--dom0-mem", "10%", "--dom0-mem", "8G", "--initrd", "0")
    assert " ".join(out.split()).count("initrd of 0 B") == 2
    assert "dom0_mem 10%" in out
    assert rows_of(out)["128 GiB"][0] == "8 GiB"


def test_scenario(sweep):
    out = sweep(FLEET)
    assert "the question that began it: dom0, Linux seed" in out
    assert "large guests: guest of the toolstack" in out


def test_format_is_that_of_the_file_or_of_the_option(sweep, tmp_path):
    memory = ("--memory", "1G..2G")
    whole = xenpt.sweep(nr_pages=[GIB, 2 * GIB])
    assert sweep(*memory, "--format", "csv") == whole.as_csv()
    assert sweep(*memory, "--format", "jsonl") == whole.as_json_lines()
    assert json.loads(sweep(*memory, "--format", "json")) == json.loads(sweep(*memory, "--json"))
    for name, start in (("a.csv", "schema,"), ("a.jsonl", '{"schema":'), ("a.json", "{\n")):
        assert sweep(*memory, "-o", str(tmp_path / name)) == ""
        assert (tmp_path / name).read_text().startswith(start)
    sweep(*memory, "-o", str(tmp_path / "a.txt"))
    assert (tmp_path / "a.txt").read_text() == sweep(*memory)
    sweep(*memory, "--format", "csv", "-o", str(tmp_path / "b.txt"))
    assert len(list(csv.reader((tmp_path / "b.txt").read_text().splitlines()))) == 3
    assert not list(tmp_path.glob("*.partial"))


def test_parquet_file(sweep, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: xenpt[data]")
    sweep("--memory", "1G", "-o", str(tmp_path / "a.parquet"))
    (row,) = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row] == list(xenpt.sweep(nr_pages=GIB).rows)


def test_what_is_no_regular_file_has_no_journal(sweep):
    sweep("--memory", "1G", "-o", "/dev/null")
    assert not Path("/dev/null.partial").exists()


def test_resume_of_nothing_is_a_sweep(sweep, tmp_path):
    path = tmp_path / "a.csv"
    sweep("--memory", "1G", "-o", str(path), "--resume")
    assert path.read_text() == xenpt.sweep(nr_pages=GIB).as_csv()


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--memory", "600"], "size '600': unit missing, did you mean 600G?"),
        (["--memory", "2G..1G"], "memory '2G..1G': ends before it starts"),
        (["--p2m-leaf", "4k,64k"], "leaf size '64k': expected 4k, 2m or 1g"),
        (["--builder", "qemu"], "builder 'qemu': expected dom0 or toolstack"),
        (["--dom0-mem", "8G"], "the size of dom0 depends on the host"),
        (["--kernel", "/none"], "/none: No such file or directory"),
        (["--initrd", "x"], "argument --initrd: invalid int value"),
        (["1G..64T"], "'1G..64T' is no .toml file; give sizes by --memory"),
        (["none.toml"], "none.toml: No such file or directory"),
        ([FLEET, "--memory", "1G"], "says what to sweep: leave out --memory"),
        (["--resume"], "--resume needs the file that the rows go to: -o FILE"),
        (["--workers", "-1"], "--workers -1: expected 0 or more"),
        (["--workers", "2", "--scheduler", "tcp://a:1"], "give --workers or --scheduler"),
        (["--json", "--format", "csv"], "give --json or --format csv, not both"),
        (["--format", "parquet"], "Parquet needs a file: -o FILE"),
        (["-o", "/none/a.csv"], "/none/a.csv.partial: No such file or directory"),
        (["-o", "/"], "/: "),
    ],
)
def test_bad_usage_is_one_line_and_status_2(capsys, arguments, reason):
    assert cli.main(["sweep", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err
    assert (err.count("\n"), err.startswith("xenpt: ")) == (1, True)


def test_format_that_cannot_be_written_is_found_out_first(capsys, monkeypatch, tmp_path):
    def missing(module):
        raise MissingExtraError(module.partition(".")[0], "data")

    monkeypatch.setattr(sweeptable, "_extra", missing)
    path = tmp_path / "a.parquet"
    assert cli.main(["sweep", "--memory", "1G", "-o", str(path)]) == 2
    assert "pyarrow is not installed: pip install 'xenpt[data]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rows_left_by_a_kill_are_not_overwritten_unasked(capsys, tmp_path):
    path, left = tmp_path / "a.csv", tmp_path / "a.csv.partial"
    left.write_text(xenpt.sweep(nr_pages=GIB).as_json_lines())
    assert cli.main(["sweep", "--memory", "1G..2G", "-o", str(path)]) == 2
    assert "go on from them with --resume, or remove the file" in capsys.readouterr().err
    assert left.exists()
    assert cli.main(["sweep", "--memory", "1G..2G", "-o", str(path), "--resume"]) == 0
    assert path.read_text() == xenpt.sweep(nr_pages=[GIB, 2 * GIB]).as_csv()
    assert not left.exists()


def test_rule_changes_every_profile(sweep):
    out = sweep("--memory", "1G", "--linux", "seed,v6.1", "--rule", "clear_table_entries=no")
    titles = [line for line in out.splitlines() if line.startswith("dom0, Linux")]
    assert [title.split()[2] for title in titles] == [
        "seed+clear_table_entries=no", "v6.1+clear_table_entries=no",
    ]  # fmt: skip
