# SPDX-License-Identifier: MIT
"""Sweeps: the same rows whoever runs them, and nothing that was finished is lost."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vmalloc.simulate import sweep
from vmalloc.simulate.plan import Plan
from vmalloc.simulate.sweep import SweepError, cell_key, run_as, run_on_cluster, run_on_processes, run_sweep

PLANS = [
    Plan(design, cpus=4, run_test_mask=1, test_loop_count=300, shrunk=1, seed=seed)
    for design in ("linux-6.8", "linux-6.9", "vmalloc/magazine")
    for seed in range(2)
]


def test_processes_threads_and_this_process_give_the_same_rows() -> None:
    here = run_sweep(PLANS)
    with ThreadPoolExecutor(2) as pool:
        assert run_sweep(PLANS, pool) == here
    assert run_on_processes(PLANS, 2) == here


def test_a_finished_cell_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "cells.parquet"
    first = run_sweep(PLANS[:4], store=store)
    ran: list[Plan] = []
    real = sweep.run_plan
    monkeypatch.setattr(sweep, "run_plan", lambda plan: ran.append(plan) or real(plan))
    rows = run_sweep(PLANS, store=store)
    assert ran == PLANS[4:]
    assert rows[:4] == first


def test_a_cell_of_other_costs_is_another_cell() -> None:
    assert cell_key(PLANS[0]) == cell_key(replace(PLANS[0]))
    assert cell_key(PLANS[0]) != cell_key(replace(PLANS[0], costs={"wake": 1.0}))
    assert cell_key(PLANS[0]) != cell_key(replace(PLANS[0], seed=9))


def test_an_interrupted_sweep_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real = tmp_path / "cells.parquet", sweep.run_plan

    def interrupted(plan: Plan) -> dict[str, Any]:
        if plan == PLANS[3]:
            raise KeyboardInterrupt
        return real(plan)

    monkeypatch.setattr(sweep, "run_plan", interrupted)
    with pytest.raises(sweep.SweepInterrupted) as caught:
        run_sweep(PLANS, store=store)
    assert len(sweep.Store(store).rows) == 3
    assert (caught.value.finished, caught.value.rows) == (PLANS[:3], run_sweep(PLANS[:3]))


def test_an_interrupt_ends_the_cells_that_run_and_returns_the_others() -> None:
    endless = [replace(PLANS[0], test_loop_count=1 << 28, seed=seed) for seed in (1, 2)]

    def interrupt(done: int, _: int) -> None:
        if done == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(sweep.SweepInterrupted) as caught:
        run_on_processes([PLANS[0], *endless], 2, None, interrupt)
    assert caught.value.finished == [PLANS[0]]
    assert caught.value.rows == run_sweep(PLANS[:1])


def test_a_killed_worker_costs_its_cell_a_second_try() -> None:
    plans = [replace(plan, test_loop_count=3000, seed=seed) for plan in PLANS for seed in range(4)]
    expected = run_sweep(plans)
    killed: list[int] = []

    def kill(done: int, _: int) -> None:
        workers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
        if done == 2 and not killed:
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    assert run_on_processes(plans, 2, progress=kill) == expected
    assert killed


def test_a_full_disk_is_said_in_one_line_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "cells.parquet"
    run_sweep(PLANS[:1], store=store)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sweep.os, "replace", full)
    with pytest.raises(SweepError, match="No space left on device") as caught:
        run_sweep(PLANS[:2], store=store)
    assert "\n" not in str(caught.value)
    assert len(sweep.Store(store).rows) == 1
    assert os.listdir(tmp_path) == ["cells.parquet"]


@pytest.mark.parametrize("kind", ["empty", "text", "other"])
def test_a_file_that_holds_no_cells_is_refused(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = tmp_path / "cells.parquet"
    if kind == "other":
        pq.write_table(pa.table({"a": [1]}), store)
    else:
        store.write_text("" if kind == "empty" else "cells")
    with pytest.raises(SweepError, match="holds no cells") as caught:
        run_sweep(PLANS, store=store)
    assert "\n" not in str(caught.value)


def test_the_progress_counts_cells(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run_sweep(PLANS, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, len(PLANS)) for n in range(len(PLANS) + 1)]


def test_two_names_of_one_design_are_one_cell_and_each_row_has_its_own_name() -> None:
    plans = [replace(PLANS[0], design=name) for name in ("patch-v3", "linux-6.9")]
    assert cell_key(plans[0]) == cell_key(plans[1])
    seen: list[tuple[int, int]] = []
    rows = run_sweep(plans, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 1), (1, 1)]
    assert [row["design"] for row in rows] == ["patch-v3", "linux-6.9"]
    assert run_on_processes(plans, 2) == rows


class EndedExecutor(Executor):
    """Everything that is submitted has ended at once, one plan by an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if args[0] == PLANS[1]:
            future.set_exception(self.error)
        else:
            future.set_result(fn(*args))
        return future


def test_what_ended_together_with_a_failure_is_kept(tmp_path: Path) -> None:
    store = tmp_path / "cells.parquet"
    with pytest.raises(OSError, match="gone"):
        run_sweep(PLANS, EndedExecutor(OSError("gone")), store)
    assert len(sweep.Store(store).rows) == len(PLANS) - 1


# ---- a cluster, as far as it can be had without one ------------------------------------------------


class KilledWorker(Exception):
    """As distributed has it: its text has several lines."""


def cluster_of(monkeypatch: pytest.MonkeyPatch, executor: Executor) -> None:
    """`distributed`, with this executor for a cluster."""

    class Client:
        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None: ...
        def get_executor(self, **_: object) -> Executor:
            return executor

    module = ModuleType("distributed")
    module.Client, module.KilledWorker = Client, KilledWorker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "distributed", module)


def test_a_cell_whose_workers_die_is_said_in_one_line_and_the_others_are_kept(tmp_path, monkeypatch) -> None:
    cluster_of(monkeypatch, EndedExecutor(KilledWorker("run_as-1: 4 workers died\nsee the logs")))
    store = tmp_path / "cells.parquet"
    with pytest.raises(SweepError, match=r"died again and again: run_as-1: 4 workers died$"):
        run_on_cluster(PLANS, "tcp://host:8786", store)
    assert len(sweep.Store(store).rows) == len(PLANS) - 1


def test_a_worker_of_another_build_is_refused(monkeypatch) -> None:
    def there(digest: str, plan: Plan) -> dict[str, Any]:
        with monkeypatch.context() as worker:
            worker.setattr(sweep, "code_digest", lambda: "another")
            return run_as(digest, plan)

    monkeypatch.setattr(sweep, "run_as", there)
    with ThreadPoolExecutor(1) as pool:
        cluster_of(monkeypatch, pool)
        with pytest.raises(SweepError, match="on a worker: its vmalloc is another build") as caught:
            run_on_cluster(PLANS[:1], "tcp://host:8786")
    assert "\n" not in str(caught.value)
