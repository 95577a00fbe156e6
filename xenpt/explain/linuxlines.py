# SPDX-License-Identifier: GPL-2.0-or-later
"""What Linux prints of dom0's memory, line by line, against the model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from xenpt.abi import PAGE_SIZE, round_up
from xenpt.explain.findings import Check, region
from xenpt.explain.memory import Memory, Range, Setting, last_pfns
from xenpt.inputs.bootlog import Boot, Fact
from xenpt.inputs.config import USABLE
from xenpt.linux.memblock import Regions

RAM_NAMES = (USABLE, "System RAM")
PARTS = ("kernel", "start_info", "page tables", "P->M list", "initrd")


def linux_checks(boot: Boot, memory: Memory, setting: Setting) -> list[Check]:
    """Every line of Linux that the model predicts."""
    checks = [
        *_map_checks(boot, memory.usable, memory.memory, memory.last_pfns),
        *_count_checks(boot, memory),
        *_early_checks(boot, memory, setting),
        *_configuration_checks(boot, memory),
        *_free_checks(boot, memory),
    ]
    return sorted(checks, key=lambda check: check.line)


def map_facts(boot: Boot) -> list[Fact]:
    """RAM entries of the map that Linux got."""
    return [f for f in boot.all("map") if str(f.values[2]).strip() in RAM_NAMES]


def map_only_checks(boot: Boot, limit: int | None) -> list[Check]:
    """What follows from Linux's own map, where the log does not have Xen's.

    :param limit: bytes of mem=, or None
    """
    if not boot.has("linux_version"):  # the log may begin in the middle of the map
        return []
    usable = Regions.of((f.span[0], f.span[1] + 1) for f in map_facts(boot))
    memory = usable.remove(0, PAGE_SIZE)
    if limit is not None:
        memory = memory.clip(0, limit)
    checks = [*_map_checks(boot, usable, memory, last_pfns(memory), given=True)]
    for facts in configurations(boot):
        entries = [fact for fact in facts if fact.kind == "memory"]
        checks += _entries(entries, memory, "memblock.memory", "RAM of Linux's map")
    checks += _memory_size(boot, memory)
    return sorted(checks, key=lambda check: check.line) if usable.ranges else []


def _map_checks(
    boot: Boot, usable: Regions, memory: Regions, ends: Sequence[int], *, given: bool = False
) -> Iterator[Check]:
    why = "Xen's map in whole pages, up to dom0's size, the pages moved out of holes, and max:"
    for check in _aligned(map_facts(boot), usable.ranges, "RAM of Linux's map", why):
        yield replace(check, given=given, why="taken from the line itself" if given else why)
    why = "RAM of the map, without page 0 and what lies behind mem="
    yield from _aligned(boot.all("memory_added"), memory.ranges, "memblock_add", why)
    for i, fact in enumerate(boot.all("last_pfn")):
        which = "RAM" if i == 0 else "RAM below 4 GiB"
        yield Check(
            fact.line,
            "last_pfn",
            f"{fact.number():#x}",
            f"{ends[min(i, len(ends) - 1)]:#x}",
            why=f"end of {which}",
        )


def _aligned(
    facts: Sequence[Fact], ranges: Sequence[Range], what: str, why: str
) -> Iterator[Check]:
    """Lines against ranges: one by one if there are as many, else each with what it overlaps."""
    same = len(facts) == len(ranges)
    for i, fact in enumerate(facts):
        start, last = fact.span
        near = [r for r in ranges if r[0] <= last and start < r[1]]
        where = ranges[i] if same else near[0] if near else None
        yield Check(
            fact.line,
            what,
            region(start, last + 1),
            region(*where) if where else "nothing there",
            why=why,
        )


def _count_checks(boot: Boot, memory: Memory) -> Iterator[Check]:
    counts = (
        ("released", "Released", memory.released, "pages of holes for which no RAM is left"),
        ("remapped", "Remapped", memory.remapped, "pages of dom0 in holes of Xen's map"),
    )
    for kind, what, count, why in counts:
        for fact in boot.all(kind):
            yield Check(fact.line, what, f"{fact.number()} page(s)", f"{count} page(s)", why=why)
    for fact in boot.all("p2m_area"):
        yield Check(
            fact.line,
            "p2m virtual area",
            f"{fact.number():x}",
            f"{memory.area_bytes:x}",
            why="8 bytes a page of RAM, hotplug up to 512 GiB included",
        )
    yield from _memory_size(boot, memory.memory)


def _memory_size(boot: Boot, memory: Regions) -> Iterator[Check]:
    for fact in boot.all("memory_available"):
        yield Check(
            fact.line,
            "Memory",
            f"{fact.number()}K",
            f"{memory.size >> 10}K",
            why="all RAM of memblock",
        )


def _early_checks(boot: Boot, memory: Memory, setting: Setting) -> Iterator[Check]:
    for fact in boot.all("brk"):
        if fact.span[0] != (memory.parts["kernel"][0]) and setting.brk_end is not None:
            alone = set(brk_lines(boot, setting.brk_end)) == {fact.line}
            yield Check(
                fact.line,
                "memblock_reserve of the brk area",
                f"{fact.span[1] + 1:#x}",
                f"{setting.brk_end:#x}",
                given=alone,
                why="end of the kernel's reserved memory",
            )
            break
    if memory.initrd:
        yield from _initrd_checks(boot, memory, memory.initrd)


def _initrd_checks(boot: Boot, memory: Memory, initrd: Range) -> Iterator[Check]:
    for fact in boot.all("ramdisk_moved"):
        was = memory.initrd_moved_from
        numbers = [value for value in fact.values if isinstance(value, int)]
        old, new = (numbers[0], numbers[1]), (numbers[2], numbers[3])
        yield Check(
            fact.line,
            "initrd moved",
            f"{region(*old)} to {region(*new)}",
            f"{region(*was)} to {region(*initrd)}" if was else "not moved",
            why="it lay in a hole of Xen's map; the lowest free area of its size",
        )
    for fact in boot.all("ramdisk_used"):
        start, last = fact.span
        end = round_up(initrd[1], PAGE_SIZE)
        yield Check(
            fact.line,
            "RAMDISK",
            region(start, last + 1),
            region(initrd[0], end),
            why="behind the first chunk" if not memory.initrd_moved_from else "where it was moved",
        )


# --- memblock=debug ------------------------------------------------------------------------------


def brk_lines(boot: Boot, brk_end: int) -> list[int]:
    """Lines that say that the kernel's reserved memory ends there."""
    return [f.line for f in boot.all("brk", "reserved") if f.span[1] + 1 == brk_end]


