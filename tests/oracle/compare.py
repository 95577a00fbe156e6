# SPDX-License-Identifier: GPL-2.0-or-later
"""A real boot against the model of it: what the model says is computed from the boot's inputs.

Inputs are the kernel image with its symbols, the options, and the machine's e820 map. Of the real
boot the model is told only where the host put things: the machine addresses of dom0's pages and
of shared_info, and the pages that Linux takes for itself between two stages.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from oracle.calls import OPS, Calls, apply_calls, describe, model_calls, real_calls
from oracle.cases import dom0_mem
from oracle.memory import XEN_SLOTS, Table, Words, guest_tables, l1_of
from oracle.observe import Observation

from xenpt.abi import (
    ENTRIES,
    HYPERVISOR_MMU_UPDATE,
    HYPERVISOR_UPDATE_VA_MAPPING,
    LEVELS,
    PAGE_SHIFT,
    PAGE_SIZE,
    PTE_MFN_MASK,
    START_INFO_64,
    table_slot,
)
from xenpt.image import materialise
from xenpt.inputs.config import Host, parse_e820
from xenpt.inputs.kernel import Kernel
from xenpt.linux import Boot, Stage, StageResult
from xenpt.linux.addressspace import address_space
from xenpt.p2m import P2M
from xenpt.plan import Plan, plan_dom0
from xenpt.xen.dom0 import Domain, build

_XEN_LINE = re.compile(r"^.*\(XEN\) (?:\[[ .0-9a-f]*\] )?(.*?)\s*$", re.MULTILINE)
_RANGE = r"\[(?:mem )?0x([0-9a-f]+)-0x([0-9a-f]+)\]"
#: Where tables are compared: behind which stages.
_POINTS = {
    Stage.SETUP_KERNEL_PAGETABLE: "setup",
    Stage.P2M_COPIED: "pre",
    Stage.P2M_FREE: "mid",
    Stage.REMAP_MEMORY: "post",
}
_SHOWN = 3  # differences that a message names


@dataclass
class Result:
    """One comparison.

    :ivar words: 64-bit words, or numbers of a log, that were compared
    :ivar differences: what differs, one line each; at most `_SHOWN` and how many more
    :ivar left_out: words that were not compared
    """

    subject: str
    words: int = 0
    differences: list[str] = field(default_factory=list)
    left_out: int = 0


def compare(seen: Observation, kernel: Kernel) -> list[Result]:
    """All comparisons of one boot."""
    plan = plan_of(seen, kernel)
    results = [compare_layout(seen, plan)]
    if plan.panic is not None:
        return results
    if "entry" not in seen.tables:
        results[0].differences.append(f"no entry: {seen.ended}")
        return results
    domain = build(plan, p2m=P2M.from_list(seen.p2m), shared_info=_shared_info(seen))
    results += [
        compare_start_info(seen.start_info, domain.start_info(), START_INFO_64),
        compare_tables("entry tables", seen.tables["entry"], tables_of(domain)),
        compare_page_info(seen.page_info, domain),
    ]
    return results + list(compare_boot(seen, domain))


# --- Inputs and plan -----------------------------------------------------------------------------


def plan_of(seen: Observation, kernel: Kernel) -> Plan:
    """What the model expects of the boot's inputs."""
    case, lines = seen.case, seen.log.split("Linux version")[0].splitlines()
    placed = {
        what: int(start, 16)
        for what, start in re.findall(r"(Dom0 alloc\.|Init\. ramdisk): +([0-9a-f]+)->", seen.log)
    }
    (version,) = re.findall(r"Xen version (\d\S*)", seen.log)
    return plan_dom0(
        kernel,
        Host(xen=version, e820=parse_e820(lines)),
        dom0_mem=dom0_mem(case),
        initrd_bytes=case.initrd_bytes,
        alloc_maddr=placed.get("Dom0 alloc."),
        initrd_maddr=placed.get("Init. ramdisk"),
        cmd_line=seen.cmd_line,
    )


