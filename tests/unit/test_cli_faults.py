# SPDX-License-Identifier: GPL-2.0-or-later
"""The option --fault: what each command says of faults, in text and JSON, and its exit status."""

import json

import pytest

from xenpt.cli import main


def run(capsys, *arguments):
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def data(capsys, *arguments):
    status, out, err = run(capsys, *arguments, "--json")
    assert err == ""
    return status, json.loads(out)


def test_a_boot_without_faults_has_none(capsys):
    status, found = data(capsys, "boot", "1G")
    assert (status, found["faults"]) == (0, [])


def test_a_panic_of_linux_is_the_answer_no(capsys):
    status, found = data(capsys, "boot", "1G", "--fault", "refuse=9")
    panic = "kernel BUG in pin_pagetable_pfn(): Xen refuses mmuext_op"
    assert (status, found["verdict"], found["panic"], found["stages"]) == (1, "panics", panic, [])
    assert found["faults"] == [
        {"fault": "refuse=9", "struck": True, "where": "setup_kernel_pagetable", "end": "panic",
         "text": panic}
    ]  # fmt: skip


def test_a_panic_of_xen_leaves_the_other_faults_without_a_boot(capsys):
    status, found = data(capsys, "boot", "4G", "--fault", "oom=xen:17", "--fault", "hole=1")
    assert (status, found["panic"]) == (1, "Not enough RAM for DOM0 reservation")
    assert [f["end"] for f in found["faults"]] == ["panic", None]
    assert found["faults"][1]["text"] == "the guest is not built"


@pytest.mark.parametrize("command", ["plan", "cleanup", "boot"])
def test_each_command_knows_a_faulty_host(capsys, command):
    status, found = data(capsys, command, "4G", "--fault", "fragmented=8:1")
    assert status == 0
    assert [f["end"] for f in found["faults"]] == ["fallback"]
    status, found = data(capsys, command, "4G", "--fault", "oom=xen:1")
    assert (status, found["panic"]) == (1, "Not enough RAM for domain 0 allocation")
    assert [f["end"] for f in found["faults"]] == ["panic"]


def test_plan_and_cleanup_have_the_key_only_with_faults(capsys):
    assert "faults" not in data(capsys, "plan", "4G")[1]
    assert "faults" not in data(capsys, "cleanup", "4G")[1]


def test_text_says_what_struck_and_what_did_not(capsys):
    status, out, _ = run(
        capsys, "boot", "1G", "--fault", "refuse=memory_op:2", "--fault", "oom=linux:5000"
    )
    assert status == 0
    assert "fault refuse=memory_op:2: fallback in memory_setup: xen_get_max_pages()" in out
    assert "fault oom=linux:5000: did not strike: Linux's stages ask memblock 989 times." in out


def test_an_emptied_entry_makes_the_first_walk_leak(capsys):
    """4 L1 tables; the first is left at slot 4: that page, and the 507 behind it (SPEC H4)."""
    arguments = ("4G", "--p2m-leaf", "4k", "--fault", "corrupt=1:0x8000004000:0")
    for profile, leaked in (("seed", 508), ("v4.3", 508), ("v6.1", 1)):
        status, found = data(capsys, "cleanup", *arguments, "--linux", profile)
        assert (status, found["pages_leaked"], found["pages_freed"]) == (0, leaked, 2054 - leaked)
        assert found["faults"][0]["end"] == "leak"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("boot", "1G", "--fault", "oom"), "--fault oom: expected oom=xen:N or oom=linux:N"),
        (("boot", "1G", "--fault"), "argument --fault: expected one argument"),
        (("boot", "1G", "--fault", "hole=0x40000"), "the domain has the pfns 0 to 0x3ffff"),
        (("plan", "1G", "--fault", "hole=1"), "--fault hole=0x1:1: only for xenpt boot"),
        (("cleanup", "1G", "--fault", "refuse=1"), "--fault refuse=1: only for xenpt boot"),
        (("cleanup", "1G", "--fault", "corrupt=1:0xffffffff81000000:0"), "only an L1 entry"),
        (("boot", "1G", "--engine", "stream", "--fault", "hole=1"), "--engine stream: not with"),
        (("boot", "1G", "--engine", "packed", "--fault", "hole=1"), "--engine packed: not with"),
        (("boot", "1G", "--builder", "toolstack", "--fault", "fragmented=1"),
         "--fault fragmented=1:1: only for --builder dom0"),
        (("sweep", "--fault", "hole=1"), "unrecognized arguments: --fault"),
        (("report", "--fault", "fragmented=8"), "unrecognized arguments: --fault"),
    ],
)  # fmt: skip
def test_bad_faults_are_one_line(capsys, arguments, line):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1


def test_help_names_the_kinds(capsys):
    _, out, _ = run(capsys, "boot", "--help")
    assert "oom, fragmented, refuse, corrupt, hole or e820" in " ".join(out.split())
