# SPDX-License-Identifier: GPL-2.0-or-later
"""Any fault ends in one of the declared ways: a known panic, a named fallback, leak or consequence.

Never an exception other than a bad spec, and never another answer without a word about it.
"""

import re

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from xenpt.cost import HYPERCALL_TYPES
from xenpt.domuplan import plan_domu
from xenpt.errors import UsageError
from xenpt.faults import (
    FALLBACK,
    LEAK,
    PANIC,
    PLACES,
    UNNOTICED,
    Conflict,
    Corrupted,
    Fragmented,
    Hole,
    OutOfMemory,
    Refused,
    parse_fault,
)
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import PROFILES, Boot, Stage
from xenpt.linux.state import NotModelled
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build
from xenpt.xen.domu import build_domu

STAGES = [stage.value for stage in Stage]
FUNCTIONS = (
    "extend_brk|make_lowmem_page_readonly|make_lowmem_page_readwrite|pin_pagetable_pfn|"
    "set_page_prot_flags|set_pte_mfn|xen_mc_flush|xen_memory_setup|xen_update_mem_tables|"
    "xen_pagetable_p2m_free"
)
KNOWN_PANICS = re.compile(
    "|".join(
        (
            "Hardware Dom0 halted: halting machine",
            rf"kernel BUG in ({FUNCTIONS})\(\): .+",
            "BUG: unable to handle page fault for address: [0-9a-f]{16}",
            "BUG: unable to handle kernel paging request at [0-9a-f]{16}",
            "Kernel panic - not syncing: alloc_low_pages: (ran out of|can not alloc) memory",
            "Kernel panic - not syncing: alloc_p2m_page: Failed to allocate 4096 bytes .+",
            "Kernel panic - not syncing: set_pte_phys: cannot allocate page data",
            "Kernel panic - not syncing: memblock_virt_alloc_try_nid: Failed to allocate .+",
            "Kernel panic - not syncing: Out of memory",
            r"Xen hypervisor allocated (kernel|page table) memory conflicts with E820 map",
            r"Can't find new memory area for (p2m|initrd) needed due to E820 map conflict",
            r"\w+: pin_table failed \(pfn 0x[0-9a-f]+, rc=-1\)",
        )
    )
)
KERNEL_BASE = 0xFFFF_FFFF_8000_0000
LIST_BASE = 0x80_0000_0000


@st.composite
def domains(draw):
    """A built guest with all that decides how it boots."""
    nr_pages = draw(st.integers(40_000, 300_000))
    leaf = draw(st.sampled_from(["4k", "2m"]))
    kernel = default_kernel()
    if draw(st.booleans()):
        initrd = draw(st.sampled_from([None, 9_999_999]))
        host = Host(superpages=leaf)
        domain = build(plan_dom0(kernel, host, nr_pages=nr_pages, initrd_bytes=initrd))
    else:
        domain = build_domu(plan_domu(kernel, Host(superpages="4k"), nr_pages=nr_pages))
    rules = PROFILES[draw(st.sampled_from(["seed", "v4.3", "v6.1", "v6.12"]))]
    room = draw(st.booleans())  # RAM behind what the domain has, for frames of holes
    e820 = [Ram(0, 0x9FC00), Ram(1 << 20, 1 << 36)] if room else None
    return domain, rules, e820


@st.composite
def faults(draw, domain):
    """One fault of Linux's or of the tables, in the range where it can strike."""
    nr_pages = domain.plan.nr_pages
    kind = draw(st.sampled_from(["oom", "refuse", "corrupt", "hole", "e820"]))
    if kind == "oom":
        return OutOfMemory("linux", draw(st.integers(1, 2_000)))
    if kind == "refuse":
        where = draw(st.sampled_from([None, *STAGES, *HYPERCALL_TYPES]))
        return Refused(draw(st.integers(1, 12) | st.integers(1, 20_000)), where)
    if kind == "corrupt":
        span = (domain.plan.total[1] - domain.plan.total[0]) >> 12
        low, pages = draw(st.sampled_from([(KERNEL_BASE, span), (LIST_BASE, nr_pages >> 9)]))
        vaddr = low + (draw(st.integers(0, pages - 1)) << 12)
        if draw(st.booleans()):
            return Corrupted(draw(st.integers(1, 4)), vaddr, flip=draw(st.integers(0, 63)))
        return Corrupted(draw(st.integers(1, 4)), vaddr, word=draw(st.sampled_from([0, 7 << 12])))
    if kind == "hole":
        pfn = draw(st.integers(0, nr_pages - 1))
        return Hole(pfn, draw(st.integers(1, nr_pages - pfn)))
    if draw(st.booleans()):
        return Conflict(draw(st.sampled_from(PLACES)))
    start = draw(st.integers(0, nr_pages << 12))
    return Conflict(None, start, start + draw(st.integers(1, 1 << 26)))


