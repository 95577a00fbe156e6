# SPDX-License-Identifier: GPL-2.0-or-later
"""What boot, cleanup and the bare command answer, against real boots and SPEC F7."""

import json
import re
from dataclasses import replace

import goldendata
import pytest

import xenpt as xenpt_api
from xenpt import cli, measured

FOUNDING_PANIC = "Not enough RAM for domain 0 allocation"


@pytest.fixture
def xenpt(capsys):
    """Run one command in this process: (status, standard output)."""

    def run(*arguments):
        status = cli.main(arguments)
        out, err = capsys.readouterr()
        assert err == ""
        return status, out

    return run


@pytest.fixture
def answer(xenpt):
    """The JSON object of a command that succeeds."""

    def run(*arguments):
        status, out = xenpt(*arguments, "--json")
        assert status == 0
        return json.loads(out)

    return run


def table(text):
    """Rows of the tables in a text: the first cell, and the others."""
    lines = [re.split(" {2,}", line.strip()) for line in text.splitlines() if line[:2] == "  "]
    return {cells[0]: cells[1:] for cells in lines}


# --- cleanup -------------------------------------------------------------------------------------


def test_cleanup_of_4_gib_as_the_founding_mail_does_it(answer):
    """SPEC F7, worked: T3, T2, T1 = 1, 1, 0 and four 2 MiB leaves."""
    found = answer("cleanup", "4G", "--linux", "seed")
    assert found["profile"] == "seed"
    assert found["hypercalls"] == 2051
    assert found["update_va_mapping"] == found["pages_freed"] == 2050
    assert found["memblock_free_calls"] == 6
    assert found["entries_read"] == {"l3": 1023, "l2": 512, "l1": 0}
    assert found["lookup_reads"] == 4 * 2050
    assert found["tables_freed"] == {"l3": 1, "l2": 1, "l1": 0}
    assert (found["set_l4"], found["set_l3"], found["set_l2"], found["unpin"]) == (1, 0, 0, 0)
    assert (found["pages_leaked"], found["panic"]) == (0, None)
    assert (found["builder"], found["p2m_leaf"]) == ("dom0", "1g")


@pytest.mark.parametrize(
    "arguments, hypercalls, l1_reads",
    [
        (("4G", "--linux", "v6.1"), 2052, 0),
        (("538070912K", "--linux", "seed"), 262734, 75),
        (("538070912K", "--linux", "v6.1"), 262736, 512),
        (("1T", "--linux", "seed", "--p2m-leaf", "4k"), 525316, 524288),
        (("1T", "--linux", "v6.1", "--p2m-leaf", "4k"), 526342, 524288),
    ],
)
def test_cleanup_of_the_other_worked_examples(answer, arguments, hypercalls, l1_reads):
    """SPEC F7, worked; 538070912K is 512 GiB and 300000 pages."""
    found = answer("cleanup", *arguments)
    assert found["hypercalls"] == hypercalls
    assert found["entries_read"]["l1"] == l1_reads


def test_cleanup_has_the_other_leaf_sizes_as_variants(answer):
    found = answer("cleanup", "1T", "--linux", "seed", "--p2m-leaf", "4k")
    assert found["variants"].keys() == {"1g", "2m"}
    assert found["variants"]["1g"]["hypercalls"] == 1 + 524289  # SPEC B9: F = 524289
    assert found["variants"]["2m"]["hypercalls"] == 1 + 524291
    assert answer("cleanup", "1T", "--linux", "seed")["variants"]["4k"]["hypercalls"] == 525316


def test_cleanup_text_shows_walk_and_whole_cleanup_apart(xenpt):
    _, out = xenpt("cleanup", "1T", "--linux", "seed")
    rows = table(out)
    assert rows["in L3 tables"] == ["512", "1,534", "1,534"]  # SPEC F7: 512 + 511 * T2
    assert rows["in L2 tables"] == ["0", "1,024", "1,024"]  # 512 * T2
    assert rows["entries walked"] == ["512", "2,558", "526,846"]
    assert rows["pages made writable"] == ["524,289", "524,291", "525,315"]
    assert "[2] modelled: counted operations x instructions of each" in out
    assert "x CPI 1 / 3 GHz" in out
    assert max(map(len, out.splitlines())) <= 96


def test_cleanup_of_a_list_inside_has_no_hypercall_for_each_page(answer, xenpt):
    """Invariant I12; real Xen and Linux: one memblock_free of the whole list (golden rule 18)."""
    found = answer("cleanup", "2G", "--no-init-p2m")
    assert (found["update_va_mapping"], found["memblock_free_calls"]) == (0, 1)
    assert (found["pages_freed"], found["variants"]) == (1024, {})
    _, out = xenpt("cleanup", "2G", "--no-init-p2m")
    assert "inside the initial mapping" in out
    assert "modelled" not in out


