# SPDX-License-Identifier: GPL-2.0-or-later
"""Checked mode: Linux's early boot under Xen's rules, and what it finds where the two disagree."""

from dataclasses import replace
from errno import EBUSY, EINVAL

import pytest

from xenpt.domuplan import plan_domu
from xenpt.errors import MappingError, RefusedError, UsageError
from xenpt.extents import expand
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import PROFILES, SEED, V4_1, V4_3, V6_1, V6_12, Boot, Stage, with_rules
from xenpt.linux.boot import CHECKED_PAGES
from xenpt.linux.memblock import Regions
from xenpt.linux.stages import STAGES
from xenpt.linux.standins import with_stand_ins
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build
from xenpt.xen.domu import build_domu

MIB = 1 << 8  # pages
SMALL = 160 * MIB
HOLE_OVER_THE_LIST = [Ram(0, 0x9F000), Ram(0x100000, 0x8000000), Ram(0x8100000, 8 << 30)]


def domain(nr_pages=SMALL, initrd_bytes=None, **kernel):
    image = replace(default_kernel(), **kernel)
    return build(plan_dom0(image, Host(), nr_pages=nr_pages, initrd_bytes=initrd_bytes))


def guest(nr_pages=SMALL):
    return build_domu(plan_domu(default_kernel(), Host(), nr_pages=nr_pages))


@pytest.mark.parametrize("rules", [SEED, V4_3, V6_1, V6_12], ids=lambda rules: rules.name)
@pytest.mark.parametrize("built", [domain, guest], ids=["dom0", "toolstack"])
def test_every_generation_obeys_xen(rules, built):
    boot = Boot(built(), rules=rules, check=True).run()
    assert boot.verdict == "boots"
    counted = boot.cost.hypercalls
    assert counted < boot.checked["calls"] < counted + 40  # cleanup_highmap's, and those of batches
    assert boot.checked["words"] > 7 * 512 * 80  # seven stages, and 80 tables at the least


def test_the_highmap_is_cleared_by_11_calls_that_are_in_no_stage():
    """The golden traces have 11 set_pmd between the stages; three batches of two are one call each
    in the count, but three to Xen.
    """
    boot = Boot(domain(512 * MIB), check=True).run()
    assert boot.cost.by_type["multicall"] == 3
    assert boot.checked["calls"] == boot.cost.hypercalls + 11 + 3 * 2


def test_small_guests_are_checked_unless_told_otherwise():
    assert CHECKED_PAGES == 1024 * MIB
    assert Boot(domain()).checked == {"calls": 0, "words": 0}
    assert Boot(domain(CHECKED_PAGES + 1)).checked is None
    assert Boot(domain(), check=False).checked is None
    assert Boot(domain(CHECKED_PAGES + 1), check=True).checked == {"calls": 0, "words": 0}


def test_a_guest_that_is_too_large_is_refused_before_any_memory_is_taken():
    with pytest.raises(UsageError, match="--check: 64 TiB is more than 64 GiB"):
        Boot(domain(1 << 34), check=True)


def test_a_list_that_moves_is_built_under_the_rules():
    for rules in (V4_3, V6_1, V6_12):
        boot = Boot(domain(), rules=rules, e820=HOLE_OVER_THE_LIST, check=True).run()
        assert boot.verdict == "boots"
        assert boot.state.initial_list.vaddr == 1 << 40
        assert boot.cleanup.unpin == 3
        assert boot.checked["calls"] > boot.cost.hypercalls


def test_an_initrd_that_moves_is_copied_through_mappings_that_xen_allows():
    built = domain(initrd_bytes=1 << 20)
    start = built.plan.mod_start << 12
    hole = [Ram(0, 0x9F000), Ram(0x100000, start), Ram(start + (4 << 20), 8 << 30)]
    boot = Boot(built, e820=hole, check=True).run()
    assert boot.verdict == "boots"
    assert boot.state.initrd != (start, start + (1 << 20))


# --- What real Linux could not do --------------------------------------------------------------


def test_a_list_whose_tables_stay_writable_makes_linux_die_of_its_direct_map():
    """mask_rw_pte() is needed: an L1 table that maps a table of the list writable is no table."""
    rules = with_rules(V6_1, ["ro_initial_p2m=no"])
    boot = Boot(domain(), rules=rules, check=True).run()
    assert boot.verdict == "panics"
    assert boot.panic.startswith("kernel BUG in init_mem_mapping: Xen answers -EBUSY: Bad type")
    tables = expand(boot.domain.p2m_map.tables, tables=True)
    assert any(f"(pfn {pfn:05x}); Could not get" in boot.panic for pfn in tables["pfn"].tolist())
    assert Boot(domain(), rules=rules, check=False).run().verdict == "boots"


