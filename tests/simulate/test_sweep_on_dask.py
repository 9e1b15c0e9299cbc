# SPDX-License-Identifier: MIT
"""A sweep on a Dask cluster: the same table as in one process, though a worker is killed meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from dataclasses import replace

import pytest

from vmalloc.simulate import sweep
from vmalloc.simulate.costs import FOLDER
from vmalloc.simulate.plan import Plan
from vmalloc.simulate.sweep import SweepError, run_on_cluster, run_sweep

distributed = pytest.importorskip(
    "distributed", reason="a Dask cluster is not a test dependency: pip install distributed"
)

BASE = Plan(cpus=4, run_test_mask=1, test_loop_count=3000, shrunk=1)
PLANS = [
    replace(BASE, design=design, seed=seed)
    for design in ("linux-6.9", "vmalloc/percpu")
    for seed in range(12)
]


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=4, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as four:
        yield four


def test_a_killed_worker_changes_nothing_in_the_table(cluster) -> None:
    expected = run_sweep(PLANS)
    killed: list[int] = []

    def kill(done: int, _: int) -> None:
        if done >= 2 and not killed:
            killed.append(next(iter(cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    assert run_on_cluster(PLANS, cluster.scheduler_address, progress=kill) == expected
    assert killed


def test_finished_cells_are_kept_and_not_run_again(cluster, tmp_path) -> None:
    store = tmp_path / "cells.parquet"
    first = run_on_cluster(PLANS[:3], cluster.scheduler_address, store)
    ran: list[int] = []
    again = run_on_cluster(PLANS[:3], cluster.scheduler_address, store, lambda done, total: ran.append(done))
    assert again == first
    assert ran == [3]


def test_a_machines_file_that_is_here_only_is_said_in_one_line(cluster, tmp_path, monkeypatch) -> None:
    shutil.copy(FOLDER / "threadripper-3970x.toml", tmp_path / "here.toml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SweepError, match=r"on a worker: here\.toml: No such file"):
        run_on_cluster([replace(BASE, machine="here.toml")], cluster.scheduler_address)


def test_a_scheduler_that_is_not_there_is_said_in_one_line(monkeypatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(sweep, "CONNECT_S", 1)
    for address in (f"tcp://127.0.0.1:{port}", "nonsense://here"):
        with pytest.raises(SweepError, match="no scheduler at") as caught:
            run_on_cluster(PLANS[:1], address)
        assert "\n" not in str(caught.value)
