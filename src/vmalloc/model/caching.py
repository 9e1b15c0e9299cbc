# SPDX-License-Identifier: MIT
"""Caching allocator: the way of a request through our own allocator, the one in core/.

    alloc   magazine -> pool of this CPU's node, then of the next nodes -> warm, several at once for a pooled
            size -> above the threshold a step; space, several at once for who keeps missing a size
            -> make room and ask them all again
    free    busy -> magazine -overflow-> pool -over its cap-> lazy; above the threshold a step
    step    the oldest of what is lazy, a bounded part of it, to space
    purge   decay pools, take all that is lazy, all of it to space
    shrink  magazines and pools, then a full purge

It differs from the kernel in one belief: freed memory is warm and should be handed out again, while the
kernel must keep freed addresses apart until a flush of translation caches. So a freed range is ready at once,
purges fill no pools, and the threshold grows with use (docs/decisions/0013). Every number is in
vmalloc/facts.py, which the core is built from too.

The pool designs `off`, `locked` and `llist` are the same without magazines, `off` without pools as well.
There is one kind of range here, so areas carry no stamp, and what is lazy waits at the node of the CPU that
freed it until the warm store (warm.py) sorts it. Ages are taken from `now_s`: whoever wants time to pass sets
it. Not here: threads without a slot, drains that find a neighbour at work, recovery.

After: Bonwick and Adams, "Magazines and Vmem", 2001, in front of the kernel's nodes. The C is in core/.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vmalloc.facts import (
    DECAY_PERCENT,
    LAZY_BYTES_PER_CPU_BIT,
    LAZY_PEAK_PERCENT,
    MAGAZINE_BUDGET_BYTES,
    MAGAZINE_BUDGET_SHARE,
    NODES_MAX,
    PEAK_SINK_PERCENT,
    PEAK_SINK_STEPS,
    POOL_CAP_PAGES,
    POOL_CAP_RANGES_MIN,
    POOL_DESIGNS,
    POOL_PAGES_MAX,
    POOLS_DEFAULT,
    PURGE_STEP_PAGES,
    PURGE_STEP_RANGES,
    ROOM_ATTEMPTS,
    WARM_BYTES_MAX,
    WARM_MEMORY_SHARE,
    PoolDesign,
)
from vmalloc.model.allocator import WINDOW, Allocator, Level
from vmalloc.model.area import PAGE, Area
from vmalloc.model.busy import ZONE_PAGES, Busy
from vmalloc.model.decay import cut_pools
from vmalloc.model.magazine import Magazines
from vmalloc.model.node import Node
from vmalloc.model.pool import Pool
from vmalloc.model.purge import Purge
from vmalloc.model.shrink import shrink_count
from vmalloc.model.warm import Warm

MEMORY_BYTES = WARM_BYTES_MAX * WARM_MEMORY_SHARE
"""A machine with so much memory or more keeps WARM_BYTES_MAX warm."""


@dataclass(frozen=True, slots=True)
class CachingDesign:
    """Our allocator with one of the pool designs of vmalloc/facts.py in front of space."""

    name: str
    pools: str = POOLS_DEFAULT
    nodes_max: int = NODES_MAX

    @property
    def row(self) -> PoolDesign:
        """What stands in front of space."""
        return next(row for row in POOL_DESIGNS if row.name == self.pools)

    def nodes(self, cpus: int) -> int:
        """How many nodes a machine with so many possible CPUs has."""
        return max(1, min(cpus, self.nodes_max))

    @staticmethod
    def pool_capacity(pages: int) -> int:
        """How many ranges of so many pages one pool keeps."""
        return max(POOL_CAP_PAGES // pages, POOL_CAP_RANGES_MIN)

    @staticmethod
    def decay_quota(length: int) -> int:
        """How many of a pool's entries an ordinary purge gives back: rounded up."""
        return -(-length * DECAY_PERCENT // 100)

    @staticmethod
    def magazine_budget_pages(region_pages: int) -> int:
        """By so many pages all magazine caps of one thread may grow."""
        least = max(MAGAZINE_BUDGET_BYTES // PAGE, POOL_PAGES_MAX)
        return max(least, region_pages // MAGAZINE_BUDGET_SHARE)

    @staticmethod
    def lazy_pages_max(cpus: int, peak_pages: int = 0, memory_bytes: int = MEMORY_BYTES) -> int:
        """The lazy backlog above which a free gives back a step: the kernel's, or a part of the recent peak.

        `memory_bytes` is the machine's memory; 0 for an address space, which has none behind it.
        """
        fixed = cpus.bit_length() * LAZY_BYTES_PER_CPU_BIT // PAGE
        warm = min(memory_bytes // WARM_MEMORY_SHARE, WARM_BYTES_MAX) // PAGE
        return max(fixed, peak_pages * LAZY_PEAK_PERCENT // 100, min(peak_pages, warm))


class CachingAllocator(Allocator):
    """Our allocator on a machine with `cpus` CPUs and `memory_bytes` of memory, over one window.

    The window is the region: all of it is ours, and only requests for it exist. `lazy_pages_fixed` is the
    threshold if the user chose one.
    """

    __slots__ = (
        "clean",
        "design",
        "has_magazines",
        "has_pools",
        "lazy_pages_fixed",
        "magazines",
        "memory_bytes",
        "now_s",
        "nr_steps",
        "used_pages",
        "used_peak_pages",
        "warm",
    )
    _fields = (*Allocator._fields, *__slots__)

    def __init__(
        self,
        design: CachingDesign,
        cpus: int = 1,
        window: tuple[int, int] = WINDOW,
        free: Iterable[tuple[int, int]] | None = None,
        memory_bytes: int = MEMORY_BYTES,
        lazy_pages_fixed: int = 0,
    ) -> None:
        nr_nodes = design.nodes(cpus)
        nodes = [Node(n, lazy_merges=False) for n in range(nr_nodes)]
        super().__init__(cpus, nodes, Busy(nr_nodes, ZONE_PAGES * PAGE, descending=True), window, free)
        self.design = design
        self.has_magazines = design.row.magazines
        self.has_pools = bool(design.row.pools)
        self.memory_bytes = memory_bytes
        self.lazy_pages_fixed = lazy_pages_fixed
        self.magazines: dict[int, Magazines] = {}
        self.warm = Warm()
        self.clean: set[int] = set()  # busy ranges that came alone from space: never freed before
        self.now_s = 0
        self.nr_steps = 0
        self.used_pages = 0  # outside space
        self._peak_is(0)

    def copy(self) -> CachingAllocator:
        """An independent copy, to try something on."""
        other = super().copy()
        other.magazines = {thread: kept.copy() for thread, kept in self.magazines.items()}
        other.warm = self.warm.copy()
        other.clean = self.clean.copy()
        return other

    # ------------------------------------------------------------------ alloc

    def alloc(self, size: int, align: int = 1, cpu: int = 0, thread: int | None = None) -> Area | None:
        """Allocate `size` bytes, a page multiple; None if nothing that may bring room helped.

        A large range may be a warm one, and then a little larger. `thread` names the owner of the
        magazines, by default the CPU.
        """
        area, _ = self.attempt(size, align, cpu, thread)
        for attempt in range(ROOM_ATTEMPTS):
            if area is not None:
                break
            self._make_room(attempt)
            area, _ = self.attempt(size, align, cpu, thread)
        return area

    def attempt(
        self, size: int, align: int = 1, cpu: int = 0, thread: int | None = None
    ) -> tuple[Area | None, Level]:
        """One pass through the stations."""
        area, level = self._from_caches(size, align, cpu, thread)
        if area is None:
            area, level = self._from_space(size, align, cpu, thread), "space"
        if area is None:
            self.served["none"] += 1
            return None, "none"
        self._now_busy(area, level)
        return area, level

    def _make_room(self, attempt: int) -> None:
        """What may still bring ranges back, cheapest first. Repeated, since neighbours go on meanwhile."""
        if attempt > 0:
            self.drain_magazines()
        self.purge(full=attempt > 0)

    def _from_caches(self, size: int, align: int, cpu: int, thread: int | None) -> tuple[Area | None, Level]:
        """What stands in front of space: magazines and pools for a small size, warm ranges for any.

        Without pools a small size has nothing there, as in the kernel before 6.9.
        """
        pages = size // PAGE
        if pages > POOL_PAGES_MAX:
            return next(iter(self.warm.take(self, pages, align, 1)), None), "lazy"
        kept = self._magazines(cpu, thread) if self.has_magazines else None
        area = kept.take(pages, align) if kept is not None else None
        if area is not None:
            return area, "magazine"
        area = self._from_pool(pages, align, cpu, kept)
        if area is not None or not self.has_pools:
            return area, "pool"
        return self._from_warm(pages, align, cpu, kept), "lazy"

    def _from_pool(self, pages: int, align: int, cpu: int, kept: Magazines | None) -> Area | None:
        """The head of the first pool that has an aligned one: this CPU's node's, then the next nodes'.

        Magazines that missed take a batch along.
        """
        nodes, nr_nodes = self.nodes, self.nr_nodes
        for offset in range(nr_nodes):
            pool = nodes[(cpu + offset) % nr_nodes].pools.get(pages)
            if pool is None or not pool.areas:
                continue
            area = pool.take(align, "in place")
            if area is not None:
                if kept is not None:
                    self._refill(kept, pool, pages, align, cpu)
                return area
        return None

    def _from_warm(self, pages: int, align: int, cpu: int, kept: Magazines | None) -> Area | None:
        """A warm range of a pooled size; magazines that missed take a batch along."""
        want = 1 if kept is None else kept.refill(pages)
        areas = self.warm.take(self, pages, align, want)
        if kept is not None:
            if len(areas) == want:
                kept.grow(pages)
            self._to_pool(kept.fill(areas[1:]), cpu)
        return areas[0] if areas else None

    def _from_space(self, size: int, align: int, cpu: int, thread: int | None) -> Area | None:
        """The lowest place that fits; for a size that a magazine keeps, several ranges side by side.

        Pages are cold there: while more is lazy than may be, as much is given back as is taken.
        """
        if self.lazy_pages > self.lazy_pages_max:
            self.step(max(2 * size // PAGE, PURGE_STEP_PAGES))
        if self.has_magazines and align <= PAGE and size <= POOL_PAGES_MAX * PAGE:
            area = self._stock_up(size, cpu, self._magazines(cpu, thread))
            if area is not None:
                return area
        start = self._find(size, align)
        if start is None:
            return None
        self._take_space(start, size)
        self.clean.add(start)
        return Area(start, size)

    def _find(self, size: int, align: int) -> int | None:
        start = self.space.find(size, align, self.window[0])
        return None if start is None or start + size > self.window[1] else start

    def _take_space(self, start: int, size: int) -> None:
        self.space.take(start, size)
        self.used_pages += size // PAGE
        if self.used_pages - self.lazy_pages > self.used_peak_pages:
            self._peak_is(self.used_pages - self.lazy_pages)

    def _stock_up(self, size: int, cpu: int, kept: Magazines) -> Area | None:
        """Ranges side by side from the space: one for the request, the others for the thread's magazine."""
        pages = size // PAGE
        want = kept.stock(pages)
        start = self._find(size, PAGE) if want > 1 else None
        free = self.space.covering(start) if start is not None else None
        kept.stocked(pages, start is not None)
        if start is None or free is None:
            return None
        count = min(want, (free[1] - start) // size)
        self._take_space(start, count * size)
        areas = [Area(start + at * size, size) for at in range(count)]
        kept.grow_for(pages, count)
        self._to_pool(kept.fill(areas[1:]), cpu)
        return areas[0]

    def _refill(self, kept: Magazines, pool: Pool, pages: int, align: int, cpu: int) -> None:
        """Move the rest of a batch into the thread's magazine, the pool's head first."""
        batch: list[Area] = []
        want = kept.refill(pages) - 1
        while len(batch) < want:
            area = pool.take(align, "in place")
            if area is None:
                break
            batch.append(area)
        if len(batch) == want:
            kept.grow(pages)
        self._to_pool(kept.fill(batch), cpu)

    def _magazines(self, cpu: int, thread: int | None) -> Magazines:
        """The magazines of a thread, by default of the CPU's."""
        owner = cpu if thread is None else thread
        kept = self.magazines.get(owner)
        if kept is None:
            region_pages = (self.window[1] - self.window[0]) // PAGE
            kept = self.magazines[owner] = Magazines(self.design.magazine_budget_pages(region_pages))
        return kept

    # ------------------------------------------------------------------ free

    def free(self, start: int, cpu: int = 0, thread: int | None = None) -> Area | None:
        """Free the range that starts here; returns it, or None if nothing busy starts here.

        A free that does more than to fill a place in a magazine looks whether too much is lazy; so does the
        first free of a range that came alone from space, since its word in the core says that it is clean.
        """
        area = self._no_longer_busy(start)
        if area is None:
            return None
        kept = self._magazines(cpu, thread) if self.has_magazines else None
        is_quick = kept is not None and kept.has_room(area.pages) and start not in self.clean
        self.clean.discard(start)
        if area.pages > POOL_PAGES_MAX or not self.has_pools:
            self._to_lazy(area, cpu)
        elif kept is not None:
            self._to_pool(kept.put(area), cpu)
        else:
            self._to_pool([area], cpu)
        if not is_quick and self.lazy_pages > self.lazy_pages_max:
            self.step(PURGE_STEP_PAGES)
        return area

    def _to_pool(self, areas: Iterable[Area], cpu: int) -> None:
        """Give ranges to the pool of this CPU's node; above its cap they become lazy."""
        node = self.nodes[cpu % self.nr_nodes]
        for area in areas:
            pool = node.pool(area.pages)
            if len(pool) < self.design.pool_capacity(area.pages):
                pool.push(area)
            else:
                self._to_lazy(area, cpu)

    def _to_lazy(self, area: Area, cpu: int) -> None:
        """Leave a range with the node of this CPU, where the warm store finds it."""
        self.lazy_pages += area.pages
        self.nodes[cpu % self.nr_nodes].lazy.add(area)
        self.warm.ages[area.start] = self.now_s

    # ------------------------------------------------------------------ purge and shrink

    @property
    def purge_is_due(self) -> bool:
        """Never: a free above the threshold gives back a step itself."""
        return False

    def step(self, most_pages: int) -> None:
        """A bounded part of a purge: the oldest lazy ranges to the space; the pools keep theirs."""
        given = self.warm.collect(self, most_pages, PURGE_STEP_RANGES)
        self.reclaim(given)
        self.nr_purged += len(given)
        self.nr_steps += 1
        if self.nr_steps % PEAK_SINK_STEPS == 0:
            self._sink_peak()

    def _peak_is(self, pages: int) -> None:
        """The recent peak of use, of what is outside space and not lazy, sets the threshold."""
        self.used_peak_pages = pages
        chosen = self.lazy_pages_fixed
        self.lazy_pages_max = chosen or self.design.lazy_pages_max(self.cpus, pages, self.memory_bytes)

    def _sink_peak(self) -> None:
        """The peak sinks towards present use."""
        peak, used = self.used_peak_pages, self.used_pages - self.lazy_pages
        self._peak_is(max(peak - (peak - used) * PEAK_SINK_PERCENT // 100, used))

    def decay_pools(self, node: Node, full: bool) -> list[Area]:
        """Cut the cold end of every pool: those added first."""
        return cut_pools(node, None if full else self.design.decay_quota, hot=False)

    def take_lazy(self, n: int) -> list[Area]:
        """Detach node n's lazy ranges, in address order; what is sorted goes with the last node's."""
        areas = super().take_lazy(n)
        for area in areas:
            del self.warm.ages[area.start]
        return sorted(areas + self.warm.take_all()) if n == self.nr_nodes - 1 else areas

    def reclaim(self, areas: Iterable[Area]) -> None:
        """Put ranges back into the space, merged with what they touch."""
        add, given = self.space.add, 0
        for area in areas:
            add(area.start, area.size)
            given += area.size
        self.used_pages -= given // PAGE

    def count(self, purge: Purge) -> None:
        """Add a finished purge to the counters; the recent peak sinks towards present use."""
        super().count(purge)
        self._sink_peak()

    @property
    def nr_ranges(self) -> int:
        """How many ranges there are, free or not, but for those that are lazy."""
        pools = sum(node.pooled for node in self.nodes)
        return len(self.space) + len(self.busy.areas) + pools + sum(map(len, self.magazines.values()))

    def drain_magazines(self) -> int:
        """Give every magazine's ranges back to the space; returns how many. The core's go there by way of
        the pools, and come to the same place in the full purge that always follows."""
        drained = [area for kept in self.magazines.values() for area in kept.drain()]
        self.reclaim(drained)
        return len(drained)

    def shrink(self) -> int:
        """Give everything ready and everything lazy back to the space; returns the ranges moved."""
        moved = self.drain_magazines() + shrink_count(self)
        return moved + self.purge(full=True).nr_purged
