# SPDX-License-Identifier: GPL-2.0-or-later
"""The few addresses of a Linux kernel that its early boot depends on: symbols of a vmlinux, of a
System.map, or what the section headers of a stripped image still say."""

from pathlib import Path

from xenpt.abi import PAGE_SIZE, WORD, round_up
from xenpt.errors import InputError
from xenpt.inputs.elf import Elf
from xenpt.inputs.files import MAX_LINE, read_file

# `_brk_end` is left out on purpose: a symbol table has the address of that variable, and what
# the boot needs is its value.
LINUX_SYMBOLS = (
    "_text",
    "__bss_stop",
    "__brk_base",
    "__brk_limit",
    "_end",
    "init_top_pgt",
    "init_level4_pgt",  # name of init_top_pgt before v4.13
    "level3_ident_pgt",
    "level3_kernel_pgt",
    "level2_ident_pgt",
    "level2_kernel_pgt",
    "level2_fixmap_pgt",
    "level1_fixmap_pgt",
    "level3_user_vsyscall",
)
MAX_MAP_BYTES = 64 << 20  # those of distributions have 10 MiB at most


def image_symbols(elf: Elf) -> dict[str, int] | None:
    """Symbols of an image by its symbol table, else by its sections; None without any.

    :raises InputError: the symbol table is not in the file
    """
    return elf.symbols(LINUX_SYMBOLS) or _section_symbols(elf) or None


def read_system_map(path: str | Path) -> dict[str, int]:
    """Symbols of a System.map: lines of a hexadecimal address, a type letter and a name.

    :raises InputError: a line of another form, or none of Linux's symbols in it
    """
    found = {}
    wanted = frozenset(LINUX_SYMBOLS)
    lines = iter(read_file(path, limit=MAX_MAP_BYTES).readline, b"")
    for number, line in enumerate(lines, 1):
        words = line[:MAX_LINE].decode("latin-1").split()
        if len(words) > 3 and b"System.map is in" in line:
            raise InputError(path, f"a stub without symbols: {' '.join(words[2:])}")
        address = _hex(words[0]) if len(words) >= 3 and len(words[1]) == 1 else None
        if address is None:
            raise InputError(path, f"line {number} is not 'address type name'")
        if words[2] in wanted:
            found[words[2]] = address
    if "_text" not in found:
        raise InputError(path, "no symbol _text: not a System.map of Linux")
    return found


def _section_symbols(elf: Elf) -> dict[str, int]:
    """Symbols that are section borders in Linux's vmlinux.lds.S; a bzImage's payload is stripped
    of all others. (The brk area begins where bss stops, and the image ends with it.)"""
    text, brk = elf.section(".text"), elf.section(".brk")
    if text is None or brk is None or not text.vaddr < brk.vaddr:
        return {}
    return {
        "_text": text.vaddr,
        "__bss_stop": brk.vaddr,
        "__brk_base": brk.vaddr,
        "__brk_limit": brk.vaddr + brk.size,
        "_end": round_up(brk.vaddr + brk.size, PAGE_SIZE),
    }


def _hex(text: str) -> int | None:
    try:
        value = int(text, 16)
    except ValueError:
        return None
    return value if 0 <= value < WORD else None
