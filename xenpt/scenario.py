# SPDX-License-Identifier: GPL-2.0-or-later
"""What a sweep covers: `Case` is all that one row depends on; axes span the cases of a sweep.

A scenario file (TOML) has groups of guests; each key is one value or a list of them, and a group
is every combination. Keys before the first group hold for all of them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from xenpt.domuplan import plan_domu
from xenpt.errors import InputError, UsageError, XenptError
from xenpt.inputs.config import Guest, Host, Ram, read_e820
from xenpt.inputs.files import read_file
from xenpt.inputs.kernel import Kernel, default_kernel, read_kernel
from xenpt.inputs.tomltext import MAX_BYTES, parse_toml
from xenpt.linux import MAINLINE, LinuxRules, profile
from xenpt.plan import Plan, plan_dom0
from xenpt.units import pages, parse_size, sizes

DEFAULT = "default"  # the kernel that is shipped
MAX_CASES = 100_000  # of one expansion: a million would take hours, and gigabytes before it begins
FLAT = "flat"  # an e820 map of one RAM entry
GROUPS = "guests"  # the TOML table of a group
#: The largest leaf that each builder uses for the P->M list by itself.
BUILDER_LEAVES: Final = {"dom0": "1g", "toolstack": "4k"}


@dataclass(frozen=True)
class Case:
    """One guest, to be built and booted once.

    :ivar group: name of its group in a scenario, or ""
    :ivar kernel_name: "default", the file's name, or a part of the hash of its facts
    :ivar e820_name: "flat", or the file's name
    """

    kernel: Kernel
    host: Host = field(default_factory=Host)
    guest: Guest = field(default_factory=Guest)
    rules: LinuxRules = MAINLINE
    group: str = ""
    kernel_name: str = DEFAULT
    e820_name: str = FLAT

    @property
    def inputs(self) -> dict[str, Any]:
        """The columns that say what was asked."""
        return {
            "group": self.group,
            "kernel": self.kernel_name,
            "init_p2m": self.kernel.init_p2m is not None,
            "xen": self.host.xen,
            "linux": self.rules.name,
            "builder": self.guest.builder,
            "p2m_leaf": self.host.superpages,
            "host_pages": self.host.memory,
            "e820": self.e820_name,
            "dom0_mem": self.guest.dom0_mem,
            "initrd_bytes": self.guest.initrd_bytes,
            "memory_pages": self.guest.nr_pages,
        }

    @cached_property
    def input_hash(self) -> str:
        """16 hex digits of the SHA-256 of all that the row depends on, the kernel's facts too."""
        facts = (dataclasses.asdict(part) for part in (self.host, self.guest, self.rules))
        return _hash([self.inputs, self.kernel.as_dict(), *facts])

    def plan(self) -> Plan:
        """Its plan, a DomuPlan where the toolstack builds.

        :raises UsageError: as plan_dom0 and plan_domu, or options that the toolstack has not
        """
        guest = self.guest
        if guest.builder == "toolstack":
            return self._plan_of_toolstack()
        return plan_dom0(
            self.kernel,
            self.host,
            nr_pages=guest.nr_pages,
            dom0_mem=guest.dom0_mem,
            initrd_bytes=guest.initrd_bytes,
            cmd_line=guest.cmd_line,
        )

    def _plan_of_toolstack(self) -> Plan:
        guest = self.guest
        if self.host.map is not None or guest.dom0_mem is not None:
            raise UsageError("the toolstack takes a memory size: no host, dom0_mem, e820")
        if self.host.superpages != "4k":
            raise UsageError(
                f"leaf size {self.host.superpages!r}: the toolstack maps the list by 4k only"
            )
        return plan_domu(
            self.kernel,
            self.host,
            nr_pages=guest.nr_pages,
            initrd=guest.initrd_bytes,
            cmd_line=guest.cmd_line,
        )


def _hash(facts: object) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def case_of_plan(plan: Plan) -> Case:
    """The case that a plan was made for."""
    return Case(plan.image, plan.host, plan.guest, kernel_name=_name_of(plan.image))


def _name_of(kernel: Kernel) -> str:
    default = default_kernel()
    if kernel in (default, replace(default, init_p2m=None)):
        return DEFAULT
    return f"kernel {_hash(kernel.as_dict())[:8]}"


