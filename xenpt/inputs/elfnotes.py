# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's ELF notes -> what the kernel asks of Xen (SPEC section D; xen/common/libelf)."""

from collections.abc import Mapping
from typing import Any

from xenpt.errors import InputError


def check_addresses(fields: Mapping[str, Any], source: object) -> None:
    """The bounds that libelf demands of a PV kernel (elf_xen_addr_calc_check, SPEC D7).

    :param fields: virt_base, virt_kstart, virt_kend, entry and, unless absent, init_p2m
    :raises InputError: with libelf's own text
    """
    start, end, entry = fields["virt_kstart"], fields["virt_kend"], fields["entry"]
    if not (fields["virt_base"] <= start <= entry <= end):
        raise InputError(source, "ELF start or entries are out of bounds")
    init_p2m = fields.get("init_p2m")
    if init_p2m is not None and start <= init_p2m < end:
        raise InputError(source, "P->M table base is out of bounds")