@settings(max_examples=60, deadline=None)
@given(domains(), st.data())
def test_every_fault_of_a_boot_ends_in_a_declared_way(arguments, data):
    domain, rules, e820 = arguments
    fault = data.draw(faults(domain))
    assert parse_fault(str(fault), STAGES) == fault
    plain, said = Boot(domain, rules=rules, e820=e820), None
    try:
        plain.run()
        boot = Boot(domain, rules=rules, e820=e820, faults=[fault]).run()
    except UsageError as refused:
        said = str(refused)
    except NotModelled:
        assume(False)
    if said is not None:  # such a domain cannot have that fault
        assert said.startswith(f"--fault {fault}: ")
        return
    (outcome,) = boot.faults
    assert outcome.fault == fault
    assert outcome.end in (None, PANIC, FALLBACK, LEAK, UNNOTICED)
    assert outcome.text
    assert (outcome.where is None) == (outcome.end is None)
    assert (outcome.end == PANIC) == (boot.panic is not None and plain.panic is None)
    if boot.panic is not None:
        assert KNOWN_PANICS.fullmatch(boot.panic), boot.panic
    recorded = Boot(domain, rules=rules, e820=e820, faults=[fault], record=True).run()
    assert recorded.panic == boot.panic
    assert recorded.faults == boot.faults
    assert [r.cost for r in recorded.results] == [r.cost for r in boot.results]
    if outcome.end is None:  # what did not strike changed nothing
        assert boot.panic == plain.panic
        assert [r.cost for r in boot.results] == [r.cost for r in plain.results]
        assert boot.state.memblock.reserved == plain.state.memblock.reserved
    if boot.cleanup is not None and boot.state.list_outside:  # I10: every frame of the list
        cost, (first, end) = boot.cleanup.cost, boot.state.p2m_frames
        assert cost.pages_freed + cost.pages_leaked == end - first


@settings(max_examples=60, deadline=None)
@given(
    st.integers(40_000, 3_000_000),
    st.sampled_from(["4k", "2m", "1g"]),
    st.integers(0, 20),
    st.integers(0, 4),
)
def test_a_fragmented_host_changes_leaves_and_nothing_else(nr_pages, leaf, order, larger):
    """I4, I5: as many frames as pages, each once; the list's data is as large as without it."""
    kernel = default_kernel()
    whole = plan_dom0(kernel, Host(superpages=leaf), nr_pages=nr_pages)
    host = Host(superpages=leaf, fragmented=Fragmented(order, larger))
    plan = plan_dom0(kernel, host, nr_pages=nr_pages)
    if plan.panic:
        assert plan.panic == "Not enough RAM for domain 0 allocation"
        assert larger == 0
        assert order < plan.alloc_order
        return
    pages = {"4k": 1, "2m": 512, "1g": 512 * 512}
    data = [sum(nr * pages[k] for k, nr in p.p2m_leaves.items()) for p in (plan, whole)]
    assert data[0] == data[1]
    assert plan.p2m_leaves["1g"] <= whole.p2m_leaves["1g"]
    assert plan.total == whole.total
    if (nr_pages >> order) < 20_000:
        domain = build(plan)
        assert domain.violations() == []
        assert domain.p2m.nr_pages == nr_pages


@settings(max_examples=60, deadline=None)
@given(st.integers(40_000, 3_000_000), st.sampled_from(["4k", "1g"]), st.integers(1, 8_000))
def test_a_host_out_of_memory_ends_the_build_or_does_not_strike(nr_pages, leaf, nth):
    plan = plan_dom0(default_kernel(), Host(superpages=leaf, oom=nth), nr_pages=nr_pages)
    assert plan.panic in (
        None,
        "Not enough RAM for domain 0 allocation",
        "Not enough RAM for DOM0 P->M table",
        "Not enough RAM for DOM0 reservation",
    )
    more = plan_dom0(default_kernel(), Host(superpages=leaf, oom=nth + 1), nr_pages=nr_pages)
    assert plan.panic is not None or more.panic is None