@pytest.mark.parametrize("options", [["--no-init-p2m"], ["--linux", "v4.1"]], ids=["Xen", "Linux"])
def test_cleanup_that_never_comes_has_all_keys(xenpt, options):
    _, out = xenpt("cleanup", "600G", "--json")
    keys = list(json.loads(out))
    status, out = xenpt("cleanup", "600G", *options, "--json")
    found = json.loads(out)
    assert (status, sorted(found)) == (1, sorted(keys))
    named = {"profile", "builder", "p2m_leaf", "panic", "modelled"}
    assert {key for key, value in found.items() if value is not None} == named


@pytest.mark.parametrize("command", ["boot", "cleanup"])
def test_dom0_that_xen_does_not_build_is_status_1(xenpt, command):
    status, out = xenpt(command, "600G", "--no-init-p2m", "--json")
    assert (status, json.loads(out)["panic"]) == (1, FOUNDING_PANIC)
    status, out = xenpt(command, "600G", "--no-init-p2m")
    assert status == 1
    assert out.startswith("panics: dom0 of 600 GiB")
    assert f"\n{FOUNDING_PANIC}\n" in out


@pytest.mark.parametrize("command", ["boot", "cleanup"])
def test_unknown_profile_is_one_line(capsys, command):
    assert cli.main([command, "4G", "--linux", "v2.6"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "xenpt: Linux profile 'v2.6': expected one of v4.1, seed, v4.3, v6.1, v6.12\n"


@pytest.mark.parametrize("command", ["boot", "cleanup"])
@pytest.mark.parametrize(
    "facts, text",
    [
        ({"bits": 32, "pae": "yes", "virt_base": 0xC0000000}, "has no 32-bit PV guests any more"),
        ({"virt_base": 0x100000}, "is modelled as a 64-bit kernel from ffffffff80000000 on"),
    ],
)
def test_kernel_that_is_no_64_bit_linux_is_one_line(capsys, tmp_path, command, facts, text):
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps({"segments": [[0x1000000, 4096, 4096]], **facts}))
    assert cli.main(["plan", "1G", "--kernel", str(path), "-o", "/dev/null"]) == 0
    assert cli.main([command, "1G", "--kernel", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"xenpt: Linux v6.1 {text}")
    assert err.count("\n") == 1


# --- boot ----------------------------------------------------------------------------------------


def test_boot_of_1_tib(answer):
    """SPEC B9: F = 524289 with 1 GiB leaves; F7: one hypercall for each, and one for the L3."""
    found = answer("boot", "1T")
    assert (found["verdict"], found["panic"]) == ("boots", None)
    assert found["plan"]["nr_p2m_frames"] == 524289
    free = next(stage for stage in found["stages"] if stage["name"] == "p2m_free")
    assert free["hypercalls"] == 524290
    assert found["cleanup"]["hypercalls"] == 524290
    assert found["cleanup"]["builder"] == "dom0"
    assert [stage["name"] for stage in found["stages"]] == [
        "setup_kernel_pagetable", "memory_setup", "init_mem_mapping", "paging_init",
        "vmalloc_p2m_tree", "p2m_free", "remap_memory",
    ]  # fmt: skip
    assert found["memblock"].keys() == {"setup", "cleanup"}


def test_boot_on_a_real_machines_map_costs_what_it_cost_there(answer, tmp_path):
    """Case c2g of golden/oracle, Linux 6.1 on Xen 4.17; counts of its README.md."""
    (tmp_path / "log").write_text(goldendata.log("c2g"))
    found = answer("boot", "--dom0-mem", "2G,max:2G", "--e820", str(tmp_path / "log"))
    stages = {stage["name"]: stage["by_type"] for stage in found["stages"]}
    assert stages["setup_kernel_pagetable"]["update_va_mapping"] == 10
    assert stages["setup_kernel_pagetable"]["mmuext_op"] == 4
    assert stages["init_mem_mapping"]["mmu_update"] == 4045
    assert stages["paging_init"]["mmu_update"] == 8723
    assert stages["vmalloc_p2m_tree"]["mmu_update"] == 2564
    assert stages["p2m_free"]["update_va_mapping"] == 1026
    assert stages["p2m_free"]["mmu_update"] == 2


def test_streamed_boot_counts_the_same_and_reads_every_entry(answer, xenpt):
    """256 MiB: a list of 128 pages; Linux maps all RAM but page 0 and the ISA range."""
    plain = answer("boot", "256M", "--p2m-leaf", "4k")
    found = answer("boot", "256M", "--p2m-leaf", "4k", "--engine", "stream", "--threads", "2")
    streamed = found.pop("streamed")
    assert found == plain
    assert streamed["list_mapping"]["ptes"] == 128
    assert streamed["list_mapping"]["tables"] == 4  # L1, L2, L3, and the root
    assert streamed["direct_map"]["ptes"] == (1 << 16) - 1 - (0x100 - 0xA0)
    packed = answer("boot", "256M", "--p2m-leaf", "4k", "--engine", "packed")["packed"]
    for part in ("direct_map", "list_mapping"):
        for count in ("ptes", "changed", "read_only"):
            assert packed[part][count] == streamed[part][count]
    for engine in ("stream", "packed"):
        _, out = xenpt("boot", "256M", "--engine", engine)
        assert "walked word by word, equal to the extents" in " ".join(out.split())


def test_packed_tables_that_do_not_fit_are_refused_at_once(capsys, monkeypatch):
    """64 TiB have 2**34 entries of 8 bytes in L1 tables alone: 128 GiB."""
    monkeypatch.setattr("xenpt.room.free_bytes", lambda: 32 << 30)
    assert cli.main(["boot", "64T", "--engine", "packed"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "page tables need about 128" in error
    assert "32 GiB are free" in error


def test_a_linux_that_knows_no_list_outside_is_told_what_helps(capsys):
    assert cli.main(["boot", "4G", "--linux", "v4.1"]) == 1
    assert "try --no-init-p2m" in capsys.readouterr().out
    assert cli.main(["boot", "4G", "--linux", "v4.1", "--no-init-p2m"]) == 0
    assert "try" not in capsys.readouterr().out


def test_threads_are_those_of_a_stream(capsys):
    assert cli.main(["boot", "1G", "--threads", "2"]) == 2
    assert "--threads: only with --engine stream" in capsys.readouterr().err


@pytest.mark.parametrize("threads", ["0", "-1", "two"])
def test_threads_are_at_least_one(capsys, threads):
    assert cli.main(["boot", "1G", "--threads", threads]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_boot_text_has_a_row_for_each_stage(xenpt):
    _, out = xenpt("boot", "1T")
    assert out.startswith("boots: dom0 of 1 TiB (268,435,456 pages), Linux v6.1 on Xen 4.17\n")
    rows = table(out)
    hypercalls = [int(cells[0].replace(",", "")) for name, cells in rows.items() if name != "stage"]
    assert rows["p2m_free"][0] == "524,290"
    assert hypercalls[-1] == sum(hypercalls[:-1])
    assert max(map(len, out.splitlines())) <= 96


def test_boot_that_linux_does_not_survive_is_status_1(xenpt, tmp_path):
    """Case p-slot0: a P->M list in L4 slot 0; Linux dies, as it zaps that slot."""
    _, facts = xenpt("kernel", "--json")
    moved = json.loads(facts) | {"init_p2m": 0x4000000000, "notes": []}
    (tmp_path / "slot0.json").write_text(json.dumps(moved))
    status, out = xenpt("boot", "1G", "--kernel", str(tmp_path / "slot0.json"), "--json")
    found = json.loads(out)
    assert (status, found["verdict"], found["plan"]["panic"]) == (1, "panics", None)
    status, out = xenpt("boot", "1G", "--kernel", str(tmp_path / "slot0.json"))
    assert status == 1
    assert out.startswith("panics: ")
    assert found["panic"] in out


def test_limits_of_the_real_thing_are_named(answer, xenpt):
    assert answer("boot", "8T")["beyond"] == []
    assert [limit["value"] for limit in answer("boot", "16T")["beyond"]] == [2**32 - 1]
    assert "\nbeyond: pages of one domain 4,294,967,295 (Xen: " in xenpt("boot", "16T")[1]


def test_dom0_without_the_note_is_clipped_as_on_a_real_host(xenpt):
    """Real Xen on 620 GiB, no dom0_mem (logs-large): clipped, and then it panics all the same."""
    status, out = xenpt("boot", "--host", "620G", "--no-init-p2m")
    assert status == 1
    assert "\nDom0 memory clipped to 129368064 pages\n" in out
    assert f"\n{FOUNDING_PANIC}\n" in out


# --- The bare command ----------------------------------------------------------------------------


def test_bare_command_answers_the_founding_question(xenpt):
    status, out = xenpt()
    assert status == 0
    assert out.startswith("Can a dom0 of 600 GiB (157,286,400 pages), Linux seed on Xen 4.17")
    rows = table(out)
    assert rows["result"] == ["panics", "boots"]
    assert f"\n  Xen, without it: {FOUNDING_PANIC}\n" in out
    assert "\n Phys-Mach map: 0000008000000000->000000804b000000\n" in out
    assert "time with it [2]: Xen's build 4." in out
    assert out.isascii()
    assert max(map(len, out.splitlines())) <= 96


def test_bare_command_sweeps_the_leaves_of_both_builders(answer):
    """Counts of SPEC F7 with the list's shape of B9; `seed` clears one L4 entry besides."""
    found = answer()
    rows = {(row["builder"], row["nr_pages"] >> 18): row for row in found["cleanup"]}
    assert rows["toolstack", 1024]["hypercalls"] == 525316
    assert rows["toolstack", 1024]["memblock_free_calls"] == 525315
    assert rows["dom0", 1024]["hypercalls"] == 524290
    assert rows["dom0", 1024]["memblock_free_calls"] == 3
    assert rows["toolstack", 600]["update_va_mapping"] == 307803  # 600 L1, 2 L2, 1 L3
    assert rows["dom0", 600]["update_va_mapping"] == 307202  # 1 L2, 1 L3
    assert {row["profile"] for row in found["cleanup"]} == {"seed"}
    assert found["without_init_p2m"]["panic"] == FOUNDING_PANIC
    assert found["with_init_p2m"]["verdict"] == "boots"
    assert found["modelled"]["instructions"]["freed_frame"].keys() == {"linux", "xen"}
    assert found["with_init_p2m"]["build_seconds_modelled"] > 1
    assert all(row["seconds_modelled"] > 0.01 for row in found["cleanup"])


@pytest.mark.parametrize("arguments", [(), ("boot", "1T"), ("cleanup", "1T")])
def test_answers_for_real_sizes_fit_80_columns(xenpt, arguments):
    _, out = xenpt(*arguments)
    assert max(map(len, out.splitlines())) <= 80


def test_walk_is_measured_where_the_list_has_tables_of_a_sensible_number(monkeypatch):
    image, nr_pages = xenpt_api.default_kernel(), xenpt_api.pages("1G")
    outside = xenpt_api.build(xenpt_api.plan_dom0(image, nr_pages=nr_pages))
    inside = xenpt_api.build(xenpt_api.plan_dom0(replace(image, init_p2m=None), nr_pages=nr_pages))
    assert measured.walk_seconds(outside) > 0
    assert measured.walk_seconds(inside) is None
    monkeypatch.setattr(measured, "MAX_TABLES", 1)
    assert measured.walk_seconds(outside) is None


def test_toolstack_builds_a_guest_with_a_list_in_4k_pages(answer):
    """SPEC C5: 1 TiB has 524288 data pages, 1024 L1, 2 L2, 1 L3; F7: seed clears one L4 entry."""
    found = answer("cleanup", "1T", "--builder", "toolstack", "--linux", "seed")
    assert (found["builder"], found["p2m_leaf"]) == ("toolstack", "4k")
    assert found["hypercalls"] == 525316
    assert found["variants"]["1g"]["hypercalls"] == 524290
    booted = answer("boot", "4G", "--builder", "toolstack", "--initrd", "4097")
    assert booted["stages"][0]["hypercalls"] == 16  # SPEC F2: three pages recovered
    assert booted["plan"]["mod_len"] == 8192  # SPEC C3: whole pages
    assert booted["plan"]["warnings"] == []


@pytest.mark.parametrize("command", ["plan", "boot", "cleanup"])
def test_what_the_toolstack_gets_wrong_is_said_by_every_command(tmp_path, xenpt, command):
    """SPEC C12: a list that reaches into Xen's slots is built, and is gone after the pin."""
    kernel = tmp_path / "kernel.json"
    facts = xenpt_api.default_kernel().as_dict() | {"init_p2m": 0x7FFFFFFF0000}
    kernel.write_text(json.dumps(facts))
    asked = (command, "512M", "--builder", "toolstack", "--kernel", str(kernel))
    said = " ".join(xenpt(*asked)[1].split())
    assert "warning: the P->M list lies in Xen's own address range: at the pin Xen puts" in said
    ours = [line for line in xenpt(*asked)[1].splitlines() if not line.startswith("xc_dom_")]
    assert max(map(len, ours)) <= 96


@pytest.mark.parametrize(
    "options",
    [("--host", "2T"), ("--dom0-mem", "1G"), ("--p2m-leaf", "2m")],
)
def test_toolstack_has_nothing_to_do_with_what_only_dom0_has(capsys, options):
    assert cli.main(["plan", "1G", "--builder", "toolstack", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert options[0] in err
