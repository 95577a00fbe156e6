# SPDX-License-Identifier: GPL-2.0-or-later
"""Options for pictures, and for other files beside an answer."""

from argparse import ArgumentParser

PLOTTED = ("plan", "boot", "sweep", "capacity")  # commands whose answer has a picture


def add_report_options(command: ArgumentParser) -> None:
    """What `xenpt report` takes besides the guest, the host and the output."""
    command.add_argument(
        "--guests",
        metavar="SIZE",
        default="64G",
        help="of the guests that fill the hosts of the capacity picture; default: 64G",
    )


def add_file_options(command: ArgumentParser, name: str) -> None:
    """Files that the command `name` can write besides its answer."""
    if name in PLOTTED:
        files = command.add_argument_group("further files")
        files.add_argument("--plot", metavar="FILE.svg|png", help="a picture of the answer")
    if name == "boot":
        text = "the stages as Chrome's trace events, for Perfetto; times modelled"
        files.add_argument("--trace", metavar="FILE.json", help=text)
