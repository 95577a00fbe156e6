# SPDX-License-Identifier: GPL-2.0-or-later
"""One emulated machine that boots Xen and a dom0, stopped wherever one wants to look."""

import mmap
import os
import re
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType

from oracle.cases import Case, dom0_mem, nr_bytes
from oracle.gdbstub import GdbStub, Registers
from oracle.memory import Memory
from oracle.packages import Software, UnavailableError, cache_folder, require, run

from xenpt.inputs.elf import PT_LOAD, Elf
from xenpt.inputs.files import read_file

QEMU = "qemu-system-x86_64"
#: With SMAP on, QEMU's emulation lets dom0 die; five levels and keys are of no use to a PV guest.
CPU = "max,-smap,-smep,-la57,-pku"
_OVER = re.compile(
    r"^.*(?:Panic on CPU|Hardware Dom0 (?:crashed|shutdown|halted)|Kernel panic - not syncing"
    r"|domain_crash called|Reboot in |Manual reset required).*$",
    re.MULTILINE,
)
_SOURCE = Path(__file__).with_name("hypercalls.c")


class BootEndedError(Exception):
    """The boot ended before the point that was waited for; the text says how."""


class Machine:
    """A running QEMU; leave the context to end it.

    :param initrd: dom0's
    :param plugin: the one that records hypercalls is there; QEMU 7.2's interface for it can fail
        where a program of dom0 is stopped
    :ivar memory: its RAM
    :ivar trace_path: records of the hypercalls, complete when the context has been left
    """

    def __init__(
        self,
        software: Software,
        case: Case,
        folder: Path,
        *,
        initrd: bytes | None = None,
        plugin: bool = True,
    ) -> None:
        require((QEMU, "qemu-system-x86"), ("cc", "gcc libc6-dev"))
        self._log_path, self.trace_path = folder / "serial.log", folder / "hypercalls.bin"
        self._end = time.monotonic() + case.seconds
        below = nr_bytes(case.below_4g) if case.below_4g else None
        self.memory = Memory(nr_bytes(case.host), below)
        self._control_fd = os.memfd_create("control", 0)
        os.ftruncate(self._control_fd, 16)
        self._control = mmap.mmap(self._control_fd, 16)
        socket = folder / "gdb"
        command = _command(software, case, folder, self.memory, initrd)
        if plugin:
            command += self._plugin(software)
        command += ["-gdb", f"unix:{socket},server=on,wait=off", "-S"]
        self._errors = open(folder / "qemu.err", "w+")  # noqa: SIM115 - closed with the machine
        self._qemu = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=(self.memory.fd, self._control_fd),
            env={key: value for key, value in os.environ.items() if key != "LD_PRELOAD"},
        )
        self._gdb = GdbStub()
        if not self._gdb.connect(str(socket), running=lambda: self._qemu.poll() is None):
            self.close()
            said = (folder / "qemu.err").read_text("utf-8").strip().splitlines()
            raise UnavailableError(
                f"QEMU does not start: {said[-1] if said else 'no reason given'}"
            )

    def __enter__(self) -> "Machine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def log(self) -> str:
        """The serial log up to now: Xen's lines and dom0's."""
        try:
            return self._log_path.read_bytes().decode("utf-8", "replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def run_to(self, vaddr: int) -> Registers:
        """Let it run until the processor is about to execute `vaddr`.

        :raises BootEndedError: Xen or Linux gave up before, or the case's time is over
        """
        self._gdb.breakpoint(vaddr, on=True)
        self._gdb.run()
        try:
            while not self._gdb.stopped(1):
                if over := _OVER.search(self.log):
                    raise BootEndedError(over[0])
                if time.monotonic() > self._end:
                    raise BootEndedError(f"time is over, after: {self.log[-200:]!r}")
        except EOFError:
            raise BootEndedError(f"QEMU has ended, after: {self.log[-200:]!r}") from None
        registers = self._gdb.registers()
        if registers.rip != vaddr:
            raise BootEndedError(f"stopped at {registers.rip:#x}")
        self._gdb.breakpoint(vaddr, on=False)
        return registers

    def return_address(self, at_entry: Registers) -> int:
        """Where a function returns to that has just been called."""
        raw = self.memory.read_virtual(at_entry.cr3, at_entry.rsp, 8)
        return int.from_bytes(raw, "little")

    def record(self, stage: int, root: int = 0) -> None:
        """From now on record hypercalls as of `stage` (0: do not), with CR3 `root`."""
        self._control[:] = struct.pack("<2Q", stage, root)

    def close(self) -> None:
        """End QEMU and free its memory."""
        self._gdb.close()
        self._qemu.terminate()  # its plugin then writes what it still holds
        self._qemu.wait()
        self._errors.close()
        self._control.close()
        os.close(self._control_fd)
        self.memory.close()

    def _plugin(self, software: Software) -> list[str]:
        memory = self.memory
        arguments = {
            "out": self.trace_path,
            "size": f"{memory.nr_bytes:x}",
            "ram": memory.fd,
            "below": f"{memory.below_4g:x}",
            "control": self._control_fd,
            "call": f"{_hypercall_instruction(software.xen_syms):x}",
        }
        return [
            "-plugin", ",".join([compiled(_SOURCE), *(f"{k}={v}" for k, v in arguments.items())]),
        ]  # fmt: skip


def qemu_version() -> tuple[int, ...]:
    """:raises UnavailableError: no QEMU"""
    require((QEMU, "qemu-system-x86"))
    said = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(n) for n in re.search(r"version (\d+)\.(\d+)", said).groups())


