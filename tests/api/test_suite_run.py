# SPDX-License-Identifier: MIT
"""The suite on the real allocator: every test, every design, threads and processes; what it notices."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from vmalloc import Region, _core
from vmalloc.suite import TESTS, Parameters, Plan, run
from vmalloc.suite.board import Board
from vmalloc.suite.driver import DESIGNS

ALL_TESTS = (1 << len(TESTS)) - 1
MAY_FAIL = {test.name for test in TESTS if test.may_fail}
PAGES = 1 << 16
OVERLAP, STOPPED, NO_SPACE = 1, 3, -28


def small(nr_threads: int = 2, mask: int = ALL_TESTS, **more: int) -> Parameters:
    return Parameters(
        **({"test_loop_count": 100, "nr_pcpu_objects": 300} | more), nr_threads=nr_threads, run_test_mask=mask
    )


@pytest.mark.parametrize("workers", ["threads", "processes"])
@pytest.mark.parametrize("design", DESIGNS)
def test_every_test_passes_on_every_design(design: str, workers: str) -> None:
    found = run(Plan(small(), (design,), workers, region="512M", single=False))
    for line in found.results[:-1]:
        assert line.failed == 0, line
        assert line.passed + line.xfailed == 2, line
        assert line.test in MAY_FAIL or line.xfailed == 0, line
    assert [line.test for line in found.results] == [test.name for test in TESTS] + ["all"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_may_be_processes_that_share_nothing_but_the_region(method: str) -> None:
    plan = Plan(small(mask=1 | 512), ("magazine",), "processes", "64M", single=False, start_method=method)
    assert [line.passed for line in run(plan).results] == [2, 2, 4]


def test_each_round_adds_a_pass_and_designs_take_turns() -> None:
    seen: list[tuple[int, int]] = []
    parameters = small(3, mask=9, test_repeat_count=2)
    found = run(Plan(parameters, ("off", "magazine")), lambda done, total: seen.append((done, total)))
    assert [(r.pools, r.test, r.passed) for r in found.results] == [
        ("off", "fix_size_alloc", 6), ("off", "random_size_alloc", 6), ("off", "all", 12),
        ("magazine", "fix_size_alloc", 6), ("magazine", "random_size_alloc", 6), ("magazine", "all", 12),
    ]  # fmt: skip
    total = 2 * 2 * 2 * (3 + 3 * 1)  # tests, rounds, designs; three workers, and three times one beside them
    assert seen[-1] == (total, total)
    assert [r.workers for r in found.single] == [1] * 6


def test_pages_may_be_written_too() -> None:
    found = run(Plan(small(), ("magazine",), touch=True, single=False))
    assert found.failed == 0


def test_the_one_worker_run_can_be_left_out() -> None:
    assert run(Plan(small(mask=1), ("off",), single=False)).single == []


# ---- what a worker notices, seen from the board ----------------------------------------------------------


@dataclass
class Bench:
    """One worker whose tests run here and now, on a region and a board that a test may tamper with."""

    region: Region
    board: Board

    def work(self, *names: str, nr_loops: int = 100) -> int:
        numbers = bytes(test.number for test in TESTS if test.name in names)
        _core.suite_open(self.board.memory)
        return _core.suite_work(
            self.region, self.board.memory, 0, numbers, nr_loops=nr_loops, nr_pages=0, nr_objects=300,
            nr_fit=100, seed=1, use_huge=False, touch=False,
        )  # fmt: skip

    def tally(self, name: str) -> tuple[int, int, int, int]:
        """(passed, failed, xfailed, error)"""
        number = next(test.number for test in TESTS if test.name == name)
        passed, failed, xfailed, _, _, error = _core.suite_results(self.board.memory)[1][0][2][number]
        return passed, failed, xfailed, error

    def stamp_all(self, owner: int) -> None:
        stamps = memoryview(self.board.memory).cast("B")[-PAGES * 2 :].cast("H")
        for page in range(PAGES):
            stamps[page] = owner
        stamps.release()


@pytest.fixture(params=["off", "locked", "llist", "magazine"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with Region(PAGES * 4096, pools=request.param) as region:
        board = Board.create(1, PAGES)
        yield Bench(region, board)
        board.close()


def test_a_page_that_has_an_owner_already_fails_the_test(bench: Bench) -> None:
    bench.stamp_all(owner=7)
    assert bench.work("random_size_alloc") == OVERLAP
    assert bench.tally("random_size_alloc") == (0, 1, 0, OVERLAP)


@pytest.mark.parametrize("test", [t for t in TESTS if not t.may_fail], ids=lambda t: t.name)
def test_every_test_looks_at_the_stamps(bench: Bench, test: object) -> None:
    name = test.name  # type: ignore[attr-defined]
    bench.stamp_all(owner=7)
    assert bench.work(name) == OVERLAP


def test_a_failed_allocation_fails_a_test_that_must_not(bench: Bench) -> None:
    bench.region.fail_every(5)
    assert bench.work("fix_size_alloc") == NO_SPACE
    assert bench.tally("fix_size_alloc") == (0, 1, 0, NO_SPACE)


def test_a_failed_allocation_is_expected_of_a_test_that_may(bench: Bench) -> None:
    bench.region.fail_every(5)
    bench.work("no_block_alloc", "align_shift_alloc")
    assert bench.tally("no_block_alloc") == (0, 0, 1, NO_SPACE)
    assert bench.tally("align_shift_alloc") == (0, 0, 1, NO_SPACE)


def test_an_overlap_is_never_expected(bench: Bench) -> None:
    bench.stamp_all(owner=7)
    bench.work("no_block_alloc")
    assert bench.tally("no_block_alloc") == (0, 1, 0, OVERLAP)


def test_alignments_past_the_region_end_align_shift_as_expected(bench: Bench) -> None:
    bench.work("align_shift_alloc")
    assert bench.tally("align_shift_alloc") == (0, 0, 1, NO_SPACE)


def test_nothing_is_left_busy_and_the_region_is_sound(bench: Bench) -> None:
    assert bench.work(*(test.name for test in TESTS if not test.may_fail)) == 0
    assert bench.region.stats().busy_pages == 0
    bench.region.check(at_rest=True)


def test_a_stopped_worker_fails_nothing(bench: Bench) -> None:
    timer = threading.Timer(0.3, _core.suite_stop, [bench.board.memory])
    timer.start()
    assert bench.work("fix_size_alloc", nr_loops=1 << 40) == STOPPED
    assert bench.tally("fix_size_alloc") == (0, 0, 0, STOPPED)
    timer.join()
    assert bench.region.stats().busy_pages == 0


def test_a_board_that_is_too_small_is_refused() -> None:
    with Region(PAGES * 4096) as region:
        board = Board.create(1, PAGES // 2)
        with pytest.raises(ValueError, match="too few for its workers and 65536 pages"):
            Bench(region, board).work("fix_size_alloc")
        board.close()


def test_a_killed_worker_ends_the_run_with_its_number_and_signal() -> None:
    def kill_one() -> None:
        while len(multiprocessing.active_children()) < 2:
            pass
        multiprocessing.active_children()[0].kill()

    killer = threading.Timer(0.5, kill_one)
    killer.start()
    plan = Plan(small(mask=1, test_loop_count=1 << 40), ("off",), "processes", single=False)
    with pytest.raises(RuntimeError, match=r"worker \d killed by SIGKILL"):
        run(plan)
    killer.join()
    assert multiprocessing.active_children() == []
