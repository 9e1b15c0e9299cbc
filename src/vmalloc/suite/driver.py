# SPDX-License-Identifier: MIT
"""The driver: workers at a barrier, rounds, designs.

A round is every enabled test once in every worker, in an order of the worker's own. Each of the
test_repeat_count rounds goes through all designs before the next one starts, so that whatever else the
machine does meets all of them; with several workers, rounds of one worker precede it. Every design
keeps its region from round to round, as the kernel keeps its vmalloc area.

After: Linux lib/test_vmalloc.c, do_concurrent_test() and shuffle_array().
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

from vmalloc import _core
from vmalloc.facts import POOLS, THREADS_DEFAULT, THREADS_MAX
from vmalloc.facts import PROCESSES_MAX as SLOTS_MAX
from vmalloc.region import Region, parse_size
from vmalloc.suite.board import Board
from vmalloc.suite.parameters import Parameters
from vmalloc.suite.results import Result, Run, Tally, WorkerTally, results_of

__all__ = ["DESIGNS", "Plan", "run"]

OFF_MUTEX = "off-mutex"
"""No pools, and a mutex of the C library around every call: what `off` is when its lock is a plain one."""
DESIGNS = (*POOLS, OFF_MUTEX)
LONG_BUSY = _core.SUITE_LONG_BUSY
SINGLE_ROUNDS = 3  # they are short, and one alone would mostly tell what else the machine did
PROCESSES_MAX = SLOTS_MAX - 5  # some are for who looks on
LOCK_TIMEOUT_S = 600.0  # a worker of 64 on 2 CPUs may wait long for a lock that nobody holds for long
POLL_S = 0.02


@dataclass(frozen=True)
class Plan:
    """A run: what the kernel's module parameters say, and what only we have."""

    parameters: Parameters = field(default_factory=Parameters)
    designs: tuple[str, ...] = POOLS
    workers: str = "threads"
    region: int | str | None = None  # default: a gibibyte, or twice what all workers' long lists take
    touch: bool = False
    single: bool = True  # the same once more with one worker, for the ratio beside the ratio
    start_method: str = "fork"
    seed: int = 0

    def __post_init__(self) -> None:
        for design in self.designs:
            if design not in DESIGNS:
                raise ValueError(f"{design!r} is no pool design; the designs are {', '.join(DESIGNS)}")
        if not self.designs or len(set(self.designs)) != len(self.designs):
            raise ValueError(f"name each design once, from {', '.join(DESIGNS)}")
        if self.workers not in ("threads", "processes"):
            raise ValueError(f"workers must be threads or processes, not {self.workers!r}")
        if self.workers == "processes" and self.parameters.nr_threads > PROCESSES_MAX:
            raise ValueError(f"nr_threads={self.parameters.nr_threads}: at most {PROCESSES_MAX} as processes")
        have, need = self.nr_pages * _PAGE >> 20, self._need_pages * _PAGE >> 20
        if self._need_pages > self.nr_pages:
            raise ValueError(
                f"a region of {have} MiB is too small: {self.parameters.nr_threads} workers hold {need} MiB "
                f"of areas at once; give --region {need + 1}M or more"
            )

    @property
    def _need_pages(self) -> int:
        long_busy = any(test.name == "long_busy_list_alloc" for test in self.parameters.tests)
        each = LONG_BUSY + 200 if long_busy else 200
        return self.parameters.nr_threads * max(each, self.parameters.nr_pages)

    @property
    def nr_pages(self) -> int:
        if self.region is not None:
            return max(parse_size(self.region) // _PAGE, 1)
        wanted = self.parameters.nr_threads * 2 * max(LONG_BUSY, self.parameters.nr_pages) * _PAGE
        return max(-(-wanted >> 30), 1) * ((1 << 30) // _PAGE)

    @property
    def nr_fit_kernel(self) -> int:
        """The kernel's L: fls(CPUs) * 32 MiB in pages."""
        return (os.cpu_count() or 1).bit_length() * ((32 << 20) // _PAGE)

    @property
    def nr_fit(self) -> int:
        """L here: at most what lets the 2 L pages of all workers fill a quarter of the region."""
        return max(min(self.nr_fit_kernel, self.nr_pages // (8 * self.parameters.nr_threads)), 1)


_PAGE = os.sysconf("SC_PAGESIZE")

Progress = Callable[[int, int], None]


def run(plan: Plan, progress: Progress | None = None) -> Run:
    """Run the plan. `progress(done, total)` is called now and then, in tests of workers.

    After Ctrl-C the result has the rounds that ended; KeyboardInterrupt, after the workers stopped, if none
    did. RuntimeError if a worker died.
    """
    result = Run(
        plan.parameters, plan.designs, plan.workers, plan.nr_pages * _PAGE, plan.nr_fit, plan.nr_fit_kernel
    )
    beside = SINGLE_ROUNDS if plan.single and plan.parameters.nr_threads > 1 else 0
    with ExitStack() as regions:

        def series(nr_workers: int) -> list[_Series]:
            return [
                _Series(plan, design, nr_workers, regions.enter_context(_region_of(plan, design, nr_workers)))
                for design in plan.designs
            ]

        alone, together = series(1) if beside else [], series(plan.parameters.nr_threads)
        rounds = (alone * beside + together) * plan.parameters.test_repeat_count
        meter = _Meter(progress, len(plan.parameters.tests) * sum(one.nr_workers for one in rounds))
        try:
            for one in rounds:
                one.round(meter)
        except KeyboardInterrupt:
            result.is_interrupted = True
            if not any(one.nr_rounds for one in together):
                raise
        for one in alone:
            result.single += one.results() if one.nr_rounds else []
        for one in together:
            if not one.nr_rounds:
                continue
            result.results += one.results()
            result.workers[one.design] = one.workers
    return result


def _region_of(plan: Plan, design: str, nr_workers: int) -> Region:
    return Region(
        plan.nr_pages * _PAGE,
        name=f"suite-{design}",
        max_threads=min(max(nr_workers + 16, THREADS_DEFAULT), THREADS_MAX),
        max_processes=SLOTS_MAX if plan.workers == "processes" else None,
        lock_timeout_s=LOCK_TIMEOUT_S,
        pools="off" if design == OFF_MUTEX else design,
    )


class _Meter:
    """Counts finished tests over all series for the progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._before = 0

    def show(self, nr_done: int, *, is_end: bool = False) -> None:
        if self._progress is not None:
            self._progress(self._before + nr_done, self._total)
        if is_end:
            self._before += nr_done


class _Series:
    """All rounds of one design with one number of workers."""

    def __init__(self, plan: Plan, design: str, nr_workers: int, region: Region) -> None:
        self.plan, self.design, self.nr_workers, self.region = plan, design, nr_workers, region
        self.workers = [WorkerTally() for _ in range(nr_workers)]
        self.wall_ns = 0
        self.nr_rounds = 0

    def results(self) -> list[Result]:
        tests = self.plan.parameters.tests
        return results_of(self.design, tests, self.workers, self.nr_rounds, self.wall_ns)

    def round(self, meter: _Meter) -> None:
        board = Board.create(self.nr_workers, self.region.nr_pages, has_mutex=self.design == OFF_MUTEX)
        crew = [_Worker(self, board, worker) for worker in range(self.nr_workers)]
        try:
            for worker in crew:
                worker.start()
            _wait_until_ready(board, crew)
            _core.suite_open(board.memory)
            _wait_until_done(board, crew, meter)
        except BaseException:
            _core.suite_stop(board.memory)
            raise
        finally:
            for worker in crew:
                worker.join()
        self._collect(board)
        self.nr_rounds += 1
        meter.show(self.nr_workers * len(self.plan.parameters.tests), is_end=True)
        board.close()
        if self.plan.workers == "processes":
            self.region.recover()  # what ended without a word left its magazines

    def _collect(self, board: Board) -> None:
        opened_ns, workers = _core.suite_results(board.memory)
        for tally, (cycles, _, tests) in zip(self.workers, workers, strict=True):
            tally.cycles += cycles
            for test in self.plan.parameters.tests:
                one = Tally(*tests[test.number])
                if one.passed + one.failed + one.xfailed == 0:
                    one.failed = 1  # its worker died
                tally.tests.setdefault(test.number, Tally()).add(one)
        self.wall_ns += max(ended_ns for _, ended_ns, _ in workers) - opened_ns


def shuffled(numbers: Sequence[int], chance: random.Random) -> list[int]:
    """The kernel's shuffle_array(): from the end, swap with a place strictly before (Sattolo)."""
    order = list(numbers)
    for i in range(len(order) - 1, 0, -1):
        j = chance.randrange(i)
        order[i], order[j] = order[j], order[i]
    return order


class _Worker:
    """A thread or a process that calls the loops once."""

    def __init__(self, series: _Series, board: Board, worker: int) -> None:
        plan = series.plan
        numbers = [test.number for test in plan.parameters.tests]
        chance = random.Random(f"{plan.seed} {series.nr_rounds} {worker}")
        order = numbers if plan.parameters.sequential_test_order else shuffled(numbers, chance)
        self.error: BaseException | None = None
        job = (series.region, board, worker, bytes(order), plan.parameters, plan.nr_fit, plan.touch)
        seed = chance.getrandbits(63)
        self._body: threading.Thread | BaseProcess
        if plan.workers == "threads":
            self._body = threading.Thread(target=self._in_thread, args=(*job, seed), daemon=True)
        else:
            context = multiprocessing.get_context(plan.start_method)
            self._body = context.Process(target=_in_process, args=(*job, seed), daemon=True)  # type: ignore[attr-defined]

    def _in_thread(self, *job: object) -> None:
        try:
            _work(*job)  # type: ignore[arg-type]
        except BaseException as e:
            self.error = e

    def start(self) -> None:
        self._body.start()

    def join(self) -> None:
        if self._body.ident is not None:
            self._body.join()

    @property
    def is_alive(self) -> bool:
        return self._body.is_alive()

    @property
    def death(self) -> str:
        """Why it ended too early; empty while it lives or after a good end."""
        if self.error is not None:
            return f"{type(self.error).__name__}: {self.error}"
        code = getattr(self._body, "exitcode", None)
        if not code:
            return ""
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def _work(
    region: Region,
    board: Board,
    worker: int,
    order: bytes,
    p: Parameters,
    nr_fit: int,
    touch: bool,
    seed: int,
) -> None:
    _core.suite_work(
        region,
        board.memory,
        worker,
        order,
        nr_loops=p.test_loop_count,
        nr_pages=p.nr_pages,
        nr_objects=p.nr_pcpu_objects,
        nr_fit=nr_fit,
        seed=seed,
        use_huge=bool(p.use_huge),
        touch=touch,
    )


def _in_process(region: Region, board: Board, *job: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and sets the stop flag
    _work(region, board, *job)  # type: ignore[arg-type]


def _wait_until_ready(board: Board, crew: list[_Worker]) -> None:
    while _core.suite_state(board.memory)[0] < len(crew):
        _look_for_deaths(crew)
        time.sleep(POLL_S / 10)


def _wait_until_done(board: Board, crew: list[_Worker], meter: _Meter) -> None:
    while any(worker.is_alive for worker in crew):
        _look_for_deaths(crew)
        meter.show(_core.suite_state(board.memory)[1])
        time.sleep(POLL_S)
    _look_for_deaths(crew)


def _look_for_deaths(crew: list[_Worker]) -> None:
    for number, worker in enumerate(crew):
        if worker.death:
            raise RuntimeError(f"worker {number} {worker.death}")
