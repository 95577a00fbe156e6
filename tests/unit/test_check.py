# SPDX-License-Identifier: GPL-2.0-or-later
"""Each rule of xenpt.xen.check, audit and invariants: kept by a built domain, and broken alone."""

from dataclasses import replace

import numpy as np
import pytest

from xenpt.abi import L1_PROT_DOM0, PAGE_SHIFT, PTE_PSE, PTE_RW, PTE_USER, TABLE_PROT
from xenpt.domuplan import plan_domu
from xenpt.extents import Mapping, expand, make_runs
from xenpt.image import materialise
from xenpt.inputs.config import Host
from xenpt.inputs.kernel import Kernel, default_kernel
from xenpt.p2m import P2M
from xenpt.plan import plan_dom0
from xenpt.xen.audit import check_image
from xenpt.xen.check import Mapped, RuleError, violations
from xenpt.xen.dom0 import build
from xenpt.xen.domu import build_domu

READ_ONLY = L1_PROT_DOM0 & ~PTE_RW
#: Two pages at 0 and 0x1000, mapped by tables in frames 3 to 6; frame 3 is read-only at 0x2000.
LEAVES = [(0, 0, 2, 1, 1, L1_PROT_DOM0), (2, 3, 1, 1, 1, READ_ONLY)]
TABLES = [(0, 3, 1, 1, 1, TABLE_PROT), (0, 4, 1, 1, 2, TABLE_PROT),
          (0, 5, 1, 1, 3, TABLE_PROT), (0, 6, 1, 1, 4, 0)]  # fmt: skip


def broken(leaves=LEAVES, tables=TABLES, **known):
    mapped = Mapped(make_runs(leaves), make_runs(tables), np.array([[0, 100]]), **known)
    return [(v.rule, v.vaddr, v.nr) for v in violations(mapped)]


def domain(nr_pages=1 << 18):
    return build(plan_dom0(default_kernel(), nr_pages=nr_pages))


def test_a_small_mapping_that_keeps_all_rules():
    assert broken() == []


def test_a_writable_mapping_of_a_table():
    leaves = [*LEAVES[:1], (2, 3, 4, 1, 1, L1_PROT_DOM0)]
    assert broken(leaves) == [
        ("writable page table", vaddr, 1) for vaddr in range(0x2000, 0x6000, 0x1000)
    ]


def test_a_writable_mapping_of_a_table_in_a_descending_run():
    """Frames 9, 8, .. 2 at 0x2000: frame 3 is entry 6, frames 4 to 6 are entries 5 to 3."""
    leaves = [*LEAVES[:1], (2, 9, 8, -1, 1, L1_PROT_DOM0)]
    expected = [("writable page table", 0x2000 + 0x1000 * i, 1) for i in (6, 5, 4, 3)]
    assert sorted(broken(leaves)) == sorted(expected)


def test_a_writable_superpage_over_a_table():
    leaves = [(512, 0, 1, 512, 2, L1_PROT_DOM0 | PTE_PSE)]
    rules = {rule for rule, _, _ in broken(leaves, superpages=[(512, 1024)])}
    assert rules == {"writable page table", "foreign frame"}


def test_a_frame_that_is_not_the_domains():
    leaves = [(0, 98, 4, 1, 1, L1_PROT_DOM0)]
    assert broken(leaves) == [("foreign frame", 0x2000, 2)]
    assert broken(leaves, other=[(100, 102)]) == []


def test_flags_that_xen_would_not_leave():
    assert broken([(0, 0, 2, 1, 1, 0x27)]) == [("bad flags", 0, 2)]  # neither kernel nor global
    assert broken([(0, 0, 2, 1, 1, 0x127)]) == []
    assert broken([(0, 0, 2, 1, 1, L1_PROT_DOM0 & ~PTE_USER)]) == [("bad flags", 0, 2)]
    assert broken([(0, 0, 2, 1, 1, 0x23)], adjusted=False) == []
    assert broken([(0, 0, 2, 1, 1, L1_PROT_DOM0 | 0x18)]) == []
    assert broken([(0, 0, 2, 1, 1, L1_PROT_DOM0 | 0x18)], cache_flags=False) == [
        ("bad flags", 0, 2)
    ]
    tables = [(0, 3, 1, 1, 1, TABLE_PROT | 0x100), *TABLES[1:]]
    assert broken(tables=tables) == [("bad flags", 0, 1)]


def test_an_address_of_xens():
    vpn = 0xFFFF_8000_0000_0000 >> PAGE_SHIFT
    assert ("Xen's slots", 0xFFFF_8000_0000_0000, 1) in broken(
        [*LEAVES, (vpn, 0, 1, 1, 1, READ_ONLY)]
    )


def test_a_large_leaf_outside_of_the_list():
    leaves = [(1024, 7, 1, 512, 2, READ_ONLY | PTE_PSE)]
    assert ("superpage", 1024 << 12, 1) in broken(leaves, superpages=[(0, 1024)])
    assert "superpage" not in {rule for rule, _, _ in broken(leaves, superpages=[(1024, 1536)])}


def test_a_frame_that_is_two_tables():
    tables = [(0, 3, 1, 1, 1, TABLE_PROT), (0, 3, 1, 1, 2, TABLE_PROT), *TABLES[2:]]
    assert broken(LEAVES[:1], tables) == [("two types", 0, 1)]


def test_a_leaf_without_a_table():
    """At 1 GiB there is neither an L1 nor an L2 table; at 2 MiB, no L1 table."""
    leaves = [*LEAVES, (512, 8, 1, 1, 1, L1_PROT_DOM0), (1 << 18, 9, 1, 1, 1, L1_PROT_DOM0)]
    assert broken(leaves) == [
        ("missing table", 2 << 20, 1), ("missing table", 1 << 30, 1), ("missing table", 1 << 30, 1),
    ]  # fmt: skip


