# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot for real and count the instructions of each stage, those of Linux and those of Xen.

QEMU runs with -icount: its clock goes by instructions, so that timer interrupts come at the same
instruction in every run, and a count is the same each time.
"""

import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from oracle.cases import Case, dom0_mem
from oracle.kallsyms import Symbols
from oracle.machine import Machine, compiled, linux_options, xen_options
from oracle.observe import Stop
from oracle.packages import Software, UnavailableError, cache_folder, locked

from xenpt.inputs.elf import Elf
from xenpt.inputs.files import read_file
from xenpt.inputs.payload import unpack_image

#: The constants are fitted to the counts of these.
CALIBRATION = (
    Case("512m", "4G", "512M"),
    Case("1000m", "4G", "1000M"),
    Case("2g", "4G", "2G"),
    Case("8g", "10G", "8G"),
)
#: These they have to predict: another size, other leaves (2 MiB and 4 KiB), another initrd.
HELD_OUT = (
    Case("4g", "6G", "4G"),
    Case("1535m", "4G", "1535M"),
    Case("2g-initrd", "4G", "2G", initrd_bytes=12345678),
)
#: Larger ones, which take minutes: 4 times the largest that was fitted, and leaves of 1 GiB.
BY_HAND = (
    Case("32g", "36G", "32G"),
    Case("520g", "524G", "520G", partial=True, xen="bootscrub=0", linux="mem=4G"),
)
CASES = {case.name: case for case in (*CALIBRATION, *HELD_OUT, *BY_HAND)}
_SECONDS = 900  # that a boot may take, on a machine that has other work
#: Where Xen's build of dom0 begins, its kernel unpacked and parsed; it ends with the second.
BUILD = "dom0_compute_nr_pages", "dom0_construct_pv"
#: Where the stages begin and end, in order. Of paging_init() the model has sparse_init() alone.
STOPS = (
    Stop("xen_setup_kernel_pagetable", "setup_kernel_pagetable"),
    Stop(None),
    Stop("xen_memory_setup", "memory_setup"),
    Stop(None),
    Stop("init_mem_mapping", "init_mem_mapping"),
    Stop(None),
    Stop("sparse_init", "paging_init"),
    Stop(None),
    Stop("xen_vmalloc_p2m_tree", "vmalloc_p2m_tree"),
    Stop(None, "p2m_free"),
    Stop("xen_build_mfn_list_list"),
    Stop("xen_remap_memory", "remap_memory"),
    Stop(None),
)
#: Kinds of entries into Xen, by the handler that is called in them. Kind 0 of the plugin, without
#: one, is an interrupt or a fault, or Xen at work for itself.
HANDLERS = {
    "update_va_mapping": "do_update_va_mapping",
    "mmu_update": "do_mmu_update",
    "mmuext_op": "do_mmuext_op",
    "memory_op": "do_memory_op",
    "multicall": "do_multicall",
}
KINDS = "other", *HANDLERS
_MAX_KINDS = 8
#: struct counts of instructions.c
COUNTS = np.dtype(
    [
        ("guest", "<u8"),
        ("guest_steps", "<u8"),
        ("xen_steps", "<u8"),
        ("pending", "<u8"),
        ("xen", "<u8", _MAX_KINDS),
        ("entries", "<u8", _MAX_KINDS),
    ]
)
_E820 = re.compile(r"\[[0-9a-f]{16}, [0-9a-f]{16}\] \(.*\)")  # Xen's lines of the map
_SOURCE = Path(__file__).with_name("instructions.c")


class CountingMachine(Machine):
    """A machine whose clock is its count of instructions."""

    @property
    def counts(self) -> np.void:
        """The counters as they are now."""
        return np.frombuffer(self._counts[:], COUNTS)[0]

    def close(self) -> None:
        """As Machine."""
        super().close()
        self._counts.close()

    def _plugin(self, software: Software) -> list[str]:
        os.ftruncate(self._control_fd, COUNTS.itemsize)
        self._counts = mmap.mmap(self._control_fd, COUNTS.itemsize)
        symbols = xen_symbols(software, *HANDLERS.values())
        handlers = ":".join(f"{symbols[name]:x}" for name in HANDLERS.values())
        arguments = f"counts={self._control_fd},handlers={handlers}"
        return [
            "-icount", "shift=0,sleep=off,align=off", "-rtc", "base=2026-01-01,clock=vm",
            "-plugin", f"{compiled(_SOURCE)},{arguments}",
        ]  # fmt: skip


def count(case: Case, software: Software, symbols: Symbols) -> dict[str, Any]:
    """Boot it once, one boot at a time on this machine: what was booted and counted, for JSON.

    Of each stage: `linux` and `xen` (by kind of entry), instructions, a string instruction as one;
    `entries` into Xen, by kind; `string_steps` of string instructions after the first of each.

    :param symbols: addresses of Linux's functions
    :raises BootEndedError: it did not come to the last stop
    """
    case = replace(case, silent=True, seconds=_SECONDS)
    software = replace(software, linux=_unpacked(software.linux))
    build = xen_symbols(software, *BUILD)
    with (
        locked(),
        tempfile.TemporaryDirectory(prefix="xenpt-oracle-") as folder,
        CountingMachine(software, case, Path(folder)) as machine,
    ):
        stages = dict(_stages(machine, build, symbols, case))
        log = machine.log
    return {
        "case": case.name,
        "dom0_mem": dom0_mem(case),
        "initrd_bytes": case.initrd_bytes,
        "linux_options": linux_options(case),
        "xen_options": xen_options(case),
        "e820": [line.strip() for line in _E820.findall(log)],
        "stages": stages,
    }


def _stages(
    machine: CountingMachine, build: dict[str, int], symbols: Symbols, case: Case
) -> Iterator[tuple[str, dict[str, Any]]]:
    begin, whole = build.values()
    behind = machine.return_address(machine.run_to(whole))
    machine.run_to(begin)
    stage: str | None = "build"
    before = machine.counts
    # With mem= Linux dies of the frames that it cannot move.
    for stop in (Stop(None), *(STOPS[:-2] if case.partial else STOPS)):
        at = machine.run_to(symbols[stop.function] if stop.function else behind)
        if stop.function:
            behind = machine.return_address(at)
        now = machine.counts
        if stage is not None:
            yield stage, difference(before, now)
        stage, before = stop.begins, now


def difference(before: np.void, after: np.void) -> dict[str, Any]:
    """What was counted in between, see `count`."""
    xen, entries = (
        dict(zip(KINDS, (after[name] - before[name]).tolist(), strict=False))
        for name in ("xen", "entries")
    )
    xen["other"] += int(after["pending"]) - int(before["pending"])
    return {
        "linux": int(after["guest"] - before["guest"]),
        "xen": xen,
        "entries": entries,
        "string_steps": sum(int(after[n] - before[n]) for n in ("guest_steps", "xen_steps")),
    }


def xen_symbols(software: Software, *names: str) -> dict[str, int]:
    """Addresses of Xen's functions, in the order of the names.

    :raises UnavailableError: this Xen has not got one of them
    """
    found = Elf(read_file(software.xen_syms), software.xen_syms).symbols(names)
    for name in names:
        if name not in found:
            raise UnavailableError(f"{software.xen_syms}: no function {name}")
    return {name: found[name] for name in names}


def _unpacked(image: str) -> str:
    """The kernel's ELF file in the cache: Xen would take five billion instructions to unpack it."""
    elf = cache_folder() / "vmlinux"
    elf.write_bytes(bytes(unpack_image(read_file(image), image)[0]))
    return str(elf)
