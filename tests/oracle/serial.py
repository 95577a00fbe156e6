# SPDX-License-Identifier: GPL-2.0-or-later
"""A boot of which only the serial log is of interest: QEMU without a stop."""

import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from oracle.machine import CPU, QEMU


def serial_log(
    xen: str,
    module: str,
    options: str,
    *,
    memory: str,
    until: str,
    seconds: int,
    cpu: str = CPU,
    cpus: str = "1",
) -> str:
    """What Xen and dom0 print until `until` is among it, QEMU ends, or the time is over.

    :param xen: file of the hypervisor, a multiboot ELF file
    :param module: Linux and what follows it, as QEMU's -initrd takes them
    :param options: of Xen, besides those of the console
    """
    with TemporaryDirectory() as folder:
        log = Path(folder) / "serial.log"
        log.touch()
        machine = subprocess.Popen(
            [QEMU, "-accel", "tcg", "-cpu", cpu, "-smp", cpus, "-nodefaults", "-display", "none",
             "-monitor", "none", "-no-reboot", "-serial", f"file:{log}", "-m", memory,
             "-machine", "pc,memory-backend=ram",
             "-object", f"memory-backend-ram,id=ram,reserve=off,size={memory}",
             "-kernel", xen, "-initrd", module,
             "-append", f"console=com1 com1=115200,8n1 loglvl=all bootscrub=0 {options}"],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        end, text = time.monotonic() + seconds, ""
        while until not in text and time.monotonic() < end and machine.poll() is None:
            time.sleep(1)
            text = log.read_text("utf-8", "replace").replace("\r", "")
        machine.terminate()
        machine.wait()
        return text
