# SPDX-License-Identifier: GPL-2.0-or-later
"""Golden oracle cases as the model's inputs: what a boot was given, and nothing that it printed."""

from goldendata import facts

from xenpt.inputs.config import Host
from xenpt.inputs.kernel import Kernel
from xenpt.plan import Plan, plan_dom0


def kernel_of(name: str) -> Kernel:
    """The kernel that was booted, from its program headers and Xen notes."""
    image = facts(name)["kernel_image"]
    notes, load = image["xen_notes"], image["load"]
    start = min(segment["paddr"] for segment in load)
    end = max(segment["paddr"] + segment["memsz"] for segment in load)
    shift = notes["VIRT_BASE"] - notes["PADDR_OFFSET"]
    return Kernel(
        bits=64,
        pae="extcr3" if notes["PAE_MODE"] == "yes" else "no",
        virt_base=notes["VIRT_BASE"],
        virt_kstart=start + shift,
        virt_kend=end + shift,
        entry=notes["ENTRY"],
        paddr=(start, end),
        segments=tuple((s["paddr"], s["filesz"], s["memsz"]) for s in load),
        init_p2m=notes.get("INIT_P2M"),
        mod_start_pfn=bool(notes.get("MOD_START_PFN")),
        features=notes["FEATURES"],
        supported_features=notes["SUPPORTED_FEATURES"],
        hypercall_page=notes.get("HYPERCALL_PAGE"),
        hv_start_low=notes.get("HV_START_LOW"),
        payload=image["payload"],
        machine=image["e_machine"],
    )


def largest_leaf(name: str) -> str:
    """Largest leaf of the list: no 1 GiB without the processor's, nor for a shadowed dom0."""
    options = facts(name)["options"]
    has_1g = "-pdpe1gb" not in options["cpu"] and "pv-l1tf" not in options["xen_args"]
    return "1g" if has_1g else "2m"


def entry_plan(name: str) -> Plan:
    """The plan of a case that reached its entry, of exactly its size."""
    options, start_info = facts(name)["options"], facts(name)["dump"]["entry"]["start_info"]
    return plan_dom0(
        kernel_of(name),
        Host(xen=facts(name)["xen"]["version"], superpages=largest_leaf(name)),
        nr_pages=start_info["nr_pages"],
        initrd_bytes=options["initrd_size"],
        cmd_line=start_info["cmd_line"],
    )
