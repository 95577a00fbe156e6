# SPDX-License-Identifier: GPL-2.0-or-later
"""bzImage and its payload: every codec, every cut, and a bound on what is unpacked."""

import lzma
import struct
import sys
import tracemalloc
import zlib
from functools import cache

import elfbuilder
import pytest
from elfbuilder import COMPRESS, PACKAGES, bzimage

from xenpt.errors import InputError, MissingCodecError
from xenpt.inputs import payload
from xenpt.inputs.kernel import kernel_from_bytes
from xenpt.inputs.payload import unpack_image

# Large enough for several blocks of lzo and for more than one step of the decoders, and neither
# all zeros nor random: one block of lzo is stored, the others are not.
ELF = (
    elfbuilder.kernel()
    + bytes(1 << 20)
    + b"".join(
        struct.pack("<I", number * number * 2654435761 % (1 << 32)) for number in range(1 << 17)
    )
    + b"the end" * 10_000
)
CODECS = sorted(COMPRESS)


@cache
def compress(codec: str, data: bytes) -> bytes:
    if codec in PACKAGES:
        try:
            return COMPRESS[codec](data)
        except ImportError:
            pytest.skip(f"needs {PACKAGES[codec]}: pip install 'xenpt[codecs]'")
    return COMPRESS[codec](data)


def refusal(image: bytes, kind: type[InputError] = InputError) -> str:
    with pytest.raises(kind) as caught:
        unpack_image(image, "test")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    return str(caught.value)


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_in_a_bzimage(codec):
    elf, name = unpack_image(bzimage(compress(codec, ELF)), "test")
    assert name == codec
    assert bytes(elf) == ELF


@pytest.mark.parametrize("codec", CODECS)
def test_a_kernel_says_how_it_was_packed(codec):
    image = bzimage(compress(codec, elfbuilder.kernel()))
    kernel = kernel_from_bytes(image, "test")
    assert kernel.payload == codec
    assert kernel.virt_base == elfbuilder.KA


@pytest.mark.parametrize("codec", CODECS)
def test_a_bare_payload_is_taken_as_xen_takes_it(codec):
    assert bytes(unpack_image(compress(codec, ELF), "test")[0]) == ELF


def test_a_plain_elf_and_an_uncompressed_payload():
    assert unpack_image(ELF, "test") == (ELF, None)
    assert unpack_image(bzimage(ELF), "test") == (ELF, "none")


def test_no_setup_sectors_mean_four():
    assert unpack_image(bzimage(ELF, setup_sects=0), "test") == (ELF, "none")


def test_lz4_frames_may_follow_each_other():
    first, second = compress("lz4", ELF)[:-4], compress("lz4", ELF)[:-4]
    both = first + second + struct.pack("<I", 2 * len(ELF))
    assert bytes(unpack_image(bzimage(both), "test")[0]) == ELF + ELF


@pytest.mark.parametrize("codec", CODECS)
def test_a_payload_that_is_cut_off(codec):
    packed = compress(codec, ELF)
    for part in (0.2, 0.5, 0.9):
        cut = packed[: int(len(packed) * part)]
        text = refusal(bzimage(cut))
        assert text.startswith(f"test: offset 0x840: broken {codec} payload: ")


@pytest.mark.parametrize("codec", CODECS)
def test_a_payload_that_is_nothing_but_its_magic(codec):
    text = refusal(bzimage(compress(codec, ELF)[:9] + b"\xee" * 40))
    assert f"broken {codec} payload" in text


@pytest.mark.parametrize("codec", CODECS)
def test_output_is_bounded(codec, monkeypatch):
    monkeypatch.setattr(payload, "MAX_KERNEL_BYTES", 1 << 20)
    text = refusal(bzimage(compress(codec, bytes(8 << 20))))
    assert text.endswith(f"broken {codec} payload: more than 1 MiB of output")


