# SPDX-License-Identifier: GPL-2.0-or-later
import goldendata
import numpy as np
import pytest

from xenpt.abi import L1_PROT_DOM0, PTE_PSE, PTE_RW, TABLE_PROT, XEN_SLOTS
from xenpt.engine import WalkRules, map_on_demand, walk_to_free
from xenpt.errors import EntryError, MappingError
from xenpt.extents import Mapping, make_runs
from xenpt.image import PageTableImage, materialise, new_arena
from xenpt.p2m import P2M

PAGE = L1_PROT_DOM0
BASE = 0x8000000000
LIST = map_on_demand(
    make_runs(
        [(BASE >> 12, 0, 2, 512, 2, PAGE | PTE_PSE), ((BASE >> 12) + 1024, 0, 3, 1, 1, PAGE)]
    ),
    first_pfn=10,
)
P2M_ALL = P2M.linear(5000, 0x4000)


def dumped(name: str, point: str = "entry") -> tuple[PageTableImage, P2M]:
    """A real dom0's page tables and P->M runs."""
    data = goldendata.arrays(name)
    image = PageTableImage(
        np.array(data[f"{point}_pages"]),
        data[f"{point}_mfn"],
        data[f"{point}_level"],
        data[f"{point}_va"],
    )
    return image, P2M.from_rows(data["entry_p2m_runs"])


@pytest.mark.parametrize("name", goldendata.cases(dump="entry"))
def test_real_page_tables_survive_extents_word_by_word(name):
    image, p2m = dumped(name)
    again = materialise(image.summarise(p2m), p2m)
    assert sorted(again.mfn.tolist()) == sorted(image.mfn.tolist())
    xens = slice(XEN_SLOTS.start, XEN_SLOTS.stop)
    image.pages[image.level == 4, xens] = 0  # Xen's own L4 entries are no part of a guest
    for i, mfn in enumerate(image.mfn.tolist()):
        at = again.index(mfn)
        assert at is not None
        assert again.pages[at].tolist() == image.pages[i].tolist()


def test_walk_of_a_real_dump_finds_the_pages_that_xen_logged():
    # c512m: 38 L1 tables map [v_start, v_end) of 76 MiB; the list of 1 MiB has 256 pages.
    image, p2m = dumped("c512m")
    assert image.summarise(p2m).nr_leaves(1) == 38 * 512 + 256
    walk = image.walk()
    assert walk.outside == 0
    assert walk.entries_read == {"l1": 39 * 512, "l2": 2 * 512, "l3": 2 * 512, "l4": 512}


def test_words_of_a_small_list():
    image = materialise(LIST, P2M_ALL)
    assert image.level.tolist() == [1, 2, 3]
    l1, l2, l3 = (image.pages[i].tolist() for i in range(3))
    assert l3[:2] == [(0x4000 + 11) << 12 | TABLE_PROT, 0]
    assert l2[:4] == [
        (0x4000 + 12) << 12 | PAGE | PTE_PSE,
        (0x4000 + 524) << 12 | PAGE | PTE_PSE,
        (0x4000 + 1036) << 12 | TABLE_PROT,
        0,
    ]
    assert l1[:4] == [(0x4000 + 1037 + i) << 12 | PAGE for i in range(3)] + [0]


def test_translate_follows_superpages_and_holes():
    image = materialise(LIST, P2M_ALL)
    assert image.translate(BASE + 0x201000) == (0x4000 + 525, 2, PAGE | PTE_PSE)
    assert image.translate(BASE + 0x402000) == (0x4000 + 1039, 1, PAGE)
    assert image.translate(BASE + 0x403000) is None
    assert image.translate(BASE + (1 << 30)) is None


def test_an_arena_is_used_again_and_must_be_large_enough():
    arena = new_arena(4)
    arena[:] = 99
    image = materialise(LIST, P2M_ALL, arena=arena)
    assert np.shares_memory(image.pages, arena)
    assert image.pages.tolist() == materialise(LIST, P2M_ALL).pages.tolist()
    with pytest.raises(MappingError, match="2 pages for 3 tables"):
        materialise(LIST, P2M_ALL, arena=arena[:2])


