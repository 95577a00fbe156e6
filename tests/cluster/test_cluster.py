# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep on worker processes has the rows of a sweep without, also when one of them is killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

import xenpt
from xenpt import cluster, sweeprow
from xenpt.errors import ClusterError, MissingExtraError, UsageError

distributed = pytest.importorskip(
    "distributed", reason="needs dask.distributed: pip install 'xenpt[cluster]'"
)
GIB = 1 << 18  # pages
SIZES = [GIB + (GIB >> 2) * i for i in range(120)]
TIME_LIMIT = 60  # seconds, for each test


@pytest.fixture(autouse=True)
def time_limit():
    """End the whole run rather than wait for a cluster for ever."""

    def stop(*_):
        raise TimeoutError(f"more than {TIME_LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def whole():
    """The rows of one process."""
    return xenpt.sweep(nr_pages=SIZES)


class KillOne:
    """Kills a worker as soon as the first row is there."""

    def __init__(self):
        self.pid = None

    def __call__(self, done, _whole):
        if done and self.pid is None:
            self.pid = multiprocessing.active_children()[0].pid
            os.kill(self.pid, signal.SIGKILL)


def test_killed_worker_changes_no_row(whole, tmp_path):
    journal = tmp_path / "rows"
    assert multiprocessing.active_children() == []
    kill = KillOne()
    table = xenpt.sweep(nr_pages=SIZES, workers=2, journal=journal, progress=kill)
    assert kill.pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(kill.pid, 0)
    assert table == whole
    assert sorted(journal.read_text().splitlines()) == sorted(whole.as_json_lines().splitlines())
    assert multiprocessing.active_children() == []


def cluster_of_two():
    return distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=None,
        silence_logs="CRITICAL",
    )


def test_scheduler_of_somebody_else_and_a_worker_that_does_not_come_back(whole):
    with cluster_of_two() as local:
        killed = []

        def kill(done, _whole):
            if done and not killed:
                nanny = next(iter(local.workers.values()))
                killed.append(nanny.pid)
                nanny.auto_restart = False
                os.kill(nanny.pid, signal.SIGKILL)

        table = xenpt.sweep(nr_pages=SIZES, scheduler=local.scheduler_address, progress=kill)
        assert killed
        assert table == whole


def test_command_line(whole, tmp_path):
    memory = ",".join(f"{pages >> 8}M" for pages in SIZES)
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "xenpt", "sweep", "--memory", memory, "-o", str(path)]
    done = subprocess.run(
        [*command, "--workers", "2"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert path.read_text() == whole.as_json_lines()


def test_command_that_is_killed_goes_on_without_workers(whole, tmp_path):
    memory = ",".join(f"{pages >> 8}M" for pages in SIZES)
    path, journal = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.partial"
    command = [sys.executable, "-m", "xenpt", "sweep", "--memory", memory, "-o", str(path)]
    with subprocess.Popen([*command, "--workers", "2"]) as process:
        while not journal.exists() or not journal.read_bytes():
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert not path.exists()
    subprocess.run([*command, "--resume"], check=True)
    assert path.read_text() == whole.as_json_lines()


def test_ctrl_c_at_a_terminal_is_two_lines(tmp_path):
    memory = ",".join(f"{pages >> 8}M" for pages in SIZES)
    journal = tmp_path / "rows.jsonl.partial"
    command = [sys.executable, "-m", "xenpt", "sweep", "--memory", memory, "--workers", "2"]
    with subprocess.Popen(
        [*command, "-o", str(tmp_path / "rows.jsonl")],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while not journal.exists() or not journal.read_bytes():
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        said = process.communicate()[1].splitlines()
    assert process.returncode == -signal.SIGINT
    assert said[0].endswith(f"{journal}: --resume goes on from there")
    assert said[1:] == ["xenpt: stopped by SIGINT"]


# --- What can go wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["localhost:8786", "tcp://localhost", "http://a:1", "tcp://:1"])
def test_address_of_no_scheduler(address):
    with pytest.raises(UsageError, match=r"expected tcp://HOST:PORT"):
        xenpt.sweep(nr_pages=GIB, scheduler=address)


def test_scheduler_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(cluster, "WAIT_SECONDS", 1)
    with pytest.raises(ClusterError, match=r"no scheduler at tcp://127\.0\.0\.1:1: ") as caught:
        xenpt.sweep(nr_pages=GIB, scheduler="tcp://127.0.0.1:1")
    assert "\n" not in str(caught.value)


def test_cluster_that_goes_away_leaves_the_rows(whole, tmp_path, capfd):
    journal = tmp_path / "rows"
    with cluster_of_two() as local:

        def close(done, _whole):
            if done == 1:
                local.close()

        with pytest.raises(ClusterError, match="the cluster gave up: ") as caught:
            xenpt.sweep(
                nr_pages=SIZES,
                scheduler=local.scheduler_address,
                journal=journal,
                progress=close,
            )
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert 1 <= len(journal.read_text().splitlines()) < len(SIZES)
    assert xenpt.sweep(nr_pages=SIZES, journal=journal, resume=True) == whole


def test_worker_with_another_xenpt(monkeypatch):
    ours = sweeprow.identity()
    monkeypatch.setattr(cluster, "identity", lambda: ours | {"xenpt": "0.0.1"})
    with pytest.raises(ClusterError, match=r"a worker has xenpt .*, not 0\.0\.1"):
        cluster._check_identity(ours)
    cluster._check_identity(ours | {"xenpt": "0.0.1", "commit": None})


def test_dask_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"xenpt\[cluster\]"):
        xenpt.sweep(nr_pages=GIB, workers=2)