def configurations(boot: Boot) -> list[list[Fact]]:
    """Lines of each dump of memblock."""
    starts = [fact.line for fact in boot.all("configuration")]
    kinds = ("memblock_sizes", "memory_count", "reserved_count", "memory", "reserved")
    return [
        [
            fact
            for fact in boot.all(*kinds)
            if start < fact.line and (i + 1 == len(starts) or fact.line < starts[i + 1])
        ]
        for i, start in enumerate(starts)
    ]


def _configuration_checks(boot: Boot, memory: Memory) -> Iterator[Check]:
    for facts in configurations(boot):
        entries = [fact for fact in facts if fact.kind == "memory"]
        yield from _entries(entries, memory.memory, "memblock.memory", "RAM of Linux's map")
        reserved = [fact for fact in facts if fact.kind == "reserved"]
        if not any(fact.values[3] for fact in entries):  # before pages have nodes
            yield from _first_reserved(boot, facts, reserved, memory)
        else:
            yield from _later_reserved(facts, reserved, memory)


def _first_reserved(
    boot: Boot, facts: list[Fact], reserved: list[Fact], memory: Memory
) -> Iterator[Check]:
    """All that is reserved when memblock is set up; nothing else has been allocated yet."""
    known = len(reserved) == len(memory.reserved.ranges)
    for fact, where in _pairs(reserved, memory.reserved.ranges):
        what, why = _subject(where, memory)
        alone = what == "memblock of kernel" and set(
            brk_lines(boot, memory.parts["kernel"][1])
        ) == {fact.line}
        yield _entry(fact, where, what, why, given=alone)
    sizes = next((fact for fact in facts if fact.kind == "memblock_sizes"), None)
    if sizes and known:
        yield _sizes(sizes, memory.memory.size, memory.reserved.size)


def _sizes(fact: Fact, memory: int, reserved: int) -> Check:
    return Check(
        fact.line,
        "memblock sizes",
        f"memory {fact.number(0):#x}, reserved {fact.number(1):#x}",
        f"memory {memory:#x}, reserved {reserved:#x}",
        why="sums of the entries",
    )


