# SPDX-License-Identifier: GPL-2.0-or-later
"""Build, boot and tear down the page tables of a Xen PV guest of any size.

The names below are all that most users need. Each is imported when it is first used, so that
`import xenpt` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xenpt.cost import Cost
    from xenpt.domuplan import DomuPlan, plan_domu
    from xenpt.inputs.config import Guest, Host
    from xenpt.inputs.initrd import Initrd, read_initrd
    from xenpt.inputs.kernel import Kernel, default_kernel, read_kernel
    from xenpt.plan import Plan, plan_dom0
    from xenpt.scenario import read_scenario
    from xenpt.sweeps import sweep
    from xenpt.sweeptable import Sweep
    from xenpt.units import pages, sizes
    from xenpt.xen import build
    from xenpt.xen.dom0 import Domain
    from xenpt.xen.domu import Domu, build_domu

    __version__: str

__all__ = [
    "Cost", "Domain", "Domu", "DomuPlan", "Guest", "Host", "Initrd", "Kernel", "Plan", "Sweep",
    "__version__", "build", "build_domu", "default_kernel", "pages", "plan_dom0", "plan_domu",
    "read_initrd", "read_kernel", "read_scenario", "sizes", "sweep",
]  # fmt: skip
_HOMES = {
    "Cost": "cost",
    "Domain": "xen.dom0",
    "Domu": "xen.domu",
    "DomuPlan": "domuplan",
    "Guest": "inputs.config",
    "Host": "inputs.config",
    "Initrd": "inputs.initrd",
    "Kernel": "inputs.kernel",
    "Plan": "plan",
    "Sweep": "sweeptable",
    "build": "xen",
    "build_domu": "xen.domu",
    "default_kernel": "inputs.kernel",
    "pages": "units",
    "plan_dom0": "plan",
    "plan_domu": "domuplan",
    "read_initrd": "inputs.initrd",
    "read_kernel": "inputs.kernel",
    "read_scenario": "scenario",
    "sizes": "units",
    "sweep": "sweeps",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from xenpt.provenance import version

        return version()
    if name not in _HOMES:
        raise AttributeError(f"module 'xenpt' has no attribute {name!r}")
    return getattr(import_module(f"xenpt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
