# SPDX-License-Identifier: GPL-2.0-or-later
"""What each command does: options of the command line -> an answer, as data and as a report."""

import re
import stat
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xenpt.errors import InputError, UsageError
from xenpt.inputs.config import Host, read_e820
from xenpt.inputs.kernel import Kernel, default_kernel, read_kernel
from xenpt.plan import Plan, plan_dom0
from xenpt.report import Report
from xenpt.texts import kernel_report, plan_report
from xenpt.units import pages, parse_size

YES, NO = 0, 1  # exit statuses


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found out.

    :ivar data: its JSON object
    :ivar report: the same for people
    :ivar status: exit status, YES or NO
    """

    data: dict[str, Any]
    report: Report
    status: int = YES


def kernel(options: Namespace) -> Answer:
    """`xenpt kernel FILE`: what the kernel asks of Xen."""
    found = _read_kernel(options.file, options.system_map)
    name = options.file or "the shipped default"
    return Answer(found.as_dict(), kernel_report(found, name))


def plan(options: Namespace) -> Answer:
    """`xenpt plan MEMORY`: where everything will be."""
    found = _plan(options)
    return Answer(found.as_dict(), plan_report(found), NO if found.panic else YES)


# --- Options -> objects ------------------------------------------------------------------------


def _plan(options: Namespace) -> Plan:
    host = _host(options)
    if host.map is None and options.memory is None:
        wanted = "--dom0-mem needs" if options.dom0_mem else "give MEMORY, such as 600G, or"
        raise UsageError(f"{wanted} the host's memory: --host SIZE or --e820 FILE")
    return plan_dom0(
        _guest_kernel(options),
        host,
        nr_pages=None if options.memory is None else pages(options.memory),
        dom0_mem=options.dom0_mem,
        initrd_bytes=_initrd_bytes(options.initrd),
    )


def _host(options: Namespace) -> Host:
    return Host(
        xen=options.xen,
        memory=None if options.host is None else pages(options.host),
        superpages="1g" if options.p2m_leaf == "auto" else options.p2m_leaf,
        e820=None if options.e820 == "flat" else read_e820(options.e820),
    )


def _guest_kernel(options: Namespace) -> Kernel:
    found = _read_kernel(options.kernel, options.system_map)
    return replace(found, init_p2m=None) if options.no_init_p2m else found


def _read_kernel(path: str | None, system_map: str | None) -> Kernel:
    if path is not None:
        return read_kernel(path, system_map=system_map)
    if system_map is not None:
        raise UsageError("--system-map needs the kernel that it belongs to")
    return default_kernel()


def _initrd_bytes(text: str | None) -> int | None:
    """Length of an initrd: a number of bytes, a file's length, or a size such as 40M."""
    if text is None:
        return None
    if re.fullmatch(r"[0-9]+", text):
        return int(text)
    try:
        found = Path(text).stat()
    except (OSError, ValueError) as error:
        if re.match(r"[0-9]", text):
            return parse_size(text)
        raise InputError(text, getattr(error, "strerror", None) or str(error)) from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(text, "not a regular file")
    return found.st_size
