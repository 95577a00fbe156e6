# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed between two answers of the same kind: plans, boots, cleanups or kernels as JSON.

Values are compared key by key, whatever their order: lists of named things by name, lists of
ranges as sets, ranges by their ends.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xenpt.errors import InputError, UsageError
from xenpt.inputs.files import read_file
from xenpt.inputs.jsontext import MAX_BYTES, parse_json

#: kind -> keys that only its JSON object has.
KINDS = {
    "plan": {"nr_pages", "nr_pt_frames", "mfn_list"},
    "boot": {"verdict", "stages", "plan"},
    "cleanup": {"profile", "update_va_mapping", "tables_freed"},
    "kernel": {"virt_kstart", "segments", "paddr"},
}
ADDRESSES = frozenset(
    {"entry", "mfn_list", "virt_base", "virt_kstart", "virt_kend", "init_p2m", "hypercall_page"}
    | {"hv_start_low", "flags"}
)
RANGES = frozenset(
    {"dom0_alloc", "kernel", "initrd", "p2m", "start_info", "page_tables", "boot_stack", "total"}
    | {"paddr"}
)
REGIONS = frozenset({"memory", "reserved"})  # lists of ranges
NAMES = ("name", "limit")  # keys that name the items of a list
ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs.

    :ivar key: its place, such as p2m.end or stages.p2m_free.hypercalls
    :ivar before: value in the first file, `after` in the second; None if it is not there
    :ivar delta: after less before, where both are numbers
    :ivar is_address: shown in hexadecimal
    """

    key: str
    before: Any
    after: Any
    delta: int | float | None = None
    is_address: bool = False
    only_in: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `only_in` is "a" or "b" for a key that one file lacks."""
        return {
            "key": self.key,
            "a": self.before,
            "b": self.after,
            "delta": self.delta,
            "only_in": self.only_in,
        }


def read_answer(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Kind and contents of a file that --json has written.

    :raises InputError: the file cannot be read, or holds no such answer
    """
    found = parse_json(bytes(read_file(path)[: MAX_BYTES + 1]), path)
    if not isinstance(found, dict):
        raise InputError(path, "not a JSON object")
    for kind, keys in KINDS.items():
        if keys <= found.keys():
            return kind, found
    raise InputError(path, f"not an answer of xenpt {', '.join(KINDS)} --json")


def compare(a: str | Path, b: str | Path) -> tuple[str, list[Change]]:
    """Kind of two files, and what differs between them, in the first one's order.

    :raises InputError: see `read_answer`
    :raises UsageError: answers of different kinds
    """
    (kind, before), (other, after) = read_answer(a), read_answer(b)
    if kind != other:
        raise UsageError(f"{a} is a {kind}, {b} is a {other}: only like is compared with like")
    return kind, list(changes(before, after))


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """What differs between two JSON objects."""
    yield from _compared("", before, after)


def _compared(place: str, before: Any, after: Any) -> Iterator[Change]:
    before, after = _keyed(place, before), _keyed(place, after)
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            where = f"{place}.{key}" if place else key
            if key not in after:
                yield Change(where, before[key], None, only_in="a", is_address=_is_address(where))
            elif key not in before:
                yield Change(where, None, after[key], only_in="b", is_address=_is_address(where))
            else:
                yield from _compared(where, before[key], after[key])
        return
    if not (_is_number(before) and _is_number(after)):
        if before != after or type(before) is not type(after):
            yield Change(place, before, after, is_address=_is_address(place))
    elif before != after:
        yield Change(place, before, after, after - before, is_address=_is_address(place))


def _keyed(place: str, value: Any) -> Any:
    """A list as an object: ranges by their ends, named items by name, others by position."""
    if not isinstance(value, list):
        return value
    key = place.rpartition(".")[2]
    if key in REGIONS:
        return {_region(item): True for item in value}
    if key in RANGES and len(value) == 2:
        return {"start": value[0], "end": value[1]}
    for name in NAMES:
        if value and all(isinstance(item, dict) and name in item for item in value):
            return {str(item[name]): item for item in value}
    return {str(i): item for i, item in enumerate(value)}


def _region(item: Any) -> str:
    if isinstance(item, list) and all(map(_is_whole, item)):
        return "[" + ", ".join(f"{number:#x}" for number in item) + ")"
    return str(item)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_address(place: str) -> bool:
    parts = place.split(".")
    in_range = len(parts) > 1 and parts[-2] in RANGES and parts[-1] in ("start", "end")
    return in_range or parts[-1] in ADDRESSES


def show(change: Change, value: Any, *, present: bool) -> str:
    """A value in words."""
    if not present:
        return ABSENT
    if change.is_address and _is_whole(value):
        return f"{value:#x}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) <= sys.maxsize else str(value)
    return value if isinstance(value, str) else json.dumps(value)


def show_delta(change: Change) -> str:
    """The difference in words; empty if the values are no numbers."""
    delta = change.delta
    if delta is None:
        return ""
    sign = "+" if delta > 0 else "-"
    in_hex = change.is_address and isinstance(delta, int)
    return sign + (f"{abs(delta):#x}" if in_hex else f"{abs(delta):,}")
