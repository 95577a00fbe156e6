# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases shared out to worker processes of this or of other machines, by dask.distributed.

A task is a few cases, whole: it needs nothing from any other, so that a worker may end at any
moment and the scheduler gives its tasks to another one. Nothing but cases and counts travels.
"""

import importlib
import logging
import re
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from typing import Any

from xenpt.errors import ClusterError, MissingExtraError, UsageError
from xenpt.scenario import Case
from xenpt.sweeprow import Row, identity, measure

WAIT_SECONDS = 20  # for a scheduler to answer, and for its first worker
TASKS_PER_THREAD = 8  # so that nobody waits long for the last one
MAX_BATCH = 64  # cases of a task: what the end of a worker costs at most
_ADDRESS = re.compile(r"(tcp|tls)://[^/\s]+:[0-9]{1,5}")


def compute_on_cluster(
    cases: Sequence[Case], *, workers: int, scheduler: str | None
) -> Generator[tuple[Case, Row]]:
    """Each case with its results, as they come.

    :param workers: processes to start on this machine, where no scheduler is given
    :raises MissingExtraError: dask.distributed is not installed
    :raises ClusterError: no scheduler, no worker, or workers with another xenpt
    """
    if scheduler is not None and not _ADDRESS.fullmatch(scheduler):
        raise UsageError(f"scheduler {scheduler!r}: expected tcp://HOST:PORT")
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise MissingExtraError("distributed", "cluster") from error
    closed = importlib.import_module("distributed.comm").CommClosedError
    lost = (distributed.KilledWorker, distributed.CancelledError, closed)
    with _quiet(), ExitStack() as stack:
        workers = min(workers, len(cases))  # more would have nothing to do
        client = stack.enter_context(_client(distributed, stack, workers, scheduler))
        batches = _batches(cases, _nr_threads(client))
        tasks = {client.submit(compute_batch, batch, pure=False): batch for batch in batches}
        try:
            ended = distributed.as_completed(tasks, loop=client.loop, with_results=True)
            for task, outcome in ended:
                if isinstance(outcome, BaseException):  # of a task that nobody will do any more
                    raise ClusterError(f"the cluster gave up: {_in_short(outcome)}")
                theirs, results = outcome
                _check_identity(theirs)
                yield from zip(tasks.pop(task), results, strict=True)
        except lost as error:
            raise ClusterError(f"the cluster gave up: {_in_short(error)}") from error


def compute_batch(cases: Sequence[Case]) -> tuple[Row, list[Row]]:
    """What a worker does with a task: who counted, and the counts."""
    return identity(), [measure(case) for case in cases]


def _client(distributed: Any, stack: ExitStack, workers: int, scheduler: str | None) -> Any:
    address: Any = scheduler
    if scheduler is None:
        with _ctrl_c_not_for_children():
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
        address = stack.enter_context(cluster)
    try:
        return distributed.Client(address, timeout=WAIT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(f"no scheduler at {scheduler}: {_in_short(error)}") from error


def _nr_threads(client: Any) -> int:
    """Threads of all workers, once there is one and each of them has this xenpt."""
    try:
        client.wait_for_workers(1, timeout=WAIT_SECONDS)
    except TimeoutError as error:
        raise ClusterError(f"no worker came within {WAIT_SECONDS} s") from error
    try:
        identities = client.run(identity)
    except Exception as error:  # whatever a worker without xenpt runs into
        raise ClusterError(f"a worker cannot run xenpt: {_in_short(error)}") from error
    for theirs in identities.values():
        _check_identity(theirs)
    return sum(client.nthreads().values())


def _check_identity(theirs: Row) -> None:
    """Rows of one sweep are counted by one state of the code.

    :raises ClusterError: a worker has another one
    """
    for name, ours in identity().items():
        if None not in (ours, theirs[name]) and theirs[name] != ours:
            raise ClusterError(f"a worker has {name} {theirs[name]}, not {ours}")


def _batches(cases: Sequence[Case], nr_threads: int) -> list[Sequence[Case]]:
    size = max(1, min(MAX_BATCH, len(cases) // (TASKS_PER_THREAD * nr_threads)))
    return [cases[i : i + size] for i in range(0, len(cases), size)]


@contextmanager
def _ctrl_c_not_for_children() -> Iterator[None]:
    """A terminal sends Ctrl-C to all processes: those started here leave it to us to end them.

    They inherit the mask from the thread that starts them, and that from us: restarted ones, too.
    """
    resource_tracker.ensure_running()  # its start would clear the mask of that thread
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines of dask: what it mends is no news, and what it cannot mend is an exception."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _in_short(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
