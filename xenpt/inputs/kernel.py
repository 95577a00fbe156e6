# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel images: what a PV kernel asks of Xen, from an ELF file, a bzImage or JSON.

Nothing of the image is run. The facts are those of libelf's dominfo parser (SPEC section D);
a `Kernel` is all that the planner and Linux's early boot need to know of an image.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from xenpt.abi import XENFEATURES
from xenpt.errors import InputError
from xenpt.inputs.elf import EM_X86_64, Data, Elf
from xenpt.inputs.elfnotes import check_addresses, xen_fields
from xenpt.inputs.files import read_file
from xenpt.inputs.jsontext import MAX_BYTES, parse_json
from xenpt.inputs.kerneljson import kernel_fields, natural_machine
from xenpt.inputs.payload import unpack_image
from xenpt.inputs.symbols import image_symbols, read_system_map

DEFAULT_KERNEL = "debian-6.1.0-56-amd64.json"
Segment = tuple[int, int, int]
Note = tuple[str, int, int | str | tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a kernel image asks of Xen. Ranges are half-open; addresses are in bytes.

    The fields are the keys of the `kernel` JSON, in its order.

    :ivar bits: 32 or 64, from the ELF class
    :ivar pae: "no", "yes", "extcr3" or "bimodal", as Xen takes it from PAE_MODE or PAE (the note's
        "yes" means extcr3); also for 64 bits, where only Xen < 4.18 looks at it
    :ivar virt_base: VIRT_BASE, 0 if the image has none
    :ivar virt_kstart: virtual start of the kernel, from p_paddr alone (p_vaddr may be 0)
    :ivar virt_kend: virtual end, not rounded; with BSD_SYMTAB it includes the symbol table
    :ivar entry: virtual address where the kernel starts
    :ivar paddr: [start, end) of the loadable segments by p_paddr and p_memsz
    :ivar segments: (paddr, filesz, memsz) of each loadable segment, in file order
    :ivar symbols: name -> virtual address, or None without any; those of
        symbols.LINUX_SYMBOLS that the image or a System.map has. `_brk_end` is not the address
        of that variable but its *value* once setup_arch has reserved the brk area: only data
        that was taken from a real boot has it
    :ivar init_p2m: INIT_P2M, or None if absent
    :ivar mod_start_pfn: the kernel takes its initrd unmapped (MOD_START_PFN is not 0)
    :ivar features: the FEATURES text, or None if absent
    :ivar supported_features: bits of SUPPORTED_FEATURES, or None if absent
    :ivar hypercall_page: virtual address of HYPERCALL_PAGE, or None if absent
    :ivar hv_start_low: HV_START_LOW, or None if absent
    :ivar notes: every Xen note as (name, size in bytes, value), in file order: a text is a str,
        1, 2, 4 or 8 bytes are an int, others a tuple of words (of 8, 4 or 1 bytes)
    :ivar payload: compression of a bzImage's payload, None for a plain ELF
    :ivar machine: ELF e_machine; in JSON only if it is not the natural one of `bits`
    :ivar big_endian: ELF data encoding; in JSON only if true
    """

    bits: int
    pae: str
    virt_base: int
    virt_kstart: int
    virt_kend: int
    entry: int
    paddr: tuple[int, int]
    segments: tuple[Segment, ...]
    symbols: Mapping[str, int] | None = field(default=None, hash=False)
    init_p2m: int | None = None
    mod_start_pfn: bool = False
    features: str | None = None
    supported_features: int | None = None
    hypercall_page: int | None = None
    hv_start_low: int | None = None
    notes: tuple[Note, ...] = ()
    payload: str | None = None
    machine: int = EM_X86_64
    big_endian: bool = False

    @property
    def refuses_dom0(self) -> bool:
        """SUPPORTED_FEATURES is there, and neither it nor FEATURES names dom0 (SPEC B2)."""
        if self.supported_features is None:
            return False
        named = {name.lstrip("!") for name in (self.features or "").split("|")}
        return not (self.supported_features >> XENFEATURES["dom0"] & 1 or "dom0" in named)

    def as_dict(self) -> dict[str, Any]:
        """The `kernel` JSON object: plain ints, strings and lists."""
        facts = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        if self.machine == natural_machine(self.bits) and not self.big_endian:
            del facts["machine"], facts["big_endian"]
        return facts

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any], *, source: object = "kernel") -> "Kernel":
        """A kernel from its JSON object; absent keys take their defaults, see kernel_fields.

        :param source: name of the file, for messages
        :raises InputError: an unknown key, a value of a wrong type or out of range
        """
        return cls(**kernel_fields(facts, source))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


@cache
def default_kernel() -> Kernel:
    """Facts of Debian's linux-image-6.1.0-56-amd64, shipped with the package."""
    text = resources.files("xenpt").joinpath("data", DEFAULT_KERNEL).read_text("utf-8")
    return Kernel.from_dict(json.loads(text), source=DEFAULT_KERNEL)


def read_kernel(path: str | Path, *, system_map: str | Path | None = None) -> Kernel:
    """A kernel from an ELF file, a bzImage, or the JSON that `xenpt kernel --json` prints.

    :param system_map: System.map of the same kernel, if the image has no symbols (a bzImage)
    :raises InputError: not such a file, or one that libelf would refuse
    :raises MissingCodecError: the payload needs a package that is not installed
    """
    kernel = kernel_from_bytes(read_file(path), path)
    return kernel if system_map is None else with_system_map(kernel, system_map)


def kernel_from_bytes(data: Data, source: object) -> Kernel:
    """What read_kernel does with a file's contents; `source` is its name for messages."""
    if data[:64].lstrip().startswith(b"{"):
        return _from_json(data, source)
    image, payload = unpack_image(data, source)
    if payload not in (None, "none"):
        source = f"{source} ({payload} payload)"
    elf = Elf(image, source)
    fields = xen_fields(elf)
    check_addresses(fields, source)
    return Kernel(
        bits=elf.bits,
        symbols=image_symbols(elf),
        payload=payload,
        machine=elf.machine,
        big_endian=elf.big_endian,
        **fields,
    )


def with_system_map(kernel: Kernel, path: str | Path) -> Kernel:
    """The kernel with the symbols of a System.map.

    :raises InputError: not a System.map, or that of a kernel that lies elsewhere
    """
    symbols = read_system_map(path)
    if not kernel.virt_kstart <= symbols["_text"] < kernel.virt_kend:
        raise InputError(path, f"of another kernel: _text {symbols['_text']:#x} is not in it")
    for name, vaddr in symbols.items():
        if (kernel.symbols or {}).get(name, vaddr) != vaddr:
            raise InputError(path, f"of another kernel: {name} is {vaddr:#x} here")
    return dataclasses.replace(kernel, symbols={**(kernel.symbols or {}), **symbols})


def _from_json(data: Data, source: object) -> Kernel:
    return Kernel.from_dict(parse_json(bytes(data[: MAX_BYTES + 1]), source), source=source)