def test_tables_that_an_entry_still_holds_cannot_be_made_writable():
    """The mail takes the tree out of the L4 table first, or else must clear each table's entry."""
    rules = with_rules(SEED, ["root_entry_first=no"])
    boot = Boot(domain(), rules=rules, check=True).run()
    assert boot.panic.startswith("kernel BUG in p2m_free: Xen answers -EBUSY")
    rules = with_rules(rules, ["clear_table_entries=yes"])
    assert Boot(domain(), rules=rules, check=True).run().verdict == "boots"


def test_a_static_table_that_stays_writable_fails_the_pin():
    names = [f"{name}:{nr}" for name, nr in V6_1.ro_tables if name != "level2_kernel_pgt"]
    rules = with_rules(V6_1, [f"ro_tables={','.join(names)}"])
    boot = Boot(domain(), rules=rules, check=True).run()
    assert boot.panic.startswith("kernel BUG in setup_kernel_pagetable: Xen answers -E")
    assert boot.results == []


def test_a_moved_list_must_be_unpinned():
    """SPEC H5, which Boot knows; here the rules of Xen say it."""
    rules = with_rules(V6_1, ["unpin_relocated=no"])
    boot = Boot(domain(), rules=rules, e820=HOLE_OVER_THE_LIST, check=True)
    boot._check_unpin = id  # looks at nothing
    assert boot.run().panic.startswith("kernel BUG in p2m_free: Xen answers -EBUSY: Bad type")


def test_a_list_in_the_last_l4_slot_is_out_of_reach():
    """F2e copies the L4 entry of slots 1 to 510 alone."""
    for rules in (SEED, V6_1):
        for check in (True, False):
            boot = Boot(domain(init_p2m=0xFFFFFF8000000000), rules=rules, check=check).run()
            assert boot.panic == "Hardware Dom0 halted: halting machine"
            assert boot.results == []


@pytest.mark.parametrize(
    "rules, vaddr, area",
    [
        (SEED, 0xFFFF880000000000, "direct map"),
        (V6_1, 0xFFFF888000000000, "direct map"),
        (V6_1, 0xFFFFC90000000000, "vmalloc area"),
        (V6_1, 0xFFFFEA0000000000, "struct pages"),
    ],
)
def test_a_list_where_linux_has_an_area_of_its_own_is_not_modelled(rules, vaddr, area):
    boot = Boot(domain(init_p2m=vaddr), rules=rules).run()
    assert boot.verdict == "unknown"
    assert f"{vaddr:#x} lies in Linux's {area}" in str(boot.not_modelled)
    assert Boot(domain(init_p2m=0xFFFF880000000000), rules=V6_1).run().verdict == "boots"


# --- A model that is wrong -----------------------------------------------------------------------


def test_a_stage_that_says_what_the_calls_do_not_do_is_found(monkeypatch):
    """Words of both sides and costs are compared; counts of frames below."""
    real = STAGES[Stage.P2M_COPIED]

    def forgets_a_page(state, hc):
        new, cost = real(state, hc)
        pfn = new.ro_entries.ranges[0][0]
        kept = new.ro_entries - Regions.of([(pfn, pfn + 1)])
        return replace(new, ro_entries=kept), cost

    def makes_a_call_more(state, hc):
        hc.update_va_mapping(state.va(state.nr_pages - 1), None, 0)
        return real(state, hc)

    def counts_a_call_more(state, hc):
        new, cost = real(state, hc)
        return new, cost if hc.checked else cost + cost

    for stage, found in (
        (forgets_a_page, r"L1 table of 0xffff8880\w+, slot \d"),
        (makes_a_call_more, r"L1 table of 0xffff8880\w+, slot \d"),
        (counts_a_call_more, "vmalloc_p2m_tree has other costs call by call"),
    ):
        monkeypatch.setitem(STAGES, Stage.P2M_COPIED, stage)
        with pytest.raises(MappingError, match=f"checked mode: {found}"):
            Boot(domain(), check=True).run()


def test_a_count_alone_is_found(monkeypatch):
    real = STAGES[Stage.PAGING_INIT]

    def pins_twice(state, hc):
        hc.mmuext_op(0, state.symbol_pfn("level1_fixmap_pgt"))
        return real(state, hc)

    def takes_a_page(state, hc):
        if hc.checked:
            guest = boot._checked.guest
            guest.machine.tables.get_page(guest.mfn(9))
        return real(state, hc)

    monkeypatch.setitem(STAGES, Stage.PAGING_INIT, pins_twice)
    assert Boot(domain(), check=True).run().verdict == "boots"  # a pin alone is no difference
    monkeypatch.setitem(STAGES, Stage.PAGING_INIT, takes_a_page)
    boot = Boot(domain(), check=True)
    with pytest.raises(MappingError, match=r"checked mode: mfn 0x\w+: count_info 0x80+3"):
        boot.run()