# --- Axes: what may vary, the outermost first ----------------------------------------------------


def expand(base: Case, axes: Mapping[str, Iterable[Any]]) -> list[Case]:
    """Every combination of the axes' values, the memory sizes innermost; equal cases once.

    :param axes: values by the names of AXES
    :raises UsageError: an unknown name, no value, a value that has no meaning
    """
    if unknown := axes.keys() - AXES.keys():
        raise UsageError(f"unknown axis {min(unknown)!r}: expected one of {', '.join(AXES)}")
    cases = [base]
    for name, chosen in AXES.items():
        if name in axes:
            values = list(axes[name])
            if not values:
                raise UsageError(f"axis {name}: no value")
            if len(cases) * len(values) > MAX_CASES:
                raise UsageError(f"more than {MAX_CASES} combinations")
            cases = [chosen(case, value) for case in cases for value in values]
    return unique(cases)


def unique(cases: Iterable[Case]) -> list[Case]:
    """The cases in their order without repetitions."""
    return list({case.input_hash: case for case in cases}.values())


def named_kernel(name: str, folder: Path = Path()) -> tuple[str, Kernel]:
    """A kernel by its file's name, or the default one, with that name for the rows."""
    return _shown(name), default_kernel() if name == DEFAULT else read_kernel(folder / name)


def named_e820(name: str, folder: Path = Path()) -> tuple[str, tuple[Ram, ...] | None]:
    """A host's map by its file's name, or a flat one, with that name for the rows."""
    return _shown(name), None if name == FLAT else read_e820(folder / name)


