# SPDX-License-Identifier: GPL-2.0-or-later
"""Real kernels: what we read of their notes and segments against binutils' readelf.

Kernels are those in /boot and, without installing anything, those that XENPT_KERNELS names
(vmlinuz or vmlinux files, separated by colons).
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from xenpt.abi import XEN_ELFNOTES
from xenpt.inputs.files import read_file
from xenpt.inputs.kernel import Kernel, default_kernel, read_kernel
from xenpt.inputs.payload import unpack_image

pytestmark = pytest.mark.oracle

HOW = (
    "no kernel to read: apt-get download a linux-image package, unpack it with dpkg-deb -x and"
    " name its vmlinuz in XENPT_KERNELS"
)
NOTE = re.compile(r"^ +Xen +0x([0-9a-f]+)\t(.*)\s+description data: ([0-9a-f ]*)$", re.M)
LOAD = re.compile(
    r"^ +LOAD +0x[0-9a-f]+ 0x[0-9a-f]+ 0x([0-9a-f]+) 0x([0-9a-f]+) 0x([0-9a-f]+)", re.M
)
SECTION = re.compile(r"^ +\[ *\d+\] (\.text|\.brk) +\w+ +([0-9a-f]+) [0-9a-f]+ ([0-9a-f]+)", re.M)


def kernels() -> list[Path]:
    named = [Path(name) for name in os.environ.get("XENPT_KERNELS", "").split(":") if name]
    installed = sorted(Path("/boot").glob("vmlinuz-*")) if Path("/boot").is_dir() else []
    return named + [path for path in installed if os.access(path, os.R_OK)]


@pytest.fixture(scope="module", params=kernels() or [None], ids=lambda path: path and path.name)
def kernel(request, tmp_path_factory) -> tuple[Kernel, str]:
    """A real kernel, and what readelf says of its ELF file."""
    if request.param is None:
        pytest.skip(HOW)
    if shutil.which("readelf") is None:
        pytest.skip("no readelf: install binutils")
    elf = tmp_path_factory.mktemp("elf") / "vmlinux"
    elf.write_bytes(unpack_image(read_file(request.param), request.param)[0])
    said = subprocess.run(
        ["readelf", "--wide", "--notes", "--segments", "--sections", str(elf)],
        capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"},
    ).stdout  # fmt: skip
    return read_kernel(request.param), said


def test_notes(kernel):
    ours, said = kernel
    theirs = [(int(size, 16), bytes.fromhex(desc)) for size, _, desc in NOTE.findall(said)]
    assert theirs == [(size, _desc(size, value)) for _, size, value in ours.notes]


def _desc(size: int, value: int | str | tuple[int, ...]) -> bytes:
    if isinstance(value, int):
        return value.to_bytes(size, "little")
    if isinstance(value, str):
        return value.encode("latin-1").ljust(size, b"\0")
    step = size // len(value)
    return b"".join(word.to_bytes(step, "little") for word in value)


def test_note_types(kernel):
    """readelf numbers the types that it has no name of its own for."""
    ours, said = kernel
    numbers = {name: number for number, name in XEN_ELFNOTES.items()}
    numbered = [re.search(r"\(0x([0-9a-f]{8})\)", text) for _, text, _ in NOTE.findall(said)]
    assert any(numbered)
    for (name, _, _), match in zip(ours.notes, numbered, strict=True):
        assert match is None or int(match[1], 16) == numbers[name]


def test_segments(kernel):
    ours, said = kernel
    theirs = tuple(tuple(int(word, 16) for word in words) for words in LOAD.findall(said))
    assert ours.segments == theirs
    assert ours.paddr == (min(p for p, _, _ in theirs), max(p + memsz for p, _, memsz in theirs))


def test_section_borders(kernel):
    ours, said = kernel
    sections = {name: (int(at, 16), int(size, 16)) for name, at, size in SECTION.findall(said)}
    assert ours.symbols["_text"] == sections[".text"][0]
    assert ours.symbols["__brk_base"] == sections[".brk"][0]
    assert ours.symbols["__brk_limit"] == sum(sections[".brk"])


def test_the_shipped_facts_are_those_of_the_package(kernel):
    ours = kernel[0].as_dict()
    shipped = default_kernel().as_dict()
    if ours["entry"] != shipped["entry"]:
        pytest.skip("not linux-image-6.1.0-56-amd64, version 6.1.192-2: name its vmlinuz, too")
    symbols, borders = shipped.pop("symbols"), ours.pop("symbols")
    assert ours == shipped
    assert borders.items() <= symbols.items()
