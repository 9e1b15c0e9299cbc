# SPDX-License-Identifier: MIT
"""Orders: in which order did things really happen?

A trace prints events slightly after the decisions they report, and a purge only at its end. With one CPU at
work that changes nothing; with several the printed order is not the order of the decisions. What is certain:

* an event's decision lies between the previous event of the same task and the event itself;
* purges exclude each other, a purge lies between the previous purge event and its own, and takes exactly as
  many areas as its event says;
* a free's counter value is atomic: it tells which parts of a purge had been settled by then.

`World` is a kernel with at most one purge in flight. `explain` looks for an order within these limits in
which *every* event it moves gets exactly the address the kernel gave it. The printed order is always tried
first, so an order is inferred only where it fails, from the limits and all the addresses involved; every
use is counted by the caller.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from vmalloc.lab.events import ALLOC, FREE, PURGE, Event
from vmalloc.model import PAGE, Area, Kernel, Level, Purge
from vmalloc.model.purge import Step

DEPTH_MAX = 6
"""Events of other tasks that may be moved before one event."""
LOOK_AHEAD = 4096
"""How far ahead, in events, a moved event may have been printed."""


class Timeline:
    """The events, and the limits that they put on each other's order.

    `unseen` are the frees of areas that no event has allocated, with their pages as the lazy counter tells.
    """

    def __init__(self, events: Sequence[Event], unseen: Mapping[int, int] = MappingProxyType({})) -> None:
        self.events = events
        self.unseen = unseen
        self.previous = [-1] * len(events)
        self.following: dict[int, int] = {}  # the task's next event, of purges only
        self.concurrent = len({event.cpu for event in events}) > 1
        self.purge_after = [len(events)] * len(events)
        self.backlog: dict[int, int] = {}
        self._allocs_of: dict[int, list[int]] = defaultdict(list)
        self._scan()
        self.opens = self._openings()

    def _scan(self) -> None:
        last_of_task: dict[int, int] = {}
        for index, event in enumerate(self.events):
            before = self.previous[index] = last_of_task.get(event.pid, -1)
            if before >= 0 and self.events[before].kind == PURGE:
                self.following[before] = index
            last_of_task[event.pid] = index
            if event.kind == ALLOC and not event.failed:
                self._allocs_of[event.addr].append(index)
        upcoming = len(self.events)
        for index in range(len(self.events) - 1, -1, -1):
            self.purge_after[index] = upcoming
            if self.events[index].kind == PURGE:
                upcoming = index

    def _openings(self) -> dict[int, int]:
        """For each purge event: the first event that may have been decided while the purge ran.

        A drain starts at the first free above the threshold. Such a free after the drain has taken its areas
        queues the next drain, which then follows at once. Any other purge starts after its task's previous
        event.
        """
        opens: dict[int, int] = {}
        left_over = self._left_over()
        last = over = -1
        above, backlog = False, 0
        for index, event in enumerate(self.events):
            if event.kind == FREE:
                above = event.nr_lazy > event.nr_lazy_max
                backlog = max(backlog, event.nr_lazy)
                if above and over < 0:
                    over = self.previous[index] + 1
            elif event.kind == PURGE:
                start = over if over >= 0 else last + 1
                if not event.comm.startswith("kworker"):
                    start = self.previous[index] + 1
                opens[index] = max(last + 1, start)
                self.backlog[index], backlog = backlog, 0
                last, over = index, (index + 1 if above and left_over[index] else -1)
        return opens

    def _left_over(self) -> dict[int, int]:
        """For each purge event: how many areas freed before it was printed it did not take.

        Counted from the purge that left least over, which is taken to have left nothing.
        """
        freed = 0
        left: dict[int, int] = {}
        for index, event in enumerate(self.events):
            if event.kind == FREE:
                freed += 1
            elif event.kind == PURGE:
                freed -= event.npurged
                left[index] = freed
        least = min(left.values(), default=0)
        return {index: count - least for index, count in left.items()}

    def is_full(self, index: int) -> bool:
        """Whether a purge empties the pools: it does when its task's allocation has just failed.

        The line of that failure may be lost; then the second try failed, right after this purge.
        """
        before, after = self.previous[index], self.following.get(index, -1)
        return any(
            at >= 0 and self.events[at].kind == ALLOC and bool(self.events[at].failed)
            for at in (before, after)
        )

    def next_alloc_of(self, addr: int, after: int) -> int | None:
        """The next allocation of this address that is printed after event `after`, if it is near."""
        indices = self._allocs_of.get(addr, [])
        at = bisect_right(indices, after)
        return indices[at] if at < len(indices) and indices[at] - after < LOOK_AHEAD else None


SHRINK_WITNESSES = 4
"""Allocations, this one included, that must be explained by a shrink before one is inferred."""


class Forecast(NamedTuple):
    """Where the model puts an allocation."""

    start: int | None
    level: Level


class World:
    """A model kernel, the purge in flight (with the index of its event), and the events moved forward."""

    __slots__ = ("kernel", "moved", "purge", "purge_index")

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.purge: Purge | None = None
        self.purge_index = -1
        self.moved: dict[int, Level] = {}

    def copy(self) -> World:
        other = World(self.kernel.copy())
        other.purge = self.purge.copy() if self.purge is not None else None
        other.purge_index = self.purge_index
        other.moved = self.moved.copy()
        return other

    def forecast(self, event: Event) -> Forecast:
        """Where the event's request would land now."""
        return Forecast(*self.kernel.peek(event.size, event.align, event.cpu, event.vstart, event.vend))

    def within_bounds(self, event: Event) -> bool:
        """Whether a request with an alignment above a page may have got its address from some search tree."""
        if event.align <= PAGE or event.failed:
            return False
        lowest, highest = self.kernel.space.bounds(event.size, event.align, event.vstart, event.vend)
        if lowest is None or event.addr < lowest or (highest is not None and event.addr > highest):
            return False
        free = self.kernel.space.covering(event.addr)
        return free is not None and event.addr + event.size <= free[1] and not event.addr & (event.align - 1)

    def fits(self, event: Event) -> bool:
        """Whether the event could have got its address now."""
        forecast = self.forecast(event)
        if forecast.start == event.addr:
            return True
        return forecast.level != "pool" and self.within_bounds(event)

    def apply(self, event: Event) -> Level:
        """Do the event's allocation, which `fits`; returns the level that served it."""
        forecast = self.forecast(event)
        if forecast.start == event.addr:
            _, level = self.kernel.attempt(event.size, event.align, event.cpu, event.vstart, event.vend)
            return level
        self.take_offered(event, "space")
        return "space"

    def take_offered(self, event: Event, level: Level) -> None:
        """Do the event's allocation where the forecast was right: `apply` without a second search."""
        if level == "pool":
            self.kernel.attempt(event.size, event.align, event.cpu, event.vstart, event.vend)
            return
        self._rotate_pool(event)
        self.kernel.space.take(event.addr, event.size)
        self.hold(event)

    def _rotate_pool(self, event: Event) -> None:
        """A misaligned pool head moves to the tail when the request goes on to the space."""
        kernel = self.kernel
        pool = kernel.nodes[event.cpu % kernel.nr_nodes].pools.get(event.size // PAGE)
        if pool is not None and pool.areas and (event.vstart, event.vend) == kernel.window:
            pool.take(event.align, kernel.design.pool_discipline)

    def hold(self, event: Event, node: int | None = None) -> None:
        """Make the event's area busy, wherever it came from."""
        kernel = self.kernel
        stamp = kernel.stamp(event.cpu, event.vstart, event.vend) if node is None else node
        kernel.busy.insert(Area(event.addr, event.size, stamp))
        kernel.live_pages += event.size // PAGE

    def nr_lazy(self) -> int:
        return sum(len(node.lazy) for node in self.kernel.nodes)

    def advance(self) -> bool:
        """One step of the purge in flight; False if there is none left."""
        if self.purge is None or self.purge.done:
            return False
        self.purge.advance(self.kernel)
        return True


def explain(world: World, line: Timeline, index: int, depth: int = DEPTH_MAX) -> World | None:
    """A world in which event `index` has its address and every moved event too; None if there is none."""
    event = line.events[index]
    if world.fits(event):
        return world
    explained = _other_first(world, line, index, depth) if depth else None
    if explained is None:
        explained = _purge_further(world, event)
    if explained is None and depth and world.purge is not None:
        explained = _purge_then_other(world, line, index, depth)
    return explained


def _other_first(world: World, line: Timeline, index: int, depth: int) -> World | None:
    """Somebody else had taken the address that the model offers, but printed it later."""
    offered = world.forecast(line.events[index]).start
    if offered is None:
        return None
    other = line.next_alloc_of(offered, index)
    if other is None or other in world.moved or line.previous[other] >= index:
        return None
    tried = explain(world.copy(), line, other, depth - 1)
    if tried is None:
        return None
    tried.moved[other] = tried.apply(line.events[other])
    return explain(tried, line, index, depth - 1)


def _purge_further(world: World, event: Event) -> World | None:
    """The purge in flight was further than the counters alone require: all in a row, or one lane of it."""
    if world.purge is None or world.purge.done:
        return None
    lanes: list[int | None] = [at for at, parts in enumerate(world.purge.lanes) if parts]
    for lane in lanes or [None]:
        tried = world.copy()
        for step in _steps(tried, lane):
            if (
                step.op not in ("detach", "settle")
                and step.pages in (0, event.size // PAGE)
                and tried.fits(event)
            ):
                return tried
    return None


def _steps(world: World, lane: int | None) -> Iterator[Step]:
    """Advance the purge in flight step by step, in one lane only if one is given."""
    purge = world.purge
    assert purge is not None
    while purge.lanes[lane] if lane is not None else not purge.done:
        yield purge.advance(world.kernel, lane)


def _purge_then_other(world: World, line: Timeline, index: int, depth: int) -> World | None:
    """Both: the purge was further and somebody else came first; tried at the end of each stage only."""
    tried = world.copy()
    for step in _steps(tried, None):
        if step.op in ("reclaim", "give back"):
            explained = _other_first(tried, line, index, depth - 1)
            if explained is not None:
                return explained
    return None


def witness(world: World, line: Timeline, index: int) -> bool:
    """Whether some order would give event `index` its address, be it that other addresses then do not fit.

    Others that printed later had taken what the model offers, one after another, or the purge was further.
    """
    event = line.events[index]
    tried = world.copy()
    for _ in range(DEPTH_MAX):
        offered, level = tried.forecast(event)
        other = line.next_alloc_of(offered, index) if offered is not None else None
        if offered is None or other is None or line.previous[other] >= index:
            break
        if level == "pool":
            tried.kernel.attempt(event.size, event.align, event.cpu, event.vstart, event.vend)  # it is gone
        elif line.events[other].size > event.size:
            break
        else:
            tried.kernel.space.take(offered, line.events[other].size)
        if tried.fits(event):
            return True
    return _purge_further(world, event) is not None


def shrunk(world: World, line: Timeline, index: int) -> World | None:
    """A world in which memory pressure has emptied the pools of the first nodes just before event `index`.

    The shrinker leaves no event. It is inferred only if this event and the next ones of its task, none of
    which the pools can explain, all get their exact addresses.
    """
    tried = world.copy()
    for node in tried.kernel.nodes:
        if node.pooled:
            tried.kernel.reclaim(tried.kernel.decay_pools(node, full=True))
            if tried.fits(line.events[index]) and _witnessed(tried.copy(), line, index):
                return tried
    return None


def _witnessed(world: World, line: Timeline, index: int) -> bool:
    """Whether this and the task's next allocations get their addresses (frees change neither)."""
    seen = 0
    for at in range(index, min(index + LOOK_AHEAD, line.purge_after[index])):
        event = line.events[at]
        if event.kind != ALLOC or event.failed or event.pid != line.events[index].pid:
            continue
        other = explain(world, line, at, 2)
        if other is None:
            return False
        world = other
        world.apply(event)
        seen += 1
        if seen == SHRINK_WITNESSES:
            return True
    return seen > 1
