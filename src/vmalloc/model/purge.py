# SPDX-License-Identifier: MIT
"""Purge: make lazily freed areas usable again.

One purge runs at a time. It is a row of small steps, and other CPUs allocate and free between any two of
them; the replay needs that, so a purge is an object that is advanced step by step. `Allocator.purge()`
simply runs all of them. The steps, n = each node in ascending order:

1. for each n:  decay     cut n's pools (decay.py); the cut entries are nowhere until
                reclaim   they enter the global space in one go;
                detach    n's whole lazy set becomes its purge list.
2. flush        the translation caches, once, over everything detached. No decision, no step here.
3. for each n with a purge list:
                fill      one area at a time, in address order: a stamped area of a pooled size goes to the
                          head of n's pool (unless the purge is full), others are set aside;
                settle    the lazy page counter falls by the whole list;
                give back what was set aside enters the global space in one go.

A full purge (an allocation failed, or per-CPU areas found no room) empties all pools and fills none. Ours
fills none in any purge: its pools hold what the magazines let go, and a purge returns pages to the machine.

From a backlog of twice the threshold on, helpers on other CPUs take the first nodes of part 3. Then part 3
has several lanes, one for each helped node and one for all others; steps of different lanes may interleave.

After: Linux mm/vmalloc.c, __purge_vmap_area_lazy(), purge_vmap_node() and reclaim_list_global().
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal, NamedTuple

from vmalloc.model.area import NO_NODE, PAGE, Area

if TYPE_CHECKING:
    from vmalloc.model.allocator import Allocator

Op = Literal["decay", "reclaim", "detach", "fill", "settle", "give back"]
COLLECT: tuple[Op, ...] = ("decay", "reclaim", "detach")


class Step(NamedTuple):
    """What a purge did last: the operation, the node, and the pages of the pool it filled (0: none)."""

    op: Op
    node: int
    pages: int = 0


class NodePurge:
    """Part 3 for one node: `at` areas of the purge list are filled, `aside` is what no pool takes.

    `settled` says whether the lazy counter has fallen already.
    """

    __slots__ = ("areas", "aside", "at", "node", "pages", "settled")

    def __init__(self, node: int, areas: list[Area]) -> None:
        self.node = node
        self.areas = areas
        self.at = 0
        self.aside: list[Area] = []
        self.settled = False
        self.pages = sum(area.size for area in areas) // PAGE

    def copy(self) -> NodePurge:
        other = NodePurge.__new__(NodePurge)
        other.node, other.areas, other.at = self.node, self.areas[:], self.at
        other.aside, other.pages, other.settled = self.aside[:], self.pages, self.settled
        return other

    def fill_one(self, allocator: Allocator, largest: int) -> Step:
        """Hand the next area of the list to its pool, or set it aside."""
        area = self.areas[self.at]
        self.at += 1
        n, pages = self.node, area.size // PAGE
        if area.node != NO_NODE and pages <= largest:
            pool = allocator.nodes[n].pool(pages)
            if allocator.pool_takes(pool):
                pool.push(area)
                return Step("fill", n, pages)
        self.aside.append(area)
        return Step("fill", n)

    def fill_all(self, allocator: Allocator, largest: int) -> None:
        """Hand out the rest of the list: `fill_one` until the end, with nobody looking in between."""
        pools, largest_bytes = allocator.nodes[self.node].pools, largest * PAGE
        for area in self.areas[self.at :]:
            size = area.size
            if size <= largest_bytes and area.node != NO_NODE:
                pool = pools.get(size // PAGE) or allocator.nodes[self.node].pool(size // PAGE)
                if allocator.pool_takes(pool):
                    pool.areas.append(area)
                    continue
            self.aside.append(area)
        self.at = len(self.areas)

    def settle(self, allocator: Allocator) -> Step:
        """Account for the whole list."""
        allocator.lazy_pages -= self.pages
        self.settled = True
        return Step("settle", self.node)

    def give_back(self, allocator: Allocator) -> Step:
        """Put what was set aside into the space."""
        allocator.reclaim(self.aside)
        return Step("give back", self.node)


class Purge:
    """A purge in flight. `advance` does one step; `nr_purged`, `start` and `end` are its report.

    `backlog` is the lazy backlog when helpers are called, if it is known to be more than the counter
    says then (frees elsewhere go on meanwhile).
    """

    __slots__ = ("_collect", "_decayed", "_detached", "backlog", "end", "full", "lanes", "nr_purged", "start")

    def __init__(self, allocator: Allocator, full: bool, backlog: int = 0) -> None:
        self.full = full
        self.backlog = backlog
        self.start = 1 << 64
        self.end = 0
        self.nr_purged = 0
        self.lanes: list[deque[NodePurge]] = []
        self._collect: deque[tuple[Op, int]] = deque(
            (op, n) for n in range(allocator.nr_nodes) for op in COLLECT
        )
        self._decayed: list[Area] = []
        self._detached: list[NodePurge] = []

    def copy(self) -> Purge:
        other = Purge.__new__(Purge)
        other.full, other.start, other.end, other.nr_purged = self.full, self.start, self.end, self.nr_purged
        other.backlog = self.backlog
        other.lanes = [deque(part.copy() for part in lane) for lane in self.lanes]
        other._collect = self._collect.copy()
        other._decayed = self._decayed[:]
        other._detached = [part.copy() for part in self._detached]
        return other

    @property
    def collected(self) -> bool:
        """Whether every node's lazy set has been taken."""
        return not self._collect

    @property
    def done(self) -> bool:
        return not self._collect and not any(self.lanes)

    def advance(self, allocator: Allocator, lane: int | None = None) -> Step:
        """Do the next step: of parts 1 and 2, then of the given lane or the first that has work.

        Raises IndexError when there is nothing left to do.
        """
        if self._collect:
            return Step(*self._collect_one(allocator))
        if lane is None:
            lane = next((at for at, parts in enumerate(self.lanes) if parts), 0)
        part = self.lanes[lane][0]
        if part.at < len(part.areas):
            return part.fill_one(allocator, self._largest(allocator))
        if not part.settled:
            return part.settle(allocator)
        self.lanes[lane].popleft()
        return part.give_back(allocator)

    def collect(self, allocator: Allocator) -> None:
        """Do what is left of part 1."""
        while self._collect:
            self._collect_one(allocator)

    def settle_next(self, allocator: Allocator, lane: int) -> None:
        """Do the lane's steps up to its next settling, with nobody looking in between."""
        parts = self.lanes[lane]
        if parts[0].settled:
            parts.popleft().give_back(allocator)
        parts[0].fill_all(allocator, self._largest(allocator))
        parts[0].settle(allocator)

    def run(self, allocator: Allocator) -> None:
        """Do all the steps that are left."""
        self.collect(allocator)
        for lane in self.lanes:
            for part in lane:
                part.fill_all(allocator, self._largest(allocator))
                if not part.settled:
                    part.settle(allocator)
                part.give_back(allocator)
            lane.clear()

    def _largest(self, allocator: Allocator) -> int:
        """The largest size in pages that goes into pools; 0 for none."""
        return 0 if self.full else allocator.pooled_pages_max

    def drop(self, allocator: Allocator, start: int) -> bool:
        """Forget the area that starts here if this purge has it under way (a replay puts itself right)."""
        for area in self._decayed:
            if area.start == start:
                self._decayed.remove(area)
                return True
        for part in (*self._detached, *(part for lane in self.lanes for part in lane)):
            for waiting in (part.aside, part.areas[part.at :]):
                for area in waiting:
                    if area.start == start:
                        place = part.areas.index(area)
                        part.areas.remove(area)
                        part.at -= place < part.at
                        if waiting is part.aside:
                            part.aside.remove(area)
                        part.pages -= area.pages
                        allocator.lazy_pages -= 0 if part.settled else area.pages
                        return True
        return False

    def _collect_one(self, allocator: Allocator) -> tuple[Op, int]:
        op, n = at = self._collect.popleft()
        if op == "decay":
            self._decayed = allocator.decay_pools(allocator.nodes[n], self.full)
        elif op == "reclaim":
            if self._decayed:
                allocator.reclaim(self._decayed)
                self._decayed = []
        else:
            self._detach(n, allocator.take_lazy(n))
        if not self._collect:
            self._share(allocator)
        return at

    def _detach(self, n: int, areas: list[Area]) -> None:
        if areas:
            self.start = min(self.start, areas[0].start)
            self.end = max(self.end, areas[-1].end)
            self.nr_purged += len(areas)
            self._detached.append(NodePurge(n, areas))

    def _share(self, allocator: Allocator) -> None:
        """Part 3 begins: a lane for each node that a helper takes, one for the rest."""
        backlog = max(allocator.lazy_pages, self.backlog)
        count = helpers(backlog, allocator.lazy_pages_max, len(self._detached))
        self.lanes = [deque([part]) for part in self._detached[:count]] + [deque(self._detached[count:])]
        self._detached = []


def helpers(lazy_pages: int, lazy_pages_max: int, nodes_with_work: int) -> int:
    """How many nodes other CPUs purge meanwhile: none below twice the threshold."""
    return max(1, min(lazy_pages // lazy_pages_max, nodes_with_work)) - 1 if nodes_with_work else 0
