# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that a command writes beside its answer: contents by name, made when they are written."""

import json
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from xenpt.errors import UsageError
from xenpt.linux import Boot
from xenpt.pictures.picture import Picture, plot_format
from xenpt.pictures.timeline import timeline_picture
from xenpt.plan import Plan
from xenpt.timing import TimeModel
from xenpt.tracing import chrome_trace

Files = dict[str, Callable[[], Any]]


def plot(options: Namespace, picture: Callable[[], Picture]) -> Files:
    """The picture of an answer, if --plot asks for one."""
    path = options.plot
    return {} if path is None else {path: lambda: picture().as_bytes(plot_format(path))}


def boot_files(options: Namespace, found: Boot | Plan, model: TimeModel) -> Files:
    """Plot and trace of a boot; a plan that panics has neither, and says so when asked."""

    def boot() -> Boot:
        if isinstance(found, Boot):
            return found
        raise UsageError(f"the guest does not boot: {found.panic}")

    files = plot(options, lambda: timeline_picture(boot(), model))
    if options.trace is not None:
        files[options.trace] = lambda: json.dumps(chrome_trace(boot(), model)) + "\n"
    return files
