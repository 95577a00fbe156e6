# SPDX-License-Identifier: GPL-2.0-or-later
"""`sweep`: the costs of many guests, computed here or on many machines, and kept as they come."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from xenpt.cluster import compute_on_cluster
from xenpt.errors import UsageError
from xenpt.inputs.kernel import default_kernel
from xenpt.journal import Journal
from xenpt.plan import Plan
from xenpt.scenario import Case, case_of_plan, checked, expand, unique
from xenpt.stream import Progress
from xenpt.sweeprow import COLUMNS, Row, identity, measure, model_columns, row_of
from xenpt.sweeptable import Sweep
from xenpt.timing import TimeModel, time_model

MAX_INT = (1 << 63) - 1  # of a column's integers
#: What an axis may be given as: one value, or many.
Values = Any


def sweep(
    base: Plan | Sequence[Case] | None = None,
    *,
    journal: str | Path | None = None,
    resume: bool = False,
    workers: int = 0,
    scheduler: str | None = None,
    progress: Progress | None = None,
    model: TimeModel | None = None,
    **axes: Values,
) -> Sweep:
    """The costs of every combination of the axes' values.

    :param base: what holds where no axis says otherwise, or the cases of read_scenario()
    :param axes: one value or several of each: nr_pages, p2m_leaf, linux, xen, kernel, init_p2m,
        builder, host_pages, dom0_mem, initrd_bytes, e820
    :param journal: keep the rows in this file as they come
    :param resume: take the rows that it has already
    :param workers: processes of this machine that share the work; 0 for none but this one
    :param scheduler: address of a dask scheduler whose workers share the work
    :param model: what the modelled times are made of; None for the shipped constants
    :raises UsageError: values without meaning, or rows in the journal of another xenpt or model
    :raises ClusterError: the workers cannot be had, or run another xenpt
    """
    cases = _cases(base, axes)
    model = model or time_model()
    done: dict[str, Row] = {}
    with ExitStack() as open_files:
        kept: Journal | None = None
        if journal is not None:
            kept = open_files.enter_context(Journal(journal, resume=resume))
            done = _known_rows(kept, cases, identity() | model_columns(model))
        todo = [case for case in cases if case.input_hash not in done]
        if progress:
            progress(len(done), len(cases))
        computed = open_files.enter_context(closing(_compute(todo, workers, scheduler)))
        for case, results in computed:
            row = row_of(case, results, model)
            if kept:
                kept.append(row)
            done[case.input_hash] = row
            if progress:
                progress(len(done), len(cases))
    return Sweep(tuple(done[case.input_hash] for case in cases))


def _cases(base: Plan | Sequence[Case] | None, axes: dict[str, Values]) -> list[Case]:
    if base is not None and not isinstance(base, Plan):
        if axes:
            raise UsageError(f"the cases are given already: leave out {', '.join(axes)}")
        return checked(unique(base))
    if base is None:
        axes = {"p2m_leaf": "auto"} | axes
    one = Case(default_kernel()) if base is None else case_of_plan(base)
    return checked(expand(one, {name: _listed(values) for name, values in axes.items()}))


def _listed(values: Values) -> list[Any]:
    """A list of one value, or of many; a tuple is one value, such as a kernel and its name."""
    one = isinstance(values, str | tuple) or not isinstance(values, Iterable)
    return [values] if one else list(values)


def _known_rows(journal: Journal, cases: Sequence[Case], ours: Row) -> dict[str, Row]:
    """Rows of these cases in the journal.

    :param ours: columns that are the same in all rows of a sweep
    :raises UsageError: another xenpt wrote them, or with other constants; they were changed
    """
    wanted = {case.input_hash: case.inputs for case in cases}
    rows = {key: row for key, row in journal.rows.items() if key in wanted}
    for key, row in rows.items():
        for name, value in ours.items():
            if row.get(name) != value:
                raise UsageError(
                    f"{journal.path}: its rows are of {name} {row.get(name)}, not {value}: "
                    "remove the file to begin anew"
                )
        if list(row) != list(COLUMNS):
            raise UsageError(f"{journal.path}: its rows have other columns")
        for name, value in row.items():
            if not _is_of(COLUMNS[name], value) or wanted[key].get(name, value) != value:
                raise UsageError(f"{journal.path}: a row has {value!r} in column {name}")
    return rows


def _is_of(kind: type, value: object) -> bool:
    """Whether a column of that type may have the value: None, or one that its table can hold."""
    if value is None:
        return True
    if kind is float:
        return isinstance(value, int | float) and abs(value) < MAX_INT
    return type(value) is kind and not (isinstance(value, int) and abs(value) > MAX_INT)


def _compute(
    cases: Sequence[Case], workers: int, scheduler: str | None
) -> Generator[tuple[Case, Row]]:
    """Each case with its results, in any order."""
    if not cases or (workers == 0 and scheduler is None):
        return ((case, measure(case)) for case in cases)
    return compute_on_cluster(cases, workers=workers, scheduler=scheduler)
