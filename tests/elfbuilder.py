# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds small ELF kernels and bzImages, byte by byte, for the tests of the readers.

Written from the ELF gABI, Linux's boot protocol and the formats of the codecs; it shares no code
with xenpt.
"""

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

NOTE_TYPES = {
    "ENTRY": 1, "HYPERCALL_PAGE": 2, "VIRT_BASE": 3, "PADDR_OFFSET": 4, "XEN_VERSION": 5,
    "GUEST_OS": 6, "GUEST_VERSION": 7, "LOADER": 8, "PAE_MODE": 9, "FEATURES": 10,
    "BSD_SYMTAB": 11, "HV_START_LOW": 12, "L1_MFN_VALID": 13, "SUSPEND_CANCEL": 14,
    "INIT_P2M": 15, "MOD_START_PFN": 16, "SUPPORTED_FEATURES": 17, "PHYS32_ENTRY": 18,
    "PHYS32_RELOC": 19,
}  # fmt: skip
PT_LOAD, PT_NOTE, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_NOBITS = 1, 4, 1, 2, 3, 7, 8
R_X, RW_ = 5, 6

# A kernel at 16 MiB that libelf accepts; values of the tests below start from it.
KA = 0xFFFF_FFFF_8000_0000
GOOD: dict[str, int | str | bytes | None] = {
    "GUEST_OS": "linux",
    "XEN_VERSION": "xen-3.0",
    "VIRT_BASE": KA,
    "ENTRY": KA + 0x100_0100,
    "PADDR_OFFSET": 0,
    "LOADER": "generic",
}


@dataclass
class Section:
    """A section to write; `nobits_bytes` makes it SHT_NOBITS of that size."""

    name: str
    type: int = SHT_PROGBITS
    vaddr: int = 0
    data: bytes = b""
    link: int = 0
    nobits_bytes: int = 0


@dataclass
class Image:
    """An ELF file to write. A segment is (paddr, contents, memsz, flags)."""

    bits: int = 64
    big_endian: bool = False
    machine: int | None = None
    entry: int = 0x100_0000
    segments: Sequence[tuple[int, bytes, int, int]] = ((0x100_0000, b"text", 0x2000, R_X),)
    note_segment: bytes | None = None
    sections: list[Section] = field(default_factory=list)

    def build(self) -> bytes:
        wide, order = self.bits == 64, ">" if self.big_endian else "<"
        header_bytes, phdr_bytes, shdr_bytes = (64, 56, 64) if wide else (52, 32, 40)
        nr_phdrs = len(self.segments) + (self.note_segment is not None)
        body = bytearray()
        start = header_bytes + phdr_bytes * nr_phdrs

        def place(data: bytes) -> int:
            body.extend(bytes(-len(body) % 16))
            body.extend(data)
            return start + len(body) - len(data)

        phdrs = b""
        for paddr, data, memsz, flags in self.segments:
            fields = [place(data), 0, paddr, len(data), memsz]
            phdrs += self._phdr(order, PT_LOAD, flags, *fields)
        if self.note_segment is not None:
            fields = [place(self.note_segment), 0, 0, len(self.note_segment), 0]
            phdrs += self._phdr(order, PT_NOTE, 4, *fields)

        names, rows = b"\0", []
        shown = [Section(""), *self.sections, Section(".shstrtab", SHT_STRTAB)]
        for section in shown if self.sections else []:
            name_offset = len(names)
            names += section.name.encode() + b"\0"
            rows.append((name_offset, section))
        shdrs = b""
        for name_offset, section in rows:
            data = names if section.name == ".shstrtab" else section.data
            kind = SHT_NOBITS if section.nobits_bytes else section.type
            kind = 0 if section.name == "" else kind
            size = section.nobits_bytes or len(data)
            word = "Q" if wide else "I"
            shdrs += struct.pack(
                f"{order}II{word}{word}{word}{word}II{word}{word}", name_offset, kind, 0,
                section.vaddr, place(data), size, section.link, 0, 1, 0,
            )  # fmt: skip
        shoff = place(shdrs) if shdrs else 0

        machine = self.machine if self.machine is not None else 62 if wide else 3
        ident = b"\x7fELF" + bytes([2 if wide else 1, 2 if self.big_endian else 1, 1]) + bytes(9)
        form = order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH")
        header = struct.pack(
            form, 2, machine, 1, self.entry, header_bytes, shoff, 0, header_bytes, phdr_bytes,
            nr_phdrs, shdr_bytes, len(rows), max(len(rows) - 1, 0),
        )  # fmt: skip
        return ident + header + phdrs + bytes(body)

    def _phdr(
        self, order: str, kind: int, flags: int, offset: int, vaddr: int, paddr: int,
        filesz: int, memsz: int,
    ) -> bytes:  # fmt: skip
        if self.bits == 64:
            return struct.pack(
                order + "IIQQQQQQ", kind, flags, offset, vaddr, paddr, filesz, memsz, 16
            )
        return struct.pack(order + "IIIIIIII", kind, offset, vaddr, paddr, filesz, memsz, flags, 16)


def note(
    name: str | int, value: int | str | bytes, *, size: int = 8, owner: bytes = b"Xen\0",
    order: str = "little",
) -> bytes:  # fmt: skip
    """One ELF note; an int takes `size` bytes, a str gets its NUL."""
    if isinstance(value, int):
        desc = value.to_bytes(size, "big" if order == "big" else "little")
    else:
        desc = value.encode() + b"\0" if isinstance(value, str) else value
    kind = NOTE_TYPES[name] if isinstance(name, str) else name
    header = struct.pack((">" if order == "big" else "<") + "III", len(owner), len(desc), kind)
    return header + owner + bytes(-len(owner) % 4) + desc + bytes(-len(desc) % 4)


def notes(
    changes: Mapping[str, int | str | bytes | None] | None = None, *, size: int = 8,
    order: str = "little",
) -> bytes:  # fmt: skip
    """The notes of GOOD with some changed, added or (None) left out."""
    asked = {**GOOD, **(changes or {})}
    return b"".join(
        note(name, value, size=size, order=order)
        for name, value in asked.items()
        if value is not None
    )


def kernel(changes: Mapping[str, int | str | bytes | None] | None = None) -> bytes:
    """A small 64-bit kernel with its notes in a segment."""
    return Image(note_segment=notes(changes)).build()


def symbol_sections(
    symbols: Sequence[tuple[str, int, bool, bool]], *, first: int, bits: int = 64
) -> list[Section]:
    """.symtab and .strtab of (name, value, global?, defined?); the first gets section `first`."""
    strings, rows = b"\0", b""
    for name, value, is_global, defined in symbols:
        info, shndx = (is_global << 4) | 1, int(defined)
        if bits == 64:
            rows += struct.pack("<IBBHQQ", len(strings), info, 0, shndx, value, 8)
        else:
            rows += struct.pack("<IIIBBH", len(strings), value, 8, info, 0, shndx)
        strings += name.encode() + b"\0"
    return [
        Section(".symtab", SHT_SYMTAB, data=rows, link=first + 1),
        Section(".strtab", SHT_STRTAB, data=strings),
    ]


def bzimage(
    payload: bytes, *, version: int = 0x20F, setup_sects: int = 3, payload_offset: int = 0x40,
    payload_bytes: int | None = None,
) -> bytes:  # fmt: skip
    """A bzImage around a payload: setup sectors with the header, then the protected-mode part."""
    setup = bytearray(((setup_sects or 4) + 1) * 512)
    setup[0x1F1] = setup_sects
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    size = len(payload) if payload_bytes is None else payload_bytes
    struct.pack_into("<II", setup, 0x248, payload_offset, size)
    return bytes(setup) + bytes(payload_offset) + payload + b"behind the payload"


def _with_size(compress: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Linux appends the size of the output to all payloads but gzip's."""
    return lambda data: compress(data) + struct.pack("<I", len(data))


