# SPDX-License-Identifier: MIT
"""Sweep: many plans, in this process or on any executor, each finished one kept in a Parquet file.

    rows = run_sweep(plans, executor=ProcessPoolExecutor(4), store="cells.parquet")

A cell is known by all that its result depends on, the costs included; who runs it and in which order changes
nothing. The file is written anew beside the old one and put in its place, so a sweep that is
interrupted, or a disk that is full, leaves what was finished before; the same call goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from functools import cache, partial
from multiprocessing import active_children, get_context
from pathlib import Path
from time import monotonic
from typing import Any

from vmalloc.simulate._engine import __file__ as engine_file
from vmalloc.simulate.plan import Plan, engine_plan, run_plan
from vmalloc.simulate.plan import __file__ as plan_file

__all__ = ["SweepError", "SweepInterrupted", "cell_key", "run_on_cluster", "run_on_processes", "run_sweep"]

SAVE_S = 5.0
"""A sweep writes its file after so many seconds, and at its end."""
CONNECT_S = 10
"""So long a scheduler has to answer."""
LOST_MAX = 3
"""So often a cell of a cluster is tried again."""
POOLS_LOST_MAX = 5
"""So often a pool of processes that lost one is started anew, in a row without a finished cell."""

Row = dict[str, Any]
Progress = Callable[[int, int], None]


class SweepInterrupted(KeyboardInterrupt):
    """By Ctrl-C; `finished` are the plans that have a row, and `rows` these."""

    def __init__(self, plans: Sequence[Plan], rows: dict[str, Row]) -> None:
        self.finished = [plan for plan in plans if cell_key(plan) in rows]
        self.rows = [_named(rows[cell_key(plan)], plan) for plan in self.finished]


class SweepError(RuntimeError):
    """A sweep that cannot go on; what was finished is kept."""


class OtherBuild(SweepError):
    """Of a worker: what it would run is not what the sweep is of."""


@cache
def code_digest() -> str:
    """What a cell's result depends on beside its plan: the compiled engine, and how a row is made of it.

    Another build of the same sources may be another engine. Then finished cells are run again, which is
    better than to mix them with others.
    """
    digest = hashlib.sha256()
    for file in (engine_file, plan_file):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def cell_key(plan: Plan) -> str:
    """All that a plan's result depends on, in one word."""
    text = json.dumps([code_digest(), engine_plan(plan)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """Finished cells by their key, in a file if there is a path."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self.rows: dict[str, Row] = {}
        self._saved_at = monotonic()
        if self.path is not None and self.path.exists():
            self.rows = _read(self.path)

    def add(self, key: str, row: Row) -> None:
        self.rows[key] = row
        if monotonic() - self._saved_at > SAVE_S:
            self.save()

    def save(self) -> None:
        """Write all of it. Raises SweepError; the old file stays then."""
        self._saved_at = monotonic()
        if self.path is None or not self.rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        table = pa.Table.from_pylist([{"cell": key, **row} for key, row in sorted(self.rows.items())])
        try:
            pq.write_table(table, beside)
            os.replace(beside, self.path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise SweepError(f"{self.path}: {error.strerror or error}") from None


def _read(path: Path) -> dict[str, Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
        return {row.pop("cell"): row for row in rows}
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise SweepError(f"{path} holds no cells of a sweep: {_first_line(error)}") from None


def run_sweep(
    plans: Iterable[Plan],
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    run: Callable[[Plan], Row] | None = None,
) -> list[Row]:
    """The rows of the plans, in their order; those that the file has already are not run again.

    run: what the executor is given for a plan; run_plan() if nothing is said.
    """
    chosen = list(plans)
    kept = Store(store)
    keys = [cell_key(plan) for plan in chosen]
    missing = {key: plan for key, plan in zip(keys, chosen, strict=True) if key not in kept.rows}
    done = len(set(keys)) - len(missing)
    total = len(set(keys))

    def finished(key: str, row: Row) -> None:
        nonlocal done
        kept.add(key, row)
        done += 1
        if progress is not None:
            progress(done, total)

    if progress is not None:
        progress(done, total)
    try:
        if executor is None:
            for key, plan in missing.items():
                finished(key, run_plan(plan))
        else:
            _run_on(executor, missing, run or run_plan, finished)
    except KeyboardInterrupt:
        raise SweepInterrupted(chosen, kept.rows) from None
    finally:
        kept.save()
    return [_named(kept.rows[key], plan) for key, plan in zip(keys, chosen, strict=True)]


def _named(row: Row, plan: Plan) -> Row:
    """A row as the plan names its design: two names of one design (patch-v3 is linux-6.9) are one cell."""
    return {**row, "design": plan.design}


def _run_on(
    executor: Executor,
    missing: dict[str, Plan],
    run: Callable[[Plan], Row],
    finished: Callable[[str, Row], None],
) -> None:
    waiting: dict[Future[Row], str] = {}
    try:
        waiting.update({executor.submit(run, plan): key for key, plan in missing.items()})
        left = set(waiting)
        while left:
            ended, left = wait(left, return_when=FIRST_COMPLETED)
            failed = None
            for future in ended:  # what ended together with a failure is kept
                error = future.exception()
                if error is None:
                    finished(waiting[future], future.result())
                failed = failed or error
            if failed is not None:
                raise failed
    finally:
        for future in waiting:
            future.cancel()


def run_on_processes(
    plans: Sequence[Plan],
    workers: int,
    store: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """The same on processes of this machine; a process that dies costs its cell a second try."""
    if workers <= 1:
        return run_sweep(plans, None, store, progress)
    rows: dict[str, Row] = {}
    lost = 0
    try:
        while True:
            before = len(rows)
            try:
                _run_on_pool(
                    [plan for plan in plans if cell_key(plan) not in rows], rows, workers, store, progress
                )
                return [_named(rows[cell_key(plan)], plan) for plan in plans]
            except BrokenExecutor:
                lost = 0 if len(rows) > before else lost + 1
                if lost >= POOLS_LOST_MAX:
                    raise SweepError(
                        f"{lost} times in a row a process died before any cell was done"
                    ) from None
    except KeyboardInterrupt:
        raise SweepInterrupted(plans, rows) from None


def _run_on_pool(
    plans: Sequence[Plan],
    rows: dict[str, Row],
    workers: int,
    store: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> None:
    """Adds to `rows` what is finished, also when it ends with an error."""
    others = set(active_children())
    with ProcessPoolExecutor(workers, get_context("spawn"), _end_by_interrupt) as pool:
        try:
            done: Iterable[tuple[Plan, Row]] = zip(
                plans, run_sweep(plans, _Noting(pool, rows), store, progress), strict=True
            )
        except SweepInterrupted as ended:
            for worker in set(active_children()) - others:
                worker.terminate()  # the pool would wait for cells that take minutes
            rows.update(zip(map(cell_key, ended.finished), ended.rows, strict=True))
            raise
        rows.update((cell_key(plan), row) for plan, row in done)


def _end_by_interrupt() -> None:
    """In a worker: Ctrl-C ends it at once, and not the cell only."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Noting(Executor):
    """Passes on to a pool, and keeps what was finished before the pool broke."""

    def __init__(self, pool: Executor, rows: dict[str, Row]) -> None:
        self.pool, self.rows = pool, rows

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = self.pool.submit(fn, *args, **kwargs)
        key = cell_key(args[0])

        def note(ended: Future[Any]) -> None:
            if not ended.cancelled() and ended.exception() is None:
                self.rows[key] = ended.result()

        future.add_done_callback(note)
        return future


def run_as(digest: str, plan: Plan) -> Row:
    """Run a plan, if what runs it here is what the digest is of. For workers of a cluster."""
    if code_digest() != digest:
        raise OtherBuild("its vmalloc is another build than this one: install the same wheel on all")
    return run_plan(plan)


def run_on_cluster(
    plans: Sequence[Plan],
    scheduler: str,
    store: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """The same on the workers of a Dask cluster. The scheduler gives the cells of a lost worker to others.

    Raises SweepError: no distributed here, no scheduler there, a machine's file that is here only, a worker
    with another build of vmalloc, a cell whose workers die again and again. What was finished is kept.
    """
    try:
        from distributed import Client, KilledWorker  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SweepError("--scheduler needs distributed: pip install distributed") from None
    try:
        client = Client(scheduler, timeout=CONNECT_S)
    except (OSError, ValueError, TimeoutError) as error:
        raise SweepError(f"no scheduler at {scheduler}: {_first_line(error)}") from None
    with client:
        executor, run = client.get_executor(pure=False, retries=LOST_MAX), partial(run_as, code_digest())
        try:
            return run_sweep(plans, executor, store, progress, run)
        except (ValueError, AttributeError, ImportError, OtherBuild) as error:
            raise SweepError(f"on a worker: {_first_line(error)}") from None
        except KilledWorker as error:
            raise SweepError(f"a cell's workers died again and again: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
