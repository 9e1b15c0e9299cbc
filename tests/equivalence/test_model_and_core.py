# SPDX-License-Identifier: MIT
"""The plain-Python model's `vmalloc` preset and the C core decide alike, request by request.

One thread, one node; an address space, or a region with memory behind it. After every step both have the same
ranges in the same states and the same threshold, so the next step starts from the same place. Both name the
same level for each request: the core in its counters, which are compared exactly, and in the state that the
range it gave had before. Where two nodes and CPUs are needed the thread moves from one to the other.

Both are built from vmalloc/facts.py. The directed histories go past each number there, and a model with any
other number is found out by them.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import vmalloc
from vmalloc import _core, facts
from vmalloc.facts import (
    CROWD_THREADS,
    MAGAZINE_BUDGET_ALONE,
    MAGAZINE_BUDGET_BYTES,
    MAGAZINE_BUDGET_SHARE,
    NODES_MAX,
    POOL_CAP_PAGES,
    POOL_DESIGNS,
    POOL_PAGES_MAX,
    POOLS,
    PURGE_STEP_PAGES,
    PURGE_STEP_RANGES,
    ROOM_ATTEMPTS,
    TIGHT_CLOSED_S,
    TIGHT_LOOK_OPERATIONS,
    WARM_LOOK_LARGE,
    WARM_SLACK_SHIFT,
    WARM_SORT_RANGES,
)
from vmalloc.model import PAGE, CachingAllocator, CachingDesign, Level

CPUS = os.sysconf("SC_NPROCESSORS_ONLN")
MEMORY_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
BASE = 1 << 40  # of the model's window: aligned to whatever is asked for, as the core's page 0 is
MIB = (1 << 20) // PAGE
ALLOWED = sorted(os.sched_getaffinity(0))
STATE_OF_LEVEL: dict[Level, str] = {
    "magazine": "cached", "slab": "pooled", "pool": "pooled", "neighbour": "pooled",
    "lazy": "lazy", "space": "free",
}  # fmt: skip
SIZES = st.one_of(st.integers(1, 4), st.sampled_from([16, 64, 200, 255, 256, 257, 260, 290, 300, 600]))
SAME_PAGES = pytest.mark.skipif(
    os.sysconf("SC_PAGESIZE") != PAGE, reason="the model's pages have 4,096 bytes"
)

State = dict[int, tuple[int, str]]
"""Every range by its first page: (pages, state)."""


pytestmark = pytest.mark.skipif(not _core._hold_clock(0), reason="seconds pass in a build without hooks")


@pytest.fixture(autouse=True)
def one_cpu() -> Iterator[None]:
    """The model of a process on one CPU: `percpu` keeps what each CPU freed."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(autouse=True)
def clock() -> Iterator[None]:
    """Time stands still but for what a history lets pass."""
    yield
    _core._hold_clock(0)


class Addresses:
    """The core without memory: ranges by their first page."""

    memory_bytes = 0

    def __init__(self, pools: str, nr_pages: int, lazy_max: int, nodes: int) -> None:
        assert lazy_max == 0
        self.region = vmalloc.AddressSpace(0, nr_pages * PAGE, granule=PAGE, pools=pools, nodes=nodes)

    def alloc(self, nr_pages: int, align: int) -> tuple[int, int]:
        """Page and length of a range. Raises OutOfPages."""
        start = self.region.alloc(nr_pages * PAGE, align * PAGE)
        return start // PAGE, self.region.size_of(start) // PAGE

    def free(self, page: int) -> None:
        self.region.free(page * PAGE)


class Memory:
    """The core with memory, all of which is there: each range is held by a block.

    The model takes memory for written to; the core asks whether it is before it empties pools at a new peak.
    """

    memory_bytes = MEMORY_BYTES

    def __init__(self, pools: str, nr_pages: int, lazy_max: int, nodes: int) -> None:
        most = lazy_max * PAGE or None
        self.region = vmalloc.Region(nr_pages * PAGE, pools=pools, nodes=nodes, lazy_max=most, helper=False)
        self.blocks: dict[int, vmalloc.Block] = {}

    def alloc(self, nr_pages: int, align: int) -> tuple[int, int]:
        fd, nbytes = self.region.fileno(), self.region._info()["total_bytes"]
        if os.fstat(fd).st_blocks * 512 < nbytes:
            os.posix_fallocate(fd, 0, nbytes)
        block = self.region.alloc(nr_pages * PAGE, align * PAGE)
        page, length, _ = block._range
        self.blocks[page] = block
        return page, length

    def free(self, page: int) -> None:
        self.blocks.pop(page).release()


