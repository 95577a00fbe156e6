# SPDX-License-Identifier: GPL-2.0-or-later
"""Real libxenguest builds: each line about the layout, each word before and after the pin.

The layout comes from the plan alone; only where the host put the pages is taken from the dump.
"""

from functools import cache

import goldendata
import numpy as np
import pytest
from domucases import domu_plan, synthetic

from xenpt import abi
from xenpt.abi import round_up
from xenpt.domuplan import plan_domu
from xenpt.image import materialise
from xenpt.inputs.config import Host
from xenpt.p2m import P2M
from xenpt.xen.domu import Domu, build_domu, populate_calls

CASES = goldendata.cases("domu")
POINTS = [
    (name, point) for point in ("prepin", "entry") for name in goldendata.cases("domu", dump=point)
]
BUILT = [name for name in CASES if "built" in goldendata.facts(name, "domu")]
DETAIL = "domainbuilder: detail: "
LAYOUT_LINES = (
    "xc_dom_alloc_segment:", "xc_dom_alloc_page   :", "count_pgtables:", "xc_dom_build_image  :",
)  # fmt: skip
ENDLESS = "w-full"
#: The hypervisor of the 32-bit cases had no CONFIG_PV32; their tables are those before the pin.
AFTER_THE_PIN = "SETVCPUCONTEXT failed"


@cache
def p2m_of(name: str, point: str) -> P2M:
    """Where the host put the guest's pages; after the pin, a list in Xen's slots shows the M2P."""
    key = "prepin" if "b-xen" in name else point
    rows = goldendata.arrays(name, "domu")[f"{key}_p2m_runs"]
    return P2M.from_rows(rows[rows[:, 1] >= 0])


def domain_of(name: str, point: str) -> Domu:
    real = goldendata.facts(name, "domu")["dump"][point]["start_info"]
    return build_domu(
        domu_plan(name),
        p2m=p2m_of(name, point),
        shared_info=real["shared_info"],
        pinned=point == "entry",
        store_evtchn=real["store_evtchn"],
        console_evtchn=real["console1"],
    )


def in_xen_slots(vaddr: int) -> bool:
    return abi.HYPERVISOR_VIRT_START <= vaddr < abi.HYPERVISOR_VIRT_END


def compare(name: str, point: str) -> int:
    """Compare all tables of a dump with the model's, word by word; return the words compared."""
    arrays, domain = goldendata.arrays(name, "domu"), domain_of(name, point)
    image = materialise(domain.address_space, domain.p2m)
    ours = {int(mfn): at for at, mfn in enumerate(image.mfn)}
    real = arrays[f"{point}_mfn"].tolist()
    extra = set(ours) - set(real)
    assert all(in_xen_slots(int(image.vaddr[ours[mfn]])) for mfn in extra), "a table too many"
    at = np.array([ours[mfn] for mfn in real])
    assert np.array_equal(image.level[at], arrays[f"{point}_level"])
    mask = np.uint64((1 << 48) - 1)
    assert np.array_equal(image.vaddr[at] & mask, arrays[f"{point}_va"] & mask)
    words, dumped = image.pages[at], arrays[f"{point}_pages"].copy()
    if point == "entry":  # the root's slots 256..271 are Xen's own
        of_xen = np.ix_(image.level[at] == abi.LEVELS, abi.XEN_SLOTS)
        words[of_xen] = dumped[of_xen] = 0
    assert np.array_equal(words, dumped), np.argwhere(words != dumped)[:4]
    return int(words.size)


@pytest.mark.parametrize("name", CASES)
def test_plan_logs_each_line_about_the_layout_that_the_library_logged(name):
    lines = goldendata.log(name, "domu").splitlines()
    lines = [line.removeprefix(DETAIL).rstrip() for line in lines if line.startswith(DETAIL)]
    real = [line for line in lines if line.startswith(LAYOUT_LINES)]
    plan = domu_plan(name)
    if name == ENDLESS:
        assert len(real) > len(plan.log)
        real = real[: len(plan.log)]
    assert list(plan.log) == real


@pytest.mark.parametrize("name", CASES)
def test_plan_gives_up_exactly_where_the_library_did_and_in_its_words(name):
    lines = goldendata.log(name, "domu").splitlines()
    panics = [line for line in lines if "panic: " in line and AFTER_THE_PIN not in line]
    plan = domu_plan(name)
    if name == ENDLESS:
        assert not panics
        assert plan.panic.startswith("the toolstack never ends: ")
    elif panics:
        # xc: error: panic: FILE:LINE: TEXT: CLASS OF ERROR
        assert panics[0].split(": ", 4)[4].rpartition(": ")[0] == plan.panic
    else:
        assert plan.panic is None


@pytest.mark.parametrize("name", BUILT)
def test_plan_has_the_mappings_of_the_librarys_own_struct(name):
    raw = goldendata.facts(name, "domu")["built"]["mappings_raw"]
    plan = domu_plan(name)
    assert raw[0] == len(plan.maps)
    for k, one in enumerate(plan.maps):
        area, *levels = np.array(raw[1 + 20 * k : 21 + 20 * k]).reshape(5, 4).tolist()
        assert area == [one.start, one.last, one.pfn, one.nr_tables]
        for tables in one.tables:
            real = levels[tables.level - 1]
            assert real == [tables.start, tables.last, tables.pfn, tables.nr]


