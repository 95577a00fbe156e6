# SPDX-License-Identifier: GPL-2.0-or-later
"""The comparison itself, on dumps and traces of boots that are kept: it finds nothing where there
is nothing, and any one word that is changed."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from itertools import pairwise

import goldendata
import numpy as np
import pytest
from linuxcases import boot_of, linux_of
from oracle.calls import model_calls, real_calls
from oracle.cases import Case
from oracle.compare import compare
from oracle.memory import Table
from oracle.observe import RECORD, STOPS, Observation, Records, without_restarts

from xenpt.abi import START_INFO_64
from xenpt.linux import Stage
from xenpt.p2m import P2M

#: Phase of a trace by stage.
PHASES = {
    "setup_kernel_pagetable": "xen_setup_kernel_pagetable",
    "memory_setup": "xen_memory_setup",
    "init_mem_mapping": "init_mem_mapping",
    "paging_init": "xen_pagetable_init",
    "vmalloc_p2m_tree": "xen_vmalloc_p2m_tree",
    "p2m_free": "<xen_vmalloc_p2m_tree",
    "remap_memory": "xen_remap_memory",
}
POINTS = "setup", "pre", "mid", "post"
CASES = "c512m", "c2g", "c512m-x4.20"


def records_of(name: str) -> Records:
    """A golden trace as this plugin would have written it, without Xen's restarts."""
    trace = goldendata.arrays(name)["trace"]
    records = np.zeros(len(trace), RECORD)
    for ours, theirs in zip(RECORD.names, trace.dtype.names, strict=True):
        records[ours] = trace[theirs]
    return without_restarts(records[records["op"] < 64])


@cache
def kept(name: str) -> Observation:
    """A golden case in the form of a boot that was just observed."""
    facts, arrays = goldendata.facts(name), goldendata.arrays(name)
    options, log = facts["options"], goldendata.log(name)
    size = options["dom0_mem"].split(",")[0]
    case = Case(name, options["mem"], size, options["initrd_size"], quiet=True)
    seen = Observation(case, facts["dump"]["entry"]["start_info"]["cmd_line"], log)
    for point in ("entry", *POINTS):
        if f"{point}_mfn" not in arrays:
            continue
        columns = [arrays[f"{point}_{column}"] for column in ("mfn", "level", "va", "pages")]
        rows = zip(*(column.tolist() for column in columns[:3]), columns[3], strict=True)
        seen.tables[point] = [Table(*row) for row in rows]
    seen.start_info = arrays["entry_start_info"].tobytes()[: START_INFO_64.itemsize]
    runs = arrays["entry_p2m_runs"].astype(np.int64).tolist()
    pieces = [mfn + step * np.arange(nr) for _, mfn, step, nr in runs]
    seen.p2m = np.concatenate(pieces).astype("<u8")
    seen.page_info = dict(
        zip(
            arrays["entry_mfn"].tolist(),
            map(tuple, arrays["entry_page_info"].tolist()),
            strict=True,
        )
    )
    records = records_of(name)
    phases = [phase for phase, _ in facts["dump"]["hypercall_phases"]]
    number = {stage: phases.index(phase) + 1 for stage, phase in PHASES.items()}
    seen.completed = list(PHASES)
    seen.hypercalls = {stage: records[records["stage"] == n] for stage, n in number.items()}
    outside = records[~np.isin(records["stage"], list(number.values()))]
    first, free = number["setup_kernel_pagetable"], number["p2m_free"]
    for point, (start, end) in zip(POINTS, pairwise((0, first, free, free, 99)), strict=True):
        seen.between[point] = outside[(outside["stage"] >= start) & (outside["stage"] < end)]
    return seen


def test_every_stage_has_a_stop_and_a_phase():
    assert {stop.begins for stop in STOPS if stop.begins} == set(PHASES)


@pytest.mark.parametrize("name", CASES)
def test_kept_boot_equals_the_model(name):
    results = compare(kept(name), linux_of(name))
    assert [(result.subject, line) for result in results for line in result.differences] == []
    points = len(kept(name).tables) - 1  # of the entry there is more than tables
    assert len(results) == 12 + points  # no memblock=debug in these logs
    assert all(result.left_out < 300 for result in results)
    assert all(result.words for result in results)


@pytest.mark.parametrize("name", ["c8g", "c8g-relocate"])
def test_calls_of_the_free_equal_a_trace_that_holds_them_alone(name):
    real = real_calls(records_of(name))
    p2m = P2M.from_rows(goldendata.arrays(name)["entry_p2m_runs"].astype(np.int64))
    boot = boot_of(name).run_to(Stage.P2M_FREE)
    model = model_calls(boot.results[-1].calls, p2m)
    assert len(real) > 4000
    assert np.array_equal(model, real)


