# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's ELF notes -> what the kernel asks of Xen (SPEC section D; xen/common/libelf).

The order of the steps and the texts of the errors are libelf's: elf_xen_parse,
elf_xen_note_check, elf_xen_addr_calc_check of libelf-dominfo.c.
"""

import re
from collections.abc import Mapping
from typing import Any

from xenpt.abi import (
    PAGE_SHIFT,
    WORD,
    XEN_ELFNOTE_NAME,
    XEN_ELFNOTE_STRINGS,
    XEN_ELFNOTES,
    XENFEATURES,
    round_up,
)
from xenpt.errors import InputError
from xenpt.inputs.elf import EM_386, EM_X86_64, PT_NOTE, SHT_NOTE, SHT_SYMTAB, Elf, Note

XenNote = tuple[str, int, int | str | tuple[int, ...]]

MAX_NOTES = 65536  # of any owner, in one image (ELF_MAX_TOTAL_NOTE_COUNT)
MAX_TEXT_BYTES = 4096  # ELF_MAX_STRING_LENGTH
MAX_TEXTS_BYTES = 1 << 20  # of all notes: areas that overlap would multiply what the file has
MAX_WORDS_BYTES = 64  # of a note that is neither text nor number; real ones have 16 at most
LEGACY_SECTION = "__xen_guest"
_NUMBER_BYTES = (1, 2, 4, 8)

_LEGACY_ITEM = re.compile(r"([^,=]{0,31})(?:=([^,]{0,127}))?,?")
_LEGACY_NAMES = {
    "LOADER": "LOADER",
    "GUEST_OS": "GUEST_OS",
    "GUEST_VER": "GUEST_VERSION",
    "XEN_VER": "XEN_VERSION",
    "FEATURES": "FEATURES",
}
_LEGACY_NUMBERS = {
    "VIRT_BASE": "VIRT_BASE",
    "VIRT_ENTRY": "ENTRY",
    "ELF_PADDR_OFFSET": "PADDR_OFFSET",
    "HYPERCALL_PAGE": "HYPERCALL_PAGE",
}
_C_NUMBER = re.compile(r"\s*(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")


def xen_fields(elf: Elf) -> dict[str, Any]:
    """Fields of a Kernel that libelf takes from an image's notes and segments.

    :raises InputError: with libelf's own text where libelf refuses the image
    """
    notes = _xen_notes(elf)
    legacy = None if notes else elf.section(LEGACY_SECTION)
    if legacy is not None:
        notes = _legacy_items(elf.contents(legacy))
        asked = _legacy_values(notes)
    else:
        asked = _note_values(notes)
    _check_features(asked, elf)
    if notes or legacy is not None:
        _check_builder(asked, elf)
    elif elf.machine in (EM_386, EM_X86_64):
        raise elf.error("Not a Xen-ELF image: No ELF notes or '__xen_guest' section found")
    return {
        "pae": asked.get("PAE_MODE", "no"),
        **_addresses(elf, asked, legacy=legacy is not None),
        "init_p2m": asked.get("INIT_P2M"),
        "mod_start_pfn": asked.get("MOD_START_PFN", 0) != 0,
        "features": asked.get("FEATURES"),
        "supported_features": asked.get("SUPPORTED_FEATURES"),
        "hypercall_page": asked.get("HYPERCALL_PAGE"),
        "hv_start_low": asked.get("HV_START_LOW"),
        "notes": tuple(notes),
    }


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


def _xen_notes(elf: Elf) -> list[XenNote]:
    """Xen's notes of the PT_NOTE segments or, if these have none, of the SHT_NOTE sections."""
    # Some binutils leave p_offset of a note segment at 0.
    areas = [(s.offset, s.filesz) for s in elf.segments if s.type == PT_NOTE and s.offset]
    left, left_bytes = MAX_NOTES, MAX_TEXTS_BYTES
    for candidates in (
        areas,
        [(s.offset, s.size) for s in elf.sections if s.type == SHT_NOTE],
    ):
        notes = []
        for offset, size in candidates:
            for note in elf.notes(offset, size):
                left -= 1
                if left < 0:
                    raise elf.error(f"more than {MAX_NOTES} notes", offset)
                if note.name == XEN_ELFNOTE_NAME.encode():
                    notes.append(_decode(elf, note))
                    content = notes[-1][2]
                    left_bytes -= len(content) if isinstance(content, str) else 0
                if left_bytes < 0:
                    raise elf.error(f"notes with more than {MAX_TEXTS_BYTES} bytes of text", offset)
        if notes:
            break
    return notes


def _decode(elf: Elf, note: Note) -> XenNote:
    """Name, size and value of a note; libelf reads a text up to its NUL, whatever the size."""
    name = XEN_ELFNOTES.get(note.type, str(note.type))
    if note.type in XEN_ELFNOTE_STRINGS:
        text = elf.text_at(note.desc_offset, MAX_TEXT_BYTES, f"text of note {name}")
        return name, note.desc_bytes, text
    nr_bytes = note.desc_bytes
    raw = elf.bytes_at(note.desc_offset, min(nr_bytes, MAX_WORDS_BYTES), f"note {name}")
    if nr_bytes in _NUMBER_BYTES:
        return name, nr_bytes, elf.number(raw)
    step = next(step for step in (8, 4, 1) if nr_bytes % step == 0)
    words = tuple(elf.number(raw[at : at + step]) for at in range(0, len(raw), step))
    return name, nr_bytes, words


