# SPDX-License-Identifier: GPL-2.0-or-later
"""What Xen takes of a host besides frame table and M2P: the table of docs/model.md, measured.

    python tools/xen_own.py 2G 16G/4 64G/1/no-1g

Each host is MEMORY[/CPUS[/no-1g]]; no-1g: a processor without 1 GiB pages. Stock Xen of this
machine's suite boots in QEMU (as `make oracle` does it) with dom0_mem larger than the host, so that
dom0 is all that there is: RAM less both tables less dom0 is Xen's own.
"""

import re
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from xenpt.dom0size import host_memory  # noqa: E402
from xenpt.inputs.config import parse_e820  # noqa: E402

packages, serial = import_module("oracle.packages"), import_module("oracle.serial")
CPU = import_module("oracle.machine").CPU
SECONDS = 300  # that one boot may take
ALLOCATED = re.compile(r"Dom0 alloc\.:\s+([0-9a-f]+)->([0-9a-f]+) \((\d+) pages")


def main() -> int:
    """Measure each host of the command line."""
    software = packages.fetch()
    for host in sys.argv[1:]:
        memory, cpus, pages = host.split("/") + ["1", ""][host.count("/") :]
        log = serial.serial_log(
            software.xen, software.linux, "dom0_mem=100T", memory=memory, until="TOTAL:",
            seconds=SECONDS, cpu=CPU + (",-pdpe1gb" if pages == "no-1g" else ""), cpus=cpus,
        )  # fmt: skip
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