def test_one_flipped_rw_bit_is_seen_by_summarise():
    image = materialise(LIST, P2M_ALL)
    image.pages[0, 1] ^= PTE_RW
    assert image.summarise(P2M_ALL).leaves["flags"].tolist() == [
        PAGE | PTE_PSE, PAGE, PAGE & ~PTE_RW, PAGE,
    ]  # fmt: skip


def test_packed_walk_counts_as_the_seed_does():
    # SPEC F7, 4 GiB: 2050 frames, 6 frees, L3 1023, L2 512 entries.
    leaves = make_runs([(BASE >> 12, 0, 4, 512, 2, PAGE | PTE_PSE)])
    image = materialise(map_on_demand(leaves, 43008), P2M.linear(50000, 7))
    walk = image.walk_to_free(BASE, WalkRules(False, True), P2M.linear(50000, 7))
    assert (walk.pages_freed, walk.nr_frees, walk.leaked_pages) == (2050, 6, 0)
    assert walk.entries_read == {"l1": 0, "l2": 512, "l3": 1023, "l4": 0}


def test_a_large_result_is_fetched_whole():
    # Every second page: one run and one event each, more than the first buffer holds.
    rows = [((BASE >> 12) + 2 * i, 0, 1, 1, 1, PAGE) for i in range(5000)]
    mapping = map_on_demand(make_runs(rows), 0)
    p2m, rules = P2M.linear(6000, 0), WalkRules(True, False)
    image = materialise(mapping, p2m)
    assert len(image.walk().leaves) == 5000
    assert image.walk_to_free(BASE, rules, p2m).events.tolist() == (
        walk_to_free(mapping, BASE, rules).events.tolist()
    )


def test_tables_that_share_one_another_are_not_followed_for_ever():
    pages = np.empty((4, 512), np.uint64)
    for level in range(4):  # each entry of a table points to the table of the level below
        pages[level] = max(level - 1, 0) << 12 | TABLE_PROT
    image = PageTableImage(
        pages,
        np.arange(4, dtype=np.uint64),
        np.arange(1, 5, dtype=np.uint8),
        np.zeros(4, np.uint64),
    )
    with pytest.raises(EntryError, match="share one another"):
        image.walk()


def test_errors_of_an_image():
    with pytest.raises(MappingError, match="no table for the leaf at 0x0000008000000000"):
        materialise(Mapping(LIST.leaves, LIST.tables[:0]), P2M_ALL)
    with pytest.raises(MappingError, match="two table pages"):
        PageTableImage(
            new_arena(2), np.zeros(2, np.uint64), np.ones(2, np.uint8), np.zeros(2, np.uint64)
        )
    image = materialise(LIST, P2M_ALL)
    with pytest.raises(MappingError, match="no L3 table"):
        image.walk_to_free(0, WalkRules(True, False), P2M_ALL)
    with pytest.raises(EntryError, match="partly"):
        image.mark_read_only([(12, 13)], P2M_ALL)


def test_marking_through_the_m2p_equals_marking_by_mfns(monkeypatch):
    # Host memory page by page in turned order: each pfn range is as many mfn ranges as pages.
    p2m = P2M.from_rows([[i, 9000 - 2 * i, 1, 1] for i in range(3000)])
    rows = make_runs([(BASE >> 12, 0, 2900, 1, 1, PAGE)])
    tables = make_runs(
        [(BASE >> 12, 2990, 6, 1, 1, TABLE_PROT), (BASE >> 12, 2989, 1, 1, 2, TABLE_PROT)]
    )
    by_mfn, gathered = (materialise(Mapping(rows, tables), p2m) for _ in range(2))
    monkeypatch.setattr("xenpt.image.FEW_RANGES", 10**6)
    assert by_mfn.mark_read_only([(5, 1500)], p2m) == 1495
    monkeypatch.setattr("xenpt.image.FEW_RANGES", 0)
    assert gathered.mark_read_only([(5, 1500)], p2m) == 1495
    assert gathered.pages.tolist() == by_mfn.pages.tolist()
    assert p2m.m2p()[9000 - 2 * 7] == 7
