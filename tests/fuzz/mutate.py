# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of a text that its reader takes more often than changed bytes: numbers and lines."""

import random
import re

_NUMBER = re.compile(rb"0x[0-9a-f]+|\b[0-9a-f]{16}\b|\b[0-9]+\b")
#: Borders of pages, tables, address spaces and numbers.
BORDERS = [
    0, 1, 4096, 1 << 20, 1 << 21, 1 << 30, 0xC000_0000, 1 << 32, 1 << 39, 1 << 40, 1 << 46, 1 << 47,
    1 << 48, 1 << 52, 1 << 63, 0xFFFF_8000_0000_0000, 0xFFFF_8800_0000_0000, 0xFFFF_FFFF_8000_0000,
    0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_C000_0000, 1 << 64,
]  # fmt: skip


def mutate_text(data: bytes, most_bytes: int, chance: random.Random) -> bytes:
    """One to four numbers become others, of the same form; now and then a line goes or comes."""
    for _ in range(chance.randint(1, 4)):
        found = list(_NUMBER.finditer(data))
        if found:
            match = chance.choice(found)
            data = data[: match.start()] + _other(match[0], chance) + data[match.end() :]
    if chance.random() < 0.3:
        lines = data.split(b"\n")
        line = lines.pop(chance.randrange(len(lines)))
        if chance.random() < 0.5:
            for _ in range(2):
                lines.insert(chance.randint(0, len(lines)), line)
        data = b"\n".join(lines)
    return data[:most_bytes]


def _other(text: bytes, chance: random.Random) -> bytes:
    step = chance.choice([0, 0, 1, -1, 4096, -4096, chance.getrandbits(12), chance.getrandbits(34)])
    number = (chance.choice(BORDERS) + step) % (1 << 64)
    if text.startswith(b"0x"):
        return b"%#x" % number
    return b"%016x" % number if len(text) == 16 else b"%d" % number
