# SPDX-License-Identifier: GPL-2.0-or-later
"""Every reader of untrusted input as a function of bytes, with inputs to begin from.

A target hands the bytes to the command that reads them, as a file or as an option; what is taken
is planned, booted, explained and written as text and JSON, as that command does it.
"""

import atexit
import gzip
import json
import operator
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import elfbuilder
from goldendata import log

import xenpt
from xenpt import answers, differ
from xenpt.commandline import parser
from xenpt.errors import XenptError
from xenpt.inputs.bootlog import PATTERNS
from xenpt.inputs.kernel import default_kernel
from xenpt.inputs.symbols import LINUX_SYMBOLS
from xenpt.linux.changes import rule_names
from xenpt.output import printable
from xenpt.report import plain
from xenpt.scenario import read_scenario

FILE = Path(tempfile.mkdtemp(prefix="xenpt-fuzz-")) / "input"
atexit.register(shutil.rmtree, FILE.parent)
Run = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """One reader.

    :ivar run: reads bytes and uses them, or raises
    :ivar seeds: inputs that are taken
    :ivar words: what occurs in such inputs
    :ivar most_bytes: of an input
    :ivar is_text: numbers and lines of an input are changed, too, not only bytes
    """

    run: Run
    seeds: Callable[[], Iterator[bytes]]
    words: tuple[str, ...] = ()
    most_bytes: int = 1 << 14
    is_text: bool = True


# --- What a target does ------------------------------------------------------------------------


def _answer(options: Namespace) -> None:
    """Run a command, and write its answer in both ways."""
    options = copy(options)  # some commands change theirs
    answer = getattr(answers, options.command)(options)
    for text in (plain(answer.report), _as_json(answer)):
        if printable(text).replace("\\n", "\n") != text.replace("\\n", "\n"):
            raise ValueError("a terminal would obey what is printed")


def _answers(asked: Sequence[Namespace]) -> None:
    """Run all of these commands; the first refusal counts if none of them answers.

    Of a refusal only the words are kept: it holds on to all that its command had in memory.
    """
    refusals = []
    for options in asked:
        try:
            _answer(options)
        except XenptError as refusal:
            refusals.append(str(refusal))
    if len(refusals) == len(asked):
        raise XenptError(refusals[0])


def _as_json(answer: answers.Answer) -> str:
    return json.dumps(answer.data, default=operator.index)


def _options(command: str) -> Namespace:
    words = command.split()
    if words[0] == "boot":
        words.append("--no-check")  # a checked boot takes seconds here, and reads no more
    return parser().parse_args(words)


def _file(*commands: str, made: Callable[[bytes], bytes] = bytes) -> Run:
    """The bytes as FILE of these commands, one after the other; `made` what to make of them."""
    asked = [_options(command.replace("FILE", str(FILE))) for command in commands]

    def run(data: bytes) -> None:
        FILE.write_bytes(made(data))
        _answers(asked)

    return run


