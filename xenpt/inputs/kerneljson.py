# SPDX-License-Identifier: GPL-2.0-or-later
"""The `kernel` JSON object -> checked fields of a Kernel; absent keys take their defaults."""

from collections.abc import Callable, Mapping
from typing import Any

from xenpt.abi import WORD
from xenpt.errors import InputError
from xenpt.inputs.elf import EM_386, EM_X86_64
from xenpt.inputs.elfnotes import check_addresses

PAE_MODES = ("no", "yes", "extcr3", "bimodal")
REMARK = "source"  # a key that says where a data file is from; not a fact of the kernel


def kernel_fields(facts: object, source: object) -> dict[str, Any]:
    """Arguments of Kernel from its JSON object.

    One of `segments`, `paddr`, or `virt_kstart` with `virt_kend` must be given; what is absent of
    them follows as Xen computes it with PADDR_OFFSET 0 (SPEC D7).

    :param source: name of the file, for messages
    :raises InputError: an unknown key, a value of a wrong type or out of range
    """
    if not isinstance(facts, Mapping):
        raise InputError(source, "not a JSON object of a kernel")
    for key in facts:
        if key not in _READERS and key != REMARK:
            raise InputError(source, f"unknown key {key!r} of a kernel")
    fields = {key: _read(facts, key, source) for key in _READERS if facts.get(key) is not None}
    fields.setdefault("bits", 64)
    fields.setdefault("pae", "no")
    fields.setdefault("machine", natural_machine(fields["bits"]))
    _place(fields, source)
    check_addresses(fields, source)
    return fields


def natural_machine(bits: int) -> int:
    """The e_machine of an x86 kernel of that ELF class."""
    return EM_X86_64 if bits == 64 else EM_386


def bounds(segments: tuple[tuple[int, int, int], ...]) -> tuple[int, int]:
    """[start, end) of the segments (paddr, filesz, memsz) by p_paddr; there is at least one."""
    return min(s[0] for s in segments), max(s[0] + s[2] for s in segments)


def _place(fields: dict[str, Any], source: object) -> None:
    """Fill in what is absent of virt_base, paddr, segments, virt_kstart, virt_kend and entry."""
    base = fields.setdefault("virt_base", 0)
    if fields.get("segments"):
        fields.setdefault("paddr", bounds(fields["segments"]))
    elif "paddr" not in fields:
        if not {"virt_kstart", "virt_kend"} <= fields.keys():
            raise InputError(source, "needs segments, paddr or both virt_kstart and virt_kend")
        fields["paddr"] = (
            (fields["virt_kstart"] - base) % WORD,
            (fields["virt_kend"] - base) % WORD,
        )
    start, end = fields["paddr"]
    if start > end:
        raise InputError(source, f"paddr [{start}, {end}]: start is above end")
    fields.setdefault("segments", ((start, end - start, end - start),))
    if bounds(fields["segments"]) != (start, end):
        raise InputError(source, f"paddr [{start}, {end}] is not the range of the segments")
    fields.setdefault("virt_kstart", (start + base) % WORD)
    fields.setdefault("virt_kend", (end + base) % WORD)
    fields.setdefault("entry", fields["virt_kstart"])


def _read(facts: Mapping[str, Any], key: str, source: object) -> Any:
    try:
        return _READERS[key](facts[key])
    except (TypeError, ValueError) as error:
        raise InputError(source, f"{key}: {error}") from None


def _word(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    if not 0 <= value < WORD:
        raise ValueError(f"{value} is outside [0, 2**64)")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    value.encode()  # a lone surrogate could not be printed
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is not true or false")
    return value


def _one_of(*choices: object) -> Callable[[object], Any]:
    def read(value: object) -> Any:
        if isinstance(value, bool) or value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(map(str, choices))}")
        return value

    return read


def _words(value: object, count: int | None = None) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or count not in (None, len(value)):
        raise TypeError(f"{value!r} is not a list of {count or ''} integers".replace("  ", " "))
    return tuple(map(_word, value))


def _range(value: object) -> tuple[int, ...]:
    return _words(value, 2)


def _segments(value: object) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list | tuple) or not value:
        raise TypeError("not a list of [paddr, filesz, memsz]")
    segments = tuple(_words(item, 3) for item in value)
    for paddr, filesz, memsz in segments:
        if filesz > memsz or paddr + memsz > WORD:
            raise ValueError(f"[{paddr}, {filesz}, {memsz}] is not a segment")
    return segments


def _symbols(value: object) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise TypeError("not an object of addresses")
    return {_text(name): _word(vaddr) for name, vaddr in value.items()}


def _notes(value: object) -> tuple[tuple[str, int, Any], ...]:
    if not isinstance(value, list | tuple):
        raise TypeError("not a list of [name, size, value]")
    return tuple(map(_note, value))


def _note(value: object) -> tuple[str, int, Any]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise TypeError(f"{value!r} is not [name, size, value]")
    name, size, content = value
    if isinstance(content, list | tuple):
        content = _words(content)
    elif not isinstance(content, str):
        content = _word(content)
    return _text(name), _word(size), content


_READERS: dict[str, Callable[[Any], Any]] = {
    "bits": _one_of(32, 64),
    "pae": _one_of(*PAE_MODES),
    "virt_base": _word,
    "virt_kstart": _word,
    "virt_kend": _word,
    "entry": _word,
    "paddr": _range,
    "segments": _segments,
    "symbols": _symbols,
    "init_p2m": _word,
    "mod_start_pfn": _flag,
    "features": _text,
    "supported_features": _word,
    "hypercall_page": _word,
    "hv_start_low": _word,
    "notes": _notes,
    "payload": _text,
    "machine": _word,
    "big_endian": _flag,
}