def _note_values(notes: list[XenNote]) -> dict[str, Any]:
    """Note name -> value: the last of a name counts, feature sets add up (SPEC D2, D3)."""
    asked: dict[str, Any] = {}
    features = [str(value) for name, _, value in notes if name == "FEATURES"]
    if features:
        asked["FEATURES"] = "|".join(features)
    for name, _, value in notes:
        if name == "PAE_MODE":
            if "bimodal" in str(value):
                asked[name] = "bimodal"
            elif value == "yes":
                asked[name] = "extcr3"
        elif name == "BSD_SYMTAB":
            asked[name] = asked.get(name, False) or value == "yes"
        elif isinstance(value, str):
            if name != "FEATURES":
                asked[name] = value
        else:
            number = value if isinstance(value, int) else 0  # other sizes read as 0 (SPEC D1)
            if name == "SUPPORTED_FEATURES":
                number |= asked.get(name, 0)
            asked[name] = number
    return asked


def _legacy_items(raw: bytes) -> list[XenNote]:
    """NAME=value items of the __xen_guest section, as texts."""
    text = raw.split(b"\0", 1)[0].decode("latin-1")
    return [
        (name, len(value or ""), value or "")
        for name, value in _LEGACY_ITEM.findall(text)
        if name or value
    ]


def _legacy_values(items: list[XenNote]) -> dict[str, Any]:
    """The items under the names of the notes; they know no INIT_P2M, no MOD_START_PFN (SPEC D4)."""
    asked: dict[str, Any] = {}
    for name, _, value in items:
        text = str(value)
        if name in _LEGACY_NAMES:
            asked[_LEGACY_NAMES[name]] = text
        elif name in _LEGACY_NUMBERS:
            asked[_LEGACY_NUMBERS[name]] = _c_number(text)
        elif name == "BSD_SYMTAB":
            asked[name] = True
        elif name == "PAE" and text.startswith("yes"):
            asked["PAE_MODE"] = "extcr3" if text == "yes[extended-cr3]" else "yes"
    if "HYPERCALL_PAGE" in asked:
        page = asked["HYPERCALL_PAGE"] << PAGE_SHIFT
        asked["HYPERCALL_PAGE"] = (page + asked.get("VIRT_BASE", 0)) % WORD
    return asked


def _c_number(text: str) -> int:
    """What strtoull(text, NULL, 0) of C reads, modulo 2**64."""
    match = _C_NUMBER.match(text)
    if match is None:
        return 0
    sixteen, eight, ten = match.groups()
    number = int(sixteen, 16) if sixteen else int(eight, 8) if eight else int(ten)
    return number % WORD


def _check_features(asked: Mapping[str, Any], elf: Elf) -> None:
    for name in asked.get("FEATURES", "").split("|"):
        if name.startswith("!") and name[1:] not in XENFEATURES:
            raise elf.error(f"FEATURES: unknown required feature {name[1:]!r}")


def _check_builder(asked: Mapping[str, Any], elf: Elf) -> None:
    loader, guest_os = asked.get("LOADER", ""), asked.get("GUEST_OS", "")
    if not (loader.startswith("generic") or guest_os.startswith("linux")):
        raise elf.error("Will only load images built for the generic loader or Linux images")
    if not asked.get("XEN_VERSION", "").startswith("xen-3.0"):
        raise elf.error("Xen will only load images built for Xen v3.0")


def _addresses(elf: Elf, asked: Mapping[str, Any], *, legacy: bool) -> dict[str, Any]:
    """Where the image goes; only p_paddr counts (SPEC D7)."""
    if "PADDR_OFFSET" in asked and "VIRT_BASE" not in asked:
        raise elf.error("ELF_PADDR_OFFSET set, VIRT_BASE unset")
    segments = tuple((s.paddr, s.filesz, s.memsz) for s in elf.segments if s.loadable)
    if not segments:
        # libelf's pstart stays all ones and its pend 0
        raise elf.error("ELF start or entries are out of bounds")
    _check_segments(elf)
    start, end = min(s[0] for s in segments), max(s[0] + s[2] for s in segments)
    base = asked.get("VIRT_BASE", 0)
    shift = base - asked.get("PADDR_OFFSET", base if legacy else 0)
    image_end = _bsd_symtab_end(elf, end) if asked.get("BSD_SYMTAB") else end
    return {
        "virt_base": base,
        "virt_kstart": (start + shift) % WORD,
        "virt_kend": (image_end + shift) % WORD,
        "entry": asked.get("ENTRY", elf.entry),
        "paddr": (start, end),
        "segments": segments,
    }


def _check_segments(elf: Elf) -> None:
    for index, segment in enumerate(elf.segments):
        if not segment.loadable:
            continue
        elf.bytes_at(segment.offset + segment.filesz, 0, f"segment {index}")
        if segment.filesz > segment.memsz or segment.paddr + segment.memsz > WORD:
            raise elf.error(f"segment {index} is larger than its place in memory", segment.offset)


def _bsd_symtab_end(elf: Elf, end: int) -> int:
    """End of the symbol and string tables that libelf loads behind the image (SPEC D8)."""
    table = next((s for s in elf.sections if s.type == SHT_SYMTAB), None)
    if table is None or not table.link < len(elf.sections):
        return end
    word = elf.bits // 8
    size = round_up(4 + elf.header_bytes + 3 * elf.section_header_bytes, word)
    size = round_up(size + table.size, word)
    size = round_up(size + elf.sections[table.link].size, word)
    return round_up(end, word) + size