def test_a_store_into_a_live_upper_table_faults(monkeypatch):
    real = STAGES[Stage.PAGING_INIT]

    def stores(state, hc):
        hc.store(state.symbol_pfn("level2_kernel_pgt"), 100, None, 0)
        return real(state, hc)

    monkeypatch.setitem(STAGES, Stage.PAGING_INIT, stores)
    panic = Boot(domain(), check=True).run().panic
    assert panic.startswith("kernel BUG in paging_init: Xen answers -EPERM: page fault: store to")


# --- Gate, symbols, conflicts ------------------------------------------------------------------


def test_a_gate_is_asked_before_xen_and_not_of_calls_that_are_in_no_stage():
    asked = []
    boot = Boot(domain(), check=True, gate=asked.append).run()
    batched = sum(call.batched for call in asked)
    assert len(asked) - batched == boot.cost.hypercalls
    assert boot.checked["calls"] == len(asked) + 11

    def refuse(call):
        if call.op == "mmuext_op":
            raise RefusedError(EINVAL)

    for check in (True, False):
        boot = Boot(domain(), check=check, gate=refuse).run()
        assert boot.panic == "kernel BUG in setup_kernel_pagetable: Xen answers -EINVAL: refused"


def test_linux_does_not_look_at_what_xen_says_of_holes():
    def refuse(call):
        if call.may_fail:
            raise RefusedError(EBUSY)

    e820 = [Ram(0, 0x9F000), Ram(0x100000, 8 << 30)]
    boot = Boot(domain(), e820=e820, check=False, gate=refuse).run()
    assert boot.verdict == "boots"
    assert boot.cost == Boot(domain(), e820=e820, check=False).run().cost


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_kernel_without_symbols_has_stand_ins_for_its_tables(name):
    kernel = replace(default_kernel(), symbols=None)
    found = with_stand_ins(kernel, PROFILES[name]).symbols
    sizes = dict(PROFILES[name].ro_tables)
    pages = sorted(
        vaddr + 4096 * page for key, vaddr in found.items() for page in range(sizes.get(key, 1))
    )
    assert len(set(pages)) == len(pages)
    assert kernel.virt_kstart <= pages[0]
    assert pages[-1] < kernel.virt_kend
    assert not any(vaddr % 4096 for vaddr in pages)


def test_known_symbols_stay_and_no_stand_in_takes_their_pages():
    kernel = default_kernel()
    found = with_stand_ins(kernel, V4_1).symbols
    assert found.items() >= kernel.symbols.items()
    new = ("bm_pte", "xen_remap_buf", "init_level4_pgt")
    assert [found[name] - kernel.virt_kstart for name in new] == [0, 0x1000, 0x2000]
    low = {"level3_ident_pgt": kernel.virt_kstart, "level1_fixmap_pgt": kernel.virt_kstart + 0x3000}
    found = with_stand_ins(replace(kernel, symbols=low), V6_1).symbols
    new = ("level3_kernel_pgt", "level3_user_vsyscall", "level2_ident_pgt", "level2_kernel_pgt")
    assert [found[name] - kernel.virt_kstart for name in new] == [0x1000, 0x2000, 0x5000, 0x6000]


def test_an_image_without_room_for_its_tables_is_not_checked():
    start = default_kernel().virt_kstart
    tiny = replace(default_kernel(), symbols=None, virt_kend=start + 3 * 4096)
    assert with_stand_ins(tiny, V6_1) is None
    built = domain()
    odd = replace(built, plan=replace(built.plan, image=tiny))
    assert Boot(odd).checked is None
    with pytest.raises(UsageError, match="smaller than its static page tables"):
        Boot(odd, check=True)


def test_what_a_linux_without_a_look_at_the_map_overwrites_is_not_checked():
    """SPEC H3 and H15: `beyond` or a warning says that nothing from then on is real."""
    assert Boot(domain(), rules=SEED, e820=HOLE_OVER_THE_LIST, check=True).checked is None
    over_brk = [Ram(0, 0x4400000), Ram(0x4A00000, 8 << 30)]
    assert Boot(domain(), rules=V4_3, e820=over_brk, check=True).checked is None
