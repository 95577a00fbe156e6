# SPDX-License-Identifier: GPL-2.0-or-later
"""A boot's largest tables word by word: the direct map and the P->M list's mapping.

The stages work on extents. Here every page-table entry that init_mem_mapping() leaves behind, and
every one of the initial P->M list's mapping, is built, marked read-only, walked and compared: by
windows (`stream_boot`), or all at once (`pack_boot`).
"""

from dataclasses import dataclass

from xenpt.abi import PAGE_SHIFT
from xenpt.extents import Mapping, column, make_runs, sort_tables, tables_of
from xenpt.linux.addressspace import address_space
from xenpt.linux.boot import Boot
from xenpt.linux.directmap import KERNEL_PTE
from xenpt.linux.memblock import Regions
from xenpt.linux.stages import Stage
from xenpt.linux.state import BootState
from xenpt.stream import Progress, StreamResult, pack, stream


@dataclass(frozen=True, slots=True)
class StreamedBoot:
    """What the streams of one boot met, or its packed tables.

    :ivar direct_map: of the tables that map all RAM of the domain, at PAGE_OFFSET
    :ivar list_mapping: of the tables of the P->M list; None where it lies in the initial mapping
    """

    direct_map: StreamResult
    list_mapping: StreamResult | None


def stream_boot(
    boot: Boot, *, threads: int = 1, progress: Progress | None = None, flip: int | None = None
) -> StreamedBoot | None:
    """Stream the direct map and the list's mapping as they are before the list is freed.

    :param boot: a boot at any stage; its domain, rules and maps are booted afresh up to
        init_mem_mapping(), and it stays as it is
    :param threads: see `stream`, as `progress` and `flip`
    :returns: None if the boot does not come so far
    :raises MappingError: words differ from extents
    """
    state = _mapped(boot)
    if state is None:
        return None
    domain = boot.domain
    found = stream(
        direct_map(state), domain.p2m, pfn_ranges=state.ro_frames.ranges, threads=threads,
        progress=progress, flip=flip,
    )  # fmt: skip
    held = None if domain.p2m_map is None else stream(domain.p2m_map, domain.p2m, threads=threads)
    return StreamedBoot(found, held)


def pack_boot(boot: Boot) -> StreamedBoot | None:
    """The same with all tables in memory at once, found through the entries that point to them.

    :raises MappingError: words differ from extents
    :raises NoRoomError: they are more than memory holds
    :raises UsageError: symbols of Linux's static tables are not known
    """
    state = _mapped(boot)
    if state is None:
        return None
    domain, leaves = boot.domain, direct_map(state).leaves
    start = state.rules.page_offset
    tables = address_space(state).mapping.tables
    tables = tables_of(tables, start >> PAGE_SHIFT, (start >> PAGE_SHIFT) + state.nr_pages)
    found = pack(Mapping(leaves, tables), domain.p2m, pfn_ranges=state.ro_frames.ranges)
    held = None if domain.p2m_map is None else pack(domain.p2m_map, domain.p2m)
    return StreamedBoot(found, held)


def _mapped(boot: Boot) -> BootState | None:
    """The state right behind init_mem_mapping(), of a boot of its own."""
    fresh = Boot(
        boot.domain,
        rules=boot.rules,
        e820=boot.state.e820,
        max_reservation=boot.state.max_reservation,
        check=False,
    ).run_to(Stage.INIT_MEM_MAPPING)
    return fresh.state if fresh.verdict == "boots" else None


def direct_map(state: BootState) -> Mapping:
    """The direct map of the domain's own RAM after init_mem_mapping(), all of it writable.

    RAM beyond nr_pages has no frames yet and so no entries. Tables are those that Linux made; of
    the first GiB it keeps Xen's.
    """
    top = state.rules.page_offset >> PAGE_SHIFT
    ram = Regions.of((a >> PAGE_SHIFT, b >> PAGE_SHIFT) for a, b in state.memblock.memory)
    rows = [
        (top + start, start, end - start, 1, 1, KERNEL_PTE)
        for start, end in ram.clip(0, state.nr_pages)
    ]
    tables = state.tables[column(state.tables, "pfn") < state.nr_pages].copy()
    return Mapping(make_runs(rows), sort_tables(tables))
