# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of `xenpt capacity`; apart from what answers them, so that `--help` is quick."""

from argparse import ArgumentParser


def add_capacity_options(command: ArgumentParser) -> None:
    """What `xenpt capacity` takes besides Linux, kernel and output."""
    command.add_argument(
        "fleet",
        metavar="FLEET.toml",
        nargs="?",
        help="a file with kinds of hosts, and the guests that they are to house",
    )
    host = command.add_argument_group("the host")
    host.add_argument(
        "--host", metavar="SIZES", help="its memory: 12T; or 1T..12T, 2T,6T: hosts to choose from"
    )
    host.add_argument("--e820", metavar="FILE", help="its memory map instead, from a log")
    host.add_argument("--xen", metavar="VERSION", help="default: 4.17")
    host.add_argument("--bigmem", action="store_true", help="Xen is built with CONFIG_BIGMEM")
    dom0 = command.add_argument_group("dom0")
    dom0.add_argument(
        "--dom0-rule",
        metavar="NAME|all",
        help="whose rule sizes dom0: xenserver (default), xenserver-6, xcp-ng, oracle-vm, suse-11, "
        "qubes, xen; all: a table of them",
    )
    dom0.add_argument("--dom0-mem", metavar="SPEC", help="or Xen's option itself")
    guests = command.add_argument_group("the guests")
    guests.add_argument(
        "--guests", metavar="NxSIZE", action="append", default=[], help="as 5x2T; may be repeated"
    )
    guests.add_argument(
        "--type", metavar="LIST", help="pvh (default), pv, hvm; pv,pvh: one beside the other"
    )
    guests.add_argument("--vcpus", metavar="N", type=int, help="of each guest; default: 1")
