# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a file holds, reading it as a kernel gives a Kernel or one line, in little memory."""

import json
import tracemalloc

import elfbuilder
from elfbuilder import COMPRESS, SHT_NOTE, Image, Section, bzimage, notes, symbol_sections
from hypothesis import given, settings
from hypothesis import strategies as st

from xenpt.errors import XenptError
from xenpt.inputs.kernel import Kernel, default_kernel, kernel_from_bytes

ALL_NOTES = {
    "INIT_P2M": 1 << 39, "MOD_START_PFN": 1, "FEATURES": "dom0|!writable_page_tables",
    "SUPPORTED_FEATURES": 0x8801, "PAE_MODE": "yes", "BSD_SYMTAB": "yes", "L1_MFN_VALID": bytes(16),
}  # fmt: skip
SYMBOLS = symbol_sections([("_text", 1, True, True), ("_end", 2, False, True)], first=2)
BY_SEGMENT = elfbuilder.kernel(ALL_NOTES)
BY_SECTION = Image(sections=[Section(".notes", SHT_NOTE, data=notes(ALL_NOTES)), *SYMBOLS]).build()
LEGACY = Image(
    bits=32,
    sections=[Section("__xen_guest", data=b"GUEST_OS=linux,XEN_VER=xen-3.0,VIRT_BASE=0x1000000\0")],
).build()


def _packed() -> list[bytes]:
    images = []
    for compress in COMPRESS.values():
        try:
            images.append(bzimage(compress(BY_SECTION)))
        except ImportError:  # test_payload.py says which package is missing
            continue
    return images


SEEDS = [
    BY_SEGMENT,
    BY_SECTION,
    LEGACY,
    *_packed(),
    json.dumps(default_kernel().as_dict()).encode(),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    image = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(image) - 1))
        new = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8])))
        image[at : at + len(new)] = new
    return bytes(image[: draw(st.one_of(st.just(len(image)), st.integers(0, len(image))))])


def outcome(image: bytes) -> Kernel | str:
    """The kernel, or the text of a refusal; any other exception fails the test."""
    try:
        return kernel_from_bytes(image, "damaged")
    except XenptError as error:
        return str(error)


@given(damaged())
@settings(max_examples=400)
def test_a_damaged_image_is_read_or_refused_in_one_line(image):
    tracemalloc.start()
    try:
        result = outcome(image)
        nr_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert nr_bytes < 32 << 20
    if isinstance(result, Kernel):
        assert Kernel.from_dict(json.loads(json.dumps(result.as_dict()))) == result
    else:
        assert result.startswith("damaged")
        assert "\n" not in result


@given(st.binary(max_size=600))
@settings(max_examples=100)
def test_any_bytes_behind_a_magic_are_read_or_refused(tail):
    for start in (b"\x7fELF\x02\x01", b"\x7fELF\x01\x02", b"{", b"\x1f\x8b", b"\x89LZO", b"BZh"):
        assert "\n" not in str(outcome(start + tail))