def _lzma(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_ALONE)


def _lz4(data: bytes) -> bytes:
    import lz4.block

    frame = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[at : at + (8 << 20)], store_size=False)
        frame += struct.pack("<I", len(block)) + block
    return frame


def _lzo(data: bytes) -> bytes:
    """lzop's format with its default flags, as the tool writes it (level, long mtime, a name)."""
    from lzallright import LZOCompressor

    frame = b"\x89LZO\x00\r\n\x1a\n" + struct.pack(">HHHBB", 0x1040, 0x20A0, 0x0940, 3, 9)
    frame += struct.pack(">IIIIB", 0x0300_0001, 0o100644, 0, 0, 7) + b"vmlinux" + bytes(4)
    for at in range(0, len(data), 256 << 10):
        piece = data[at : at + (256 << 10)]
        block = LZOCompressor().compress(piece)
        if len(block) >= len(piece):
            block = piece
        frame += struct.pack(">III", len(piece), len(block), 0) + block
    return frame + bytes(4)


def _zstd(data: bytes) -> bytes:
    try:
        from compression import zstd
    except ImportError:
        from backports import zstd
    packed: bytes = zstd.compress(data)
    return packed


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": _with_size(bz2.compress),
    "lzma": _with_size(_lzma),
    "xz": _with_size(lzma.compress),
    "lzo": _with_size(_lzo),
    "lz4": _with_size(_lz4),
    "zstd": _with_size(_zstd),
}
PACKAGES = {"lzo": "lzallright", "lz4": "lz4", "zstd": "backports.zstd"}