def _later_reserved(facts: list[Fact], reserved: list[Fact], memory: Memory) -> Iterator[Check]:
    """Kernel, start_info, tables and list are still there; allocations have come in between.

    Of these, and of entries that have grown together with one, only the sums are compared.
    """
    known: dict[int, Range] = {}
    for where in memory.reserved:
        starts = [memory.parts[name][0] for name in PARTS if name in memory.parts]
        if any(where[0] <= start < where[1] for start in starts):
            near = [f for f in reserved if f.span[0] < where[1] and where[0] <= f.span[1]]
            near = near or [f for f in reserved if where[0] in f.span or where[1] - 1 in f.span]
            if len(near) == 1 and not _has_grown(near[0], where):
                known[near[0].line] = where
    consistent = True
    for fact in reserved:
        if where_known := known.get(fact.line):
            what, why = _subject(where_known, memory)
            check = _entry(fact, where_known, what, why)
        else:
            where = (fact.span[0], fact.span[1] + 1)
            check = _entry(fact, where, "memblock of other allocations", "its sums", given=True)
        consistent = consistent and fact.number(2) == fact.span[1] + 1 - fact.span[0]
        yield check
    sizes = next((fact for fact in facts if fact.kind == "memblock_sizes"), None)
    count = next((fact for fact in facts if fact.kind == "reserved_count"), None)
    complete = consistent and count is not None and count.number() == len(reserved)
    if sizes and complete:
        total = sum(fact.number(2) for fact in reserved)
        yield _sizes(sizes, memory.memory.size, total)


def _has_grown(fact: Fact, where: Range) -> bool:
    """The entry holds more than `where`, and its three numbers agree with each other."""
    start, last = fact.span
    whole = start <= where[0] and where[1] <= last + 1 and (start, last + 1) != where
    return whole and fact.number(2) == last + 1 - start


def _entries(facts: list[Fact], regions: Regions, what: str, why: str) -> Iterator[Check]:
    for fact, where in _pairs(facts, regions.ranges):
        yield _entry(fact, where, what, why)


def _pairs(facts: Sequence[Fact], ranges: Sequence[Range]) -> Iterator[tuple[Fact, Range]]:
    """Entries with what they should be: in order if there are as many, else by overlap."""
    if len(facts) == len(ranges):
        yield from zip(facts, ranges, strict=True)
        return
    for where in ranges:
        near = [f for f in facts if f.span[0] < where[1] and where[0] <= f.span[1]]
        if len(near) == 1:
            yield near[0], where


def _entry(fact: Fact, where: Range, what: str, why: str, *, given: bool = False) -> Check:
    start, last, size = fact.number(0), fact.number(1), fact.number(2)
    return Check(
        fact.line,
        what,
        f"{region(start, last + 1)}, {size:#x} bytes",
        f"{region(*where)}, {where[1] - where[0]:#x} bytes",
        given=given,
        why=why,
    )


def _subject(where: Range, memory: Memory) -> tuple[str, str]:
    """What a reserved range is about; several parts may touch."""
    reasons = {
        "kernel": "_text to _brk_end",
        "start_info": "the page of start_info",
        "page tables": "Xen's page tables but for those that Linux takes back",
        "P->M list": "the list's frames and tables"
        + (", moved out of a hole" if memory.list_moved else ""),
        "initrd": "the initrd's pages",
    }
    inside = [
        name for name, part in memory.parts.items() if where[0] <= part[0] and part[1] <= where[1]
    ]
    if inside:
        return f"memblock of {' + '.join(inside)}", "; ".join(reasons[name] for name in inside)
    if where[0] == 0:
        return "memblock of low memory", "the first 64 KiB"
    if memory.initrd_moved_from and where[0] == memory.initrd_moved_from[1]:
        return "memblock of the initrd's last page", "left where it was moved from"
    return "memblock of pages for ballooning", "RAM behind dom0's size"


def _free_checks(boot: Boot, memory: Memory) -> Iterator[Check]:
    for fact in boot.all("direct_map_probe"):
        yield Check(
            fact.line,
            "memblock_free of init_mem_mapping",
            region(fact.span[0], fact.span[1] + 1),
            region(*memory.probe) if memory.probe else "none",
            why="the highest free 2 MiB",
        )
    why = "the list's pages: data before its table, in the order of addresses"
    yield from _in_order(boot.all("list_freed"), memory.frees, "memblock_free of the list", why)
    yield from _aligned(
        boot.all("remap_freed"),
        memory.remap_frees.ranges,
        "memblock_free of xen_remap_memory",
        "pages that took in those from holes",
    )


def _in_order(facts: list[Fact], ranges: Sequence[Range], what: str, why: str) -> Iterator[Check]:
    """Lines against a sequence of which some may have been dropped by printk."""
    numbers = {where: i for i, where in enumerate(ranges)}
    complete = len(facts) == len(ranges)
    expected = 0
    for i, fact in enumerate(facts):
        where = (fact.span[0], fact.span[1] + 1)
        at = numbers.get(where)
        if not complete and at is not None and at >= expected:
            expected = at
        should = ranges[i] if complete else ranges[expected] if expected < len(ranges) else None
        yield Check(
            fact.line,
            what,
            region(*where),
            region(*should) if should else "nothing more",
            why=why,
        )
        expected += 1
