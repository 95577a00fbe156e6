# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans for golden cases: the inputs of a real boot, and nothing that it printed."""

from typing import Any

import goldendata
from xenpt.inputs.config import Host
from xenpt.inputs.kernel import Kernel
from xenpt.plan import Plan, plan_dom0


def kernel_of(facts: dict[str, Any]) -> Kernel:
    """The kernel image of a case, from its program headers and Xen notes."""
    image = facts["kernel_image"]
    notes, load = image["xen_notes"], image["load"]
    offset = notes["VIRT_BASE"] - notes.get("PADDR_OFFSET", 0)
    paddr = min(p["paddr"] for p in load), max(p["paddr"] + p["memsz"] for p in load)
    return Kernel(
        bits=64,
        pae="extcr3",
        virt_base=notes["VIRT_BASE"],
        virt_kstart=paddr[0] + offset,
        virt_kend=paddr[1] + offset,
        entry=notes["ENTRY"],
        paddr=paddr,
        segments=tuple((p["paddr"], p["filesz"], p["memsz"]) for p in load),
        init_p2m=notes.get("INIT_P2M"),
        mod_start_pfn=bool(notes.get("MOD_START_PFN")),
        features=notes.get("FEATURES"),
        supported_features=notes.get("SUPPORTED_FEATURES"),
    )


def dom0_plan(name: str) -> Plan:
    """The plan of an oracle case that reached its entry."""
    facts = goldendata.facts(name)
    options, entry = facts["options"], facts["dump"]["entry"]
    huge = "-pdpe1gb" not in options["cpu"] and "pv-l1tf" not in options["xen_args"]
    return plan_dom0(
        kernel_of(facts),
        Host(xen=facts["xen"]["version"], superpages="1g" if huge else "2m"),
        nr_pages=entry["start_info"]["nr_pages"],
        initrd_bytes=options["initrd_size"],
        cmd_line=entry["start_info"]["cmd_line"],
    )
