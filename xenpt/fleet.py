# SPDX-License-Identifier: GPL-2.0-or-later
"""The same guests on other hosts, of another kind, beside another dom0: how many hosts?

A fleet file (TOML) has groups of hosts; each key is one value or a list of them, and every
combination is one option. Keys before the first group hold for all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Final

from xenpt.capacity import Capacity, GuestGroup, capacity, parse_guests
from xenpt.errors import InputError, UsageError, XenptError
from xenpt.inputs.config import Host, read_e820
from xenpt.inputs.kernel import Kernel
from xenpt.linux import LinuxRules
from xenpt.scenario import MAX_CASES, a_bool, a_text, parse_sizes, read_groups, values_of

HOSTS: Final = "hosts"  # the TOML table of a group
Dom0 = tuple[str | None, str | None]  # dom0_mem, or the name of a rule, or neither


@dataclass(frozen=True)
class Option:
    """One way to house a group of guests.

    :ivar name: of its group in a fleet file, or ""
    :ivar empty: the budget of one host without guests
    :ivar guests: all that are to be housed
    """

    name: str
    empty: Capacity
    guests: GuestGroup

    @cached_property
    def per_host(self) -> int:
        """Guests that one host has room for; none where dom0 does not boot."""
        return self.empty.room(self.guests) if self.empty.fits else 0

    @property
    def nr_hosts(self) -> int | None:
        """Hosts that all guests need; None if not even one guest fits."""
        return -(-self.guests.number // self.per_host) if self.per_host else None

    @cached_property
    def full(self) -> Capacity:
        """The budget of a host with as many guests as fit."""
        guests = (replace(self.guests, number=self.per_host),) if self.per_host else ()
        return replace(self.empty, guests=guests)

    def as_dict(self) -> dict[str, Any]:
        """One element of `options` in JSON; pages are those of one full host."""
        full = self.full
        return {
            "name": self.name,
            "host_pages": full.nr_pages,
            "xen": full.host.xen,
            "bigmem": full.host.bigmem,
            "type": self.guests.kind,
            "number": self.guests.number,
            "guest_pages": self.guests.nr_pages,
            "vcpus": self.guests.vcpus,
            "dom0_rule": full.dom0_rule.name if full.dom0_rule else None,
            "dom0_mem": full.dom0.guest.dom0_mem,
            "panic": full.dom0.panic,
            "per_host": self.per_host,
            "nr_hosts": self.nr_hosts,
            "overhead_pages": full.overhead,
            "left": full.left,
            "rows": [row.as_dict() for row in full.rows],
            "beyond": full.beyond,
        }


def fleet(
    hosts: Sequence[Host],
    guests: Sequence[GuestGroup],
    dom0s: Sequence[Dom0],
    *,
    kernel: Kernel,
    rules: LinuxRules,
    name: str = "",
) -> list[Option]:
    """Every combination: each of `guests` is the whole fleet's once more.

    :param dom0s: what sizes dom0, as `capacity` takes it
    :raises UsageError: as `capacity`
    """
    return [
        Option(
            name,
            capacity(host, kernel=kernel, dom0_mem=dom0_mem, dom0_rule=rule, rules=rules),
            group,
        )
        for host, (dom0_mem, rule), group in product(hosts, dom0s, guests)
    ]


# --- Fleet files ---------------------------------------------------------------------------------


def read_fleet(path: str | Path, *, kernel: Kernel, rules: LinuxRules) -> list[Option]:
    """The options of a fleet file, in its order.

    :raises InputError: not TOML, an unknown key, a value of a wrong type or without meaning
    """
    groups, common = read_groups(Path(path), HOSTS)
    found: list[Option] = []
    for position, group in enumerate(groups, 1):
        try:
            found += _group_options(common | group, Path(path).parent, kernel, rules, len(found))
        except XenptError as error:
            raise InputError(path, f"[[{HOSTS}]] {position}: {error}") from error
    return found


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{value!r}: expected a number")
    return value


#: Keys of a group, what one value becomes, and the values where the key is not given.
_KEYS: Final[dict[str, tuple[Callable[[object], Any], list[Any]]]] = {
    "name": (a_text, [""]),
    "host": (lambda value: parse_sizes(a_text(value)), []),
    "e820": (a_text, []),
    "xen": (a_text, ["4.17"]),
    "bigmem": (a_bool, [False]),
    "dom0_mem": (a_text, []),
    "dom0_rule": (a_text, []),
    "guests": (a_text, []),
    "type": (a_text, ["pvh"]),
    "vcpus": (_number, [1]),
}


def _group_options(
    group: dict[str, Any], folder: Path, kernel: Kernel, rules: LinuxRules, nr_before: int
) -> list[Option]:
    given = {key: default for key, (_, default) in _KEYS.items()}
    for key, value in group.items():
        if key not in _KEYS:
            raise UsageError(f"unknown key {key!r}: expected {', '.join(_KEYS)}")
        given[key] = values_of(key, _KEYS[key][0], value if isinstance(value, list) else [value])
    maps = [{"memory": nr_pages} for nr_pages in given["host"]]
    maps += [{"e820": read_e820(folder / name)} for name in given["e820"]]
    if not maps or not given["guests"]:
        raise UsageError(f"{'guests' if maps else 'host or e820'} is missing")
    axes = [maps, *(given[key] for key in ("xen", "bigmem", "guests", "type", "vcpus"))]
    nr_dom0s = max(1, len(given["dom0_mem"]) + len(given["dom0_rule"]))
    if nr_before + nr_dom0s * prod(map(len, axes)) > MAX_CASES:
        raise UsageError(f"more than {MAX_CASES} combinations")
    hosts = [
        Host(xen=xen, bigmem=bigmem, **memory)
        for memory, xen, bigmem in product(maps, given["xen"], given["bigmem"])
    ]
    guests = [
        parse_guests(text, kind, vcpus)
        for text, kind, vcpus in product(given["guests"], given["type"], given["vcpus"])
    ]
    dom0s: list[Dom0] = [(text, None) for text in given["dom0_mem"]]
    dom0s += [(None, rule) for rule in given["dom0_rule"]]
    name = ", ".join(given["name"])
    return fleet(hosts, guests, dom0s or [(None, None)], kernel=kernel, rules=rules, name=name)
