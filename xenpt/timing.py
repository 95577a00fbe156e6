# SPDX-License-Identifier: GPL-2.0-or-later
"""Time, modelled from exact counts: instructions x cycles per instruction / clock.

What a boot does is counted (linux/work.py). What one such operation takes, in instructions of
Linux and Xen, was measured on real ones (`make calibrate`) and is shipped as data/constants.toml.
What a second is made of stands with every second that is shown.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeGuard

from xenpt.errors import InputError, UsageError
from xenpt.inputs.files import read_file
from xenpt.inputs.tomltext import MAX_BYTES, parse_toml

CONSTANTS: Final = "constants.toml"
#: What a CPI, a clock or a number of instructions may be; no time made of them is infinite.
LEAST, MOST = 1e-6, 1e12
#: Every operation that has a constant, and what one of it is.
OPERATIONS: Final = {
    "build": "Xen builds a dom0: all but its pages",
    "build_page": "a page of it, assigned and entered in P->M list and M2P",
    "setup_kernel_pagetable": "the stage: Linux's tables take the place of Xen's",
    "memory_setup": "the stage, but for holes",
    "hole_page": "a mapped page of an E820 hole, mapped anew",
    "hole_frame": "a frame in a hole that is to move",
    "hole_group": "up to 509 of them, noted, and found again later",
    "new_table": "update_va_mapping of a new page table: read-only",
    "pinned_l1": "pin of an L1 table, but for its entries",
    "pinned_entry": "an entry of it that is present",
    "direct_map_pte": "a PTE of the direct map, stored by Linux",
    "absent_pte": "one whose page has no frame: that much more",
    "upper_entry": "mmu_update of an entry of L2 to L4, in the direct map",
    "paging_init": "the stage, but for its tables",
    "set_pte": "mmu_update of an L1 entry: set_pte by hypercall",
    "list_page": "a page of the P->M list, copied",
    "list_table": "an L1 table of the copy, made read-only and pinned while empty",
    "scanned_entry": "an entry outside of RAM, looked at",
    "extra_page": "a page of extra memory, entered as missing",
    "extra_table": "an L1 table for entries of extra memory, pinned when full",
    "freed_frame": "a 4 KiB frame of the old list made writable, and dropped by Xen",
    "freed_block": "memblock_free of one leaf or table, and Xen's drop of its entry",
    "dropped_l1": "drop of an L1 table, but for its entries",
    "dropped_table": "drop of an L2 or L3 table, but for its entries",
    "walked_entry": "an entry of the old list's tables, read",
    "remap_memory": "the stage, but for the frames that move",
    "moved_frame": "a frame of a hole given its new page",
    "first_mapped": "one of those that Linux had not mapped before: that much more",
}


class Instructions(NamedTuple):
    """What one operation takes, a string instruction counted as one."""

    linux: float
    xen: float


@dataclass(frozen=True, slots=True)
class TimeModel:
    """Constants, and what they are worth in time.

    :ivar operations: by name, all of OPERATIONS
    :ivar cpi: cycles per instruction, assumed
    :ivar ghz: clock of the processor, assumed
    :ivar source: where the instructions were measured, in words
    """

    operations: Mapping[str, Instructions]
    cpi: float
    ghz: float
    source: str

    def instructions(self, work: Mapping[str, int]) -> float:
        """Instructions of so many operations.

        :param work: number of each, by its name in OPERATIONS
        """
        return sum(nr * sum(self.operations[name]) for name, nr in work.items())

    def seconds(self, work: Mapping[str, int] | None) -> float | None:
        """Modelled time of so many operations; None for work that was never measured."""
        if work is None:
            return None
        return self.instructions(work) * self.cpi / (self.ghz * 1e9)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of all constants."""
        text = json.dumps({name: one._asdict() for name, one in self.operations.items()})
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """What every modelled second is made of, for JSON."""
        return {
            "cpi": self.cpi,
            "ghz": self.ghz,
            "source": self.source,
            "instructions": {name: one._asdict() for name, one in self.operations.items()},
        }

    def in_words(self) -> str:
        """The same in one sentence, less the constants."""
        return (
            f"modelled: counted operations x instructions of each ({self.source}) "
            f"x CPI {self.cpi:g} / {self.ghz:g} GHz; waiting for memory is not in it"
        )


def time_model(
    path: str | Path | None = None, *, cpi: float | None = None, ghz: float | None = None
) -> TimeModel:
    """The shipped constants, or what a file and the options say instead.

    :param path: TOML with any of cpi, ghz, source and [operations]; it need not have all of them
    :raises InputError: not such a file
    :raises UsageError: a CPI or clock that is none
    """
    model = _shipped()
    if path is not None:
        model = _changed(model, read_file(path, limit=MAX_BYTES)[:], path)
    for name, value in (("cpi", cpi), ("ghz", ghz)):
        if value is not None and not _is_usable(value):
            raise UsageError(f"--{name} {value:g}: expected {LEAST:g} to {MOST:g}")
    return replace(model, cpi=cpi or model.cpi, ghz=ghz or model.ghz)


@cache
def _shipped() -> TimeModel:
    file = resources.files("xenpt").joinpath("data", CONSTANTS)
    nothing = TimeModel({}, 0.0, 0.0, "")
    return _changed(nothing, file.read_bytes(), file.name)


def _changed(model: TimeModel, data: bytes, path: str | Path) -> TimeModel:
    """The model with all that a file says of it.

    :raises InputError: what it says has no meaning
    """
    found = parse_toml(data, path)
    found.pop("measured", None)  # of the shipped file: for people
    operations = found.pop("operations", {})
    if not isinstance(operations, dict):
        raise InputError(path, "operations: expected a table")
    changes: dict[str, Any] = {
        "source": f"as {path} says, else {model.source}" if model.source else "",
        "operations": {**model.operations, **_operations(operations, path)},
    }
    for name, value in found.items():
        if name == "source" and isinstance(value, str):
            changes[name] = value
        elif name in ("cpi", "ghz") and _is_usable(value):
            changes[name] = float(value)
        else:
            raise InputError(path, f"{name}: unknown, or no value of it")
    return replace(model, **changes)


def _operations(found: dict[str, Any], path: str | Path) -> dict[str, Instructions]:
    for name, parts in found.items():
        if name not in OPERATIONS:
            raise InputError(path, f"operations.{name}: no such operation")
        if not isinstance(parts, dict) or set(parts) != {"linux", "xen"}:
            raise InputError(path, f"operations.{name}: expected {{linux = ..., xen = ...}}")
        for who, value in parts.items():
            if value != 0 and not _is_usable(value):
                expected = f"expected 0, or {LEAST:g} to {MOST:g}"
                raise InputError(path, f"operations.{name}.{who}: {expected}")
    return {name: Instructions(**parts) for name, parts in found.items()}


def _is_usable(value: object) -> TypeGuard[float]:
    """A number, and no truth value, of which no infinite time is made."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return LEAST <= value <= MOST
