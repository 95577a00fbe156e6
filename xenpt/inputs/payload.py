# SPDX-License-Identifier: GPL-2.0-or-later
"""bzImage -> the ELF file in it. The setup header is that of Linux's boot protocol.

The compressed payload is known by its first bytes, as Xen does it (xen/common/decompress.c).
Output is bounded by what libxenguest takes, and memory grows with the output only: no size
that a header claims is believed.
"""

import bz2
import importlib
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from xenpt.errors import InputError, MissingCodecError
from xenpt.inputs.elf import MAGIC as ELF_MAGIC
from xenpt.inputs.elf import Data

MAX_KERNEL_BYTES = 1 << 30  # XC_DOM_DECOMPRESS_MAX
MAX_DICTIONARY_BYTES = 256 << 20  # memory that xz and lzma may ask for; kernels use 128 MiB at most
LZ4_BLOCK_BYTES = 8 << 20  # of output, in the legacy frame
LZO_BLOCK_BYTES = 256 << 10  # of output, in lzop's format
_STEP = 1 << 20

_SETUP_MAGIC_OFFSET, _SETUP_MAGIC = 0x202, b"HdrS"
_MIN_PROTOCOL = 0x208  # first with payload_offset and payload_length
_LZ4_MAGIC = b"\x02\x21\x4c\x18"
_LZO_MAGIC = b"\x89LZO\x00\r\n\x1a\n"
_LZO_HAS_LEVEL = 0x0940  # version of lzop that added the level and the high half of mtime
_LZO_HAS_FILTER = 0x800


class _Decoder(Protocol):
    """What bz2, lzma and zstd have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def unpack_image(data: Data, source: object) -> tuple[Data, str | None]:
    """The ELF file in an image, and its compression ("none" if the payload is not compressed).

    A plain ELF file is returned as it is, with None.

    :raises InputError: not an image, a payload outside the file or broken, or larger than 1 GiB
    :raises MissingCodecError: the payload needs a package that is not installed
    """
    if data[:4] == ELF_MAGIC:
        return data, None
    offset, payload = _payload(data, source)
    if payload[:4] == ELF_MAGIC:
        return payload, "none"
    for magic, name, decode in _CODECS:
        if payload.startswith(magic):
            return _decoded(decode, payload, name, source, offset), name
    if offset:
        raise InputError(
            source,
            f"unknown compression, payload starts {payload[:6].hex()}",
            offset=offset,
        )
    raise InputError(source, "not a kernel image: neither ELF nor bzImage")


def _decoded(
    decode: Callable[[bytes], bytearray],
    payload: bytes,
    name: str,
    source: object,
    offset: int,
) -> bytearray:
    try:
        return decode(payload)
    except _CodecMissing as missing:
        raise MissingCodecError(
            source,
            f"{name} payload: install {missing} (pip install 'xenpt[codecs]')",
            offset=offset,
        ) from None
    except _Fault as fault:
        raise InputError(source, f"broken {name} payload: {fault}", offset=offset) from None


def _payload(data: Data, source: object) -> tuple[int, bytes]:
    """Offset and bytes of a bzImage's payload; of the whole file if it is not a bzImage."""
    if data[_SETUP_MAGIC_OFFSET : _SETUP_MAGIC_OFFSET + 4] != _SETUP_MAGIC:
        return 0, bytes(data[:]) if data[:2] in _MAGIC_STARTS else bytes(data[:4])
    if len(data) < 0x250:
        raise InputError(source, "setup header is cut off", offset=_SETUP_MAGIC_OFFSET)
    (version,) = struct.unpack_from("<H", data, 0x206)
    if version < _MIN_PROTOCOL:
        raise InputError(
            source,
            f"Cannot load bzImage v{version >> 8}.{version & 0xFF:02d} at least v2.08 is required",
            offset=0x206,
        )
    payload_offset, nr_bytes = struct.unpack_from("<II", data, 0x248)
    offset = ((data[0x1F1] or 4) + 1) * 512 + payload_offset
    if nr_bytes == 0 or offset + nr_bytes > len(data):
        raise InputError(
            source,
            f"payload [{offset:#x}, {offset + nr_bytes:#x}) is not in the file,"
            f" which ends at {len(data):#x}",
            offset=0x248,
        )
    return offset, bytes(data[offset : offset + nr_bytes])


class _Fault(Exception):
    """A payload that is cut off, broken or too large."""


class _CodecMissing(Exception):
    """The package to install."""


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise _CodecMissing(package) from None


def _grow(output: bytearray, piece: bytes) -> None:
    output += piece
    if len(output) > MAX_KERNEL_BYTES:
        raise _Fault(f"more than {MAX_KERNEL_BYTES >> 20} MiB of output")


def _drain(
    decoder: _Decoder,
    payload: bytes,
    errors: type[Exception] | tuple[type[Exception], ...],
) -> bytearray:
    """All output of a decoder, a step at a time; what follows the stream is left alone.

    :param errors: what the decoder raises for a broken stream
    """
    output = bytearray()
    for at in range(0, len(payload), _STEP):
        piece = payload[at : at + _STEP]
        while True:
            try:
                _grow(output, decoder.decompress(piece, _STEP))
            except errors as error:
                raise _Fault(error) from None
            if decoder.eof:
                return output
            if decoder.needs_input:
                break
            piece = b""
    raise _Fault("it is cut off")


