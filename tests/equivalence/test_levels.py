# SPDX-License-Identifier: MIT
"""Which level served each request: the core, the model, and what a recording says agree.

Random histories by one thread, in every design, while nobody records and while somebody does. Then the
suite's own tests by one worker: each recorded request goes to the model in turn, which names the level that
the core noted. Where several threads run, their order decides, and a recording has it only from stamp to
stamp.
"""

from __future__ import annotations

import os
import random
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from tests.equivalence.test_model_and_core import ALLOWED, CPUS, SAME_PAGES, Pair, clock, one_cpu  # noqa: F401

pytest.importorskip("pyarrow", reason="recordings of a region are columns: pip install vmalloc[lab]")

import vmalloc
from vmalloc import _core
from vmalloc.facts import NODES_MAX, POOLS
from vmalloc.lab import replay
from vmalloc.lab.events import ALLOC, FREE, Event
from vmalloc.model import PAGE, CachingDesign
from vmalloc.suite.board import Board
from vmalloc.suite.parameters import TESTS, SuiteTest

pytestmark = pytest.mark.skipif(not _core._hold_clock(0), reason="seconds pass in a build without hooks")

SIZES = {
    "small": lambda chance: chance.randint(1, 5),
    "of all kinds": lambda chance: int(2 ** chance.uniform(0, 9.2)),
    "around the largest that is pooled": lambda chance: chance.randint(150, 400),
}
ALIGNS = {"small": [1, 1, 1, 2, 64], "of all kinds": [1, 1, 4, 512], "around the largest that is pooled": [1]}
NR_PAGES = [1500, 60_000, 300, 9000]
NR_STEPS = 300
OF_THE_SUITE = [test for test in TESTS[:7] if test.name != "long_busy_list_alloc"]
"""Of mask 127 all but one, whose ranges are more than a recording's ring has events."""


def one_history(pair: Pair, chance: random.Random, cpus: list[int]) -> None:
    """Requests and frees by chance; now and then a purge, a shrink, a second, another CPU, many frees."""
    sizes = chance.choice(list(SIZES))
    share = chance.choice([0.5, 0.6, 0.8])
    for step in range(NR_STEPS):
        what = chance.random()
        if what < 0.01:
            pair.purge()
        elif what < 0.015:
            pair.shrink()
        elif what < 0.03:
            pair.pass_time(chance.choice([1, 2, 3]))
        elif what < 0.05:
            pair.move_to(chance.choice(cpus))
        elif what < 0.06:
            for _ in range(len(pair.live) * 2 // 3):
                pair.free(chance.randrange(len(pair.live)))
        elif chance.random() < share or not pair.live:
            pair.alloc(SIZES[sizes](chance), chance.choice(ALIGNS[sizes]))
        else:
            pair.free(chance.choice([-1, 0, chance.randrange(len(pair.live))]))
        if step % 50 == 0:
            pair.assert_equal()
    pair.assert_equal()


@pytest.mark.parametrize("recording", [None, "coarse", "exact"], ids=lambda how: how or "nobody records")
@pytest.mark.parametrize("kind", ["addresses", pytest.param("memory", marks=SAME_PAGES)])
@pytest.mark.parametrize("pools", POOLS)
def test_core_and_model_name_the_same_level_in_histories_by_chance(
    tmp_path: Path, pools: str, kind: str, recording: str | None
) -> None:
    for seed in range(2 if recording else 4):
        chance = random.Random(f"{pools} {kind} {seed}")
        cpus = [cpu for cpu in ALLOWED if cpu < min(NODES_MAX, CPUS)][: chance.choice([1, 2])]
        lazy_max = chance.choice([0, 100, 1000]) if kind == "memory" else 0
        pair = Pair(pools, NR_PAGES[seed], kind, lazy_max, nodes=max(cpus) + 1)
        pair.move_to(cpus[0])
        with ExitStack() as recorders:
            if recording:
                path = tmp_path / f"{seed}.parquet"
                recorders.enter_context(pair.region.record(path, exact=recording == "exact"))
            one_history(pair, chance, cpus)


def levels_of(region: vmalloc.Region, path: Path, number: int) -> tuple[list[Event], dict[str, int]]:
    """One of the suite's tests by one worker: its requests and frees, and what the region counted."""
    with closing(Board.create(1, region.nr_pages)) as board, region.record(path) as recorder:
        _core.suite_open(board.memory)
        _core.suite_work(
            region, board.memory, 0, bytes([number]), nr_loops=300, nr_pages=1, nr_objects=0, nr_fit=500,
            seed=number + 1, use_huge=False, touch=False,
        )  # fmt: skip
    assert (recorder.done.nr_lost, recorder.done.nr_damaged) == (0, 0)
    return replay.load(path).events, region.stats().served


@SAME_PAGES
@pytest.mark.parametrize("test", OF_THE_SUITE, ids=lambda test: test.name)
@pytest.mark.parametrize("pools", POOLS)
def test_the_model_names_the_level_of_each_request_of_the_suite(
    tmp_path: Path, pools: str, test: SuiteTest
) -> None:
    _core._hold_clock(1)
    with vmalloc.Region(20_000 * PAGE, pools=pools, nodes=1, helper=False) as region:
        os.posix_fallocate(region.fileno(), 0, region._info()["total_bytes"])  # as the model's
        events, served = levels_of(region, tmp_path / "run.parquet", test.number)
        recording = replay.load(tmp_path / "run.parquet")
    assert recording.own is not None
    model = recording.own.model(CachingDesign("vmalloc"))
    places: dict[int, int] = {}
    for event in events:
        if event.kind == ALLOC:
            before = dict(model.served)
            area = model.alloc(event.size, event.align, 0, event.slot)
            level = next(level for level, nr in model.served.items() if nr > before[level])
            assert level == ("none" if event.failed else event.text)
            if area is not None:
                places[event.addr] = area.start
        elif event.kind == FREE:
            model.free(places.pop(event.addr), 0, event.slot)
    assert {level: nr for level, nr in model.served.items() if level != "none"} == served


@pytest.mark.parametrize("pools", POOLS)
def test_core_and_model_count_the_same_levels_while_thousands_of_ranges_are_held(pools: str) -> None:
    pair = Pair(pools, 40_000)
    pair.alloc_quietly(1, _core.SUITE_LONG_BUSY)
    for _ in range(100):
        large, small = (pair.core.alloc(nr_pages, 1)[0] for nr_pages in (100, 1))
        areas = [pair.model.alloc(nr_pages * PAGE, PAGE, pair.cpu, thread=0) for nr_pages in (100, 1)]
        for page, area in zip((large, small), areas, strict=True):
            assert area is not None
            pair.core.free(page)
            pair.model.free(area.start, pair.cpu, thread=0)
        pair.assert_served_alike()
    pair.free_quietly(_core.SUITE_LONG_BUSY)
    for nr_pages in (1, 2, 100, 256, 257):
        pair.alloc_quietly(nr_pages, 20)
    pair.assert_equal()
