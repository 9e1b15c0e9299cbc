# SPDX-License-Identifier: MIT
"""The plain-Python model's `vmalloc` preset and the C core decide alike, request by request.

One thread, one node. After every step both have the same ranges in the same states, so the next step starts
from the same place. Which level of the core served a request is seen from the state that the range it gave
had before.

The core's numbers (caps, budget, batches, slack, thresholds) are in its C files, the model's in the preset;
the directed tests go past each of them.
"""

from __future__ import annotations

import os
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import vmalloc
from vmalloc.model import PAGE, PRESETS, Kernel, Level

CPUS = os.sysconf("SC_NPROCESSORS_ONLN")
OURS = replace(PRESETS["vmalloc"], nodes_max=1)
DESIGNS = {
    "magazine": OURS,
    "locked": replace(OURS, freed_to="pool"),
    "off": replace(OURS, freed_to="lazy"),
    "llist": replace(OURS, freed_to="pool", pool_discipline="llist"),
}
BASE = 1 << 40  # of the model's window: aligned to whatever is asked for, as the core's page 0 is
LEVEL_OF_STATE: dict[str, Level] = {"cached": "magazine", "pooled": "pool", "lazy": "lazy", "free": "space"}
SIZES = st.one_of(st.integers(1, 4), st.sampled_from([16, 64, 200, 255, 256, 257, 260, 290, 300, 600]))

State = dict[int, tuple[int, str]]
"""Every range by its first page: (pages, state)."""


class Pair:
    """The core and the model, asked the same; pages count from the start of both."""

    def __init__(self, pools: str, nr_pages: int) -> None:
        self.core = vmalloc.AddressSpace(0, nr_pages * PAGE, granule=PAGE, pools=pools, nodes=1)
        self.model = Kernel(DESIGNS[pools], CPUS, (BASE, BASE + nr_pages * PAGE))
        self.live: list[int] = []

    def alloc(self, nr_pages: int, align: int = 1) -> tuple[Level, int | None]:
        """Ask both; returns the core's level and page after they were found to be the model's."""
        nr_pages = min(nr_pages, self.core.nr_pages)
        before, counts = core_state(self.core), counters(self.core)
        served = dict(self.model.served)
        try:
            page = self.core.alloc(nr_pages * PAGE, align * PAGE) // PAGE
        except vmalloc.OutOfPages:
            page = None
        counted = [now - then for now, then in zip(counters(self.core), counts, strict=True)]
        area = self.model.alloc(nr_pages * PAGE, align * PAGE)
        forecast = None if area is None else (area.start - BASE) // PAGE
        assert page == forecast
        if page is None or area is None:
            return "none", None
        level = next(level for level in LEVEL_OF_STATE.values() if self.model.served[level] > served[level])
        assert self.core.size_of(page * PAGE) == area.size
        if not counted[-1]:  # no purge on the way
            assert LEVEL_OF_STATE[state_at(before, page)] == level
        assert counted[:-1] in allowed_counts(level)
        self.live.append(page)
        return level, page

    def free(self, place: int) -> None:
        page, purges = self.live.pop(place), self.core.stats().nr_purges
        self.core.free(page * PAGE)
        assert self.model.free(BASE + page * PAGE) is not None
        assert self.core.stats().nr_purges - purges == self.model.purge_is_due
        if self.model.purge_is_due:
            self.model.purge()

    def purge(self) -> None:
        self.core.purge()
        self.model.purge()

    def shrink(self) -> None:
        self.core.shrink()
        self.model.shrink()

    def assert_equal(self) -> None:
        assert core_state(self.core) == model_state(self.model)
        assert self.core.stats().lazy_pages == self.model.lazy_pages


def counters(core: vmalloc.AddressSpace) -> list[int]:
    s = core.stats()
    return [s.nr_alloc, s.nr_pool_hit, s.nr_lazy_hit, s.nr_space_hit, s.nr_purges]


def allowed_counts(level: Level) -> list[list[int]]:
    """[alloc, pool, lazy, space] of one request. Off its fast path a magazine's hit counts as a pool's."""
    if level == "magazine":
        return [[0, 0, 0, 0], [1, 1, 0, 0]]
    return [[1, level == "pool", level == "lazy", level == "space"]]


def state_at(state: State, page: int) -> str:
    start = max(start for start in state if start <= page)
    return state[start][1]