def test_calls_that_xen_restarts_count_once():
    calls = [
        (1, 13, 0, 0, (0x1000, 2, 0, 0)),  # multicall of two at 0x1000
        (1, 14, 1, 1, (0xA000, 0x61, 0, 0)),
        (1, 26, 1, 1, (0x2000, 1, 0, 0)),
        (1, 26, 3, 1, (0, 0x123, 0, 0)),
        (1, 13, 0, 0, (0x1040, 1, 0, 0)),  # its second call again
        (1, 26, 1, 1, (0x2000, 1, 0, 0)),
        (1, 26, 3, 1, (0, 0x123, 0, 0)),
        (1, 13, 0, 0, (0x1000, 2, 0, 0)),  # another multicall in the same place
        (1, 14, 1, 1, (0xB000, 0x61, 0, 0)),
        (1, 26, 1, 1, (0x2000, 1, 0, 0)),
        (1, 26, 3, 1, (0, 0x124, 0, 0)),
        (1, 26, 0, 0, (0x3000, 1, 0, 0)),
        (1, 26, 3, 0, (3, 0x99, 0, 0)),
        (1, 26, 0, 0, (0, 1 << 31, 0, 0)),  # the rest of an mmuext_op
        (1, 26, 3, 0, (3, 0x99, 0, 0)),
    ]
    kept_calls = without_restarts(np.array(calls, RECORD))["args"][:, 1].tolist()
    assert kept_calls == [2, 0x61, 1, 0x123, 2, 0x61, 1, 0x124, 1, 0x99]


def flip(point: str, level: int, slot: int, bit: int = 1) -> Callable[[Observation], None]:
    """Change a bit in a table: at entry and setup in Xen's first, else in Linux's last."""

    def change(seen):
        of_level = [table for table in seen.tables[point] if table.level == level]
        table = of_level[0 if point in ("entry", "setup") else -1]
        table.words[slot] ^= np.uint64(bit)

    return change


def change_call(stage: str, word: int) -> Callable[[Observation], None]:
    def change(seen):
        records = seen.hypercalls[stage]
        at = np.flatnonzero(np.isin(records["op"], (1, 14)) & (records["kind"] != 1))[-1]
        if records["op"][at] == 1:
            at = np.flatnonzero(records["kind"] == 2)[-1]
        records["args"][at, word] += 8

    return change


def lose_call(stage: str) -> Callable[[Observation], None]:
    def change(seen):
        seen.hypercalls[stage] = np.delete(seen.hypercalls[stage], -1)

    return change


def change_log(seen):
    seen.log = seen.log.replace(
        "Page tables:   ffffffff84a01000", "Page tables:   ffffffff84a02000"
    )


def change_start_info(seen):
    seen.start_info = seen.start_info[:-1] + b"\1"


def end_early(seen):
    seen.completed.pop()
    seen.ended = "Kernel panic"


def change_page_info(seen):
    mfn, (count, kind) = seen.page_info.popitem()
    seen.page_info[mfn] = count + 1, kind


@pytest.mark.parametrize(
    "subject, change",
    [
        ("layout", change_log),
        ("start_info", change_start_info),
        ("entry tables", flip("entry", 1, 511)),
        ("entry tables", flip("entry", 4, 300)),
        ("entry tables", lambda seen: seen.tables["entry"].pop()),
        ("page_info", change_page_info),
        ("tables: setup", flip("setup", 1, 0, 1 << 63)),
        ("tables: pre", flip("pre", 2, 7)),
        ("tables: mid", flip("mid", 1, 7, 64)),
        ("tables: post", flip("post", 1, 7, 64)),
        ("tables after the free", flip("mid", 1, 7, 2)),
        ("tables after the free", flip("pre", 1, 7)),
        ("remap_memory", end_early),
        *((f"calls of {stage}", change_call(stage, 0)) for stage in PHASES),
        *((f"calls of {stage}", change_call(stage, 1)) for stage in PHASES),
        *((f"calls of {stage}", lose_call(stage)) for stage in PHASES),
    ],
)
def test_one_changed_word_is_found(subject, change):
    seen = deepcopy(kept("c512m"))
    change(seen)
    differing = {r.subject for r in compare(seen, linux_of("c512m")) if r.differences}
    assert subject in differing


def test_moved_list_is_read_only_where_linux_maps_it_itself():
    """Seen in boots of 8g-relocated: tables [0x4a2a, 0x4a34), data from there on; the L1 tables
    of Xen end at frame 0x4c00 (38 of them). The kept dump does not have these L1 tables."""
    state = boot_of("c8g-relocate", record=False).run_to(Stage.INIT_MEM_MAPPING).state
    assert state.ro_frames.clip(0x4A2A, 0x4C00).ranges == ((0x4A2A, 0x4A34),)
    assert state.ro_frames.clip(0x4C00, 0x5A34).ranges == ((0x4C00, 0x5A34),)
