# SPDX-License-Identifier: GPL-2.0-or-later
"""What once was, or would be, a crash, a hang or a flood: taken or refused, within the bounds."""

import json
import struct
from pathlib import Path

import elfbuilder
import pytest
from fuzz.bounds import bounded
from fuzz.targets import SCENARIO, TARGETS

from xenpt.errors import XenptError

CRASHES = Path(__file__).with_name("crashes")


def nested(depth):
    return "[" * depth + "]" * depth


def kernel_json(**changes):
    return json.dumps(json.loads(next(TARGETS["kernel-json"].seeds())) | changes).encode()


def plan_json(**changes):
    return json.dumps(json.loads(next(TARGETS["diff"].seeds())) | changes).encode()


def kernel_with_many_notes(nr_segments, area):
    """Note segments that all name the same area of the file."""
    header_bytes, phdr_bytes = 64, 56
    start = header_bytes + nr_segments * phdr_bytes
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, 0, header_bytes, 0, 0, header_bytes, phdr_bytes, nr_segments,
        0, 0, 0,
    )  # fmt: skip
    phdr = struct.pack("<IIQQQQQQ", 4, 4, start, 0, 0, len(area), 0, 4)
    return header + nr_segments * phdr + area


LARGE_NAME = struct.pack("<III", 8 << 20, 0, 1) + bytes(8 << 20)
LONG_TEXT = elfbuilder.note("FEATURES", "x" * 4000)
FACT = "(XEN) Xen version 4.17.7 (root@x)\n"
HOSTILE = {
    # target, input, words of the refusal (None: it is taken)
    "size-kelvin": ("size", "600\u212a".encode(), "expected something like"),
    "size-long": ("size", b"9" * 5000 + b"G", "expected something like"),
    "size-of-everything": ("size", b"16383P", None),
    "xen-long": ("xen", b"4." + b"9" * 5000, "expected something like"),
    "initrd-name-too-long": ("size", b"1" * 300, "expected something like"),
    "json-nested": ("kernel-json", f'{{"bits": {nested(900)}}}'.encode(), "nested more than 32"),
    "json-very-nested": ("kernel-json", f'{{"bits": {nested(9000)}}}'.encode(), "not JSON"),
    "json-digits": ("kernel-json", b'{"bits": ' + b"9" * 4000 + b"}", "a number of 4000 digits"),
    "json-infinite": ("diff", plan_json(entry=0).replace(b"0", b"1e999"), "too large"),
    "json-nan": ("diff", b'{"entry": NaN}', "NaN is no number"),
    "diff-real-address": ("diff", plan_json(entry=1.5, p2m=[0.5, 1e300]), None),
    "diff-real-region": ("diff", plan_json(memory=[[0.5, 2]]), None),
    "kernel-colours": (
        "kernel-json",
        kernel_json(
            payload="\x1b[2J", features="\x1b]0;\x07|\u202e", notes=[["\x1b[31m", 4, "\x07"]],
            symbols={"\x1b": 1},
        ),
        None,
    ),
    "kernel-far-symbols": (
        "kernel-json", kernel_json(symbols={"init_top_pgt": 4096, "_end": 1 << 63}), None,
    ),
    "rule-colours": ("rule", "ro_tables=level2_\u202e:2".encode(), "expected SYMBOL"),
    "rule-letters": ("rule", "ro_tables=level2_\u00e9:2".encode(), None),
    "diff-colours": ("diff", plan_json(panic="\x1b[2J", magic="\u202e", **{"\x1b": 1}), None),
    "log-colours": ("log", (FACT + "(XEN) Panic on CPU 0:\n(XEN) \x9b2J\u202e\n").encode(), None),
    "journal-nested": ("journal", b'{"schema":' + nested(900).encode() + b"}\n", "not a row"),
    "scenario-nested": ("scenario", f"memory = {nested(3000)}".encode(), "not TOML"),
    "scenario-product": (
        "scenario",
        f'memory = "4K..1P"\nlinux = {json.dumps([f"v6.1+pgt_buf_pages={i}" for i in range(60)])}\n'
        f"dom0_mem = {json.dumps([f'{i}G' for i in range(1, 60)])}".encode(),
        "more than 100000 combinations",
    ),
    "fleet-product": (
        "fleet",
        f'host = "4K..1P"\nguests = {json.dumps([f"{i}x1G" for i in range(1, 60)])}\n'
        f"vcpus = {list(range(1, 60))}".encode(),
        "more than 100000 combinations",
    ),
    "fleet-nested": ("fleet", f"host = {nested(3000)}".encode(), "not TOML"),
    "constants-infinite": ("constants", b"cpi = inf", "cpi: unknown, or no value of it"),
    "constants-digits": ("constants", b"cpi = " + b"9" * 5000, "not TOML"),
    "constants-too-large": ("constants", b"cpi = " + b"9" * 400, "cpi: unknown"),
    "fault-digits": ("fault", b"hole=0x" + b"f" * 5000, "hole"),
    "fault-colours": ("fault", "hole=\u202e\x1b[2J".encode(), "expected hole"),
    "scenario-groups": ("scenario", SCENARIO.encode() + b"[[guests]]\n" * 3000, "size of dom0"),
    "log-escapes": ("log", FACT.encode() + b"\x1b]" * 32000, None),
    "log-glued": ("log", (FACT + " - " * 20000).encode(), None),
    "log-regions": ("log", (FACT + "memblock_reserve: [mem 0x0-0x1] " * 2000).encode(), None),
    "log-clipped": (
        "log", (FACT + "".join(f"(XEN) Dom0 memory clipped to {i} pages\n" for i in range(1500)))
        .encode(), None,
    ),
    "log-boots": ("log", FACT.encode() * 1900, "more than 262144 lines or 256 boots"),
    "log-octal": ("log", (FACT + "Command line: mem=08 mem=0x\n").encode(), None),
    "log-digits": ("log", (FACT + f"Released {'9' * 5000} page(s)\n").encode(), None),
    "e820-entries": (
        "e820", "".join(f"[{i:013x}000, {i:013x}fff] (usable)\n" for i in range(1100)).encode(),
        "1100 e820 entries: Xen takes 1024",
    ),
    "e820-high": (
        "e820", b"[0000000000000000, ffffffff80000001] (usable)\n", "entry 0x0: RAM beyond 2.52",
    ),
    "e820-open": ("e820", b"[0000000000000000, 0000000000000000] (" * 1500, "no e820 line"),
    "notes-names": ("elf", kernel_with_many_notes(2000, LARGE_NAME), "Not a Xen-ELF image"),
    "notes-texts": ("elf", kernel_with_many_notes(2000, LONG_TEXT), "bytes of text"),
    "system-map-empty-lines": ("system-map", b"\n" * (1 << 22), "line 1 is not"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_is_taken_or_refused_in_little_time_and_memory(name):
    target, data, reason = HOSTILE[name]
    with bounded():
        if reason is None:
            TARGETS[target].run(data)
        else:
            with pytest.raises(XenptError, match=reason) as refusal:
                TARGETS[target].run(data)
            raise refusal.value  # one line, says bounded()


@pytest.mark.parametrize("codec", elfbuilder.COMPRESS)
def test_a_payload_that_unpacks_to_more_than_a_kernel_is_refused(codec):
    try:
        payload = elfbuilder.COMPRESS[codec](bytes(17 << 20))
    except ImportError as missing:
        pytest.skip(f"no codec: pip install 'xenpt[codecs]' ({missing})")
    with bounded(), pytest.raises(XenptError, match="more than 16 MiB of output"):
        TARGETS["bzimage"].run(elfbuilder.bzimage(payload))


@pytest.mark.parametrize("name", TARGETS)
def test_what_crashed_a_reader_once_does_so_no_more(name):
    kept = sorted(CRASHES.glob(f"{name}/*"))
    for path in kept:
        with bounded():
            TARGETS[name].run(path.read_bytes())
    assert len(kept) < 100, "keep one of each kind"


@pytest.mark.parametrize("name", TARGETS)
def test_a_fuzzer_begins_from_what_is_taken(name):
    taken = 0
    for data in TARGETS[name].seeds():
        with bounded():
            TARGETS[name].run(data)
            taken += 1
    assert taken
