# SPDX-License-Identifier: GPL-2.0-or-later
"""What the options of the command line ask for, as objects: plan, kernel, Linux, time model."""

import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from xenpt.domuplan import plan_domu
from xenpt.errors import UsageError
from xenpt.faultoptions import faults_of, faulty_host
from xenpt.inputs.config import Host, read_e820
from xenpt.inputs.initrd import Initrd, read_initrd
from xenpt.inputs.kernel import Kernel, default_kernel, read_kernel
from xenpt.linux import LinuxRules, profile
from xenpt.plan import Plan, plan_dom0
from xenpt.scenario import BUILDER_LEAVES
from xenpt.timing import TimeModel, time_model
from xenpt.units import pages, parse_size


def asked_plan(options: Namespace) -> Plan:
    """The plan of the guest.

    :raises UsageError: sizes or options that do not go together
    :raises InputError: a file that is none
    """
    if options.builder == "toolstack":
        return _planned_by_toolstack(options)
    host = _host(options)
    if host.map is None and options.memory is None:
        wanted = "--dom0-mem needs" if options.dom0_mem else "give MEMORY, such as 600G, or"
        raise UsageError(f"{wanted} the host's memory: --host SIZE or --e820 FILE")
    initrd = _initrd(options.initrd)
    return plan_dom0(
        asked_kernel(options),
        host,
        nr_pages=None if options.memory is None else pages(options.memory),
        dom0_mem=options.dom0_mem,
        initrd_bytes=None if initrd is None else initrd.nr_bytes,
    )


def _planned_by_toolstack(options: Namespace) -> Plan:
    """What the toolstack makes of a guest; nothing of it depends on the host's memory."""
    for name, unset in (("host", None), ("dom0_mem", None), ("e820", "flat")):
        if getattr(options, name) != unset:
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: only for --builder dom0")
    if options.p2m_leaf not in ("auto", "4k"):
        raise UsageError(f"--p2m-leaf {options.p2m_leaf}: the toolstack uses 4k, and no other")
    if options.memory is None:
        raise UsageError("give MEMORY, such as 600G")
    return plan_domu(
        asked_kernel(options),
        faulty_host(
            Host(xen=options.xen, superpages=BUILDER_LEAVES["toolstack"]), faults_of(options)
        ),
        nr_pages=pages(options.memory),
        initrd=_initrd(options.initrd),
    )


def asked_model(options: Namespace) -> TimeModel:
    """What modelled times are made of.

    :raises UsageError: a CPI or clock that is none
    :raises InputError: a file of constants that is none
    """
    return time_model(options.constants, cpi=options.cpi, ghz=options.ghz)


def asked_rules(options: Namespace) -> LinuxRules:
    """The Linux of the guest.

    :raises UsageError: no such profile, flag or value
    """
    return profile(options.linux, options.rule)


def _host(options: Namespace) -> Host:
    if options.host is not None and options.e820 != "flat":
        raise UsageError("--host and --e820 FILE both say what memory the host has: give one")
    auto = BUILDER_LEAVES["dom0"]
    host = Host(
        xen=options.xen,
        memory=None if options.host is None else pages(options.host),
        superpages=auto if options.p2m_leaf == "auto" else options.p2m_leaf,
        e820=None if options.e820 == "flat" else read_e820(options.e820),
    )
    return faulty_host(host, faults_of(options))


def asked_kernel(options: Namespace) -> Kernel:
    """The guest's kernel.

    :raises InputError: a file that is none
    """
    found = kernel_of_file(options.kernel, options.system_map)
    return replace(found, init_p2m=None) if options.no_init_p2m else found


def kernel_of_file(path: str | None, system_map: str | None) -> Kernel:
    """A kernel with the symbols of its System.map; without a path, the default one.

    :raises InputError: a file that is none
    :raises UsageError: a System.map alone
    """
    if path is not None:
        return read_kernel(path, system_map=system_map)
    if system_map is not None:
        raise UsageError("--system-map needs the kernel that it belongs to")
    return default_kernel()


def _initrd(text: str | None) -> Initrd | None:
    """An initrd: a file, or just its length, as a number of bytes or a size such as 40M."""
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,20}", text):
        return Initrd(int(text))
    if re.match(r"[0-9]", text) and not _exists(text):
        return Initrd(parse_size(text))
    return read_initrd(text)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # too long for a name
        return False
