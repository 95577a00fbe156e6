# SPDX-License-Identifier: GPL-2.0-or-later
"""A minimal ELF reader: headers, segments, sections, notes and symbols, 32 and 64 bit.

Every offset is checked against the file before it is read; nothing is copied but what is asked
for. Section 4 of the ELF gABI has the layouts.
"""

import struct
from collections.abc import Iterable, Iterator
from functools import cached_property
from mmap import mmap
from typing import Any, NamedTuple

from xenpt.errors import InputError

MAGIC = b"\x7fELF"
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_NOTE = 1, 4
PF_RWX = 7
SHT_SYMTAB, SHT_NOTE, SHT_NOBITS = 2, 7, 8
STB_GLOBAL = 1
_IDENT_BYTES = 16
_MAX_NAME_BYTES = 64  # longer names are cut off: a table without NULs must not be copied per name

Data = bytes | bytearray | mmap


class Segment(NamedTuple):
    """A program header; `offset` and `filesz` are of the file, addresses and `memsz` of memory."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int

    @property
    def loadable(self) -> bool:
        """As libelf sees it: PT_LOAD with any of the three permissions."""
        return self.type == PT_LOAD and bool(self.flags & PF_RWX)


class Section(NamedTuple):
    """A section header; `size` bytes at `offset` of the file, unless it is SHT_NOBITS."""

    name: str
    type: int
    vaddr: int
    offset: int
    size: int
    link: int


class Note(NamedTuple):
    """One ELF note. `desc_offset` is the place of its `desc_bytes` bytes in the file."""

    name: bytes
    type: int
    desc_offset: int
    desc_bytes: int


class _Layout(NamedTuple):
    """struct formats of one ELF class; the fields of each are in the class's own order."""

    bits: int
    header: str
    segment: str
    section: str
    symbol: str


_LAYOUTS = {
    1: _Layout(32, "HHIIIIIHHHHHH", "IIIIIIII", "IIIIIIIIII", "IIIBBH"),
    2: _Layout(64, "HHIQQQIHHHHHH", "IIQQQQQQ", "IIQQQQIIQQ", "IBBHQQ"),
}


