# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: options in, one answer out, and an exit status.

0: yes, or done; 1: the answer is no; 2: bad usage, unreadable input, or output that cannot be
written. What computes the answers is imported only when one is asked for, so that `--help` is
quick.
"""

import argparse
import contextlib
import json
import operator
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from xenpt import output
from xenpt.commandline import TIMED, parser
from xenpt.errors import StoppedError, UsageError, XenptError
from xenpt.report import coloured, plain

if TYPE_CHECKING:
    from xenpt.answers import Answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; without `arguments`, those of the process."""
    try:
        with output.stop_signals():
            return run(sys.argv[1:] if arguments is None else arguments)
    except XenptError as error:
        output.complain(str(error))
    except MemoryError:
        output.complain("not enough memory for this")
    except StoppedError as stopped:
        output.complain(str(stopped))
        if arguments is None:
            output.end_by_signal(stopped.number)
        return 128 + stopped.number
    except SystemExit:  # argparse, after --help or --version
        return 0
    return 2


def run(arguments: Sequence[str]) -> int:
    """Like `main`, but every failure is an exception.

    :raises XenptError: bad usage, unreadable input, output that cannot be written
    :raises StoppedError: a signal
    """
    options = parser().parse_args(_joined(arguments))
    _check_time_options(options)
    from xenpt import answers

    if getattr(options, "plot", None) is not None:
        from xenpt.pictures.picture import plot_format, require_matplotlib

        plot_format(options.plot)
        require_matplotlib()
    with _warnings_as_lines(quiet=options.quiet):
        answer = getattr(answers, options.command)(options)
    status = _write_files(answer)
    path = None if options.output == "-" else options.output
    if isinstance(answer.contents, bytes) and path is not None:
        output.write_file(path, answer.contents)
    else:
        output.write(_text(answer, json_wanted=options.json, to_file=path is not None), path)
    answer.written()
    return status


def _write_files(answer: "Answer") -> int:
    """Write what the options ask for besides the answer; its exit status.

    What cannot be made of this answer, such as the plot of a boot that never began, is said in one
    line, and the status is not 0.
    """
    status = int(answer.status)
    for path, contents in answer.files.items():
        try:
            output.write_file(path, contents())
        except UsageError as error:
            output.complain(f"{path}: not written: {error}")
            status = max(status, 1)
    return status


def _check_time_options(options: argparse.Namespace) -> None:
    """:raises UsageError: one of them stands before a command that models no time"""
    if options.command in (*TIMED, "founding_question"):
        return
    for name in ("cpi", "ghz", "constants"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name}: xenpt {options.command} models no time")


def _text(answer: "Answer", *, json_wanted: bool, to_file: bool) -> str:
    if isinstance(answer.contents, str):
        return answer.contents
    if json_wanted:
        return json.dumps(answer.data, indent=2, default=operator.index) + "\n"
    if not to_file and sys.stdout is not None and sys.stdout.isatty():
        return coloured(answer.report)
    return plain(answer.report)


@contextlib.contextmanager
def _warnings_as_lines(*, quiet: bool) -> Iterator[None]:
    """What was understood, but perhaps not as meant, is one line on standard error."""
    from xenpt.units import SizeWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", SizeWarning)
        show_other = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, SizeWarning):
                show_other(message, category, filename, lineno, file, line)
            elif not quiet:
                output.complain(f"warning: {message}")

        warnings.showwarning = show
        yield


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--dom0-mem -256M` as one argument: argparse would take the amount for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--dom0-mem":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
