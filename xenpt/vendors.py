# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of others, as they state them: how much dom0 gets, what a guest costs besides its memory.

A rule for dom0 is the dom0_mem option that its vendor writes, so that Xen's own arithmetic decides
what comes of it. The rules disagree with each other. What libxl takes for a guest is what a host
with `xl` really gives, and so part of every budget; the others are only shown beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from xenpt.eras import Era
from xenpt.units import MIB_PAGES

#: Kinds of guests.
KINDS: Final = ("pv", "pvh", "hvm")


@dataclass(frozen=True, slots=True)
class Dom0Rule:
    """How one vendor sizes dom0.

    :ivar dom0_mem: MiB of the host's RAM -> Xen's option; None for none
    """

    name: str
    text: str
    source: str
    dom0_mem: Callable[[int], str | None]

    def as_dict(self) -> dict[str, str]:
        """The rule in words, JSON-ready."""
        return {"name": self.name, "text": self.text, "source": self.source}


@dataclass(frozen=True, slots=True)
class GuestRule:
    """What one toolstack reckons for a guest besides its memory.

    :ivar overhead_mib: (MiB of memory, vCPUs, kind) -> MiB
    """

    name: str
    text: str
    source: str
    overhead_mib: Callable[[int, int, str], int]


def _fixed(mib: int) -> str:
    """Dom0 of so much that cannot grow, as these vendors' installers write it."""
    return f"{mib}M,max:{mib}M"


def _xenserver_6(mib: int) -> str:
    gib = (mib + 256) // 1024  # Xen reports a bit less than what is installed
    return _fixed(752 if gib < 24 else 2048 if gib < 48 else 3072 if gib < 64 else 4096)


DOM0_RULES: Final = {
    rule.name: rule
    for rule in (
        Dom0Rule(
            "xenserver",
            "1 GiB + 5%, at most 8 GiB",
            "docs.xenserver.com, Memory usage (Citrix Hypervisor 8, XenServer 8)",
            lambda mib: _fixed(min(1024 + mib * 5 // 100, 8192)),
        ),
        Dom0Rule(
            "xenserver-6",
            "752 MiB below 24 GiB, 2 GiB below 48, 3 GiB below 64, else 4 GiB",
            "xcp/dom0_memory.py, default_dom0_memory() (XenServer 6 and 7)",
            _xenserver_6,
        ),
        Dom0Rule(
            "xcp-ng",
            "4 GiB, from 128 GiB on 8 GiB",
            "docs.xcp-ng.org, guides/dom0-memory (between 64 and 128 GiB: not said)",
            lambda mib: _fixed(8192 if mib >= 128 << 10 else 4096),
        ),
        Dom0Rule(
            "oracle-vm",
            "502 MiB + 2.05%",
            "Oracle VM Server: dom0_mem = 502 + int(physical_mem * 0.0205)",
            lambda mib: f"{502 + mib * 205 // 10000}M",
        ),
        Dom0Rule(
            "suse-11",
            "2 GiB",
            "SUSE support 3559698 (SLES 10 and 11): generally 2048M",
            lambda _: "2048M",
        ),
        Dom0Rule(
            "qubes",
            "what there is, between 1 and 4 GiB",
            "Qubes OS 3 and 4, boot entry of Xen",
            lambda _: "min:1024M,max:4096M",
        ),
        Dom0Rule(
            "xen",
            "all but 1/16, or but 128 MiB if that is less",
            "Xen without dom0_mem: dom0_compute_nr_pages()",
            lambda _: None,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class GuestNeed:
    """What libxl takes and asks for besides a guest's memory, in pages.

    :ivar pool: paging pool, taken from the host at creation (hap_set_allocation)
    :ivar slack: for Xen's structures of the guest; a constant of libxl, several times of what was
        measured (docs/model.md)
    :ivar asked: what must be free for xl to start the guest, its memory included
    """

    pool: int
    slack: int
    asked: int


def libxl_need(nr_pages: int, kind: str, vcpus: int, era: Era) -> GuestNeed:
    """What a guest with hardware-assisted paging needs of the host by libxl, in pages.

    Before 4.17 (2c99281085) each MiB counted twice, as if every guest were shadowed. A PV guest's
    pool is asked for, in case that it will migrate, but not taken.

    Models libxl__get_required_paging_memory() and libxl__domain_need_memory_calculate().
    """
    per_mib = (1 if era.libxl_counts_hap else 2) * (nr_pages // MIB_PAGES)
    pool = 256 * vcpus + per_mib
    if not era.libxl_counts_hap:
        pool = -(-pool // MIB_PAGES) * MIB_PAGES
    slack = (1 if kind == "pv" else 2) * MIB_PAGES  # LIBXL_PV_, LIBXL_HVM_EXTRA_MEMORY
    step = 2 * MIB_PAGES
    asked = -(-(nr_pages + pool + slack) // step) * step
    return GuestNeed(0 if kind == "pv" else pool, slack, asked)


def _xapi_mib(mib: int, vcpus: int, kind: str) -> int:
    shadow = max(1, -(-(256 * vcpus + 2 * mib) // MIB_PAGES))
    return shadow + {"pv": 1, "hvm": 2, "pvh": 2 + 23 + mib // 90}[kind]


def _nova_mib(mib: int, vcpus: int, _: str) -> int:
    return -(-(300_000 + 781 * mib + 150_000 * vcpus) // 100_000)


GUEST_RULES: Final = (
    GuestRule(
        "xapi",
        "1 MiB a vCPU, 8 KiB a MiB, 1 or 2 MiB; PVH: and 23 MiB + 1/90 for a shim",
        "xen-api, ocaml/xapi-idl/memory/memory.ml",
        _xapi_mib,
    ),
    GuestRule(
        "nova",
        "3 MB + 0.00781 a MB + 1.5 MB a vCPU",
        "OpenStack nova/virt/xenapi/driver.py, fitted to guests of Rackspace (XenServer/Overhead)",
        _nova_mib,
    ),
)