class Elf:
    """An ELF file in memory.

    :param data: the whole file
    :param source: its name, for messages
    :raises InputError: not an ELF file, or a table of it lies outside the file
    """

    def __init__(self, data: Data, source: object) -> None:
        self.data, self.source = data, source
        if data[:4] != MAGIC:
            raise self.error("not an ELF file", 0)
        if len(data) < _IDENT_BYTES or data[4] not in _LAYOUTS:
            raise self.error("ELF class is neither 32 nor 64 bit", 4)
        if data[5] not in (1, 2):
            raise self.error("ELF data encoding is neither little nor big endian", 5)
        self._layout = _LAYOUTS[data[4]]
        self.bits, self.big_endian = self._layout.bits, data[5] == 2
        (_, self.machine, _, self.entry, phoff, shoff, _, self.header_bytes, phentsize, phnum,
         self.section_header_bytes, shnum, self._shstrndx) = self._unpack(
            self._layout.header, _IDENT_BYTES, "ELF header"
        )  # fmt: skip
        self.segments = [
            self._segment(row)
            for row in self._table(phoff, phentsize, phnum, self._layout.segment, "program header")
        ]
        self._section_rows = list(
            self._table(
                shoff,
                self.section_header_bytes,
                shnum,
                self._layout.section,
                "section header",
            )
        )

    def error(self, reason: str, offset: int | None = None) -> InputError:
        """The error to raise for a fault of this file."""
        return InputError(self.source, reason, offset=offset)

    def bytes_at(self, offset: int, size: int, what: str) -> bytes:
        """A copy of `size` bytes of the file.

        :raises InputError: not all of them are in the file
        """
        if offset + size > len(self.data):
            raise self.error(
                f"{what} ends at {offset + size:#x}, the file at {len(self.data):#x}",
                offset,
            )
        return bytes(self.data[offset : offset + size])

    def text_at(self, offset: int, limit: int, what: str) -> str:
        """The NUL-terminated text at `offset`, at most `limit` bytes long, as latin-1.

        :raises InputError: no NUL within the limit and the file
        """
        raw = bytes(self.data[offset : offset + limit])
        end = raw.find(0)
        if end < 0:
            raise self.error(f"{what} has no end", offset)
        return raw[:end].decode("latin-1")

    def number(self, raw: bytes) -> int:
        """An unsigned number in this file's byte order."""
        return int.from_bytes(raw, "big" if self.big_endian else "little")

    @cached_property
    def sections(self) -> list[Section]:
        """All sections, the empty number 0 included; without names if their table is broken."""
        rows = self._section_rows
        names = b""
        if self._shstrndx < len(rows):
            offset, size = rows[self._shstrndx][4:6]
            names = bytes(self.data[offset : offset + size])
        return [
            Section(
                _name_at(names, row[0]).decode("latin-1"), row[1], row[3], row[4], row[5], row[6]
            )
            for row in rows
        ]

    def section(self, name: str) -> Section | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    def contents(self, section: Section) -> bytes:
        """A copy of a section's bytes.

        :raises InputError: they are not all in the file
        """
        if section.type == SHT_NOBITS:
            return b""
        return self.bytes_at(section.offset, section.size, f"section {section.name!r}")

    def notes(self, offset: int, size: int) -> Iterator[Note]:
        """The notes in [offset, offset + size) of the file; names and contents are 4-aligned.

        :raises InputError: a note leaves the area or the file
        """
        self.bytes_at(offset + size, 0, "note area")
        end = offset + size
        while offset < end:
            namesz, descsz, kind = self._unpack("III", offset, "note")
            name_offset = offset + 12
            desc_offset = name_offset + (namesz + 3 & ~3)
            if desc_offset + descsz > end:
                raise self.error("note leaves its segment or section", offset)
            name = bytes(self.data[name_offset : name_offset + min(namesz, _MAX_NAME_BYTES)])
            yield Note(name.split(b"\0", 1)[0], kind, desc_offset, descsz)
            offset = desc_offset + (descsz + 3 & ~3)

    def symbols(self, names: Iterable[str]) -> dict[str, int]:
        """Values of the named symbols that the symbol table defines; global ones win.

        :raises InputError: the table or its strings are not in the file
        """
        table = next((s for s in self.sections if s.type == SHT_SYMTAB), None)
        if table is None or not table.link < len(self.sections):
            return {}
        strings = self.contents(self.sections[table.link])
        wanted = {name.encode(): name for name in names}
        form = struct.Struct(self._order + self._layout.symbol)
        raw = self.contents(table)
        found: dict[str, int] = {}
        for row in form.iter_unpack(raw[: len(raw) // form.size * form.size]):
            name = wanted.get(_name_at(strings, row[0]))
            if name is None:
                continue
            info, shndx, value = (
                (row[1], row[3], row[4]) if self.bits == 64 else (row[3], row[5], row[1])
            )
            if shndx and (name not in found or info >> 4 == STB_GLOBAL):
                found[name] = value
        return found

    @property
    def _order(self) -> str:
        return ">" if self.big_endian else "<"

    def _unpack(self, form: str, offset: int, what: str) -> tuple[Any, ...]:
        form = self._order + form
        if offset + struct.calcsize(form) > len(self.data):
            raise self.error(f"{what} is cut off: the file ends at {len(self.data):#x}", offset)
        return struct.unpack_from(form, self.data, offset)

    def _table(
        self, offset: int, size: int, count: int, form: str, what: str
    ) -> Iterator[tuple[Any, ...]]:
        if not count:
            return
        if size < struct.calcsize(self._order + form):
            raise self.error(f"{what}s of {size} bytes are too small", _IDENT_BYTES)
        self.bytes_at(offset + size * count, 0, f"table of {count} {what}s at {offset:#x}")
        for index in range(count):
            yield self._unpack(form, offset + index * size, what)

    def _segment(self, row: tuple[int, ...]) -> Segment:
        if self.bits == 64:
            return Segment(*row[:7])
        kind, offset, vaddr, paddr, filesz, memsz, flags, _ = row
        return Segment(kind, flags, offset, vaddr, paddr, filesz, memsz)


def _name_at(names: bytes, offset: int) -> bytes:
    """The start of the name at that offset of a string table, NUL or cut off at the limit."""
    return names[offset : offset + _MAX_NAME_BYTES].split(b"\0", 1)[0]
