# SPDX-License-Identifier: GPL-2.0-or-later
"""`xenpt sweep`: options -> cases, the sweep with its journal beside the output, its formats."""

import stat
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from xenpt import output
from xenpt.errors import UsageError
from xenpt.inputs.kernel import default_kernel
from xenpt.journal import nr_rows
from xenpt.linux import MAINLINE
from xenpt.report import progress_bar
from xenpt.scenario import Case, expand, named_e820, named_kernel, parse_sizes, read_scenario
from xenpt.sweeps import sweep
from xenpt.sweeptable import Sweep, require_parquet
from xenpt.timing import TimeModel

DEFAULT_MEMORY = "1G..64T"
FORMATS = ("text", "json", "jsonl", "csv", "parquet")
JOURNAL_SUFFIX = ".partial"  # of the rows that there are, until the output is complete
#: Options that say what to sweep, by the axis of each; None where they are not given.
_AXES: Final[dict[str, tuple[str, Callable[[Any], list[Any]]]]] = {
    "memory": ("nr_pages", parse_sizes),
    "host": ("host_pages", parse_sizes),
    "dom0_mem": ("dom0_mem", list),
    "e820": ("e820", lambda path: [named_e820(path)]),
    "kernel": ("kernel", lambda paths: [named_kernel(path) for path in paths]),
    "no_init_p2m": ("init_p2m", lambda given: [not given]),
    "initrd": ("initrd_bytes", lambda nr_bytes: [nr_bytes]),
    "xen": ("xen", lambda text: text.split(",")),
    "linux": ("linux", lambda text: text.split(",")),
    "builder": ("builder", lambda text: text.split(",")),
    "p2m_leaf": ("p2m_leaf", lambda text: text.split(",")),
}


def chosen_format(options: Namespace) -> str:
    """One of FORMATS: as an option says, or else by the output file's name.

    :raises UsageError: two formats, or one that needs a file
    """
    if options.json and options.format not in (None, "json"):
        raise UsageError(f"give --json or --format {options.format}, not both")
    suffix = Path(options.output or "").suffix[1:].lower()
    found = "json" if options.json else options.format
    found = found or (suffix if suffix in FORMATS else "text")
    if found == "parquet":
        if options.output in (None, "-"):
            raise UsageError("Parquet needs a file: -o FILE")
        require_parquet()
    return str(found)


def run(options: Namespace, model: TimeModel) -> Sweep:
    """The sweep that the options ask for; its rows are in the journal until `finish`.

    :raises UsageError: options without meaning
    """
    cases = _cases(options)
    journal = journal_path(options.output)
    if options.workers < 0:
        raise UsageError(f"--workers {options.workers}: expected 0 or more")
    if options.workers and options.scheduler:
        raise UsageError("give --workers or --scheduler, not both")
    if options.resume and journal is None:
        raise UsageError("--resume needs the file that the rows go to: -o FILE")
    nr_done = nr_all = 0
    try:
        with progress_bar("sweep", quiet=options.quiet) as bar:

            def progress(done: int, whole: int) -> None:
                nonlocal nr_done, nr_all
                nr_done, nr_all = done, whole
                if bar:
                    bar(done, whole)

            return sweep(
                cases,
                journal=journal,
                resume=options.resume,
                workers=options.workers,
                scheduler=options.scheduler,
                progress=progress,
                model=model,
            )
    except BaseException:
        if journal and nr_done < nr_all:
            # A signal may come between a row's write and the report of it: the file knows.
            where = f"{journal}: --resume goes on from there"
            output.complain(f"{nr_rows(journal)} of {nr_all} rows are in {where}")
        raise


def contents(found: Sweep, form: str) -> str | bytes | None:
    """The output in the formats that only a sweep has."""
    if form == "jsonl":
        return found.as_json_lines()
    if form == "csv":
        return found.as_csv()
    return found.as_parquet() if form == "parquet" else None


def finish(options: Namespace) -> None:
    """Remove the journal: the output is complete."""
    journal = journal_path(options.output)
    if journal:
        journal.unlink(missing_ok=True)


def journal_path(path: str | None) -> Path | None:
    """Where rows are kept on their way to the file `path`; None where that is no regular file."""
    if path in (None, "-"):
        return None
    target = Path(str(path))
    try:
        if not stat.S_ISREG(target.stat().st_mode):
            return None
    except (OSError, ValueError):  # not there yet, or not to be had: writing it will tell
        pass
    return target.with_name(target.name + JOURNAL_SUFFIX) if target.name else None


def _cases(options: Namespace) -> list[Case]:
    given = {name: getattr(options, name) for name in _AXES}
    given = {name: v for name, v in given.items() if v is not None and v is not False}
    if options.scenario is not None:
        if not options.scenario.endswith(".toml"):
            raise UsageError(f"{options.scenario!r} is no .toml file; give sizes by --memory")
        given |= {"rule": options.rule} if options.rule else {}
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise UsageError(f"{options.scenario} says what to sweep: leave out {names}")
        return read_scenario(options.scenario)
    if not given.keys() & {"memory", "host", "e820", "dom0_mem"}:
        given["memory"] = DEFAULT_MEMORY
    axes: dict[str, list[Any]] = {"p2m_leaf": ["auto"]}
    for name, value in given.items():
        axis, read = _AXES[name]
        axes[axis] = read(value)
    if options.rule:
        profiles = axes.get("linux", [MAINLINE.name])
        axes["linux"] = ["+".join([profile, *options.rule]) for profile in profiles]
    return expand(Case(default_kernel()), axes)
