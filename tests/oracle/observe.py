# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot one case for real and keep what is to be compared: log, tables at five points, hypercalls.

Points: entry (dom0's first instruction), setup (xen_setup_kernel_pagetable has returned), pre and
mid (just before and after the initial P->M list is freed), post (xen_remap_memory has returned).
"""

import struct
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from oracle.cases import Case, initrd_of
from oracle.kallsyms import Symbols, read_kallsyms
from oracle.machine import BootEndedError, Machine, linux_options
from oracle.memory import Memory, Table, Words
from oracle.packages import Software, locked

from xenpt.abi import (
    HYPERVISOR_MMU_UPDATE,
    HYPERVISOR_MMUEXT_OP,
    HYPERVISOR_MULTICALL,
    START_INFO_64,
)
from xenpt.inputs.files import read_file
from xenpt.inputs.kernel import Kernel, read_kernel
from xenpt.inputs.payload import unpack_image
from xenpt.inputs.symbols import LINUX_SYMBOLS

Records = npt.NDArray[np.void]
#: One record of hypercalls.c. Kinds: 0 hypercall (its arguments), 1 the same within a multicall,
#: 2 request of an mmu_update (ptr, val), 3 operation of an mmuext_op (cmd, arg1, arg2).
RECORD = np.dtype(
    [("stage", "<u4"), ("op", "<u2"), ("kind", "u1"), ("depth", "u1"), ("args", "<u8", 4)]
)


class Stop(NamedTuple):
    """A place where the boot is stopped.

    :ivar function: at its first instruction; None: where the function of the stop before returns
    :ivar begins: the model's stage that goes from here to the next stop; None: what Linux does
        up to there is in no stage
    :ivar dump: name of the point at which the tables are kept, or None
    """

    function: str | None
    begins: str | None = None
    dump: str | None = None


#: In order.
STOPS = (
    Stop("xen_setup_kernel_pagetable", "setup_kernel_pagetable"),
    Stop(None, dump="setup"),
    Stop("xen_memory_setup", "memory_setup"),
    Stop(None),
    Stop("init_mem_mapping", "init_mem_mapping"),
    Stop(None),
    Stop("xen_pagetable_init", "paging_init"),
    Stop("xen_vmalloc_p2m_tree", "vmalloc_p2m_tree"),
    Stop(None, "p2m_free", dump="pre"),
    Stop("xen_build_mfn_list_list", dump="mid"),
    Stop("xen_remap_memory", "remap_memory"),
    Stop(None, dump="post"),
)
_FROM_ENTRY = len(STOPS) + 1  # number of what comes before the first stop
_MODEL_SYMBOLS = *LINUX_SYMBOLS, "xen_remap_buf", "bm_pte"
_PAGE_INFO_AT, _PAGE_INFO_BYTES = 0xFFFF82E000000000, 32  # Xen's frame table
_COUNT_INFO_AT = 8  # in an element; type_info follows
_WHOLE_LIST_PAGES = 1 << 22
_MULTICALL_ENTRY_BYTES = np.uint64(64)
_REQUEST = 2  # records of this kind and above belong to the call before them


@dataclass
class Observation:
    """What a real boot did.

    :ivar cmd_line: what the kernel was told
    :ivar tables: by point, all of the guest's table pages
    :ivar start_info: the structure's bytes at entry
    :ivar p2m: mfn of each pfn; of a large dom0 only up to the end of the P->M list's own frames
    :ivar page_info: mfn of a table page at entry -> (count_info, type_info)
    :ivar hypercalls: by stage, as RECORD arrays without Xen's restarts
    :ivar between: by point, hypercalls outside of the stages, made since the point before
    :ivar completed: stages that came to their end
    :ivar ended: why the boot did not come to its last stop, or None
    :ivar seconds: what the boot took
    """

    case: Case
    cmd_line: str
    log: str = ""
    tables: dict[str, list[Table]] = field(default_factory=dict)
    start_info: bytes = b""
    p2m: Words = field(default_factory=lambda: np.empty(0, np.uint64))
    page_info: dict[int, tuple[int, int]] = field(default_factory=dict)
    hypercalls: dict[str, Records] = field(default_factory=dict)
    between: dict[str, Records] = field(default_factory=dict)
    completed: list[str] = field(default_factory=list)
    ended: str | None = None
    seconds: float = 0.0


def read_linux(path: str) -> tuple[Kernel, Symbols]:
    """A kernel image as the model knows it, with those of its symbols that matter; and all."""
    symbols = read_kallsyms(bytes(unpack_image(read_file(path), path)[0]))
    # _brk_end is a variable, and what the boot depends on is its value: that is for the model
    known = {name: symbols[name] for name in _MODEL_SYMBOLS if name in symbols}
    return replace(read_kernel(path), symbols=known), symbols


def observe(case: Case, software: Software, kernel: Kernel, symbols: Symbols) -> Observation:
    """Boot it once, one boot at a time on this machine. A boot that hangs is ended."""
    seen = Observation(case, linux_options(case))
    with locked(), tempfile.TemporaryDirectory(prefix="xenpt-oracle-") as folder:
        started = time.monotonic()
        with Machine(software, case, Path(folder), initrd=initrd_of(case)) as machine:
            try:
                _at_entry(machine, kernel, seen)
                _run_stages(machine, symbols, seen)
            except BootEndedError as ended:
                seen.ended = str(ended)
            seen.log = machine.log
        records = without_restarts(np.fromfile(machine.trace_path, RECORD))
    outside = [_FROM_ENTRY]
    for number, stop in enumerate(STOPS, 1):
        if stop.dump:
            seen.between[stop.dump] = records[np.isin(records["stage"], outside)]
            outside = []
        if stop.begins:
            seen.hypercalls[stop.begins] = records[records["stage"] == number]
        else:
            outside.append(number)
    seen.seconds = time.monotonic() - started
    return seen


def _at_entry(machine: Machine, kernel: Kernel, seen: Observation) -> None:
    at = machine.run_to(kernel.entry)
    memory = machine.memory
    seen.tables["entry"] = memory.tables(at.cr3)
    seen.start_info = memory.read_virtual(at.cr3, at.rsi, START_INFO_64.itemsize)
    info = np.frombuffer(seen.start_info, START_INFO_64)[0]
    nr = int(info["nr_pages"])
    if nr > _WHOLE_LIST_PAGES:
        nr = int(info["first_p2m_pfn"] + info["nr_p2m_frames"])
    held = memory.read_virtual(at.cr3, int(info["mfn_list"]), 8 * nr)
    seen.p2m = np.frombuffer(held, "<u8")
    seen.page_info = page_info(memory, at.cr3, seen.tables["entry"])
    machine.record(_FROM_ENTRY, at.cr3)


def page_info(memory: Memory, root: int, tables: list[Table]) -> dict[int, tuple[int, int]]:
    """mfn of each table page -> (count_info, type_info) that Xen keeps of it.

    :param root: any CR3 that Xen runs with
    """
    found = {}
    for table in tables:
        element = _PAGE_INFO_AT + _PAGE_INFO_BYTES * table.mfn
        raw = memory.read_virtual(root, element, _PAGE_INFO_BYTES)
        found[table.mfn] = struct.unpack_from("<2Q", raw, _COUNT_INFO_AT)
    return found


def _run_stages(machine: Machine, symbols: Symbols, seen: Observation) -> None:
    behind = 0
    for number, stop in enumerate(STOPS, 1):
        at = machine.run_to(symbols[stop.function] if stop.function else behind)
        if stop.function:
            behind = machine.return_address(at)
        if before := STOPS[number - 2].begins if number > 1 else None:
            seen.completed.append(before)
        machine.record(number, at.cr3)
        if stop.dump:
            seen.tables[stop.dump] = machine.memory.tables(at.cr3)


def without_restarts(records: Records) -> Records:
    """Xen enters a long call that it interrupted again, through the same gate; drop these.

    A restarted mmu_update or mmuext_op has bit 31 of its count set (MMU_UPDATE_PREEMPTED). A
    restarted multicall begins further on in the same list, or, if one of its calls was
    interrupted, with that. All requests and calls of it have been listed before.
    """
    op, kind, args = records["op"], records["kind"], records["args"]
    preempted = np.isin(op, (HYPERVISOR_MMU_UPDATE, HYPERVISOR_MMUEXT_OP)) & (kind < _REQUEST)
    preempted &= args[:, 1] >> np.uint64(31) & np.uint64(1) == 1
    top = np.flatnonzero(kind == 0)
    start, end = args[top, 0], args[top, 0] + _MULTICALL_ENTRY_BYTES * args[top, 1]
    again = np.zeros(len(top), bool)
    again[1:] = (op[top[1:]] == HYPERVISOR_MULTICALL) & (op[top[:-1]] == HYPERVISOR_MULTICALL)
    again[1:] &= (end[1:] == end[:-1]) & (start[1:] >= start[:-1])
    again[1:] &= (start[1:] > start[:-1]) | np.append(preempted, False)[top[1:] + 1]
    restart = preempted
    restart[top[again]] = True
    # Of each record: the call that it belongs to, in a multicall the call of the guest.
    by_guest = np.maximum.accumulate(np.where(kind == 0, np.arange(len(records)), 0))
    by_call = np.maximum.accumulate(np.where(kind < _REQUEST, np.arange(len(records)), 0))
    return records[~(restart[by_guest] | restart[by_call])]