@pytest.mark.parametrize("name", BUILT)
def test_plan_asks_for_memory_as_the_library_did(name):
    context = goldendata.facts(name, "domu").get("context")
    if context is not None:
        plan = domu_plan(name)
        calls = populate_calls(plan)
        assert len(calls) == context["populate_calls"]
        assert [list(call) for call in calls[:64]] == context["populate"]
        assert plan.nr_pages == context["nr_pages"]
        assert plan.max_pages * 4 == context["max_memkb"] or name == "u512m-max2g"


@pytest.mark.parametrize(("name", "point"), POINTS)
def test_page_tables_equal_the_dump_word_for_word(name, point):
    dump = goldendata.facts(name, "domu")["dump"][point]
    assert compare(name, point) == 512 * dump["pages"]


@pytest.mark.parametrize(("name", "point"), POINTS)
def test_start_info_equals_the_dump_byte_for_byte(name, point):
    ours = domain_of(name, point).start_info()
    real = goldendata.arrays(name, "domu")[f"{point}_start_info"].tobytes()
    assert ours == real[: len(ours)]
    assert len(ours) == goldendata.facts(name, "domu")["dump"][point]["start_info"]["sizeof"]


@pytest.mark.parametrize("name", goldendata.cases("domu", dump="entry"))
def test_table_frames_have_the_dumped_types_and_counts(name):
    arrays, domain = goldendata.arrays(name, "domu"), domain_of(name, "entry")
    info = domain.page_info()
    pairs = np.stack((info["count_info"], info["type_info"]), axis=1)
    ours = dict(zip(domain.p2m.mfn(info["pfn"]).tolist(), pairs.tolist(), strict=True))
    assert len(ours) == len(arrays["entry_mfn"])
    for mfn, real in zip(
        arrays["entry_mfn"].tolist(), arrays["entry_page_info"].tolist(), strict=True
    ):
        assert ours[mfn] == real, f"mfn {mfn:#x}"


@pytest.mark.parametrize("name", goldendata.cases("domu", dump="entry"))
def test_first_instruction_finds_the_registers_of_the_dump(name):
    context = goldendata.facts(name, "domu")["context"]
    ours = domain_of(name, "entry").registers()
    assert ours.pop("cr3") >> abi.PAGE_SHIFT == context["cr3_mfn"]
    assert ours == {key: context[key] for key in ours}


# --- Guests of other people, whose logs are public -----------------------------------------------

RECORDS = goldendata.boot_logs("domu")
#: No record names its Xen. A 32-bit guest with 2 L2 tables below 1 GiB is from before 4.7.
XEN_OF_RECORDS = {32: ("4.1.6", "4.6.6"), 64: ("4.1.6", "4.6.6", "4.7.0", "4.17.7")}
RECORDS_AND_XEN = [
    pytest.param(record, xen, id=f"{at}-{xen}")
    for at, record in enumerate(RECORDS)
    for xen in XEN_OF_RECORDS[record["bits"]]
]
MINIOS_RESERVE = 3  # pages that Mini-OS leaves free behind the tables before its first one
#: Its image goes on behind the `_end` that it prints (a symbol table, 5 pages); the list says it.
MORE_THAN_PRINTED = {"Go unikernel on Mini-OS"}


def record_plan(record, xen):
    """A kernel at virtual address 0; where its end was not printed, the list says it in pages."""
    printed = record["guest"] not in MORE_THAN_PRINTED
    end = record.get("virt_kend") or (printed and record.get("kernel_end")) or record["mfn_list"]
    kernel = synthetic(bits=record["bits"], segs=((0, end),), VIRT_BASE=0)
    return plan_domu(kernel, Host(xen=xen), nr_pages=record["nr_pages"])


@pytest.mark.parametrize(("record", "xen"), RECORDS_AND_XEN)
def test_plan_gives_what_a_mini_os_printed(record, xen):
    plan = record_plan(record, xen)
    assert plan.panic is None
    if record["format"] != "minios":
        return
    # Flags of 0x300, of one EC2 guest, are power management bits that only its old xend gave.
    keys = ("nr_pages", "pt_base", "nr_pt_frames", "mfn_list", "mod_start", "mod_len")
    assert {key: getattr(plan, key) for key in keys} == {key: record[key] for key in keys}
    assert plan.start_info[0] == record["start_info"]
    assert record["flags"] in (0, 0x300)
    assert plan.flags == 0
    if record["start_pfn"] is not None:
        assert (plan.page_tables[1] >> 12) + MINIOS_RESERVE == record["start_pfn"]
    if record["mapped_end"] is not None:
        assert plan.total[1] == record["mapped_end"]


def test_plan_gives_what_a_builder_printed():
    (record,) = (record for record in RECORDS if record["format"] == "builder")
    plan = record_plan(record, "4.7.0")
    assert plan.layout.xenstore[0] == record["xenstore"]
    assert plan.layout.console[0] == record["console"]
    assert plan.start_info[0] == record["start_info"]
    assert list(plan.page_tables) == record["page_tables"]
    assert plan.nr_pt_frames == record["nr_page_tables"]
    assert [round_up(vaddr, 4096) for vaddr in plan.p2m] == record["p2m"]
    assert plan.boot_stack == (record["boot_stack"], record["virt_alloc_end"])
    assert plan.total == (record["virt_base"], record["virt_pgtab_end"])
    printed = {f"shift{12 + 9 * level}": plan.maps[0].nr_at(level) for level in (1, 2, 3)}
    assert printed == record["levels_printed"]
