# SPDX-License-Identifier: MIT
"""Predict: feed a kernel's requests to the model and compare where each area landed.

The printed order is taken first and every allocation is forecast before its address is looked at. Purges are
placed by what the trace proves: their event, the number of areas they took, the counter that each free
prints. Where a forecast fails, orders.py looks for a decision order that the trace allows; an address that is
exact only then is counted under `orders_inferred`. What remains is a miss with a category:

    unknown start state     the address, or the one forecast, was never seen in a known state before
    concurrent order        both are known, and there is a witness: an order of what others, or a purge, did
                            meanwhile that gives this address, though not all the others
    migration between choice and event     the address headed another CPU's pool
    untraced operation      the address was in use by an area that was freed or moved without an event
    unexplained             others were at work, but no order gives this address
    model wrong             none of these: the model is at fault

After a miss the model is put right, so that one miss is not counted twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from math import prod
from typing import Any, Literal, NamedTuple

from vmalloc.lab._predict import Ledger, run
from vmalloc.lab.events import ALLOC, FREE, LOST, PURGE, Event
from vmalloc.lab.learn import Learner
from vmalloc.lab.ledger import ledger_of, with_ledger
from vmalloc.lab.orders import Forecast, Timeline, World, explain, shrunk, witness
from vmalloc.lab.reconcile import Origin, claim, evict
from vmalloc.lab.restore import fits
from vmalloc.model import PAGE, Area, Kernel, Level, Purge, Space

Category = Literal[
    "unknown start state",
    "concurrent order",
    "migration between choice and event",
    "untraced operation",
    "unexplained",
    "model wrong",
]
PROGRESS_EVERY = 4096
LANE_CHOICES_MAX = 4096
"""Ways in which helpers may share a purge that are tried against a counter."""
UNEXPLAINED_MIN = 50
UNEXPLAINED_SHARE = 0.02
"""No more orders are looked for once so many events, and this share of all, could not be explained by any:
the model is wrong there, and no order makes it right."""
BUSY_WINDOW = 64
"""Events of other tasks within which another CPU counts as at work."""


@dataclass
class Tally:
    """Allocations and how many of them were forecast exactly."""

    allocs: int = 0
    exact: int = 0

    @property
    def share(self) -> float:
        return self.exact / self.allocs if self.allocs else 1.0

    def add(self, exact: bool) -> None:
        self.allocs += 1
        self.exact += exact

    def __iadd__(self, other: Tally) -> Tally:
        self.allocs += other.allocs
        self.exact += other.exact
        return self


@dataclass
class Prediction:
    """What a replay found. `page` are alignments up to a page, `above` larger ones."""

    design: str
    events: int = 0
    page: Tally = field(default_factory=Tally)
    above: Tally = field(default_factory=Tally)
    within_bounds: int = 0
    warm: Tally = field(default_factory=Tally)
    last_quarter: Tally = field(default_factory=Tally)
    orders_inferred: int = 0
    shrinks_inferred: int = 0
    level: Tally = field(default_factory=Tally)
    level_warm: Tally = field(default_factory=Tally)
    misses: Counter[str] = field(default_factory=Counter)
    assumed: Counter[str] = field(default_factory=Counter)
    purges: int = 0
    purges_as_told: int = 0
    levels: Counter[str] = field(default_factory=Counter)
    by_cpu: defaultdict[int, Tally] = field(default_factory=lambda: defaultdict(Tally))
    by_pages: defaultdict[int, Tally] = field(default_factory=lambda: defaultdict(Tally))
    by_window: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    first_miss: dict[str, Any] | None = None

    @property
    def all(self) -> Tally:
        return Tally(self.page.allocs + self.above.allocs, self.page.exact + self.above.exact)


class Score(NamedTuple):
    """What is counted of one allocation; noted as a plain tuple of this order, which takes half the time."""

    cpu: int
    level: Level | None
    is_right: bool
    exact: bool
    bounded: bool
    sure: bool
    is_late: bool
    is_above: bool
    in_window: bool


class Predictor:
    """Replays one timeline through one kernel. `run()` once, then read `result` and `kernel`."""

    def __init__(
        self, kernel: Kernel, line: Timeline, start_known: bool = True, compiled: bool = True
    ) -> None:
        """compiled: leave the events that come as forecast to _predict.pyx, which does what is done here."""
        self.world = World(with_ledger(kernel, compiled))
        self.line = line
        self.compiled = compiled
        self.result = Prediction(kernel.design.name)
        self.learner = (
            None if start_known else Learner(self.result.assumed, Ledger() if compiled else Space())
        )
        self.sure = True
        self.unexplained = 0
        self.index = 0
        self.at = 0  # the next event
        self.passed = -1  # the range that the kernel passed over last, against the forecast
        self.verdicts = bytearray(len(line.events))  # 1: as forecast in the printed order; purges: as told
        self.before_steps: list[tuple[int, World]] = []
        self.scored: dict[tuple[Any, ...], int] = {}  # a Score's fields; once a round, as what follows
        self.sized: dict[tuple[int, bool], int] = {}  # of each size: how many came as forecast, or did not
        self.purge_from = self._first_opening()

    def _first_opening(self) -> int:
        end = len(self.line.events)
        return min(self.line.opens.values(), default=end) if self.learner is None else 0

    @property
    def kernel(self) -> Kernel:
        return self.world.kernel

    def run(self, progress: Callable[[int], object] | None = None) -> Prediction:
        """Replay everything; `progress` is told now and then which event was reached."""
        while self.at < len(self.line.events):
            if progress is not None:
                progress(self.at)
            self.advance(PROGRESS_EVERY)
        return self.result

    def advance(self, count: int) -> None:
        """Replay the next `count` events, or what is left."""
        end = min(self.at + count, len(self.line.events))
        index = self.at
        while index < end:
            if self.compiled:
                index = run(self, index, end)
                if index == end:
                    break
            self._one(index, self.line.events[index])
            index += 1
        self.at = self.result.events = end
        self._count_scored()

    def _one(self, index: int, event: Event) -> None:
        kind, moved = event.kind, self.world.moved
        if kind == ALLOC:
            if moved and index in moved:
                del moved[index]
            else:
                self._alloc(index, event)
        elif kind == FREE:
            if index >= self.purge_from or self.kernel.free(event.addr) is None:
                self._free(index, event)
        elif kind == PURGE:
            self._purge(index, event)
            if self.learner is None:
                self.purge_from = self._next_opening(index)

    def _next_opening(self, index: int) -> int:
        """The event from which the next purge may have been running; nothing but requests comes before it."""
        return self.line.opens.get(self.line.purge_after[index], len(self.line.events))

    def _count_scored(self) -> None:
        """Add to the result what `_score` has noted since the last time."""
        result = self.result
        for noted, count in self.scored.items():
            score = Score(*noted)
            tally = Tally(count, count * score.exact)
            if score.is_above:
                result.above += tally
            else:
                result.page += tally
            result.within_bounds += count * score.bounded
            if score.sure:
                result.warm += tally
            if score.is_late:
                result.last_quarter += tally
            if score.level in ("pool", "space"):
                right = Tally(count, count * score.is_right)
                result.level += right
                if score.sure:
                    result.level_warm += right
                result.levels[score.level] += count
            result.by_cpu[score.cpu] += tally
            result.by_window["vmalloc" if score.in_window else "modules and other"] += tally
        for (size, exact), count in self.sized.items():
            result.by_pages[size // PAGE] += Tally(count, count * exact)
        self.scored.clear()
        self.sized.clear()

    # ------------------------------------------------------------------ purges

    def _open_purge(self, index: int) -> None:
        """Start the next purge as soon as it may have been running."""
        upcoming = self.line.purge_after[index]
        if (
            self.world.purge is None
            and upcoming < len(self.line.events)
            and index >= self.line.opens[upcoming]
        ):
            self.world.purge = self._new_purge(upcoming)
            self.world.purge_index = upcoming

    def _new_purge(self, index: int) -> Purge:
        return Purge(self.kernel, self.line.is_full(index), self.line.backlog[index])

    def _purge(self, index: int, event: Event) -> None:
        world = self.world
        if world.purge is None or world.purge_index != index:
            world.purge = self._new_purge(index)
        if not world.purge.collected:
            self._collect(index)
        self._remember(index)
        world.purge.run(self.kernel)
        self.kernel.count(world.purge)
        self.result.purges += 1
        if world.purge.nr_purged == event.npurged:
            self.result.purges_as_told += 1
            self.verdicts[index] = 1
        elif self.learner is not None:
            self.learner.purge_told_otherwise()
        world.purge = None

    def _collect(self, index: int) -> None:
        """Let the purge in flight decay all pools and take all lazy sets."""
        if self.learner is not None:
            self.learner.purge_begins(self.world)
        self._remember(index)
        assert self.world.purge is not None
        self.world.purge.collect(self.kernel)

    def _remember(self, index: int) -> None:
        """Keep the world as it is before steps that the trace forces, for allocations printed late."""
        if self.learner is not None or not self.line.concurrent:
            return
        self.before_steps.append((index, self.world.copy()))
        del self.before_steps[:-4]

    # ------------------------------------------------------------------ frees

    def _free(self, index: int, event: Event) -> None:
        self._open_purge(index)
        area = self.kernel.busy.areas.get(event.addr)
        if area is None:
            area = self._unseen_area(index, event)
        self._purge_before_free(index, event, area)
        self.kernel.free(event.addr)

    def _purge_before_free(self, index: int, event: Event, area: Area) -> None:
        """Advance the purge as far as this free proves: not taken by it, and what its counter says."""
        world, purge = self.world, self.world.purge
        if purge is None:
            return
        if not purge.collected:
            if world.nr_lazy() + purge.nr_purged < self.line.events[world.purge_index].npurged:
                return
            self._collect(index)
        excess = self.kernel.lazy_pages + area.pages - event.nr_lazy
        for lane, count in enumerate(_settled(purge, excess)):
            for _ in range(count):
                self._remember(index)
                purge.settle_next(self.kernel, lane)

    def _unseen_area(self, index: int, event: Event) -> Area:
        """A freed area that was never seen allocated: its size is what the lazy counter grew by."""
        self.result.assumed["area freed but never seen allocated"] += 1
        pages = self.line.unseen.get(index) or max(1, event.nr_lazy - self.kernel.lazy_pages)
        self._born(index, event, (pages if fits(event.addr, pages) else 1) * PAGE)
        return self.kernel.busy.areas[event.addr]

    def _born(self, index: int, event: Event, size: int) -> None:
        """Make an area busy whose allocation left no event; `event` is its free.

        Per-CPU areas are found from the window's end and belong to no node.
        """
        kernel = self.kernel
        cpu = self._cpu_of_unseen(index, event, size)
        vstart, vend = kernel.window if cpu is not None else (0, 0)
        request = event._replace(kind=ALLOC, size=size, align=1, vstart=vstart, vend=vend)
        claim(self.world, request if cpu is None else request._replace(cpu=cpu))

    def _cpu_of_unseen(self, index: int, event: Event, size: int) -> int | None:
        """The CPU whose allocation left no event; None for a per-CPU area.

        If the model would have given out just this range, to the task that frees it, its line is lost. With
        an unseen start the model cannot tell: there what lies in the window's lower half is no per-CPU area.
        """
        kernel = self.kernel
        if kernel.nr_nodes == 1:
            return None
        before = self._cpu_before(index, event)
        for tried in {before: True, event.cpu: True}:
            if kernel.peek(size, 1, tried)[0] == event.addr:
                return tried
        start, end = kernel.window
        return before if self.learner is not None and event.addr - start < end - event.addr else None

    # ------------------------------------------------------------------ allocations

    def _alloc(self, index: int, event: Event) -> None:
        self._open_purge(index)
        self.index = index
        world, learner = self.world, self.learner
        forecast = world.forecast(event) if learner is None else learner.forecast(world, event)
        self.sure = learner is None or learner.sure(world, event, forecast)
        if event.failed:
            self._failed(index, event, forecast)
        elif forecast.start == event.addr:
            self.verdicts[index] = 1
            self._score(event, forecast.level, exact=True)
            world.take_offered(event, forecast.level)
            if learner is not None:
                learner.right(world, event, forecast.level)
        else:
            self._look_closer(index, event, forecast)

    def _failed(self, index: int, event: Event, forecast: Forecast) -> None:
        self._score(event, forecast.level, exact=forecast.start is None)
        self.verdicts[index] = forecast.start is None
        if forecast.start is not None:
            self._miss(index, event, forecast, "model wrong")

    def _look_closer(self, index: int, event: Event, forecast: Forecast) -> None:
        """The forecast failed: within the tree's bounds, another order, or a miss."""
        if forecast.level != "pool" and self.world.within_bounds(event):
            self.verdicts[index] = 1
            self._score(event, "space", exact=False, bounded=True)
            self.world.apply(event)
            return
        if not self.sure or (self.learner is not None and self._never_seen(event)):
            self._lost(index, event, forecast)
            return
        if self._given_up(index):
            self._lost(index, event, forecast)
            return
        if self.learner is None and self._taken_unseen(index, event, forecast):
            return
        before = set(self.world.moved)
        explained = explain(self.world, self.line, index)
        if explained is None and self.learner is None:
            explained = shrunk(self.world, self.line, index)
            self.result.shrinks_inferred += explained is not None
        if explained is not None:
            self._accept(explained, event, before)
        elif not self._printed_late(index, event):
            self.unexplained += 1
            self._lost(index, event, forecast)

    def _taken_unseen(self, index: int, event: Event, forecast: Forecast) -> bool:
        """The range offered was taken by an allocation whose line is lost; its free comes later.

        That area becomes busy. A miss all the same: the address was not forecast. Returns whether it is so.
        """
        if forecast.start is None:
            return False
        end = forecast.start + event.size
        for at, pages in self.line.unseen.items():
            born = self.line.events[at]
            if at > index and born.addr < end and born.addr + pages * PAGE > forecast.start:
                tried = self.world.copy()
                request = born._replace(cpu=self._cpu_before(at, born), size=pages * PAGE, align=1)
                claim(tried, request._replace(vstart=self.kernel.window[0], vend=self.kernel.window[1]))
                if tried.fits(event):
                    self._score(event, forecast.level, exact=False)
                    self._miss(index, event, forecast, "untraced operation")
                    self.result.assumed["area taken by an allocation that left no event"] += 1
                    self.world = tried
                    tried.apply(event)
                    return True
        return False

    def _never_seen(self, event: Event) -> bool:
        space = ledger_of(self.kernel)
        return not space.is_out(event.addr) and space.covering(event.addr) is None

    def _accept(self, explained: World, event: Event, before: set[int]) -> None:
        """Go on in the world where every address is explained."""
        self.world = explained
        self.result.orders_inferred += 1
        for moved in explained.moved.keys() - before:
            self._score(self.line.events[moved], explained.moved[moved], exact=True)
        exact = explained.forecast(event).start == event.addr
        level = explained.apply(event)
        self._score(event, level, exact=exact, bounded=not exact)

    def _printed_late(self, index: int, event: Event) -> bool:
        """Decided before steps that the trace forced meanwhile, printed after: was the address right then?"""
        for at, world in reversed(self.before_steps):
            if self.line.previous[index] >= at:
                return False
            explained = explain(world.copy(), self.line, index, depth=0)
            if explained is not None:
                self.result.orders_inferred += 1
                place = claim(self.world, event).place
                self._score(event, place if place == "pool" else "space", exact=True)
                return True
        return False

    def _lost(self, index: int, event: Event, forecast: Forecast) -> None:
        level: Level | None
        has_witness = self.sure and not self._given_up(index) and witness(self.world, self.line, index)
        if self.learner is None:
            self._passed_over(event, forecast)
            origin = claim(self.world, event)
            level = origin.place if origin.place in ("pool", "space") else None
        else:
            origin, level = self.learner.wrong(self.world, event, forecast)
        self._score(event, level, exact=False, forecast=forecast.level)
        self._miss(index, event, forecast, self._category(index, event, origin, has_witness))

    def _given_up(self, index: int) -> bool:
        return self.unexplained > max(UNEXPLAINED_MIN, UNEXPLAINED_SHARE * index)

    def _cpu_before(self, index: int, event: Event) -> int:
        """Where the event's task was at its previous event."""
        before = self.line.previous[index]
        return self.line.events[before].cpu if before >= 0 else event.cpu

    def _passed_over(self, event: Event, forecast: Forecast) -> None:
        """What the kernel passes over a second time, and no order explains, is not there: somebody has it."""
        start = forecast.start
        if start is None:
            return
        if self.passed != start:
            self.passed = start
            return
        if forecast.level == "pool":
            evict(self.world, start, event.size)
            self.kernel.space.discard(start, event.size)
        else:
            free = self.kernel.space.covering(start)
            if free is not None:
                end = min(free[1], event.addr) if event.addr > start else start + event.size
                self.kernel.space.discard(free[0], end - free[0])
        self.result.assumed["passed over twice: taken unseen"] += 1

    # ------------------------------------------------------------------ bookkeeping

    def _category(self, index: int, event: Event, origin: Origin, has_witness: bool) -> Category:
        own = event.cpu % self.kernel.nr_nodes
        if origin.place == "pool" and origin.node != own:
            return "migration between choice and event"
        if origin.place in ("unseen", "busy"):
            return "untraced operation" if self.learner is None else "unknown start state"
        if not self.sure:
            return "unknown start state"
        if has_witness:
            return "concurrent order"
        return "unexplained" if self._others_at_work(index) else "model wrong"

    def _others_at_work(self, index: int) -> bool:
        if self.world.purge is not None:
            return True
        events = self.line.events
        near = events[max(0, index - BUSY_WINDOW) : index + BUSY_WINDOW]
        return any(other.cpu != events[index].cpu for other in near)

    def _score(
        self,
        event: Event,
        level: Level | None,
        exact: bool,
        bounded: bool = False,
        forecast: Level | None = None,
    ) -> None:
        score = (
            event.cpu,
            level,
            forecast is None or forecast == level,
            exact,
            bounded,
            self.sure,
            4 * self.index >= 3 * len(self.line.events),
            event.align > PAGE,
            (event.vstart, event.vend) == self.kernel.window,
        )
        self.scored[score] = self.scored.get(score, 0) + 1
        size = event.size, exact
        self.sized[size] = self.sized.get(size, 0) + 1

    def _miss(self, index: int, event: Event, forecast: Forecast, category: Category) -> None:
        self.result.misses[category] += 1
        if self.result.first_miss is None:
            self.result.first_miss = {
                "line": event.line,
                "cpu": event.cpu,
                "size": event.size,
                "align": event.align,
                "address": hex(event.addr),
                "forecast": hex(forecast.start or 0),
                "level": forecast.level,
                "category": category,
            }


def _settled(purge: Purge, excess: int) -> tuple[int, ...]:
    """How many parts of each lane must be settled if the lazy counter is lower than expected by `excess`."""
    lanes = [
        list(accumulate((part.pages for part in parts if not part.settled), initial=0))
        for parts in purge.lanes
    ]
    if excess <= 0 or prod(map(len, lanes)) > LANE_CHOICES_MAX:
        return ()
    choices = product(*(range(len(sums)) for sums in lanes))
    return min(
        choices, key=lambda counts: abs(excess - sum(s[n] for s, n in zip(lanes, counts, strict=True)))
    )


def most_used_window(events: Sequence[Event]) -> tuple[int, int]:
    """The vmalloc window: the bounds most requests were made with."""
    counts = Counter((event.vstart, event.vend) for event in events if event.kind == ALLOC)
    if not counts:
        raise ValueError("no allocation in the trace: nothing to predict")
    return counts.most_common(1)[0][0]


def lost_events(events: Sequence[Event]) -> int:
    """How many events the recording says it lost."""
    return sum(event.lost for event in events if event.kind == LOST)