def _shown(name: str) -> str:
    """A file's name for the rows: bytes that are no UTF-8 as escapes, so that it can be written."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _with_kernel(case: Case, kernel: Kernel | tuple[str, Kernel]) -> Case:
    name, found = (_name_of(kernel), kernel) if isinstance(kernel, Kernel) else kernel
    return replace(case, kernel=found, kernel_name=name)


def _with_init_p2m(case: Case, init_p2m: bool) -> Case:
    return case if init_p2m else replace(case, kernel=replace(case.kernel, init_p2m=None))


def _with_rules(case: Case, rules: LinuxRules | str) -> Case:
    """A profile by its name, which may have changes behind it: "v6.1+skip_empty_entries=no"."""
    if isinstance(rules, str):
        name, *changes = rules.split("+")
        rules = profile(name, changes)
    return replace(case, rules=rules)


def _with_builder(case: Case, builder: str) -> Case:
    if builder not in BUILDER_LEAVES:
        raise UsageError(f"builder {builder!r}: expected {' or '.join(BUILDER_LEAVES)}")
    return _guest(case, builder=builder)


def _with_leaf(case: Case, leaf: str) -> Case:
    return _host(case, superpages=BUILDER_LEAVES[case.guest.builder] if leaf == "auto" else leaf)


def _with_e820(case: Case, e820: tuple[str, tuple[Ram, ...] | None]) -> Case:
    return replace(_host(case, e820=e820[1]), e820_name=e820[0])


def _with_dom0_mem(case: Case, text: str) -> Case:
    return _guest(case, dom0_mem=text, nr_pages=None)


def _with_nr_pages(case: Case, nr_pages: int) -> Case:
    return _guest(case, nr_pages=int(nr_pages))


def _host(case: Case, **changes: Any) -> Case:
    return replace(case, host=replace(case.host, **changes))


def _guest(case: Case, **changes: Any) -> Case:
    return replace(case, guest=replace(case.guest, **changes))


AXES: Final[dict[str, Callable[[Case, Any], Case]]] = {
    "kernel": _with_kernel,
    "init_p2m": _with_init_p2m,
    "xen": lambda case, xen: _host(case, xen=xen),
    "linux": _with_rules,
    "builder": _with_builder,
    "p2m_leaf": _with_leaf,
    "host_pages": lambda case, nr_pages: _host(case, memory=nr_pages),
    "e820": _with_e820,
    "dom0_mem": _with_dom0_mem,
    "initrd_bytes": lambda case, nr_bytes: _guest(case, initrd_bytes=nr_bytes),
    "nr_pages": _with_nr_pages,
}


# --- Axes as users write them --------------------------------------------------------------------


def parse_sizes(text: str) -> list[int]:
    """Pages of `64G,512G,600G`, of `1G..64T` (each doubling), or of both in one list.

    :raises UsageError: no size, or a range that ends before it starts
    """
    found: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        spread = sizes(first, last) if dots else [pages(first)]
        if not spread:
            raise UsageError(f"memory {part.strip()!r}: ends before it starts")
        found += spread
    return found


def a_text(value: object) -> str:
    """A value of a file that must be a text; `a_bool`: a truth value."""
    if not isinstance(value, str):
        raise UsageError(f"{value!r}: expected a text in quotes")
    return value


def a_bool(value: object) -> bool:
    """See `a_text`."""
    if not isinstance(value, bool):
        raise UsageError(f"{value!r}: expected true or false")
    return value


def _bytes(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return parse_size(a_text(value))


#: Keys of a group: the axis of each, and what one value becomes; a size text may be several.
_KEYS: Final[dict[str, tuple[str, Callable[[object], Any]]]] = {
    "memory": ("nr_pages", lambda value: parse_sizes(a_text(value))),
    "host": ("host_pages", lambda value: parse_sizes(a_text(value))),
    "dom0_mem": ("dom0_mem", a_text),
    "initrd": ("initrd_bytes", _bytes),
    "kernel": ("kernel", a_text),
    "init_p2m": ("init_p2m", a_bool),
    "xen": ("xen", a_text),
    "linux": ("linux", a_text),
    "builder": ("builder", a_text),
    "p2m_leaf": ("p2m_leaf", a_text),
    "e820": ("e820", a_text),
}
#: Keys whose values are files, named relative to the scenario file.
_FILES: Final[dict[str, Callable[[str, Path], tuple[str, Any]]]] = {
    "kernel": named_kernel,
    "e820": named_e820,
}


def read_scenario(path: str | Path) -> list[Case]:
    """The cases of a scenario file, in its order.

    :raises InputError: not TOML, an unknown key, a value of a wrong type or without meaning
    """
    groups, common = read_groups(Path(path), GROUPS)
    cases: list[Case] = []
    for position, group in enumerate(groups, 1):
        try:
            cases += _group_cases(common | group, Path(path).parent)
            if len(cases) > MAX_CASES:
                raise UsageError(f"more than {MAX_CASES} combinations")
        except XenptError as error:
            raise InputError(path, f"[[{GROUPS}]] {position}: {error}") from error
    return unique(cases)


def read_groups(path: Path, table: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The groups [[table]] of a TOML file (one empty group without any), and what holds for all.

    :raises InputError: not TOML, or something else of that name
    """
    found = parse_toml(bytes(read_file(path, limit=MAX_BYTES)), path)
    groups = found.pop(table, [{}])
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise InputError(path, f"{table}: expected tables, [[{table}]]")
    return groups, found


def _group_cases(group: dict[str, Any], folder: Path) -> list[Case]:
    name = a_text(group.pop("name", ""))
    axes: dict[str, list[Any]] = {"p2m_leaf": ["auto"]}
    for key, given in group.items():
        if key not in _KEYS:
            raise UsageError(f"unknown key {key!r}: expected name, {', '.join(_KEYS)}")
        axes[_KEYS[key][0]] = _values(key, given if isinstance(given, list) else [given], folder)
    return checked(expand(Case(default_kernel(), group=name), axes))


def _values(key: str, given: list[object], folder: Path) -> list[Any]:
    values = values_of(key, _KEYS[key][1], given)
    return [_FILES[key](value, folder) for value in values] if key in _FILES else values


def values_of(key: str, read: Callable[[object], Any], given: Iterable[object]) -> list[Any]:
    """What the values of a key become; one text may give several of them.

    :raises UsageError: as `read`, with the key's name
    """
    values: list[Any] = []
    try:
        for item in given:
            value = read(item)
            values += value if isinstance(value, list) else [value]
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from error
    return values


def checked(cases: list[Case]) -> list[Case]:
    """The cases, once each has a plan: what has no meaning is said before anything is computed.

    :raises UsageError: as plan_dom0
    """
    for case in cases:
        case.plan()
    return cases
