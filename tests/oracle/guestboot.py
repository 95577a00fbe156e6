# SPDX-License-Identifier: GPL-2.0-or-later
"""Let the real toolstack build guests in one real dom0, and keep what is to be compared.

Dom0's whole user space is guests.c. The machine is stopped in its function `look`: right before
libxenguest has a guest's root table pinned, when the guest is complete, and when it has ended.
"""

import os
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from oracle.cases import Case
from oracle.guests import Guest
from oracle.machine import BootEndedError, Machine
from oracle.memory import XEN_SLOTS, Memory, Table, Words
from oracle.observe import page_info
from oracle.packages import (
    Software,
    Toolstack,
    cache_folder,
    locked,
    privcmd_module,
    require,
    run,
)

from xenpt.abi import LEVELS, PAGE_SHIFT, PAGE_SIZE
from xenpt.inputs.elf import Elf
from xenpt.inputs.files import read_file

REGISTERS = "cr3", "rip", "rsi", "rsp", "rflags", "cs", "ss"
_DOM0 = Case("toolstack", "6G", "1G", quiet=True, xen="bootscrub=0", seconds=600)
_SOURCE = Path(__file__).with_name("guests.c")
_LIBRARIES, _LOADER = "x86_64-linux-gnu", "ld-linux-x86-64.so.2"
_BASE = 0x5E000000  # of the program; nothing else is executed there
_SEEN = struct.Struct("<19Q")  # struct seen of guests.c
_BEFORE_PIN, _AFTER_PIN, _ENDED = 1, 2, 3


class Point(NamedTuple):
    """A guest right before its root table is pinned, or complete.

    :ivar start_info: its whole page
    :ivar shared_info: mfn
    :ivar evtchns: event channels of xenstore and console
    :ivar p2m: mfn of each pfn, all ones for those without memory
    :ivar page_info: mfn of a table page -> (count_info, type_info)
    """

    start_info: bytes
    shared_info: int
    evtchns: tuple[int, int]
    p2m: Words
    tables: list[Table]
    page_info: dict[int, tuple[int, int]]


@dataclass
class Built:
    """What the real toolstack made of one guest.

    :ivar xen: the machine's log
    :ivar before: the guest before the pin, if it came to that
    :ivar after: the guest when it was complete
    :ivar registers: those of its first instruction
    :ivar log: what the library said, and its program
    :ivar status: exit status of the program, or minus the signal that ended it
    :ivar ended: why the machine did not get to the guest's end, or None
    """

    guest: Guest
    xen: str = ""
    before: Point | None = None
    after: Point | None = None
    registers: dict[str, int] = field(default_factory=dict)
    log: str = ""
    status: int | None = None
    ended: str | None = None
    seconds: float = 0.0


def build_guests(
    guests: Sequence[Guest], software: Software, toolstack: Toolstack
) -> Iterator[Built]:
    """Boot a dom0 and have it build the guests, one after the other."""
    program = _compiled(toolstack)
    look = Elf(program, _SOURCE).symbols(("look",))["look"]
    initrd = archive(_files(guests, program, software, toolstack))
    with locked(), tempfile.TemporaryDirectory(prefix="xenpt-oracle-") as folder:
        started = time.monotonic()
        with Machine(software, _DOM0, Path(folder), initrd=initrd, plugin=False) as machine:
            for guest in guests:
                built = Built(guest)
                try:
                    _watch(machine, look, built)
                except BootEndedError as ended:
                    built.ended = str(ended)
                built.xen = machine.log
                built.seconds = time.monotonic() - started
                started += built.seconds
                yield built
                if built.ended:
                    return


