# SPDX-License-Identifier: GPL-2.0-or-later
"""A profile with some of its flags changed: "what would my patch do?" (`--rule NAME=VALUE`)."""

import re
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from xenpt.abi import (
    ENTRIES,
    HYPERVISOR_VIRT_END,
    ISA_START_ADDRESS,
    L4_SHIFT,
    L4_SIZE,
    PAGE_SIZE,
    canonical,
)
from xenpt.errors import UsageError
from xenpt.linux.rules import PROFILES, CleanupRules, LinuxRules
from xenpt.units import pages

_TRUTH = {"yes": True, "true": True, "on": True, "1": True}
_TRUTH |= {"no": False, "false": False, "off": False, "0": False}
_FIXED = {"name", "cleanup"}
_AREA = (HYPERVISOR_VIRT_END, canonical((ENTRIES - 1) << L4_SHIFT), L4_SIZE)
#: What a number may be: least, most, and what it must be a multiple of.
_BOUNDS = {
    "page_offset": _AREA,
    "vmalloc_start": _AREA,
    "vmemmap_start": _AREA,
    "page_limit": (1 << 8, 1 << 34, 1),
    "domu_page_limit": (1 << 8, 1 << 34, 1),
    "low_ram_bytes": (0, ISA_START_ADDRESS, PAGE_SIZE),
    "pgt_buf_pages": (0, 64, 1),
    "hotplug_limit_gib": (0, 1 << 16, 1),
    "highmap_entries": (ENTRIES, 1 << 16, 1),
}
_TABLE = re.compile(r"([A-Za-z_]\w*)(?::([1-9]\d{0,2}))?")


def rule_names() -> list[str]:
    """Flags that can be changed, those of the cleanup last."""
    named = [field.name for kind in (LinuxRules, CleanupRules) for field in fields(kind)]
    return [name for name in named if name not in _FIXED]


def profile(name: str, changes: Iterable[str] = ()) -> LinuxRules:
    """The profile of that name, with flags changed as by `with_rules`.

    :raises UsageError: no such profile, flag or value
    """
    if name not in PROFILES:
        raise UsageError(f"Linux profile {name!r}: expected one of {', '.join(PROFILES)}")
    return with_rules(PROFILES[name], changes)


def with_rules(rules: LinuxRules, changes: Iterable[str]) -> LinuxRules:
    """`rules` with flags changed; its name then says which, as in "v4.3+skip_empty_entries=yes".

    :param changes: "NAME=VALUE"; a flag is yes or no, a number decimal or 0x.., a limit in pages
        also a size such as 512G, `ro_tables` a list of SYMBOL or SYMBOL:PAGES
    :raises UsageError: no such flag, or a value that is none of it
    """
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in rule_names():
            known = ", ".join(rule_names())
            raise UsageError(f"--rule {change!r}: expected NAME=VALUE with NAME one of {known}")
        of_cleanup = name in {field.name for field in fields(CleanupRules)}
        old = getattr(rules.cleanup if of_cleanup else rules, name)
        new = {name: _value(name, old, text.strip())}
        if of_cleanup:
            new = {"cleanup": replace(rules.cleanup, **new)}
        rules = replace(rules, **new, name=f"{rules.name}+{name}={text.strip()}")
    return rules


def _value(name: str, old: Any, text: str) -> Any:
    if isinstance(old, bool):
        if text.lower() not in _TRUTH:
            raise UsageError(f"--rule {name}={text}: expected yes or no")
        return _TRUTH[text.lower()]
    if isinstance(old, tuple):
        found = [_TABLE.fullmatch(part) for part in text.split(",")]
        tables = [(match[1], int(match[2] or 1)) for match in found if match]
        if len(tables) < len(found):
            raise UsageError(f"--rule {name}={text}: expected SYMBOL[:PAGES],...")
        return tuple(tables)
    least, most, multiple = _BOUNDS[name]
    if re.fullmatch(r"[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16}", text):
        number = int(text, 16 if text[:2].lower() == "0x" else 10)
    elif name.endswith("_limit"):
        number = pages(text)
    else:
        raise UsageError(f"--rule {name}={text}: expected a number, decimal or 0x..")
    if not least <= number <= most or number % multiple:
        whole = f", a multiple of {multiple:#x}" if multiple > 1 else ""
        raise UsageError(f"--rule {name}={text}: expected {least:#x} to {most:#x}{whole}")
    return number