@pytest.mark.parametrize("codec", ["gzip", "bzip2", "xz", "zstd"])
def test_a_bomb_does_not_take_memory_beyond_the_bound(codec, monkeypatch):
    # xz adds its dictionary, 8 MiB here
    image = bzimage(compress(codec, bytes(32 << 20)))
    monkeypatch.setattr(payload, "MAX_KERNEL_BYTES", 4 << 20)
    tracemalloc.start()
    try:
        refusal(image)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_dictionary_that_no_kernel_uses_is_refused():
    packed = bytearray(COMPRESS["lzma"](ELF))
    packed[1:5] = struct.pack("<I", 1 << 30)
    assert "Memory usage limit exceeded" in refusal(bzimage(bytes(packed)))
    packer = lzma.LZMACompressor(filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}])
    packed = bytearray(packer.compress(ELF) + packer.flush())
    assert packed[14:17] == b"\x21\x01\x10"  # filter LZMA2, one byte of properties: 1 MiB
    packed[16] = 36  # 1 GiB
    packed[20:24] = struct.pack("<I", zlib.crc32(packed[12:20]))
    assert "Memory usage limit exceeded" in refusal(bzimage(bytes(packed)))


@pytest.mark.parametrize(
    ("codec", "module", "package"),
    [
        ("lz4", "lz4.block", "lz4"),
        ("lzo", "lzallright", "lzallright"),
        ("zstd", "backports.zstd", "backports.zstd"),
    ],
)
def test_a_missing_package_is_named(codec, module, package, monkeypatch):
    image = bzimage(compress(codec, ELF))
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    text = refusal(image, MissingCodecError)
    assert text == (
        f"test: offset 0x840: {codec} payload: install {package} (pip install 'xenpt[codecs]')"
    )


def test_lz4_whose_size_does_not_fit():
    packed = compress("lz4", ELF)[:-4] + struct.pack("<I", len(ELF) + 1)
    assert f"{len(ELF)} bytes of output, {len(ELF) + 1} expected" in refusal(bzimage(packed))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ((256 << 10, 0, 0), "a block of 0 bytes for 262144"),
        ((4, 5, 0), "a block of 5 bytes for 4"),
        ((512 << 10, 5, 0), "a block of 5 bytes for 524288"),
        ((100, 5, 0), "a block does not decompress"),
        ((100, 1000, 0), "a block of 1000 bytes for 100"),
    ],
)
def test_broken_lzo_blocks(fields, text):
    header = compress("lzo", b"")[:-8]
    packed = header + struct.pack(">III", *fields) + b"hello" + bytes(4)
    assert text in refusal(bzimage(packed))


def test_an_lzo_header_with_a_filter_and_an_old_one():
    from_tool = compress("lzo", ELF)
    blocks = from_tool[9 + 8 + 17 + 7 + 4 :]
    old = b"\x89LZO\x00\r\n\x1a\n" + struct.pack(">HHHB", 0x0930, 0x2000, 0, 1)
    old += struct.pack(">IIIIB", 0x800, 0, 0, 0, 0) + bytes(4)  # flags, filter, mode, mtime, name
    assert bytes(unpack_image(bzimage(old + blocks), "test")[0]) == ELF


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (
            bzimage(b"x", version=0x207),
            "offset 0x206: Cannot load bzImage v2.07 at least v2.08 is required",
        ),
        (
            bzimage(b"x", version=0x10A),
            "offset 0x206: Cannot load bzImage v1.10 at least v2.08 is required",
        ),
        (
            bzimage(b"\0\1\2\3\4\5\6"),
            "offset 0x840: unknown compression, payload starts 000102030405",
        ),
        (
            bzimage(b"x", payload_bytes=1 << 20),
            "offset 0x248: payload [0x840, 0x100840) is not in the file, which ends at 0x853",
        ),
        (bzimage(b"", payload_offset=64), "offset 0x248: payload [0x840, 0x840) is not in"),
        (bzimage(b"x")[:0x20A], "offset 0x202: setup header is cut off"),
        (bzimage(b"x")[:0x205], "not a kernel image: neither ELF nor bzImage"),
        (b"not a kernel", "not a kernel image: neither ELF nor bzImage"),
    ],
)
def test_refusals_of_a_setup_header(image, text):
    assert refusal(image).startswith(f"test: {text}")


def test_a_fault_inside_the_payload_says_so():
    image = bzimage(compress("gzip", elfbuilder.kernel()[:200]))
    with pytest.raises(InputError, match=r"^test \(gzip payload\): offset 0x"):
        kernel_from_bytes(image, "test")
