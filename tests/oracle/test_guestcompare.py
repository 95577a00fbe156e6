# SPDX-License-Identifier: GPL-2.0-or-later
"""The comparison of guests, on dumps of guests that are kept: it finds nothing where there is
nothing, and any one word that is changed."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from signal import SIGABRT, SIGXFSZ

import goldendata
import numpy as np
import pytest
from oracle.guestboot import REGISTERS, Built, Point
from oracle.guestcompare import compare_guest, last_words
from oracle.guests import GUESTS, Guest, kernel_image
from oracle.memory import Table

from xenpt.inputs.kernel import default_kernel

#: Two mappings, a ramdisk, holes with the list outside and inside, PAE; a refusal; no end.
CASES = (
    "u512m", "s-small-i", "s-vnuma-hole", "s-vnuma-hole-l", "pae128", "s-toosmall", "w-full",
)  # fmt: skip
BEFORE, AFTER = 2, 4  # comparisons at these points, the registers included


def guest_of(name: str) -> Guest:
    """A golden case as a guest of this oracle; but for Debian's kernel, its ELF file."""
    how = goldendata.facts(name, "domu")["how"]
    nr_pages = how.get("pages") or how["mem"] * 256
    ramdisk = bytes(how["mod"]) if "mod" in how else None
    kernel = None
    if asked := dict(how["kernel"].get("synth") or {}):
        ((start, nr_bytes),) = asked.pop("segs")
        bits = asked.pop("bits", 64)
        base = asked.pop("VIRT_BASE", 0xFFFFFFFF80000000 if bits == 64 else 0xC0000000)
        kernel = kernel_image(base, start, nr_bytes, bits, **asked)
    hole, second = how.get("hole", 0) * 256, how.get("vnuma", 0) * 256
    return Guest(name, nr_pages, kernel, ramdisk, hole, second, "fakecaps" in how)


def point_of(name: str, point: str) -> Point | None:
    arrays, dump = goldendata.arrays(name, "domu"), goldendata.facts(name, "domu")["dump"]
    if point not in dump:
        return None
    columns = [arrays[f"{point}_{column}"] for column in ("mfn", "level", "va", "pages")]
    rows = zip(*(column.tolist() for column in columns[:3]), columns[3].copy(), strict=True)
    tables = [Table(*row) for row in rows]
    info = dump[point]["start_info"]
    runs = arrays[f"{point}_p2m_runs"].astype(np.int64).tolist()
    pieces = [mfn + step * np.arange(nr) for _, mfn, step, nr in runs]
    kept = arrays.get(f"{point}_page_info", np.empty((0, 2), np.uint64)).tolist()
    return Point(
        arrays[f"{point}_start_info"].tobytes(),
        info["shared_info"] >> 12,
        (info["store_evtchn"], info["console1"]),
        np.concatenate(pieces).astype(np.int64).view("<u8"),
        tables,
        dict(zip((table.mfn for table in tables), map(tuple, kept), strict=False)),
    )


@cache
def kept(name: str) -> Built:
    """A golden case in the form of a guest that was just built."""
    facts = goldendata.facts(name, "domu")
    context = facts.get("context", {})
    after = point_of(name, "entry")
    return Built(
        guest_of(name),
        "(XEN) Xen version 4.17.7 (Debian ...)",
        point_of(name, "prepin"),
        after,
        {key: context.get(key, context["cr3_mfn"] << 12) for key in REGISTERS} if after else {},
        goldendata.log(name, "domu"),
        0 if after else -SIGXFSZ if name == "w-full" else 1,
    )


def differences(built: Built) -> list[tuple[str, str]]:
    results = compare_guest(built, default_kernel())
    return [(result.subject, line) for result in results for line in result.differences]


def test_names_are_those_of_this_group():
    assert all(name.startswith("domu-") for name in GUESTS)
    assert any(guest.bits == 32 for guest in GUESTS.values())


