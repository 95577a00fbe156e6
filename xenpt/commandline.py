# SPDX-License-Identifier: GPL-2.0-or-later
"""The parser: every command, its options, and the help. What answers is not imported here."""

import argparse
from typing import Any, NoReturn

from xenpt import output
from xenpt.capacityoptions import add_capacity_options
from xenpt.errors import UsageError
from xenpt.pictureoptions import add_file_options, add_report_options

#: The commands, by the question that they answer.
QUESTIONS = {
    "Will it boot?": {
        "plan": "where will everything be? prints Xen's own arrangement block",
        "boot": "does it boot, through which stages, at what cost?",
    },
    "What does it cost?": {
        "cleanup": "what does freeing the initial P->M list cost?",
        "sweep": "how do the costs grow with memory?",
        "report": "the pictures of all this, on one page for a browser",
    },
    "How much is left?": {
        "capacity": "what is left of a host, and what limits it?",
    },
    "What is in this file?": {
        "kernel": "what does this kernel ask of Xen? (ELF or bzImage)",
        "explain": "does this `xl dmesg` or Linux log agree with the model? why did it panic?",
        "diff": "what changed between two plans, boots or cleanups?",
    },
}
#: Of the others: [MEMORY].
ARGUMENTS = {
    "kernel": "[FILE]",
    "sweep": "[SCENARIO.toml]",
    "capacity": "[FLEET.toml]",
    "explain": "LOG",
    "diff": "A.json B.json",
}
#: Commands that model times, besides the bare one.
TIMED = ("boot", "cleanup", "sweep", "report")
ABOUT = """\
Build, boot and tear down the page tables of a Xen PV guest of any size.
Without a command: the question that began it, answered for a dom0 of 600 GiB.
"""
NOTES = """\
sizes: 600G, 2TiB, 1234567K, 1.5T, 0x40000000 (bytes); K M G T P are powers of two
exit status: 0 yes or done; 1 the answer is no (a panic, a difference);
             2 bad usage or input, or a boot that is not modelled to its end
"""