def test_a_violation_says_where_which_entry_and_whose_frame():
    built = domain()
    start, end = built.plan.page_tables
    flags = np.where(
        built.initial.leaves["flags"] == READ_ONLY, L1_PROT_DOM0, built.initial.leaves["flags"]
    )
    leaves = built.initial.leaves.copy()
    leaves["flags"] = flags
    marked = replace(built, initial=Mapping(leaves, built.initial.tables))
    found = marked.violations()
    assert [v.vaddr for v in found] == list(range(start, end, 4096))
    mfn = int(built.p2m.mfn([start - built.plan.total[0] >> PAGE_SHIFT])[0])
    assert str(found[0]) == (
        f"writable page table at {start:#018x}, L1 entry {mfn << 12 | L1_PROT_DOM0:#018x}: "
        "the page is the L4 table of 0x0000000000000000"
    )
    with pytest.raises(RuleError, match="and 40 more"):
        marked.check()


@pytest.mark.parametrize("nr_pages", [1 << 18, (1 << 18) + 12345, 1 << 28, 1 << 34])
def test_a_built_domain_of_any_size_keeps_all_rules(nr_pages):
    domain(nr_pages).check()


def rules(built, **changes):
    """Rules that a domain breaks when some of it is changed; other keys change its plan."""
    own = {key: value for key, value in changes.items() if hasattr(built, key) and key != "plan"}
    plan = replace(built.plan, **{key: v for key, v in changes.items() if key not in own})
    return {v.rule for v in replace(built, plan=plan, **own).violations()}


def test_invariants_of_a_built_domain():
    built = domain()
    start, end = built.plan.total
    assert rules(built, nr_pt_frames=40) == {"table count"}
    assert rules(built, boot_stack=(0, end)) == {"end of mapping"}
    assert "initial mapping" in rules(built, total=(start, end - (4 << 20)))
    assert rules(built, nr_p2m_frames=513) == {"list frames"}
    assert rules(built, nr_pages=built.plan.nr_pages + 1, given_p2m=built.p2m) == {"P->M list"}


def compat(xen):
    kernel = Kernel(
        bits=32, pae="extcr3", virt_base=0xC0000000, virt_kstart=0xC0100000, virt_kend=0xC0679B00,
        entry=0xC0100000, paddr=(0x100000, 0x679B00), segments=(), machine=3,
    )  # fmt: skip
    return build(plan_dom0(kernel, Host(xen=xen), nr_pages=1 << 17))


@pytest.mark.parametrize(
    "built, first",
    [
        (domain(), [4, 1, 2, 3]),
        (compat("4.1.0"), [1, 2, 3]),
        (compat("4.17"), [3, 1, 2]),
        (build_domu(plan_domu(default_kernel(), nr_pages=1 << 17)), [4, 3, 2, 1]),
    ],
)
def test_the_first_tables_have_their_builders_order(built, first):
    """SPEC I3; two tables that change places are found."""
    tables = expand(built.initial.tables, tables=True)
    order = np.argsort(tables["pfn"])
    assert tables["level"][order][: len(first)].tolist() == first
    assert rules(built) == set()
    tables["pfn"][order[[0, 1]]] = tables["pfn"][order[[1, 0]]]
    assert rules(built, initial=Mapping(built.initial.leaves, tables)) == {"table order"}


def test_invariants_of_the_frames_of_a_built_domain():
    built = domain()
    rows = [tuple(int(value) for value in row) for row in built.p2m.runs.tolist()]
    twice = [*rows[:-1], (rows[-1][0], rows[0][1], *rows[-1][2:])]
    assert "P->M list" in rules(built, given_p2m=P2M(np.array(twice, built.p2m.runs.dtype)))
    shifted = P2M.from_rows([(pfn, mfn + 1, step, nr) for pfn, mfn, step, nr in rows])
    assert rules(built, given_p2m=shifted) == {"superpage"}
    overlap = Mapping(built.initial.leaves, built.p2m_map.tables)
    assert rules(built, p2m_map=overlap) == {"two mappings"}
    leaves = built.initial.leaves.copy()
    leaves["flags"][0] &= ~np.uint64(PTE_RW)
    assert rules(built, initial=Mapping(leaves, built.initial.tables)) == {"read-only"}
    leaves["pfn"][-1] = 0
    assert "initial mapping" in rules(built, initial=Mapping(leaves, built.initial.tables))


def test_an_image_keeps_all_rules_and_each_wrong_entry_is_found():
    built = domain()
    listed = [(vaddr >> PAGE_SHIFT) for vaddr in built.plan.p2m]
    image = materialise(built.address_space, built.p2m)
    check = lambda: check_image(image, built.p2m, superpages=[tuple(listed)])  # noqa: E731
    assert check() == []
    l3, l4 = int(image.tables(3)[-1]), image.root()  # of the kernel's mapping
    kept = image.pages[l3, 510]
    for word, rule in (
        (int(image.mfn[l4]) << 12 | TABLE_PROT, "wrong type"),  # an L4 table as L2
        (1 << 12 | TABLE_PROT, "wrong type"),  # no table at all
        (int(kept) | 0x10, "bad flags"),
    ):
        image.pages[l3, 510] = word
        assert rule in {v.rule for v in check()}
    image.pages[l3, 510] = kept
    image.pages[l4, 300] = int(image.mfn[l4]) << 12 | 0x25  # a self map, read-only: allowed
    assert check() == []
    image.pages[l4, 300] |= PTE_RW
    assert "wrong type" in {v.rule for v in check()}
    image.pages[l4, 300] = 0
    assert check() == []