@pytest.mark.parametrize("name", CASES)
def test_kept_guest_equals_the_model(name):
    built = kept(name)
    assert differences(built) == []
    results = compare_guest(built, default_kernel())
    assert len(results) == 1 + BEFORE * (built.before is not None) + AFTER * bool(built.after)
    assert all(result.words for result in results)


def in_table(point: str, level: int, slot: int, bit: int = 1) -> Callable[[Built], None]:
    def change(built: Built) -> None:
        tables = getattr(built, point).tables
        table = next(table for table in tables if table.level == level)
        table.words[slot] ^= np.uint64(bit)

    return change


def in_start_info(point: str, at: int) -> Callable[[Built], None]:
    def change(built: Built) -> None:
        real = getattr(built, point)
        content = bytearray(real.start_info)
        content[at] ^= 1
        setattr(built, point, real._replace(start_info=bytes(content)))

    return change


def in_page_info(built: Built) -> None:
    assert built.after
    mfn, (count, kind) = built.after.page_info.popitem()
    built.after.page_info[mfn] = count, kind ^ 1


def in_log(old: str, new: str) -> Callable[[Built], None]:
    def change(built: Built) -> None:
        assert old in built.log
        built.log = built.log.replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    ("name", "subject", "change"),
    [
        ("u512m", "tables before the pin", in_table("before", 1, 5)),
        ("u512m", "tables before the pin", in_table("before", 4, 260)),
        ("u512m", "tables after the pin", in_table("after", 1, 5, 1 << 52)),
        ("u512m", "tables after the pin", in_table("after", 4, 511, 2)),
        ("u512m", "tables after the pin", lambda built: built.after.tables.pop()),
        ("pae128", "tables before the pin", in_table("before", 3, 3, 2)),
        ("u512m", "start_info before the pin", in_start_info("before", 120)),
        ("u512m", "start_info after the pin", in_start_info("after", 1160)),
        ("u512m", "start_info after the pin", in_start_info("after", 68)),  # between two fields
        ("pae128", "start_info before the pin", in_start_info("before", 72)),
        ("u512m", "page_info after the pin", in_page_info),
        ("u512m", "registers", lambda built: built.registers.update(rsp=0)),
        ("u512m", "layout", in_log("pfn 0x4a00)", "pfn 0x4a01)")),
        ("w-full", "layout", in_log("8 table(s)", "9 table(s)")),
        ("w-full", "layout", lambda built: setattr(built, "status", -SIGABRT)),
        ("s-toosmall", "layout", in_log("kernel too large", "kernel too small")),
        ("s-toosmall", "layout", lambda built: setattr(built, "log", "")),
        ("u512m", "layout", lambda built: setattr(built, "after", None)),
        ("u512m", "layout", lambda built: setattr(built, "ended", "Kernel panic")),
    ],
)
def test_one_changed_word_is_found(name, subject, change):
    built = deepcopy(kept(name))
    change(built)
    assert f"guest: {subject}" in {where for where, _ in differences(built)}


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (
            "xc: error: panic: a.c:169: count_pgtables: overlapping mappings\n: Internal error\n",
            "count_pgtables: overlapping mappings",
        ),
        (
            "init: xg_dom_x86.c:197: count_pgtables: Assertion `a >= b' failed.\n",
            "count_pgtables: Assertion `a >= b' failed.",
        ),
        (
            "domainbuilder: detail: PV Autotranslate guests no longer supported\nfailed: xc\n",
            "PV Autotranslate guests no longer supported",
        ),
        ("failed: xc_domain_create(xch, &domid, &config)\n", None),
        ("", "status 1"),
    ],
)
def test_last_words_are_those_of_whoever_gave_up(log, words):
    built = Built(Guest("domu-x", 1), log=log, status=1)
    assert last_words(built) == (words or log.strip())
    assert last_words(replace(built, ended="time is over")) == "time is over"