def _text(*commands: str) -> Run:
    """The bytes as the argument TEXT of these commands, as a shell passes it; of a list: lines."""
    asked = [_options(command) for command in commands]

    def run(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        _answers([_with(options, text) for options in asked])

    return run


def _with(options: Namespace, text: str) -> Namespace:
    given = {
        name: text if value == "TEXT" else text.split("\n")
        for name, value in vars(options).items()
        if value in ("TEXT", ["TEXT"])
    }
    return Namespace(**vars(options) | given)


def _scenario(data: bytes) -> None:
    FILE.write_bytes(data)
    for case in read_scenario(FILE):
        case.plan().as_dict()


def _fleet() -> Run:
    """The bytes as a file of hosts and guests."""
    path = FILE.with_name("fleet.toml")
    options = _options(f"capacity {path}")

    def run(data: bytes) -> None:
        path.write_bytes(data)
        _answer(options)

    return run


def _journal() -> Run:
    """The bytes as rows of a sweep that did not end; it goes on from them."""
    output = FILE.with_name("rows.json")
    partial = output.with_name(output.name + ".partial")
    options = _options(f"sweep --memory 1G --resume -o {output}")

    def run(data: bytes) -> None:
        partial.write_bytes(data)
        _answer(options)

    return run


def _diff(data: bytes) -> None:
    """The bytes as an answer, against another one of its kind."""
    FILE.write_bytes(data)
    kind, _ = differ.read_answer(FILE)
    like = FILE.with_name(f"{kind}.json")
    if not like.exists():
        like.write_bytes(_json(ANSWERS[kind]))
    for names in ((FILE, like), (like, FILE)):
        _answer(Namespace(command="diff", before=names[0], after=names[1]))


# --- Where it begins ---------------------------------------------------------------------------

NOTES: dict[str, int | str | bytes | None] = {
    "INIT_P2M": 1 << 39, "MOD_START_PFN": 1, "FEATURES": "dom0|!writable_page_tables",
    "SUPPORTED_FEATURES": 0x8801, "PAE_MODE": "yes", "BSD_SYMTAB": "yes", "L1_MFN_VALID": bytes(16),
}  # fmt: skip
SYMBOLS = [("_text", 0xFFFF_FFFF_8100_0000, True, True), ("_end", 2, False, True)]
ANSWERS = {
    "plan": "plan 2G",
    "boot": "boot 2G",
    "cleanup": "cleanup 2G",
    "kernel": "kernel",
}
#: Logs of few lines that end in different ways, and of several Xen and Linux versions.
LOGS = ("c1g", "c2g", "c512m-x4.20", "c8g-relocate", "p-legacy-500g", "p-slot0", "x4.14-k6.12")
MAP = """\
(XEN)  [0000000000000000, 000000000009fbff] (usable)
(XEN)  [00000000000f0000, 00000000000fffff] (reserved)
(XEN)  [0000000000100000, 00000000bffdffff] (usable)
(XEN)  [0000000100000000, 000000043fffffff] (usable)
"""
OLD_MAP = """\
(XEN)  0000000000000000 - 000000000009fc00 (usable)
(XEN)  0000000000100000 - 0000000400000000 (usable)
"""
LINUX_MAP = """\
[    0.000000] Xen: [mem 0x0000000000000000-0x000000000009efff] usable
[    0.000000] Xen: [mem 0x0000000000100000-0x00000000bfffffff] usable
[    0.000000] BIOS-e820: [mem 0x00000000fec00000-0x00000000ffffffff] ACPI NVS
"""
SCENARIO = """\
linux = ["seed", "v6.1"]
[[guests]]
name = "small"
memory = ["1G..4G", "600G"]
p2m_leaf = ["4k", "2m"]
initrd = 4096
[[guests]]
host = "16G"
dom0_mem = ["2G,max:4G", "50%"]
builder = "dom0"
xen = "4.20"
init_p2m = false
"""
FLEET = """\
guests = ["40x512G", "5x2T"]
[[hosts]]
name = "new"
host = ["1T..4T", "12T"]
xen = ["4.16", "4.17"]
bigmem = true
[[hosts]]
host = "2T"
type = ["pv", "pvh"]
vcpus = 8
dom0_mem = "8G,max:8G"
dom0_rule = ["qubes", "xen"]
"""
CONSTANTS = """\
source = "mine"
cpi = 0.5
ghz = 3.29
[operations]
set_pte = {linux = 830.9, xen = 1014}
[measured]
host = "mine"
"""


def _json(command: str) -> bytes:
    options = _options(command)
    return _as_json(getattr(answers, options.command)(options)).encode()


def _images() -> Iterator[bytes]:
    yield elfbuilder.kernel(NOTES)
    section = elfbuilder.Section(".notes", elfbuilder.SHT_NOTE, data=elfbuilder.notes(NOTES))
    symbols = elfbuilder.symbol_sections(SYMBOLS, first=2)
    yield elfbuilder.Image(sections=[section, *symbols]).build()
    guest = b"GUEST_OS=linux,XEN_VER=xen-3.0,VIRT_BASE=0x1000000,BSD_SYMTAB=yes\0"
    yield elfbuilder.Image(
        bits=32, sections=[elfbuilder.Section("__xen_guest", data=guest)]
    ).build()


def _packed() -> Iterator[bytes]:
    for image in _images():
        for compress in elfbuilder.COMPRESS.values():
            yield elfbuilder.bzimage(compress(image))


def _logs() -> Iterator[bytes]:
    for name in LOGS:
        yield log(name).encode()


def _maps() -> Iterator[bytes]:
    yield from (MAP.encode(), OLD_MAP.encode(), LINUX_MAP.encode())


def _rows() -> Iterator[bytes]:
    yield xenpt.sweep(nr_pages=[1 << 18]).as_json_lines().encode()


def _system_maps() -> Iterator[bytes]:
    symbols = default_kernel().symbols or {}
    yield "".join(f"{vaddr:016x} T {name}\n" for name, vaddr in symbols.items()).encode()


def _ramdisks() -> Iterator[bytes]:
    yield from (b"070701", gzip.compress(b"070701" * 100))


def _kernel_without_symbols() -> Path:
    path = FILE.with_name("kernel.without-symbols")
    path.write_text(json.dumps(default_kernel().as_dict() | {"symbols": None}))
    return path


def _texts(*texts: str) -> Callable[[], Iterator[bytes]]:
    return lambda: (text.encode() for text in texts)


_KERNEL = (
    "kernel FILE", "plan 64T --no-init-p2m --kernel FILE", "boot 1G --initrd 5M --kernel FILE",
    "plan 1G --builder toolstack --kernel FILE",
)  # fmt: skip
_SIZES = ("600G", "2TiB", "1234567K", "1.5T", "0x40000000", "600GB", "16383P", "4096B")
_FACTS = ("virt_base", "paddr", "segments", "symbols", "init_p2m", "mod_start_pfn", "features")

TARGETS: dict[str, Target] = {
    "elf": Target(_file(*_KERNEL), _images, ("Xen\0", "xen-3.0", ".symtab"), is_text=False),
    "notes": Target(
        _file(*_KERNEL, made=lambda data: elfbuilder.Image(note_segment=data).build()),
        lambda: iter([elfbuilder.notes(NOTES), elfbuilder.notes()]),
        ("Xen\0", "xen-3.0", "generic", "linux", "writable_page_tables", "bimodal"),
        is_text=False,
    ),
    "bzimage": Target(_file("kernel FILE"), _packed, ("HdrS", "BZh", "\x89LZO"), is_text=False),
    "kernel-json": Target(
        _file(*_KERNEL), lambda: iter([_json("kernel")]), (*_FACTS, "null", "true", "1e9")
    ),
    "log": Target(_file("explain FILE"), _logs, tuple(PATTERNS), 1 << 16),
    "e820": Target(
        _file(
            "plan --e820 FILE", "boot 1G --e820 FILE", "boot --e820 FILE --dom0-mem 2G",
            "boot 3G --e820 FILE --linux v4.1 --initrd 50M",
        ),
        _maps,
        ("usable", "reserved", "(XEN)", "Xen: [mem 0x", "BIOS-e820: [mem 0x", "ffffffffffffffff"),
    ),
    "size": Target(
        _text("plan TEXT", "boot TEXT", "plan --host TEXT", "boot 1G --initrd TEXT"),
        _texts(*_SIZES), most_bytes=64,
    ),
    "dom0-mem": Target(
        _text("boot --host 16G --dom0-mem TEXT", "plan --host 12T --xen 4.10 --dom0-mem TEXT"),
        _texts("2G", "min:1G,max:4G,50%", "-256M", "1G+25%"),
        ("min:", "max:", "0x", "%"), 128,
    ),
    "initrd": Target(
        _file("boot 1G --initrd FILE", "plan 1G --builder toolstack --initrd FILE"), _ramdisks,
        is_text=False,
    ),
    "system-map": Target(
        _file(f"boot 1G --system-map FILE --kernel {_kernel_without_symbols()}"),
        _system_maps, LINUX_SYMBOLS,
    ),
    "scenario": Target(
        _scenario, lambda: iter([SCENARIO.encode()]), ("[[guests]]", "memory", "dom0_mem", "e820")
    ),
    "fleet": Target(
        _fleet(), lambda: iter([FLEET.encode()]),
        ("[[hosts]]", "host", "guests", "dom0_rule", "e820"),
    ),
    "constants": Target(
        _file("boot 1G --constants FILE"), lambda: iter([CONSTANTS.encode()]),
        ("operations", "linux", "xen", "cpi", "ghz", "source", "build", "1e999", "nan", "inf"),
    ),
    "fault": Target(
        _text("boot 1G --fault TEXT", "cleanup 1G --p2m-leaf 4k --fault TEXT"),
        _texts(
            "oom=xen:3\noom=linux:17", "fragmented=8:2", "refuse=9", "refuse=mmu_update:7",
            "refuse=paging_init:2", "corrupt=1:0xffffffff84a02000:^1", "corrupt=1:0x8000004000:0",
            "hole=0x4000:16", "e820=start_info", "e820=0x100000-0x200000",
        ),
        ("oom=", "xen:", "linux:", "corrupt=", "hole=", "e820=", "0x", "tables", "list"), 256,
    ),
    "rule": Target(
        _text("boot 1G --rule TEXT", "boot 1G --linux v4.1 --rule TEXT"),
        _texts("skip_empty_entries=no", "page_limit=512G\nlow_ram_bytes=0x1000", "ro_tables=a:2"),
        tuple(f"{name}=" for name in rule_names()), 256,
    ),
    "xen": Target(
        _text("boot 1G --xen TEXT", "plan 1G --builder toolstack --xen TEXT"),
        _texts("4.17", "3.0.4", "4.14-unstable"), most_bytes=64,
    ),
    "diff": Target(
        _diff, lambda: map(_json, ANSWERS.values()), ("stages", "name", "limit", "memory", "entry")
    ),
    "journal": Target(_journal(), _rows, ('{"schema":', "input_hash", "null")),
}  # fmt: skip