def linux_options(case: Case) -> str:
    """Command line of dom0's kernel."""
    if case.silent:
        return f"console=hvc0 quiet panic=-1 {case.linux}".rstrip()
    options = ["console=hvc0 earlyprintk=xen ignore_loglevel panic=-1", case.linux]
    if not case.quiet:
        options.append("memblock=debug")
    return " ".join(filter(None, options))


def xen_options(case: Case) -> str:
    """Command line of Xen."""
    size = f"dom0_mem={dom0_mem(case)}"
    return f"console=com1 com1=115200,8n1 loglvl=all guest_loglvl=all {size} {case.xen}"


def _command(
    software: Software, case: Case, folder: Path, memory: Memory, initrd: bytes | None
) -> list[str]:
    modules = f"{software.linux} {linux_options(case)}".replace(",", ",,")
    if initrd is not None:
        (folder / "initrd").write_bytes(initrd)
        modules += f",{folder / 'initrd'}"
    ram = "memory-backend-file,id=ram,share=on,reserve=off"
    machine = "pc,memory-backend=ram"
    if case.below_4g:
        machine += f",max-ram-below-4g={case.below_4g}"
    return [
        QEMU, "-accel", "tcg", "-cpu", case.cpu or CPU, "-smp", "1", "-nodefaults",
        "-display", "none", "-monitor", "none", "-no-reboot",
        "-serial", f"file:{folder / 'serial.log'}", "-m", f"{memory.nr_bytes >> 20}M",
        "-machine", machine,
        "-object", f"{ram},size={memory.nr_bytes},mem-path=/proc/self/fd/{memory.fd}",
        "-kernel", software.xen, "-append", xen_options(case), "-initrd", modules,
    ]  # fmt: skip


def compiled(source: Path) -> str:
    """A plugin for this QEMU, compiled into the cache if it is not there."""
    # What is used of the interface is the same in both; QEMU 9 asks for the number, no more.
    version = 1 if qemu_version() < (9, 0) else 2
    library = cache_folder() / f"{source.stem}-{version}.so"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        options = "-O2", "-Wall", "-shared", "-fPIC", f"-DPLUGIN_VERSION={version}"
        run("cc", *options, "-o", str(library), str(source))
    return str(library)


def _hypercall_instruction(xen_syms: str) -> int:
    """Address of `call pv_hypercall` (e8 and a distance) in lstar_enter, where dom0 comes in.

    :raises UnavailableError: a Xen that does it in another way
    """
    elf = Elf(read_file(xen_syms), xen_syms)
    symbols = elf.symbols(("lstar_enter", "pv_hypercall"))
    start, target = symbols["lstar_enter"], symbols["pv_hypercall"]
    for segment in elf.segments:
        if segment.type == PT_LOAD and segment.vaddr <= start < segment.vaddr + segment.filesz:
            code = elf.bytes_at(segment.offset + start - segment.vaddr, 1024, "lstar_enter")
            for i in range(len(code) - 4):
                distance = int.from_bytes(code[i + 1 : i + 5], "little", signed=True)
                if code[i] == 0xE8 and start + i + 5 + distance == target:
                    return start + i
    raise UnavailableError(f"{xen_syms}: no call of pv_hypercall in lstar_enter")