def _watch(machine: Machine, look: int, built: Built) -> None:
    """Follow one guest from stop to stop."""
    memory = machine.memory
    while built.status is None:
        at = machine.run_to(look)
        seen = _SEEN.unpack(memory.read_virtual(at.cr3, at.rdi, _SEEN.size))
        what, status, _, log, log_bytes = seen[:5]
        if what == _BEFORE_PIN:
            built.before = _point(memory, at.cr3, built.guest.bits, seen[5:12], range(0))
        elif what == _AFTER_PIN:
            built.after = _point(memory, at.cr3, built.guest.bits, seen[5:12], XEN_SLOTS)
            built.registers = dict(zip(REGISTERS, seen[12:], strict=True))
        else:
            built.log = memory.read_virtual(at.cr3, log, log_bytes).decode("utf-8", "replace")
            built.status = os.waitstatus_to_exitcode(status)
        machine.run_to(machine.return_address(at))


def _point(memory: Memory, cr3: int, bits: int, seen: tuple[int, ...], skip: range) -> Point:
    p2m, p2m_size, root, start_info, shared_info, *evtchns = seen
    levels = LEVELS if bits == 64 else LEVELS - 1
    tables = memory.tables(root << PAGE_SHIFT, levels=levels, skip=skip)
    return Point(
        memory.read(start_info << PAGE_SHIFT, PAGE_SIZE),
        shared_info,
        (evtchns[0], evtchns[1]),
        np.frombuffer(memory.read_virtual(cr3, p2m, 8 * p2m_size), "<u8"),
        tables,
        page_info(memory, cr3, tables),
    )


# --- Dom0's file system --------------------------------------------------------------------------


def _files(
    guests: Sequence[Guest], program: bytes, software: Software, toolstack: Toolstack
) -> dict[str, bytes]:
    folder = Path(toolstack.folder)
    libraries = {path.name: path for path in folder.glob(f"**/{_LIBRARIES}/*.so.*")}
    files = {f"lib/{_LIBRARIES}/{name}": path.read_bytes() for name, path in libraries.items()}
    files |= {
        f"lib64/{_LOADER}": libraries[_LOADER].read_bytes(),
        "dev/empty": b"",
        "init": program,
        "xen-privcmd.ko": privcmd_module(software),
        "vmlinuz": Path(software.linux).read_bytes(),
    }
    lines = []
    for guest in guests:
        kernel = ramdisk = "-"
        if guest.kernel is None:
            kernel = "vmlinuz"
        else:
            kernel = f"{guest.name}.elf"
            files[kernel] = guest.kernel
        if guest.ramdisk is not None:
            ramdisk = ramdisk_name(guest)
            files[ramdisk] = guest.ramdisk
        lines.append(
            f"{kernel} {guest.nr_pages} {ramdisk} {guest.hole} {guest.second} {guest.pretend:d}\n"
        )
    return files | {"guests": "".join(lines).encode()}


def ramdisk_name(guest: Guest) -> str:
    """Its file, as the library is told."""
    return f"{guest.name}.ramdisk"


def archive(files: Mapping[str, bytes]) -> bytes:
    """A file system for Linux to unpack: cpio, format "newc"."""
    folders = {str(folder) for name in files for folder in PurePosixPath(name).parents} - {"."}
    entries = [(folder, 0o40755, b"") for folder in sorted(folders)]
    entries += [(name, 0o100755, content) for name, content in files.items()]
    archive = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        encoded = name.encode() + b"\0"
        numbers = number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0
        archive += b"070701" + "".join(f"{n:08x}" for n in numbers).encode() + encoded
        archive += bytes(-len(archive) % 4) + content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def _compiled(toolstack: Toolstack) -> bytes:
    """guests.c for this toolstack's library."""
    require(("cc", "gcc libc6-dev"))
    folder, program = Path(toolstack.folder), cache_folder() / "guests"
    libraries = sorted(folder.glob(f"**/{_LIBRARIES}"))
    options = ["-O1", "-Wall", "-Wextra", "-no-pie", f"-Wl,-Ttext-segment={_BASE:#x}"]
    options += [f"-I{folder}/usr/include", *(f"-L{library}" for library in libraries)]
    options += [f"-Wl,-rpath-link,{library}" for library in libraries]
    named = [f"-l{name}" for name in ("xenguest", "xenctrl", "xentoollog")]
    run("cc", *options, "-o", str(program), str(_SOURCE), *named)
    return bytes(read_file(program))
