# SPDX-License-Identifier: GPL-2.0-or-later
"""A client of QEMU's gdb stub: breakpoints, going on, and the registers. One packet at a time."""

import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

_NAMES = [
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rbp",
    "rsp",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rip",
]
_CR3_AT = 204  # behind the above: eflags, 6 segments (4 bytes), 3 bases, cr0, cr2 (8 bytes)


class Registers(NamedTuple):
    """The few that matter here."""

    rip: int
    rsp: int
    rdi: int
    rsi: int
    cr3: int


class GdbStub:
    """The connection; QEMU's processor is stopped except between `run` and `stopped`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._received = b""

    def connect(self, path: str, *, running: Callable[[], bool], seconds: float = 20) -> bool:
        """Connect to the socket once QEMU listens; False if it ends before, or never does."""
        end = time.monotonic() + seconds
        while self._socket.connect_ex(path):
            if not running() or time.monotonic() > end:
                return False
            time.sleep(0.02)
        self._ask("qSupported:multiprocess-")
        self._ask("QStartNoAckMode")
        return True

    def breakpoint(self, vaddr: int, *, on: bool) -> None:
        """Set or remove one; QEMU keeps them by virtual address, without changing memory."""
        answer = self._ask(f"{'Z' if on else 'z'}1,{vaddr:x},1")
        if answer != b"OK":
            raise RuntimeError(f"gdb stub: breakpoint {vaddr:#x}: {answer!r}")

    def run(self) -> None:
        """Let the processor go; `stopped` tells when it has met a breakpoint."""
        self._send("c")

    def stopped(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for it to stop.

        :raises EOFError: QEMU has gone
        """
        try:
            self._receive(timeout)
        except TimeoutError:
            return False
        return True

    def registers(self) -> Registers:
        """Registers of the stopped processor, which runs in 64-bit mode."""
        raw = bytes.fromhex(self._ask("g").decode())
        named = dict(zip(_NAMES, struct.unpack_from("<17Q", raw), strict=True))
        (cr3,) = struct.unpack_from("<Q", raw, _CR3_AT)
        return Registers(named["rip"], named["rsp"], named["rdi"], named["rsi"], cr3)

    def close(self) -> None:
        """Leave QEMU alone."""
        self._socket.close()

    def _ask(self, command: str) -> bytes:
        self._send(command)
        return self._receive(30)

    def _send(self, command: str) -> None:
        raw = command.encode()
        self._socket.sendall(b"$%b#%02x" % (raw, sum(raw) & 0xFF))

    def _receive(self, timeout: float) -> bytes:
        self._socket.settimeout(timeout)
        while True:
            start = self._received.find(b"$")
            end = self._received.find(b"#", start)
            if 0 <= start < end <= len(self._received) - 3:
                packet = self._received[start + 1 : end]
                self._received = self._received[end + 3 :]
                return packet
            more = self._socket.recv(1 << 16)
            if not more:
                raise EOFError("QEMU has closed the connection")
            self._received += more