def _shared_info(seen: Observation) -> int:
    return int(np.frombuffer(seen.start_info, START_INFO_64)[0]["shared_info"])


# --- Xen: layout and entry state -----------------------------------------------------------------


def compare_layout(seen: Observation, plan: Plan) -> Result:
    """Xen's arrangement block and its panic, line for line."""
    lines = _XEN_LINE.findall(seen.log)
    real = []
    if "PHYSICAL MEMORY ARRANGEMENT:" in lines:
        start = lines.index("PHYSICAL MEMORY ARRANGEMENT:")
        end = next(i for i, line in enumerate(lines) if line.startswith(" ENTRY ADDRESS:"))
        real = lines[start : end + 1]
    real += [line for before, line in pairwise(lines) if before == "Panic on CPU 0:"]
    expected = str(plan).split("\n")[len(plan.notices) :]
    numbers = sum(len(re.findall(r"[0-9a-f]{16}|\d+ pages", line)) or 1 for line in real)
    return compare_lines(
        "layout", numbers, zip(expected, real, strict=False), len(expected), len(real)
    )


def compare_start_info(real: bytes, model: bytes, dtype: np.dtype[np.void]) -> Result:
    """All bytes of the structure."""
    result = Result("start_info", len(real) // 8)
    theirs, ours = (np.frombuffer(raw, dtype)[0] for raw in (real, model))
    for name in dtype.names:
        if theirs[name] != ours[name]:
            result.differences.append(f"{name}: real {theirs[name]}, model {ours[name]}")
    if real != model and not result.differences:
        result.differences.append("bytes between the fields")
    return result


def tables_of(domain: Domain) -> dict[int, Words]:
    """mfn of each table page -> its words, as the builder left them."""
    image = materialise(domain.address_space, domain.p2m)
    return dict(zip(image.mfn.tolist(), image.pages, strict=True))


def compare_page_info(real: dict[int, tuple[int, int]], domain: Domain) -> Result:
    """Reference counts and types that Xen keeps of the table pages."""
    info = domain.page_info()
    counts = zip(info["count_info"].tolist(), info["type_info"].tolist(), strict=True)
    model = dict(zip(domain.p2m.mfn(info["pfn"]).tolist(), counts, strict=True))
    pairs = ((f"mfn {mfn:#x}: {model.get(mfn)}", f"mfn {mfn:#x}: {real[mfn]}") for mfn in real)
    return compare_lines("page_info", 2 * len(real), pairs, len(model), len(real))


def compare_tables(
    subject: str, real: list[Table], model: dict[int, Words], *, skip: range = XEN_SLOTS
) -> Result:
    """Tables of two kinds, by mfn.

    :param skip: slots of an L4 table that are not compared
    """
    result = Result(subject)
    missing, extra = {t.mfn for t in real} - model.keys(), model.keys() - {t.mfn for t in real}
    for what, mfns in (("only in the real boot", missing), ("only in the model", extra)):
        if mfns:
            result.differences.append(f"{len(mfns)} tables {what}, as mfn {min(mfns):#x}")
    wrong = 0
    for table in real:
        if table.mfn in missing:
            continue
        differ = table.words != model[table.mfn]
        if table.level == LEVELS:
            differ[skip.start : skip.stop] = False
        result.words += ENTRIES - (len(skip) if table.level == LEVELS else 0)
        for slot in np.flatnonzero(differ).tolist():
            wrong += 1
            if wrong <= _SHOWN:
                words = f"real {table.words[slot]:#x}, model {model[table.mfn][slot]:#x}"
                result.differences.append(f"L{table.level} of {table.vaddr:#x} [{slot}]: {words}")
    if wrong > _SHOWN:
        result.differences.append(f"... {wrong} words in all")
    return result


# --- Linux: hypercalls, tables, memblock ---------------------------------------------------------


def compare_boot(seen: Observation, domain: Domain) -> Iterator[Result]:
    """The stages of Linux' early boot, and what they leave behind."""
    lines = seen.log.split("Linux version")[0].splitlines()
    boot = Boot(domain, e820=parse_e820(lines), record=True)
    # With part of the memory hidden from it, Linux dies when it comes to remap_memory.
    for stage in Stage:
        if stage.value not in seen.completed:
            if not (seen.case.partial and stage is Stage.REMAP_MEMORY):
                yield Result(stage.value, differences=[f"the real boot ended: {seen.ended}"])
            return
        real = real_calls(seen.hypercalls[stage.value])
        if stage is Stage.PAGING_INIT and not seen.case.partial:
            _reserve_unmodelled(boot, real, domain.p2m)
        boot.run_to(stage)
        if boot.panic:
            yield Result(stage.value, differences=[f"model: {boot.panic}"])
            return
        if seen.case.partial and stage not in (Stage.SETUP_KERNEL_PAGETABLE, Stage.P2M_FREE):
            continue
        calls = model_calls(boot.results[-1].calls or (), domain.p2m)
        yield compare_calls(stage, seen, real, calls, boot.results[-1])
        point = _POINTS.get(stage)
        if point in seen.tables and (point == "setup" or not seen.case.partial):
            yield compare_address_space(seen, point, boot, domain.p2m)
        if stage is Stage.MEMORY_SETUP and not seen.case.quiet:
            yield compare_memblock(seen, boot)
        elif stage is Stage.P2M_FREE:
            yield compare_freed_tables(seen, calls)
            if not seen.case.quiet:
                yield compare_frees(seen, boot.results[-1])


def _reserve_unmodelled(boot: Boot, real: Calls, p2m: P2M) -> None:
    """Between init_mem_mapping and paging_init Linux takes memory, top down, for what is not
    modelled (ACPI tables, per-CPU areas): all above the first table of paging_init is in use."""
    first_table = (int(real["args"][0, 1]) & PTE_MFN_MASK) >> PAGE_SHIFT
    (pfn,) = p2m.pfn([first_table])
    memblock = boot.state.memblock
    top = memblock.memory.ranges[-1][1]
    taken = memblock.reserve((int(pfn) + 1) * PAGE_SIZE, top)
    boot.state = replace(boot.state, memblock=taken)


def compare_calls(
    stage: Stage, seen: Observation, real: Calls, model: Calls, result: StageResult
) -> Result:
    """All calls of a stage in their order, word for word, and how many traps they were."""
    differ = np.flatnonzero(real[: len(model)] != model[: len(real)])
    out = Result(f"calls of {stage.value}", _nr_words(real))
    if len(real) != len(model):
        out.differences.append(f"real {len(real)} calls, model {len(model)}")
    for i in differ[:_SHOWN].tolist():
        out.differences.append(f"call {i}: real {describe(real[i])}, model {describe(model[i])}")
    if len(differ) > _SHOWN:
        out.differences.append(f"... {len(differ)} calls in all")
    records = seen.hypercalls[stage.value]
    traps = records[records["kind"] == 0]["op"]
    for name, number in OPS.items():
        nr = int((traps == number).sum())
        if nr != result.cost.by_type[name]:
            out.differences.append(f"{name}: real {nr}, model {result.cost.by_type[name]}")
    return out


def _nr_words(calls: Calls) -> int:
    words_of = {"update_va_mapping": 3, "mmu_update": 2, "mmuext_op": 2}
    return sum(int((calls["op"] == OPS[name]).sum()) * words_of.get(name, 1) for name in OPS)


def compare_address_space(seen: Observation, point: str, boot: Boot, p2m: P2M) -> Result:
    """Every word of every table that the guest's root leads to.

    Left out are the words that Linux set by calls outside of the stages (its GDT's page, the
    fixmap, early_ioremap), and so the tables that only these lead to.
    """
    root = seen.tables[point][0].mfn
    image = address_space(boot.state).image(p2m)
    empty = np.zeros(ENTRIES, np.uint64)
    real = {table.mfn: table.words.copy() for table in seen.tables[point]}
    model = dict(zip(image.mfn.tolist(), image.pages, strict=True))
    set_outside = _set_outside(seen, point)
    for mfn, slot in set_outside:
        for tables in (real, model):
            if mfn in tables:
                tables[mfn][slot] = 0
    reached = guest_tables(lambda mfn: model.get(mfn, empty), root)
    result = compare_tables(
        f"tables: {point}",
        guest_tables(lambda mfn: real.get(mfn, empty), root),
        {table.mfn: table.words for table in reached},
    )
    result.left_out = len(set_outside)
    result.words -= result.left_out
    return result


def _set_outside(seen: Observation, point: str) -> set[tuple[int, int]]:
    """(mfn of a table, slot) of the words set by calls that are in no stage, up to the point."""
    tables = {table.mfn: table for table in seen.tables[point]}
    root, places = seen.tables[point][0].mfn, set()
    for before in list(_POINTS.values())[: list(_POINTS.values()).index(point) + 1]:
        for call in real_calls(seen.between[before]):
            target = int(call["args"][0])
            if call["op"] == HYPERVISOR_UPDATE_VA_MAPPING:
                places.add((l1_of(tables, root, target), table_slot(target, 1)))
            elif call["op"] == HYPERVISOR_MMU_UPDATE and not target & 3:
                places.add((target >> PAGE_SHIFT, target % PAGE_SIZE // 8))
    return {(mfn, slot) for mfn, slot in places if mfn in tables}


def compare_freed_tables(seen: Observation, calls: Calls) -> Result:
    """The tables before the free, changed by the model's calls, against those after it."""
    after = apply_calls(seen.tables["pre"], calls)
    model = {table.mfn: table.words for table in after}
    return compare_tables("tables after the free", seen.tables["mid"], model)


def compare_memblock(seen: Observation, boot: Boot) -> Result:
    """Regions of memory and of what is reserved, when Linux first prints them."""
    (text,) = re.findall(r"MEMBLOCK configuration:(.*?)\] memblock_", seen.log, re.S)[:1]
    memblock = boot.state.memblock
    out = Result("memblock regions")
    for kind, model in (("memory", memblock.memory), ("reserved", memblock.reserved)):
        lines = re.findall(rf"{kind}\[0x[0-9a-f]+\]\s*{_RANGE}", text)
        real = [(int(start, 16), int(last, 16) + 1) for start, last in lines]
        out.words += 2 * len(real)
        if real != list(model):
            out.differences.append(f"{kind}: real {_hex(real)}, model {_hex(model)}")
    return out


def compare_frees(seen: Observation, result: StageResult) -> Result:
    """What is given back of the list, in order: each call makes its own pages writable first."""
    found = re.findall(rf"memblock_(?:phys_)?free: {_RANGE} xen_pagetable", seen.log)
    real = [(int(start, 16), int(last, 16) + 1) for start, last in found]
    model = [
        (call.pfn << PAGE_SHIFT, call.pfn + call.nr << PAGE_SHIFT)
        for call in result.calls or ()
        if call.op == "update_va_mapping" and call.pfn is not None
    ]
    pairs = zip(_hex(model), _hex(real), strict=False)
    return compare_lines("memblock frees", 2 * len(real), pairs, len(model), len(real))


def _hex(ranges: Iterable[tuple[int, int]]) -> list[str]:
    return [f"[{start:#x}, {end:#x})" for start, end in ranges]


def compare_lines(
    subject: str, words: int, pairs: Iterable[tuple[str, str]], nr_model: int, nr_real: int
) -> Result:
    """Of (model, real), in order; and how many of them there are."""
    result = Result(subject, words)
    if nr_real != nr_model:
        result.differences.append(f"real {nr_real}, model {nr_model} of them")
    wrong = [f"real {real}, model {model}" for model, real in pairs if model != real]
    result.differences += wrong[:_SHOWN]
    if len(wrong) > _SHOWN:
        result.differences.append(f"... {len(wrong)} in all")
    return result
