# SPDX-License-Identifier: GPL-2.0-or-later
"""memblock of real boots: what is reserved, in which order the P->M list is freed, what is RO."""

import goldendata
import numpy as np
import pytest
from linuxcases import Frames, boot_of, reserve_unmodelled, traced, version

from xenpt.abi import ENTRIES, PAGE_SHIFT, PTE_PRESENT, PTE_RW
from xenpt.extents import expand
from xenpt.linux import Stage

DIRECT_MAP, DIRECT_MAP_END = 0xFFFF888000000000, 0xFFFFC80000000000
VMALLOC, VMALLOC_END = 0xFFFFC90000000000, 0xFFFFE90000000000
DIES = {"p-base+512g-2m"}  # before a list is freed
LINUX = {case: goldendata.facts(case).get("linux") or {} for case in goldendata.cases()}
#: memblock_at_dump of other kernels is taken later, or of a map that they change further.
RESERVED = [
    case
    for case, facts in LINUX.items()
    if facts.get("memblock_at_dump") and version(case) == "6.1" and case not in DIES
]
FREED = [case for case, facts in LINUX.items() if facts.get("p2m_free_events")]


@pytest.mark.parametrize("case", RESERVED)
def test_memory_and_reserved_regions_equal_those_that_linux_printed(case):
    real = LINUX[case]["memblock_at_dump"]
    setup = boot_of(case, record=False).run_to(Stage.MEMORY_SETUP).as_dict()["memblock"]["setup"]
    assert setup == {name: [[a, last + 1] for a, last in real[name]] for name in setup}


def test_enough_cases_have_their_regions_and_frees_compared():
    assert len(RESERVED) >= 20
    assert len(FREED) >= 25


@pytest.mark.parametrize("case", FREED)
def test_the_list_is_given_back_in_the_order_that_linux_printed(case):
    """One memblock free makes its own pages writable first; inside the kernel's map it is one."""
    boot = boot_of(case).run_to(Stage.P2M_FREE)
    printed = []
    for _, start, last, times, _ in LINUX[case]["p2m_free_events"]:
        size = (last + 1 - start) // times
        printed += [(start + i * size, size) for i in range(times)]
    calls = [call for call in boot.results[-1].calls if call.op == "update_va_mapping"]
    freed = [(call.pfn << PAGE_SHIFT, call.nr << PAGE_SHIFT) for call in calls]
    if boot.domain.p2m_map is None:
        before, after = (
            boot.as_dict()["memblock"][point]["reserved"] for point in ("setup", "cleanup")
        )
        assert not freed
        assert len(printed) == boot.cleanup.cost.memblock_free_calls == 1
        [(start, size)] = printed
        assert any(a <= start and start + size <= b for a, b in before)
        assert not any(a < start + size and b > start for a, b in after)
    else:
        assert freed == printed
        assert boot.cleanup.cost.memblock_free_calls == len(printed)


def test_inside_the_kernel_map_the_slots_behind_the_kernel_are_cleared():
    """p-legacy-2g: 4 MiB list at 0x4a00000; slots 37 to 39 hold it, 39 to 41 tables and stack."""
    cleanup = boot_of("p-legacy-2g").run_to(Stage.P2M_FREE).cleanup
    assert cleanup.cost.pages_freed == 1024
    assert cleanup.cost.by_type["update_va_mapping"] == 0


@pytest.mark.parametrize("case", ["c512m", "c2g"])
def test_direct_map_tables_and_read_only_frames_equal_the_dump_before_the_free(case):
    boot = boot_of(case).run_to(Stage.INIT_MEM_MAPPING)
    reserve_unmodelled(boot, traced(case, "xen_pagetable_init")[0][2])
    state = boot.run_to(Stage.P2M_COPIED).state
    dump, frames = goldendata.arrays(case), Frames(case)
    real, read_only, of_copy = {}, set(), set()
    columns = (dump[f"pre_{name}"] for name in ("level", "va", "mfn", "pages"))
    for level, va, mfn, words in zip(*columns, strict=True):
        if VMALLOC <= va < VMALLOC_END:
            of_copy.add(frames.pfn(int(mfn)))
        if not DIRECT_MAP <= va < DIRECT_MAP_END or level == 4:
            continue
        real[int(level), int(va) >> PAGE_SHIFT] = frames.pfn(int(mfn))
        if level == 1:
            ro = (words & np.uint64(PTE_PRESENT | PTE_RW)) == PTE_PRESENT
            read_only |= {(int(va) - DIRECT_MAP >> PAGE_SHIFT) + int(i) for i in np.flatnonzero(ro)}
    made = {
        (int(t["level"]), int(t["vpn"])): int(t["pfn"]) for t in expand(state.tables, tables=True)
    }
    kept = {key: pfn for key, pfn in real.items() if key not in made}
    assert made == {key: real[key] for key in made}
    assert len(made) > 200
    # What Linux did not make: Xen's L1 tables, level2_ident_pgt and level3_ident_pgt.
    first = DIRECT_MAP >> PAGE_SHIFT
    assert set(kept) == {(1, first + i * ENTRIES) for i in range(38)} | {(2, first), (3, first)}
    model = {pfn for start, end in state.ro_frames for pfn in range(start, end)}
    gdt, early_ioremap_table = 0x304F, 0x3315  # made read-only between the stages
    # Also the filler tables of the copy that no entry points to yet.
    unhooked = read_only - model - of_copy - {gdt, early_ioremap_table}
    assert model <= read_only
    assert len(unhooked) <= 1
