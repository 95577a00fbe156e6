# SPDX-License-Identifier: GPL-2.0-or-later
"""What Xen takes of a host besides frame table and M2P: the table of docs/model.md, measured.

    python tools/xen_own.py 2G 16G/4 64G/1/no-1g

Each host is MEMORY[/CPUS[/no-1g]]; no-1g: a processor without 1 GiB pages. Stock Xen of this
machine's suite boots in QEMU (as `make oracle` does it) with dom0_mem larger than the host, so that
dom0 is all that there is: RAM less both tables less dom0 is Xen's own.
"""

import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from xenpt.dom0size import host_memory  # noqa: E402
from xenpt.inputs.config import parse_e820  # noqa: E402

packages = import_module("oracle.packages")
SECONDS = 300  # that one boot may take
ALLOCATED = re.compile(r"Dom0 alloc\.:\s+([0-9a-f]+)->([0-9a-f]+) \((\d+) pages")


def boot(software: Any, memory: str, cpus: str, cpu: str) -> str:
    """The serial log up to Xen's lines about dom0."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "serial.log"
        path.touch()
        command = [
            "qemu-system-x86_64", "-accel", "tcg", "-cpu", cpu, "-smp", cpus, "-nodefaults",
            "-display", "none", "-monitor", "none", "-no-reboot", "-serial", f"file:{path}",
            "-m", memory, "-machine", "pc,memory-backend=ram",
            "-object", f"memory-backend-ram,id=ram,reserve=off,size={memory}",
            "-kernel", software.xen, "-initrd", software.linux,
            "-append", "console=com1 com1=115200,8n1 loglvl=all bootscrub=0 dom0_mem=100T",
        ]  # fmt: skip
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        end = time.monotonic() + SECONDS
        log = ""
        while "TOTAL:" not in log and time.monotonic() < end and machine.poll() is None:
            time.sleep(1)
            log = path.read_text("utf-8", "replace").replace("\r", "")
        machine.terminate()
        machine.wait()
        return log


def main() -> int:
    """Measure each host of the command line."""
    software = packages.fetch()
    for host in sys.argv[1:]:
        memory, cpus, pages = host.split("/") + ["1", ""][host.count("/") :]
        cpu = "max,-smap,-smep,-la57,-pku" + (",-pdpe1gb" if pages == "no-1g" else "")
        log = boot(software, memory, cpus, cpu)
        found = ALLOCATED.search(log)
        if not found:
            print(f"{host}: no dom0: {log[-200:]!r}")
            return 1
        start, stop, more = int(found[1], 16), int(found[2], 16), int(found[3])
        kept = host_memory(parse_e820(log.splitlines()))
        dom0 = (stop - start) // 4096 + more
        own = kept.ram - kept.frame_table - kept.m2p - dom0
        print(
            f"{host}: RAM {kept.ram} frame table {kept.frame_table} M2P {kept.m2p} "
            f"dom0 {dom0} Xen's own {own}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