def core_state(core: vmalloc.AddressSpace) -> State:
    return {r.start: (r.nr_pages, r.state) for r in core.ranges()}


def model_state(model: Kernel) -> State:
    found = {(start, end, "free") for start, end in model.space}
    found |= {(a.start, a.end, "busy") for a in model.busy.areas.values()}
    sizes = [ranges for kept in model.magazines.values() for ranges in kept.sizes.values()]
    found |= {(a.start, a.end, "cached") for ranges in sizes for a in ranges}
    found |= {(a.start, a.end, "pooled") for n in model.nodes for p in n.pools.values() for a in p.areas}
    found |= {(a.start, a.end, "lazy") for n in model.nodes for a in n.lazy.areas.values()}
    found |= {(a.start, a.end, "lazy") for a in model.shelf.places if a is not None}
    return {(start - BASE) // PAGE: ((end - start) // PAGE, state) for start, end, state in found}


class History(RuleBasedStateMachine):
    pools = "magazine"

    @initialize(nr_pages=st.sampled_from([300, 1500, 30000]))
    def begin(self, nr_pages):
        self.pair = Pair(self.pools, nr_pages)

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


def test_every_cap_and_threshold_is_the_cores():
    pair = Pair("magazine", 120_000)
    # caps of 30 for four sizes grow by 14,848 pages; 256 takes 768 more, 109 another 763, 3 the next 3 of 5
    counts = {1: 300, 2: 200, 254: 80, 255: 80, 256: 80, 109: 40, 3: 40, 257: 66, 300: 70, 3000: 9}
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
    assert all(served[level] for level in LEVEL_OF_STATE.values())
    pair.purge()
    pair.assert_equal()
    pair.shrink()
    pair.assert_equal()
    assert pair.model.used_pages == pair.core.stats().busy_pages


def test_the_shelf_has_64_places_and_wastes_an_eighth():
    pair = Pair("magazine", 130_000)
    pair.alloc(100_000)  # a quarter of the peak of use may be lazy
    for nr_pages in [257] * 66 + [300]:
        pair.alloc(nr_pages)
    pair.free(-1)
    assert pair.alloc(266)[0] == "space"
    assert pair.alloc(267)[0] == "lazy"
    for _ in range(66):
        pair.free(1)
    assert [pair.alloc(257)[0] for _ in range(66)] == ["lazy"] * 64 + ["space"] * 2


def test_the_threshold_is_a_quarter_of_the_recent_peak_of_use():
    pair = Pair("magazine", 130_000)
    for _ in range(260):
        pair.alloc(500)
    for _ in range(260):
        pair.free(0)
    assert pair.model.nr_purges > 0
    pair.assert_equal()


def test_a_misaligned_head_of_a_pool_stays_there():
    pair = Pair("magazine", 2000)
    for _ in range(100):
        pair.alloc(1)
    for _ in range(100):
        pair.free(0)
    for _ in range(3):
        pair.alloc(1, align=128)
    for _ in range(150):
        pair.alloc(1)


def test_a_failing_request_is_tried_seven_times():
    pair = Pair("magazine", 600)
    pair.alloc(600)
    assert pair.alloc(2) == ("none", None)
    pair.free(0)
    pair.shrink()
    pair.alloc(2)
    pair.assert_equal()
    assert pair.core.stats().free_pages == 600 - 2 * 2  # one, two in vain, one, ... and in the end two


def test_a_pool_keeps_8192_pages_and_what_is_more_becomes_lazy():
    pair = Pair("magazine", 60_000)
    for _ in range(8400):
        pair.core.alloc(PAGE)
        pair.model.alloc(PAGE)
    pair.live = [(start - BASE) // PAGE for start in pair.model.busy.areas]
    for start in [page * PAGE for page in pair.live]:
        pair.core.free(start)
        pair.model.free(BASE + start)
    pair.assert_equal()
    assert pair.core.stats().pooled_pages == 8192
    assert pair.model.lazy_pages > 0


class OffHistory(History):
    pools = "off"


class LockedHistory(History):
    pools = "locked"


class LlistHistory(History):
    pools = "llist"


TestMagazine = History.TestCase
TestOff = OffHistory.TestCase
TestLocked = LockedHistory.TestCase
TestLlist = LlistHistory.TestCase
for history, examples in ((History, 50), (OffHistory, 12), (LockedHistory, 12), (LlistHistory, 12)):
    history.TestCase.settings = settings(
        max_examples=examples, stateful_step_count=25, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