class Pair:
    """The core and the model, asked the same, at the same second; pages count from the start of both."""

    def __init__(
        self, pools: str, nr_pages: int, kind: str = "addresses", lazy_max: int = 0, nodes: int = 1
    ) -> None:
        self.core = (Memory if kind == "memory" else Addresses)(pools, nr_pages, lazy_max, nodes)
        self.region = self.core.region
        self.cpu = ALLOWED[0]
        self.model = CachingAllocator(
            CachingDesign("vmalloc", pools, nodes_max=nodes),
            CPUS,
            (BASE, BASE + nr_pages * PAGE),
            memory_bytes=self.core.memory_bytes,
            lazy_pages_fixed=lazy_max,
        )
        self.live: list[int] = []
        self.pass_time(1)

    def pass_time(self, seconds: int) -> None:
        self.model.now_s += seconds
        _core._hold_clock(self.model.now_s)

    def alloc(self, nr_pages: int, align: int = 1) -> tuple[Level, int | None]:
        """Ask both; returns the core's level and page after they were found to be the model's."""
        nr_pages = min(nr_pages, self.region.nr_pages)
        before, purges = core_state(self.region), self.region.stats().nr_purges
        served, steps, was_tight = dict(self.model.served), self.nr_steps, self.is_tight
        page, length = None, 0
        with suppress(vmalloc.OutOfPages):
            page, length = self.core.alloc(nr_pages, align)
        area = self.model.alloc(nr_pages * PAGE, align * PAGE, self.cpu, thread=0)
        self.assert_served_alike()
        forecast = None if area is None else (area.start - BASE) // PAGE
        assert page == forecast
        if page is None or area is None:
            return "none", None
        level = next(level for level in STATE_OF_LEVEL if self.model.served[level] > served[level])
        assert length == area.pages
        is_direct = self.nr_steps == steps and self.is_tight == was_tight
        if self.region.stats().nr_purges == purges and is_direct:  # nothing was given back or made warm
            assert STATE_OF_LEVEL[level] == state_at(before, page)
        self.live.append(page)
        return level, page

    def start_thread(self, number: int, done: threading.Event) -> None:
        """One more has a slot, and a page in its magazine, until `done`."""
        is_there = threading.Event()

        def work() -> None:
            self.core.free(self.core.alloc(1, 1)[0])
            is_there.set()
            done.wait()

        threading.Thread(target=work, daemon=True).start()
        is_there.wait()
        area = self.model.alloc(PAGE, PAGE, self.cpu, thread=number)
        assert area is not None
        self.model.free(area.start, self.cpu, thread=number)

    def take_in_thread(self, number: int, nr_pages: int, done: threading.Event) -> None:
        """A range that another thread, which stays until `done`, took from its magazine, to be freed here."""
        taken: list[int] = []
        is_there = threading.Event()

        def work() -> None:
            self.core.free(self.core.alloc(nr_pages, 1)[0])
            taken.append(self.core.alloc(nr_pages, 1)[0])
            is_there.set()
            done.wait()

        threading.Thread(target=work, daemon=True).start()
        is_there.wait()
        area = self.model.alloc(nr_pages * PAGE, PAGE, self.cpu, thread=number)
        assert area is not None
        self.model.free(area.start, self.cpu, thread=number)
        assert self.model.alloc(nr_pages * PAGE, PAGE, self.cpu, thread=number) == area
        self.live += taken

    def move_to(self, cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        self.cpu = cpu

    def assert_served_alike(self) -> None:
        stats = self.region.stats()
        assert stats.served | {"none": stats.nr_failed} == self.model.served

    @property
    def nr_steps(self) -> int:
        return self.model.nr_steps + self.model.nr_loosened

    @property
    def is_tight(self) -> bool:
        return any(kept.is_tight for kept in self.model.magazines.values())

    def free(self, place: int) -> None:
        page = self.live.pop(place)
        self.core.free(page)
        assert self.model.free(BASE + page * PAGE, self.cpu, thread=0) is not None

    def alloc_quietly(self, nr_pages: int, count: int) -> None:
        """Allocate many of one size without looking in between."""
        for _ in range(count):
            self.live.append(self.core.alloc(nr_pages, 1)[0])
            self.model.alloc(nr_pages * PAGE, cpu=self.cpu, thread=0)
        assert sorted(self.live) == sorted((start - BASE) // PAGE for start in self.model.busy.areas)

    def free_quietly(self, count: int) -> None:
        """Free the oldest ones without looking in between."""
        for _ in range(count):
            page = self.live.pop(0)
            self.core.free(page)
            self.model.free(BASE + page * PAGE, self.cpu, thread=0)
        self.assert_equal()

    def purge(self) -> None:
        self.region.purge()
        self.model.purge()

    def shrink(self) -> None:
        self.region.shrink()
        self.model.shrink()

    def assert_equal(self) -> None:
        assert core_state(self.region) == model_state(self.model)
        stats = self.region.stats()
        assert (stats.lazy_pages, stats.nr_purges) == (self.model.lazy_pages, self.model.nr_purges)
        assert self.region._info()["lazy_pages_max"] == self.model.lazy_pages_max
        self.assert_served_alike()


def state_at(state: State, page: int) -> str:
    start = max(start for start in state if start <= page)
    return state[start][1]


def core_state(core: vmalloc.Region | vmalloc.AddressSpace) -> State:
    return {r.start: (r.nr_pages, r.state) for r in core.ranges()}


def model_state(model: CachingAllocator) -> State:
    found = {(start, end, "free") for start, end in model.space}
    found |= {(a.start, a.end, "busy") for a in model.busy.areas.values()}
    sizes = [ranges for kept in model.magazines.values() for ranges in kept.sizes.values()]
    found |= {(a.start, a.end, "cached") for ranges in sizes for a in ranges}
    found |= {(a.start, a.end, "pooled") for n in model.nodes for p in n.pools.values() for a in p.areas}
    found |= {(a.start, a.end, "pooled") for slab in model.slabs.values() for a in slab.areas.values()}
    found |= {(a.start, a.end, "lazy") for n in model.nodes for a in n.lazy.areas.values()}
    found |= {(a.start, a.end, "lazy") for a in model.warm}
    return {(start - BASE) // PAGE: ((end - start) // PAGE, state) for start, end, state in found}


class History(RuleBasedStateMachine):
    pools = "magazine"
    kind = "addresses"

    @initialize(nr_pages=st.sampled_from([300, 1500, 30000]), lazy_max=st.sampled_from([0, 100, 1000]))
    def begin(self, nr_pages, lazy_max):
        self.pair = Pair(self.pools, nr_pages, self.kind, lazy_max if self.kind == "memory" else 0)

    @rule(seconds=st.integers(1, 3))
    def pass_time(self, seconds):
        self.pair.pass_time(seconds)

    @rule(nr_pages=SIZES, align=st.sampled_from([1, 1, 1, 2, 16]))
    def alloc(self, nr_pages, align):
        self.pair.alloc(nr_pages, align)

    @rule(nr_pages=st.one_of(st.integers(1, 3), st.sampled_from([150, 300])), count=st.integers(2, 70))
    def alloc_many(self, nr_pages, count):
        for _ in range(count):
            if self.pair.alloc(nr_pages)[1] is None:
                break

    @precondition(lambda self: self.pair.live)
    @rule(place=st.integers(0, 1 << 20))
    def free(self, place):
        self.pair.free(place % len(self.pair.live))

    @rule(count=st.integers(1, 70), newest_first=st.booleans())
    def free_many(self, count, newest_first):
        for _ in range(min(count, len(self.pair.live))):
            self.pair.free(-1 if newest_first else 0)

    @rule()
    def purge(self):
        self.pair.purge()

    @rule()
    def shrink(self):
        self.pair.shrink()

    @invariant()
    def agrees(self):
        if hasattr(self, "pair"):
            self.pair.assert_equal()


# ---- directed histories: each goes past some numbers of vmalloc/facts.py -----------------------------------


def caps_and_thresholds(kind: str = "addresses") -> None:
    pair = Pair("magazine", 120_000, kind)
    counts = {1: 300, 2: 200, 255: 80, 256: 80} | dict.fromkeys(range(8, 36), 40)
    counts |= {257: 66, 300: 70, 3000: 9}
    for nr_pages, count in counts.items():
        for _ in range(count):
            pair.alloc(nr_pages)
        for at in range(count):
            pair.free(0)
            if at % 5 == 0:
                pair.assert_equal()
    served = pair.model.served
    for nr_pages in (1, 2, 253, 254, 256, 257, 266, 267, 300, 2667, 2666, 3001):
        pair.alloc(nr_pages)
    assert all(served[level] for level in STATE_OF_LEVEL if level not in ("slab", "neighbour"))
    pair.purge()
    pair.assert_equal()
    pair.shrink()
    pair.assert_equal()
    assert pair.model.used_pages == pair.region.stats().busy_pages


def caps_within_the_least_budget(kind: str = "addresses") -> None:
    pair = Pair("magazine", 30_000, kind)
    # each size grows by 29 times itself, all of them by 4,096 pages, for a share of what is free is less
    assert MAGAZINE_BUDGET_ALONE * 30_000 // MAGAZINE_BUDGET_SHARE < MAGAZINE_BUDGET_BYTES // PAGE == 4096
    for nr_pages in range(14, 26):
        for _ in range(31):
            pair.alloc(nr_pages)
        for _ in range(31):
            pair.free(0)
    pair.assert_equal()


def warm_ranges(kind: str = "memory") -> None:
    pair = Pair("magazine", 130_000, kind, lazy_max=100_000)
    for nr_pages in (300, 5, 600, 5, 300, 5):
        pair.alloc(nr_pages)
    pair.free(0)
    closest = next(n for n in range(POOL_PAGES_MAX + 1, 300) if n + (n >> WARM_SLACK_SHIFT) >= 300)
    assert pair.alloc(closest)[0] == "lazy"  # whole
    assert pair.region.stats().lazy_pages == 0
    pair.free(-1)
    assert pair.alloc(closest - 1)[0] == "lazy"  # split
    assert pair.region.stats().lazy_pages == 300 - (closest - 1)
    pair.free(1)
    pair.pass_time(1)
    pair.free(2)
    for nr_pages in (150, 7, 7, 7, 500, 301, 257):
        pair.alloc(nr_pages)
        pair.assert_equal()
    pair.purge()
    oldest = len(pair.live)
    for nr_pages in [270] + [280] * (WARM_LOOK_LARGE - 1):  # all in one list
        pair.alloc(nr_pages)
    for _ in range(WARM_LOOK_LARGE):
        pair.free(oldest)
    pair.assert_equal()
    pair.alloc(265)
    assert pair.region.stats().lazy_pages == 280 * (WARM_LOOK_LARGE - 1)


def its_own_size(kind: str = "memory") -> None:
    """A large request finds its own size, also where a longer one that would do is sorted before it."""
    pair = Pair("magazine", 130_000, kind, lazy_max=120_000)
    count = WARM_SORT_RANGES + 2
    for nr_pages in [290] + [257] * (count - 2) + [300]:
        pair.alloc(nr_pages)
    for _ in range(count):
        pair.free(0)
    pair.alloc(290)
    pair.assert_equal()
    pair.alloc(290)  # the longer one
    pair.assert_equal()


def neighbours(kind: str = "memory") -> None:
    """Ranges side by side serve what none of them could, once as many were freed as a walk is long."""
    pair = Pair("magazine", 60_000, kind, lazy_max=50_000)
    for _ in range(40):
        pair.alloc(257)
    for _ in range(39):
        pair.free(0)
    assert pair.alloc(5000)[0] == "lazy"
    assert pair.alloc(5000)[0] == "lazy"
    pair.assert_equal()
    kept = len(pair.live)
    for _ in range(40):  # each walk passes more ranges, and asks for more of them to be sorted first
        for _ in range(4):
            pair.alloc(300)
            pair.alloc(300)
            pair.free(kept)
        pair.alloc(2600)
        pair.assert_equal()


def steps(kind: str = "memory") -> None:
    """Above the threshold each free gives back a step, the oldest first."""
    pair = Pair("magazine", 60_000, kind, lazy_max=4100)
    for nr_pages in (4000, 300, 5, 290, 5, 310, 5):
        pair.alloc(nr_pages)
    pair.free(0)
    pair.pass_time(2)
    pair.free(0)
    assert pair.region.stats().lazy_pages == 4300 - PURGE_STEP_PAGES  # the end of one of them
    pair.assert_equal()
    pair.free(1)
    pair.pass_time(1)
    pair.free(2)
    pair.assert_equal()
    before = pair.region.stats().lazy_pages
    pair.alloc(6000)
    pair.assert_equal()
    assert pair.region.stats().lazy_pages == before  # it is not above the threshold
    pair.assert_equal()
    most = PURGE_STEP_RANGES + 8
    pair = Pair("locked", 60_000, kind, lazy_max=most)
    pair.alloc_quietly(1, POOL_CAP_PAGES + most + 1)
    pair.free_quietly(POOL_CAP_PAGES + most + 1)
    assert pair.region.stats().lazy_pages == most + 1 - PURGE_STEP_RANGES
    pair.assert_equal()


def wear(kind: str = "memory") -> None:
    """Sizes from 1 to 3,000 pages, as many of a doubling as of another, for some minutes."""
    chance = random.Random(8)
    pair = Pair("magazine", 60_000, kind, lazy_max=6000)
    for step in range(4000):
        if chance.random() < 0.1:
            pair.pass_time(1)
        if not pair.live or (len(pair.live) < 60 + step // 50 and chance.random() < 0.6):
            pair.alloc(int(2 ** chance.uniform(0, 11.5)), align=chance.choice([1, 1, 1, 4]))
        else:
            pair.free(chance.randrange(len(pair.live)))
        if step % 20 == 0:
            pair.assert_equal()
    pair.assert_equal()


def many_freed_at_once(kind: str = "memory") -> None:
    """More than are sorted at once, and none of them is taken before all are there."""
    pair = Pair("magazine", 200_000, kind, lazy_max=190_000)
    count = 2 * WARM_SORT_RANGES + 10
    for at in range(count):
        pair.alloc(290 + at % 7)
    for _ in range(count):
        pair.free(0)
    for _ in range(3):
        pair.alloc(293)
    pair.assert_equal()
    for nr_pages in [260] * 10 + [250] * 10:
        pair.alloc(nr_pages)
    pair.assert_equal()


def recent_peak(kind: str = "addresses") -> None:
    """Up to 600 MiB are used, given back and used again; purges come when the threshold says so."""
    pair = Pair("magazine", 200_000, kind)
    pair.assert_equal()
    for peak in (100 * MIB, 600 * MIB, 300 * MIB):
        pair.alloc_quietly(512, peak // 512)
        pair.assert_equal()
        for _ in range(len(pair.live)):
            pair.free(0)
            assert pair.region._info()["lazy_pages_max"] == pair.model.lazy_pages_max
    pair.assert_equal()
    for _ in range(4):
        pair.purge()
        pair.assert_equal()


def misaligned_head_of_a_pool(kind: str = "addresses") -> None:
    pair = Pair("magazine", 2000, kind)
    for _ in range(100):
        pair.alloc(1)
    for _ in range(100):
        pair.free(0)
    for _ in range(3):
        pair.alloc(1, align=128)
    for _ in range(150):
        pair.alloc(1)


def aligned_to_more_than_a_pooled_range(kind: str = "memory") -> None:
    """Where few such requests find a place, what is freed goes back to space; a longer range does not."""
    chance = random.Random(1)
    pair = Pair("magazine", 9000, kind)
    for step in range(400):
        if pair.live and chance.random() < 0.55:
            pair.free(chance.randrange(len(pair.live)))
        else:
            pair.alloc(chance.choice([1, 2, 40, 256, 257]), align=chance.choice([1, 256, 512, 2048]))
        if step % 50 == 0:
            pair.assert_equal()
    pair.purge()
    pair.assert_equal()


def every_level(pools: str, kind: str, nodes: int, cpus: list[int]) -> dict[Level, int]:
    """Sizes of each kind on CPUs in turn; now and then an alignment, a purge, a request that fails."""
    chance = random.Random(5)
    pair = Pair(pools, 40_000, kind, nodes=nodes)
    for step in range(1000):
        if step % 40 == 0:
            pair.move_to(cpus[step // 40 % len(cpus)])
        if chance.random() < 0.55 and len(pair.live) < 120:
            pair.alloc(int(2 ** chance.uniform(0, 8.6)), align=chance.choice([1, 1, 1, 1, 4]))
        elif pair.live:
            pair.free(chance.choice([-1, chance.randrange(len(pair.live))]))
        if step % 250 == 100:
            pair.alloc_quietly(2, 150)  # more than a slab keeps
            pair.free_quietly(150)
        if step % 450 == 449:
            pair.purge()
            assert pair.alloc(40_000)[0] == "none"
    pair.assert_equal()
    return pair.model.served


def failing_request(kind: str = "addresses") -> None:
    pair = Pair("magazine", 600, kind)
    pair.alloc(600)
    purges = pair.region.stats().nr_purges
    assert pair.alloc(2) == ("none", None)
    assert pair.region.stats().nr_purges - purges == pair.model.nr_purges == ROOM_ATTEMPTS - 1
    pair.free(0)
    pair.shrink()
    pair.alloc(2)
    pair.assert_equal()
    assert pair.region.stats().free_pages == 600 - 2 * 2  # without stocking up


def short_of_space(kind: str = "memory") -> None:
    """More is asked for than there is, in sizes of all kinds; now and then seconds pass without a failure."""
    chance = random.Random(3)
    pair = Pair("magazine", 4000, kind)
    for step in range(1500):
        if step % 300 == 299:
            for _ in range(len(pair.live) * 2 // 3):
                pair.free(chance.randrange(len(pair.live)))
            pair.pass_time(chance.choice([1, 2, 3]))
        nr_pages = int(2 ** chance.uniform(0, 7.9))
        while pair.alloc(nr_pages)[1] is None and pair.live:
            pair.free(chance.randrange(len(pair.live)))
        if step % 20 == 0:
            pair.assert_equal()
    pair.purge()
    pair.assert_equal()


def look_again(pair: Pair) -> None:
    """So many operations that a thread asks again how much its magazines may keep."""
    count = TIGHT_LOOK_OPERATIONS // 2 + 1
    for _ in range(count):
        pair.core.free(pair.core.alloc(POOL_PAGES_MAX + 1, 1)[0])
        area = pair.model.alloc((POOL_PAGES_MAX + 1) * PAGE, PAGE, pair.cpu, thread=0)
        assert area is not None
        pair.model.free(area.start, pair.cpu, thread=0)
    pair.assert_equal()


def short_but_not_very(kind: str = "memory") -> None:
    """A request found no room; then a third of the region is idle, and large requests get rounded sizes."""
    chance = random.Random(4)
    pair = Pair("magazine", 60_000, kind)
    while pair.alloc(chance.randint(1, POOL_PAGES_MAX))[1] is not None:
        pass
    while pair.region.stats().busy_pages > 30_000:
        pair.free(chance.randrange(len(pair.live)))
    pair.pass_time(TIGHT_CLOSED_S)
    look_again(pair)
    assert pair.model.magazines[0].gets_whole
    for step in range(1200):
        nr_pages = chance.randint(1, POOL_PAGES_MAX)
        while pair.live and pair.region.stats().busy_pages + nr_pages > 40_000:
            pair.free(chance.randrange(len(pair.live)))
        pair.alloc(nr_pages)
        if step % 100 == 0:
            pair.assert_equal()
    kept = pair.model.magazines[0]
    assert kept.gets_whole
    assert kept.nr_tight > 0
    pair.pass_time(3)
    pair.alloc(POOL_PAGES_MAX + 1)
    assert not kept.is_tight
    pair.assert_equal()


def very_short(kind: str = "memory") -> None:
    """A request found no room where all magazines were empty; others get some, and seconds pass."""
    pair = Pair("magazine", 60_000, kind)
    pair.alloc(30_000)
    pair.alloc(30_000)
    assert pair.alloc(100)[1] is None
    pair.free(-1)
    for seconds in (0, 1, 1, 1):
        pair.pass_time(seconds)
        for nr_pages in (144, 130, 116, 300) * 3:
            pair.alloc(nr_pages)
            pair.free(-1)
        look_again(pair)


def barred(kind: str = "memory") -> None:
    """Long ranges that only who uses memory could make room for: less than that is free, or it is apart."""
    pair = Pair("magazine", 20_000, kind)
    for nr_pages in (6000, 300, 6000, 300):
        pair.alloc(nr_pages)
    for nr_pages in (100, 100, 2):
        pair.alloc(nr_pages)
        pair.free(-1)
    pair.free(0)
    assert pair.alloc(14_000) == ("none", None)
    assert pair.model.tight_s is None
    pair.free(1)
    assert pair.alloc(8000) == ("none", None)
    assert pair.model.tight_s == pair.model.now_s
    for nr_pages in (144, 8000, 300, 20_000):
        pair.alloc(nr_pages)
        pair.assert_equal()


def in_a_crowd(kind: str = "addresses") -> None:
    """One thread after the other takes its first range; batches are small once they are many."""
    pair = Pair("magazine", 40_000, kind)
    done = threading.Event()
    try:
        for number in range(1, CROWD_THREADS + 1):
            pair.start_thread(number, done)
            for nr_pages in (2, 1):
                for _ in range(60):
                    pair.alloc(nr_pages)
                pair.assert_equal()
        pair.free_quietly(len(pair.live))
        pair.purge()
        pair.alloc_quietly(1, 100)
        pair.assert_equal()
    finally:
        done.set()


def what_another_thread_took(kind: str = "memory") -> None:
    """The first free of a size goes the slow way, also of a range that another thread took."""
    pair = Pair("magazine", 30_000, kind, lazy_max=100)
    done = threading.Event()
    try:
        pair.alloc_quietly(150, 20)
        pair.free_quietly(20)
        pair.take_in_thread(1, 7, done)  # beyond the peak: what was ready is lazy, more than 100 pages
        assert pair.region.stats().lazy_pages == 2250 - 7
        pair.free(0)
        assert pair.region.stats().lazy_pages < 2250 - 7
        pair.assert_equal()
    finally:
        done.set()


def beyond_the_peak(kind: str = "memory") -> None:
    """What lies ready for one size is asked for before a region grows: by steps, or if it is much."""
    pair = Pair("magazine", 60_000, kind)
    pair.alloc_quietly(150, 40)
    pair.free_quietly(40)
    assert pair.alloc(7000)[0] == "space"  # the 6,000 are not enough
    assert pair.model.nr_loosened == 3  # after 2,048 pages, as many more, and for this request
    pair.assert_equal()
    for nr_pages in range(10, 250, 12):
        for count in (70, 20):
            pair.alloc_quietly(nr_pages, count)
            pair.free_quietly(count)
    before = pair.model.nr_loosened
    pair.alloc(20_000)
    pair.assert_equal()
    for nr_pages in (20, 33, 250, 300, 700):
        pair.alloc_quietly(nr_pages, 30)
        pair.free_quietly(28)
    assert pair.model.nr_loosened > before


def beyond_the_peak_with(pools: str) -> None:
    """Without magazines what pools and slabs keep is all that lies ready for one size."""
    pair = Pair(pools, 60_000, "memory")
    for nr_pages, count in {150: 40, 33: 120, 3: 70, 250: 9}.items():
        pair.alloc_quietly(nr_pages, count)
        pair.free_quietly(count)
    pair.alloc(20_000)
    pair.assert_equal()
    before = pair.model.nr_loosened
    assert before
    for nr_pages in (20, 33, 250, 150, 300, 3, 700):
        pair.alloc_quietly(nr_pages, 50)
        pair.free_quietly(45)
    pair.alloc(30_000)
    pair.assert_equal()
    assert pair.model.nr_loosened > before


def space_with_pages(kind: str = "memory") -> None:
    """A small request that finds no room joins ranges with their pages; those count as idle until a purge."""
    pair = Pair("magazine", 1500, kind, lazy_max=100)
    for nr_pages in (1, 150, 150, 3, 150, 200, 5, 250, 400):
        pair.alloc(nr_pages)
    for _ in range(7):
        pair.free(0)
        pair.assert_equal()
    for nr_pages in (220, 120, 256, 90, 20, 1):
        pair.alloc(nr_pages)
        pair.assert_equal()
    pair.purge()
    assert pair.model.dirty_pages == 0
    for _ in range(3):
        pair.free(0)
        pair.alloc(200)
    pair.assert_equal()


def little_beside_much(kind: str = "memory") -> None:
    """Few pages that may be in memory beside many that are not are given back, whichever came last."""
    pair = Pair("off", 300, kind, lazy_max=100)
    for nr_pages in (20, 250, 30):
        pair.alloc(nr_pages)
    pair.free(0)
    assert pair.alloc(3)[0] == "space"  # for which the 20 went to space with their pages
    assert pair.model.dirty_pages == 17
    pair.free(0)  # above the threshold: they go to space without theirs, and beside the 17
    assert pair.model.dirty_pages == 0
    pair.free(0)
    assert pair.region.stats().lazy_pages == 30  # all that is idle, and below the threshold
    pair.assert_equal()


def full_pool(kind: str = "addresses") -> None:
    pair = Pair("magazine", 60_000, kind)
    pair.alloc_quietly(1, POOL_CAP_PAGES + 208)
    pair.free_quietly(POOL_CAP_PAGES + 208)
    assert pair.region.stats().pooled_pages == POOL_CAP_PAGES
    assert pair.model.lazy_pages > 0


def decaying_pools(kind: str = "addresses") -> None:
    pair = Pair("locked", 20_000, kind)
    for nr_pages, count in {1: 1, 2: 2, 3: 3, 4: 4, 5: 9, 6: 200}.items():
        pair.alloc_quietly(nr_pages, count)
    pair.free_quietly(len(pair.live))
    for _ in range(5):
        pair.purge()
        pair.assert_equal()


HISTORIES = {
    "every cap and threshold": caps_and_thresholds,
    "caps within the least budget": caps_within_the_least_budget,
    "the recent peak": recent_peak,
    "a misaligned head of a pool": misaligned_head_of_a_pool,
    "aligned to more than a pooled range": aligned_to_more_than_a_pooled_range,
    "a failing request": failing_request,
    "short of space": short_of_space,
    "short, but not very": short_but_not_very,
    "very short": very_short,
    "barred": barred,
    "in a crowd": in_a_crowd,
    "a full pool": full_pool,
    "decaying pools": decaying_pools,
}
WITH_A_THRESHOLD = {
    "warm ranges": warm_ranges,
    "its own size": its_own_size,
    "neighbours": neighbours,
    "steps": steps,
    "beyond the peak": beyond_the_peak,
    "space with pages": space_with_pages,
    "little beside much": little_beside_much,
    "what another thread took": what_another_thread_took,
    "wear": wear,
    "many freed at once": many_freed_at_once,
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_model_and_core_decide_alike_over_addresses(history: Callable[[str], None]):
    history("addresses")


@SAME_PAGES
@pytest.mark.parametrize("history", (HISTORIES | WITH_A_THRESHOLD).values(), ids=HISTORIES | WITH_A_THRESHOLD)
def test_model_and_core_decide_alike_over_memory(history: Callable[[str], None]):
    history("memory")


NEAR: dict[str, set[Level]] = {
    "off": set(),
    "magazine": {"magazine", "pool"},
    "percpu": {"slab", "pool"},
}


@pytest.mark.parametrize("pools", POOLS)
def test_core_and_model_name_the_same_level_for_each_request(pools: str):
    served = every_level(pools, "addresses", 1, ALLOWED[:1])
    near = NEAR.get(pools, {"pool"})
    assert {level for level, nr in served.items() if nr} == near | {"lazy", "space", "none"}


@pytest.mark.parametrize("pools", POOLS)
def test_core_and_model_agree_on_what_a_neighbour_served(pools: str):
    cpus = [cpu for cpu in ALLOWED if cpu < min(NODES_MAX, CPUS)][:2]
    if len(cpus) < 2:
        pytest.skip("this process may run on one CPU only")
    served = every_level(pools, "addresses", cpus[1] + 1, cpus)
    assert (served["neighbour"] > 0) == (pools != "off")


@SAME_PAGES
@pytest.mark.parametrize("pools", [row.name for row in POOL_DESIGNS if row.pools and not row.magazines])
def test_model_and_core_decide_alike_before_a_new_peak_with(pools: str):
    beyond_the_peak_with(pools)


@pytest.mark.parametrize(
    ("station", "name", "less", "history"),
    [
        ("caching", "POOL_PAGES_MAX", 1, caps_and_thresholds),
        ("caching", "POOL_CAP_PAGES", 1, full_pool),
        ("caching", "DECAY_PERCENT", 1, decaying_pools),
        ("magazine", "MAGAZINE_CAP", 1, caps_and_thresholds),
        ("magazine", "MAGAZINE_REFILL_MAX", 1, caps_and_thresholds),
        ("magazine", "MAGAZINE_STOCK_PAGES", 1, caps_and_thresholds),
        ("caching", "MAGAZINE_BUDGET_BYTES", 256 * PAGE, caps_within_the_least_budget),
        ("caching", "MAGAZINE_BUDGET_SHARE", -8, caps_and_thresholds),
        ("caching", "MAGAZINE_BUDGET_ALONE", 1, caps_and_thresholds),
        ("caching", "LAZY_BYTES_PER_CPU_BIT", 1 << 20, recent_peak),
        ("caching", "LAZY_PEAK_PERCENT", 1, recent_peak),
        ("caching", "PEAK_SINK_PERCENT", 1, recent_peak),
        ("caching", "PEAK_SINK_STEPS", 1, recent_peak),
        pytest.param("caching", "PURGE_STEP_PAGES", 1, steps, marks=SAME_PAGES),
        pytest.param("caching", "PURGE_STEP_RANGES", 1, steps, marks=SAME_PAGES),
        pytest.param("warm", "WARM_SLACK_SHIFT", -1, warm_ranges, marks=SAME_PAGES),
        pytest.param("warm", "WARM_STEPS_LOG", 1, wear, marks=SAME_PAGES),
        pytest.param("warm", "WARM_SORT_RANGES", 1, many_freed_at_once, marks=SAME_PAGES),
        ("warm", "WARM_LOOK_RANGES", 7, short_but_not_very),
        pytest.param("warm", "WARM_LOOK_LARGE", 1, warm_ranges, marks=SAME_PAGES),
        pytest.param("warm", "WARM_SORT_AHEAD", facts.WARM_SORT_AHEAD, its_own_size, marks=SAME_PAGES),
        ("warm", "WARM_JOIN_SHARE", 3, short_of_space),
        ("caching", "TIGHT_RESERVE_SHIFT", 2, short_but_not_very),
        ("caching", "TIGHT_THREADS", 4, short_but_not_very),
        ("magazine", "TIGHT_CAP", 3, short_but_not_very),
        ("caching", "TIGHT_SLACK_SHIFT", -1, short_but_not_very),
        ("caching", "TIGHT_CLOSED_S", 1, very_short),
        ("caching", "CROWD_THREADS", 1, in_a_crowd),
        ("magazine", "CROWD_BATCH_PAGES", 1, in_a_crowd),
        ("caching", "ROOM_ATTEMPTS", 1, failing_request),
    ],
)
def test_a_model_with_another_number_is_found_out(monkeypatch, station, name, less, history):
    monkeypatch.setattr(f"vmalloc.model.{station}.{name}", getattr(facts, name) - less)
    with pytest.raises((AssertionError, KeyError)):
        history()


@pytest.mark.parametrize(("name", "other"), [("WARM_MEMORY_SHARE", 1 << 20), ("WARM_ROOM_SHIFT", 3)])
@SAME_PAGES
def test_a_model_that_keeps_another_peak_warm_is_found_out(monkeypatch, name, other):
    monkeypatch.setattr(f"vmalloc.model.caching.{name}", other)
    with pytest.raises((AssertionError, KeyError)):
        recent_peak("memory")


def test_nodes_are_the_cpus_up_to_nodes_max():
    design = CachingDesign("vmalloc")
    assert vmalloc.AddressSpace(0, 1 << 20)._info()["nr_nodes"] == design.nodes(CPUS)
    assert vmalloc.AddressSpace(0, 1 << 20, nodes=NODES_MAX)._info()["nr_nodes"] == design.nodes(1 << 20)
    with pytest.raises(ValueError, match=str(NODES_MAX)):
        vmalloc.AddressSpace(0, 1 << 20, nodes=NODES_MAX + 1)


# ---- histories that nobody thought of ----------------------------------------------------------------------


def machine(pools: str, kind: str, examples: int) -> type:
    """A test case of random histories."""
    history = type(f"{pools.title()}Of{kind.title()}", (History,), {"pools": pools, "kind": kind})
    history.TestCase.settings = settings(
        max_examples=examples, stateful_step_count=25, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    return history.TestCase


for pools in POOLS:
    examples = 50 if pools == "magazine" else 12
    globals()[f"Test{pools.title()}"] = machine(pools, "addresses", examples)
if os.sysconf("SC_PAGESIZE") == PAGE:
    for pools in POOLS:
        examples = {"magazine": 25, "locked": 25}.get(pools, 12)
        globals()[f"Test{pools.title()}WithMemory"] = machine(pools, "memory", examples)
