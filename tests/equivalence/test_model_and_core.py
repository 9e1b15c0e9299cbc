"""The plain-Python model's `vmalloc` preset and the C core decide alike, request by request.

One thread, one node, purges by hand. After every step both have the same ranges in the same states, so the
next step starts from the same place. Which level of the core served a request is seen from the state that
the range it gave had before.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import vmalloc
from vmalloc.model import PAGE, PRESETS, Kernel, Level

OURS = PRESETS["vmalloc"]
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
        self.model = Kernel(DESIGNS[pools], 1, (BASE, BASE + nr_pages * PAGE))
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
        page = self.live.pop(place)
        self.core.free(page * PAGE)
        assert self.model.free(BASE + page * PAGE) is not None
        assert not self.model.purge_is_due

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
    """[alloc, pool, lazy, space] of one request. A magazine's hit counts nothing, off the fast path as a pool's."""
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
for history, examples in ((History, 25), (OffHistory, 8), (LockedHistory, 8), (LlistHistory, 8)):
    history.TestCase.settings = settings(
        max_examples=examples, stateful_step_count=25, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
