# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kernel that was booted: where its notes and segments put it, and where Xen said it is."""

import re

import goldendata
import pytest
from elfbuilder import PT_LOAD, Image, note

from xenpt.abi import XEN_ELFNOTES
from xenpt.inputs.kernel import Kernel, kernel_from_bytes

NUMBERS = {name: number for number, name in XEN_ELFNOTES.items()}


def rebuilt(image: dict) -> Kernel:
    """The kernel that is read from an ELF file with the recorded headers and notes."""
    segments = [(p["paddr"], b"", p["memsz"], p["flags"])
                for p in image["phdrs"] if p["type"] == PT_LOAD]  # fmt: skip
    raw = b"".join(_note(*item) for item in image["xen_notes_raw"])
    elf = Image(machine=image["e_machine"], entry=image["e_entry"], segments=segments,
                note_segment=raw)  # fmt: skip
    return kernel_from_bytes(elf.build(), "rebuilt")


def _note(name: str, size: int, value: int | str | list[int]) -> bytes:
    if isinstance(value, int):
        desc = value.to_bytes(size, "little")
    elif isinstance(value, str):
        desc = value.encode().ljust(size, b"\0")
    else:
        desc = b"".join(word.to_bytes(8, "little") for word in value)[:size]
    return note(NUMBERS[name] if name in NUMBERS else int(name), desc)


@pytest.mark.parametrize("case", goldendata.cases())
def test_the_kernel_is_where_xen_printed_it(case):
    kernel, log = rebuilt(goldendata.facts(case)["kernel_image"]), goldendata.log(case)
    printed = re.search(r"Dom0 kernel: 64-bit,( PAE,)? lsb, paddr (0x\w+) -> (0x\w+)", log)
    if printed is None:  # that Xen could not unpack the payload
        assert "not an ELF binary" in log
        return
    assert kernel.paddr == (int(printed[2], 16), int(printed[3], 16))
    pae = goldendata.facts(case)["options"]["xen"] in ("4.14", "4.17")
    assert (printed[1] is not None) == (pae and kernel.pae == "extcr3")
    loaded = re.search(r"Loaded kernel: (\w+)->(\w+)", log)
    if loaded is not None:  # else it panicked before
        assert (kernel.virt_kstart, kernel.virt_kend) == (int(loaded[1], 16), int(loaded[2], 16))
        assert kernel.entry == int(re.search(r"ENTRY ADDRESS: (\w+)", log)[1], 16)