class _Gzip:
    """zlib's decoder in the shape of the others."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    def decompress(self, data: bytes, max_length: int) -> bytes:
        output = self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)
        self.needs_input = not self._decoder.unconsumed_tail and len(output) < max_length
        return output


def _gunzip(payload: bytes) -> bytearray:
    return _drain(_Gzip(), payload, zlib.error)


def _bunzip2(payload: bytes) -> bytearray:
    return _drain(bz2.BZ2Decompressor(), payload, (OSError, ValueError))


def _unlzma(payload: bytes) -> bytearray:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE, MAX_DICTIONARY_BYTES)
    return _drain(decoder, payload, lzma.LZMAError)


def _unxz(payload: bytes) -> bytearray:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_DICTIONARY_BYTES)
    return _drain(decoder, payload, lzma.LZMAError)


def _zstd() -> Any:
    try:
        return importlib.import_module("compression.zstd")  # Python >= 3.14
    except ImportError:
        return _module("backports.zstd", "backports.zstd")


def _unzstd(payload: bytes) -> bytearray:
    zstd = _zstd()
    return _drain(zstd.ZstdDecompressor(), payload, zstd.ZstdError)


def _unlz4(payload: bytes) -> bytearray:
    """LZ4's legacy frame: blocks behind their compressed size, up to the appended output size."""
    lz4 = _module("lz4.block", "lz4")
    output, at = bytearray(), len(_LZ4_MAGIC)
    while at < len(payload):
        if at + 4 > len(payload):
            raise _Fault("it is cut off")
        (nr_bytes,) = struct.unpack_from("<I", payload, at)
        at += 4
        if at == len(payload):
            # mkpiggy's appended size of the whole output, not a block
            if nr_bytes != len(output):
                raise _Fault(f"{len(output)} bytes of output, {nr_bytes} expected")
            break
        if payload[at - 4 : at] == _LZ4_MAGIC:
            continue
        if at + nr_bytes > len(payload):
            raise _Fault("it is cut off")
        try:
            block = lz4.decompress(payload[at : at + nr_bytes], uncompressed_size=LZ4_BLOCK_BYTES)
        except lz4.LZ4BlockError as error:
            raise _Fault(error) from None
        _grow(output, block)
        at += nr_bytes
    return output


def _unlzo(payload: bytes) -> bytearray:
    """lzop's format as Linux writes and reads it: one checksum per block, of the output."""
    lzo = _module("lzallright", "lzallright")
    output, at = bytearray(), _lzo_header_bytes(payload)
    while True:
        (nr_output,) = _lzo_fields(">I", payload, at)
        if nr_output == 0:
            return output
        nr_bytes, _checksum = _lzo_fields(">II", payload, at + 4)
        at += 12
        if nr_output > LZO_BLOCK_BYTES or not 0 < nr_bytes <= nr_output:
            raise _Fault(f"a block of {nr_bytes} bytes for {nr_output}")
        block = payload[at : at + nr_bytes]
        at += nr_bytes
        if len(block) < nr_bytes:
            raise _Fault("it is cut off")
        if nr_bytes < nr_output:  # else stored as it is
            try:
                block = lzo.LZOCompressor.decompress(block, output_size_hint=nr_output)
            except lzo.LZOError:  # its text is the whole output
                raise _Fault("a block does not decompress") from None
        if len(block) != nr_output:
            raise _Fault(f"a block of {len(block)} bytes where {nr_output} are expected")
        _grow(output, block)


def _lzo_header_bytes(payload: bytes) -> int:
    at = len(_LZO_MAGIC)
    (version,) = _lzo_fields(">H", payload, at)
    at += 7  # version, library's version, version needed, method
    at += version >= _LZO_HAS_LEVEL
    (flags,) = _lzo_fields(">I", payload, at)
    at += 8 if flags & _LZO_HAS_FILTER else 4
    at += 12 if version >= _LZO_HAS_LEVEL else 8  # mode and mtime
    (name_bytes,) = _lzo_fields(">B", payload, at)
    return at + 1 + name_bytes + 4  # and the header's checksum


def _lzo_fields(form: str, payload: bytes, at: int) -> tuple[int, ...]:
    if at + struct.calcsize(form) > len(payload):
        raise _Fault("it is cut off")
    return struct.unpack_from(form, payload, at)


_CODECS: tuple[tuple[bytes, str, Callable[[bytes], bytearray]], ...] = (
    (b"\x1f\x8b", "gzip", _gunzip),
    (b"BZh", "bzip2", _bunzip2),
    (b"\xfd7zXZ\x00", "xz", _unxz),
    (b"\x5d\x00\x00", "lzma", _unlzma),
    (_LZO_MAGIC[:4], "lzo", _unlzo),
    (_LZ4_MAGIC, "lz4", _unlz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _unzstd),
)
_MAGIC_STARTS = frozenset(magic[:2] for magic, _, _ in _CODECS)
