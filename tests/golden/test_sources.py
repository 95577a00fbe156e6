# SPDX-License-Identifier: GPL-2.0-or-later
"""The golden data: every file has its source, the whole stays small, the loader reads it."""

import re

import goldendata
import numpy as np
import pytest

DATA = sorted(
    path
    for path in goldendata.GOLDEN.rglob("*")
    if path.suffix in {".json", ".jsonl", ".xz", ".txt"}
)


def source_patterns() -> list[str]:
    """File patterns of the first column of SOURCES.md; a bare name takes the folder before it."""
    text = (goldendata.GOLDEN / "SOURCES.md").read_text(encoding="utf-8")
    patterns = []
    for row in re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([^`]+)`", row):
            folder = name.rpartition("/")[0] or folder
            patterns.append(name if "/" in name else f"{folder}/{name}")
    return patterns


def test_every_data_file_has_a_line_in_sources():
    patterns = source_patterns()
    assert "oracle/*.json" in patterns
    missing = [
        str(name)
        for name in (path.relative_to(goldendata.GOLDEN) for path in DATA)
        if not any(name.match(pattern) for pattern in patterns)
    ]
    assert missing == []


def test_golden_data_stays_within_10_mib():
    assert sum(path.stat().st_size for path in DATA) <= 10 << 20


def test_cases_are_complete():
    # 55 boots: 2 traced only (c8g, c8g-relocate), 4 end before ENTRY. 105 builds: 11 refused or
    # aborted; 6 (pae*) never validated by Xen have no entry dump, 4 (xl-*) no dump before the pin.
    assert len(goldendata.cases("oracle")) == 55
    assert len(goldendata.cases("oracle", dump="entry")) == 49
    assert len(goldendata.cases("domu")) == 105
    assert len(goldendata.cases("domu", dump="prepin")) == 90
    assert len(goldendata.cases("domu", dump="entry")) == 88


@pytest.mark.parametrize("folder", ["oracle", "domu"])
def test_facts_name_exactly_the_dumps_that_exist(folder):
    held: dict[str, list[str]] = {}
    for name in goldendata.cases(folder):
        for key in goldendata.arrays(name, folder):
            held.setdefault(key.removesuffix("_pages"), []).append(name)
    for point in ("prepin", "entry", "setup", "pre", "mid", "post", "trace"):
        assert goldendata.cases(folder, dump=point) == held.get(point, []), point


def test_start_info_page_agrees_with_the_facts():
    # Two harvests of one boot: the dumped page and the JSON made by the debugger's reader.
    for name in goldendata.cases("oracle", dump="entry"):
        page = goldendata.arrays(name)["entry_start_info"]
        info = goldendata.facts(name)["dump"]["start_info"]
        assert int(page.view("<u8")[4]) == info["nr_pages"], name


def test_arrays_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        goldendata.arrays("c1g")["entry_mfn"][0] = 0


def test_p2m_runs_cover_every_page_once():
    runs = goldendata.arrays("m2g-1p")["entry_p2m_runs"].astype(np.uint64)
    assert int(runs[:, 3].sum()) == 524287


def test_case_without_dump_has_no_arrays():
    assert goldendata.arrays("m127m") == {}


def test_unknown_case_is_an_error():
    with pytest.raises(FileNotFoundError):
        goldendata.arrays("no-such-case")


def test_log_holds_the_arrangement():
    log = goldendata.log("xen417_dom0_600G", "logs-large")
    assert "Phys-Mach map: 0000008000000000->000000804b000000" in log


def test_boot_logs_are_named():
    assert [len(goldendata.boot_logs(kind)) for kind in ("dom0", "domu", "failures")] == [25, 12, 2]
    assert goldendata.boot_logs("dom0")[0]["record"] == "dom0-01"