class Parser(argparse.ArgumentParser):
    """Bad usage is an exception, and help goes the way of every output."""

    def error(self, message: str) -> NoReturn:
        """One line, with the way to the help."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def print_help(self, file: object = None) -> None:
        """Write the help to standard output."""
        del file
        output.write(self.format_help())


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from xenpt import __version__

        output.write(f"xenpt {__version__}\n")
        parser.exit()


def parser() -> Parser:
    """The whole command line. What the bare command takes may also stand before a command."""
    whole = Parser(
        prog="xenpt",
        usage="xenpt [COMMAND] [MEMORY|FILE] [options]",
        description=f"{ABOUT}\n{_list_of_commands()}",
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    whole.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    _add_time_options(whole, keep=False)
    _add_output_options(whole, keep=False)
    whole.set_defaults(command="founding_question")
    commands = whole.add_subparsers(metavar="COMMAND", help=argparse.SUPPRESS)
    for name, question in _commands().items():
        argument = ARGUMENTS.get(name, "[MEMORY]")
        command = commands.add_parser(
            name,
            prog=f"xenpt {name}",
            usage=f"xenpt {name} {argument} [options]",
            description=question[0].upper() + question[1:],
            epilog=NOTES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(command=name)
        if name == "kernel":
            command.add_argument(
                "file",
                metavar="FILE",
                nargs="?",
                help="ELF, bzImage or JSON; without it, the shipped default kernel",
            )
            _add_system_map(command)
        elif name == "sweep":
            _add_sweep_options(command)
        elif name == "capacity":
            add_capacity_options(command)
            _add_linux_options(command.add_argument_group("Linux in dom0 and in PV guests"))
            _add_kernel_options(command)
        elif name == "explain":
            command.add_argument("file", metavar="LOG", help="of Xen, Linux or both; - for stdin")
        elif name == "diff":
            help_text = "written by --json of plan, boot, cleanup or kernel"
            command.add_argument("before", metavar="A.json", help=help_text)
            command.add_argument("after", metavar="B.json", help="likewise")
        else:
            command.add_argument(
                "memory",
                metavar="MEMORY",
                nargs="?",
                help="size of the guest; with --host, what dom0 asks for",
            )
            _add_kernel_options(command)
            _add_guest_options(command)
            if name == "report":
                command.set_defaults(fault=[])
            else:
                _add_fault_option(command)
        if name == "boot":
            _add_engine_options(command)
        if name == "report":
            add_report_options(command)
        if name in TIMED:
            _add_time_options(command, keep=True)
        _add_output_options(command, keep=True)
        add_file_options(command, name)
    return whole


def _add_guest_options(command: Parser) -> None:
    xen = command.add_argument_group("who builds the guest")
    xen.add_argument(
        "--builder",
        choices=("dom0", "toolstack"),
        default="dom0",
        help="Xen's own, for dom0 (default), or the toolstack's library, for every other guest",
    )
    xen.add_argument("--xen", metavar="VERSION", default="4.17", help="default: 4.17")
    xen.add_argument(
        "--p2m-leaf",
        choices=("auto", "4k", "2m", "1g"),
        default="auto",
        help="largest page that maps the P->M list; auto: what the builder would use",
    )
    xen.add_argument("--initrd", metavar="FILE|BYTES", help="initial ramdisk, or just its length")
    _add_linux_options(xen)
    host = command.add_argument_group("the host")
    host.add_argument("--host", metavar="SIZE", help="its memory")
    host.add_argument("--dom0-mem", metavar="SPEC", help="Xen's option, instead of MEMORY")
    host.add_argument(
        "--e820",
        metavar="flat|FILE",
        default="flat",
        help="its memory map: one RAM entry (default), or a log that has the map",
    )


def _add_fault_option(command: Parser) -> None:
    command.add_argument_group("what goes wrong").add_argument(
        "--fault",
        metavar="KIND=ARGS",
        action="append",
        default=[],
        help="oom, fragmented, refuse, corrupt, hole or e820; may be repeated; see docs/faults.md",
    )


def _add_linux_options(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--linux",
        metavar="PROFILE",
        default="v6.1",
        help="v4.1, seed, v4.3, v6.1 (default) or v6.12",
    )
    group.add_argument(
        "--rule",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="one flag of the profile changed, as skip_empty_entries=no; may be repeated",
    )


def _add_sweep_options(command: Parser) -> None:
    command.add_argument(
        "scenario",
        metavar="SCENARIO.toml",
        nargs="?",
        help="a file that says what to sweep, instead of options",
    )
    axes = command.add_argument_group("what to sweep: every combination")
    axes.add_argument(
        "--memory",
        metavar="SIZES",
        help="1G..64T: each doubling (default); 64G,600G,12T: a list",
    )
    for name, default in (
        ("p2m-leaf", "auto; or 4k,2m,1g"),
        ("linux", "v6.1; or seed,v6.1"),
        ("builder", "dom0; or dom0,toolstack"),
        ("xen", "4.17; or 4.14,4.20"),
    ):
        axes.add_argument(f"--{name}", metavar="LIST", help=f"default: {default}")
    axes.add_argument(
        "--kernel", metavar="FILE", action="append", help="or the word default; may be repeated"
    )
    axes.add_argument("--no-init-p2m", action="store_true", help="as if kernels had no such note")
    axes.add_argument(
        "--rule",
        metavar="NAME=VALUE",
        action="append",
        help="one flag of each profile changed; may be repeated",
    )
    axes.add_argument("--initrd", metavar="BYTES", type=int, help="length of the initial ramdisk")
    axes.add_argument("--host", metavar="SIZES", help="memory of the host, as --memory")
    axes.add_argument(
        "--dom0-mem", metavar="SPEC", action="append", help="Xen's option; may be repeated"
    )
    axes.add_argument("--e820", metavar="FILE", help="the host's memory map, from a log")
    run = command.add_argument_group("how to run it")
    run.add_argument(
        "--resume", action="store_true", help="go on with the rows of FILE.partial (with -o FILE)"
    )
    run.add_argument(
        "--workers", metavar="N", type=int, default=0, help="share the work among N processes"
    )
    run.add_argument(
        "--scheduler", metavar="tcp://HOST:PORT", help="share it among a dask scheduler's workers"
    )
    run.add_argument(
        "--format",
        choices=("text", "json", "jsonl", "csv", "parquet"),
        help="default: by the name of the output file, or text",
    )


def _add_engine_options(command: Parser) -> None:
    engine = command.add_argument_group("the engine")
    engine.add_argument(
        "--engine",
        choices=("extents", "packed", "stream"),
        default="extents",
        help="extents: all counts at once (default); stream: besides, every entry of the direct "
        "map and of the P->M list's mapping is built, marked and walked, and compared; packed: "
        "the same with all tables in memory at once",
    )
    engine.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        help="do each hypercall and store under Xen's rules, and compare every word, type and "
        "count behind each stage; default: up to 1 GiB (0.7 s), with what Linux may balloon into; "
        "at most 64 GiB (42 s)",
    )
    engine.add_argument(
        "--threads", type=int, default=1, metavar="N", help="of the stream; default: 1"
    )


def _add_time_options(command: Parser, *, keep: bool) -> None:
    """Options of TIMED; `keep` what stood before the command."""
    time = command.add_argument_group("what modelled times are made of")
    unset: Any = argparse.SUPPRESS if keep else None
    for name, text in (("cpi", "cycles per instruction; default: 1"), ("ghz", "clock; default: 3")):
        time.add_argument(f"--{name}", metavar="X", type=float, default=unset, help=text)
    time.add_argument(
        "--constants",
        metavar="FILE.toml",
        default=unset,
        help="instructions of each operation, in place of those shipped",
    )


def _add_kernel_options(command: Parser) -> None:
    kernel = command.add_argument_group("the guest's kernel")
    kernel.add_argument(
        "--kernel",
        metavar="FILE",
        help="ELF, bzImage or the JSON of xenpt kernel --json; default: Debian's 6.1.0-56-amd64",
    )
    _add_system_map(kernel)
    kernel.add_argument(
        "--no-init-p2m",
        action="store_true",
        help="as if it had no INIT_P2M note: the P->M list lies in the initial mapping",
    )


def _add_system_map(group: argparse._ActionsContainer) -> None:
    group.add_argument("--system-map", metavar="FILE", help="symbols, where the image has none")


def _add_output_options(command: Parser, *, keep: bool) -> None:
    """Options of every command; `keep` what stood before the command."""
    out = command.add_argument_group("output")
    unset: Any = argparse.SUPPRESS if keep else None
    flag: Any = argparse.SUPPRESS if keep else False
    out.add_argument("--json", action="store_true", default=flag, help="one JSON object")
    out.add_argument(
        "-o", "--output", metavar="FILE", default=unset, help="write to FILE, whole or not at all"
    )
    out.add_argument("--quiet", action="store_true", default=flag, help="no warnings")


def _commands() -> dict[str, str]:
    return {name: text for commands in QUESTIONS.values() for name, text in commands.items()}


def _list_of_commands() -> str:
    lines = []
    for question, commands in QUESTIONS.items():
        lines.append(question)
        lines += [f"  xenpt {name:<8} {text}" for name, text in commands.items()]
    return "\n".join(lines)
