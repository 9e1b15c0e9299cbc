# SPDX-License-Identifier: MIT
"""Caching allocator: the way of a request through our own allocator, the one in core/.

    alloc   magazine -> pool of this CPU's node, then of the next nodes -> warm, several at once for a pooled
            size -> before a new peak: what is ready becomes warm, if it is much; warm again
            -> above the threshold a step; space, several at once for who keeps missing a size
            -> make room and ask them all again
    free    busy -> magazine -overflow-> pool -over its cap-> lazy; above the threshold a step
    step    the oldest of what is lazy, a bounded part of it, to space
    purge   decay pools, take all that is lazy, all of it to space
    shrink  magazines and pools, then a full purge

It differs from the kernel in one belief: freed memory is warm and should be handed out again, while the
kernel must keep freed addresses apart until a flush of translation caches. So a freed range is ready at once,
purges fill no pools, and the threshold grows with use (docs/decisions/0013). Every number is in
vmalloc/facts.py, which the core is built from too.

The pool designs `off`, `locked`, `llist` and `tagged` are the same without magazines, `off` without pools as
well; `percpu` has in their place one slab (slab.py) for each CPU and size.
There is one kind of range here, so areas carry no stamp, and what is lazy waits at the node of the CPU that
freed it until the warm store (warm.py) sorts it. Ages are taken from `now_s`: whoever wants time to pass sets
it. Not here: threads without a slot, drains that find a neighbour at work, recovery, decay by the clock; and
what wants others at work: lots (docs/decisions/0062) and runs (0048).

After: Bonwick and Adams, "Magazines and Vmem", 2001, in front of the kernel's nodes. The C is in core/.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vmalloc.facts import (
    CLEAN_TURN_PAGES,
    CROWD_THREADS,
    DECAY_PERCENT,
    DRAIN_BYTES,
    FLOW_PAGES,
    LAZY_BYTES_PER_CPU_BIT,
    LAZY_PEAK_PERCENT,
    MAGAZINE_BUDGET_ALONE,
    MAGAZINE_BUDGET_BYTES,
    MAGAZINE_BUDGET_BYTES_MAX,
    MAGAZINE_BUDGET_SHARE,
    MUCH_CLEAN_FACTOR,
    NODES_MAX,
    PEAK_SINK_PERCENT,
    PEAK_SINK_STEPS,
    PLACES_FEW,
    POOL_CAP_PAGES,
    POOL_CAP_RANGES_MIN,
    POOL_DESIGNS,
    POOL_PAGES_MAX,
    POOLS_DEFAULT,
    PURGE_STEP_PAGES,
    PURGE_STEP_PAGES_MAX,
    PURGE_STEP_RANGES,
    ROOM_ATTEMPTS,
    ROOM_PAGES_FACTOR,
    RUNS_PER_LOCK,
    TIGHT_CLOSED_S,
    TIGHT_CUT_CAP,
    TIGHT_LOOK_OPERATIONS,
    TIGHT_RESERVE_SHIFT,
    TIGHT_S,
    TIGHT_SLACK_SHIFT,
    TIGHT_THREADS,
    WARM_MEMORY_SHARE,
    WARM_ROOM_SHIFT,
    WARM_SLACK_SHIFT,
    PoolDesign,
)
from vmalloc.model.allocator import WINDOW, Allocator, Level
from vmalloc.model.area import PAGE, Area
from vmalloc.model.busy import ZONE_PAGES, Busy
from vmalloc.model.decay import cut_pools
from vmalloc.model.magazine import WHOLE_SIZES, Magazines
from vmalloc.model.node import Node
from vmalloc.model.pool import Pool
from vmalloc.model.purge import Purge
from vmalloc.model.shrink import shrink_count
from vmalloc.model.slab import Slab, slab_refill
from vmalloc.model.warm import Warm

MEMORY_BYTES = 1 << 40
"""Of a machine that can keep every peak of interest warm."""
AT_FIRST = -1
"""The attempt before anything was given back for a request."""


def _pages_of(free: Iterable[tuple[int, int]]) -> int:
    """Pages of some free ranges."""
    return sum(end - start for start, end in free) // PAGE


def _runs_of(areas: Iterable[Area]) -> list[Area]:
    """In address order, neighbours as one."""
    runs: list[Area] = []
    for area in sorted(areas):
        start = runs.pop().start if runs and runs[-1].end == area.start else area.start
        runs.append(Area(start, area.end - start))
    return runs


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
    def magazine_budget_pages(free_pages: int, is_alone: bool) -> int:
        """By so many pages all magazine caps of one thread may grow: a share of what is free.

        It is more for the only thread there ever was (`is_alone`).
        """
        share = min(free_pages // MAGAZINE_BUDGET_SHARE, MAGAZINE_BUDGET_BYTES_MAX // PAGE)
        share *= MAGAZINE_BUDGET_ALONE if is_alone else 1
        return max(share, MAGAZINE_BUDGET_BYTES // PAGE, POOL_PAGES_MAX)

    @staticmethod
    def lazy_pages_max(
        cpus: int, peak_pages: int = 0, memory_bytes: int = MEMORY_BYTES, live_pages: int = 0
    ) -> int:
        """The lazy backlog above which a free gives back a step.

        It is the kernel's, or what the recent peak has room for beside `live_pages`.
        `memory_bytes` is the machine's memory; 0 for an address space, which has none behind it.
        """
        fixed = cpus.bit_length() * LAZY_BYTES_PER_CPU_BIT // PAGE
        if not memory_bytes:
            return max(fixed, peak_pages * LAZY_PEAK_PERCENT // 100)
        share = memory_bytes // WARM_MEMORY_SHARE // PAGE
        return max(fixed, min(peak_pages + (peak_pages >> WARM_ROOM_SHIFT), share) - live_pages)


class CachingAllocator(Allocator):
    """Our allocator on a machine with `cpus` CPUs and `memory_bytes` of memory, over one window.

    The window is the region: all of it is ours, and only requests for it exist. `lazy_pages_fixed` is the
    threshold if the user chose one.
    """

    __slots__ = (
        "apart",
        "clean",
        "design",
        "dirty",
        "dirty_pages",
        "drained_peak_pages",
        "has_magazines",
        "has_pools",
        "has_slabs",
        "is_keeping",
        "kept_pages",
        "lazy_pages_fixed",
        "magazines",
        "memory_bytes",
        "now_s",
        "nr_loosened",
        "nr_punched_steps",
        "nr_steps",
        "slabs",
        "tight_s",
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
        self.has_slabs = design.row.pools == "percpu"
        self.slabs: dict[tuple[int, int], Slab] = {}  # by CPU and size
        self.memory_bytes = memory_bytes
        self.lazy_pages_fixed = lazy_pages_fixed
        self.magazines: dict[int, Magazines] = {}
        self.warm = Warm()
        self.apart: set[int] = set()  # busy ranges that go back to space when freed
        self.clean: set[int] = set()  # busy ranges that came alone from space: never freed before
        self.dirty: set[int] = set()  # free ranges that went to space with their pages
        self.dirty_pages = 0
        self.is_keeping = False  # what is reclaimed goes to space with its pages, ...
        self.kept_pages: list[Area] = []  # ... all of it at once
        self.now_s = 0
        self.nr_steps = self.nr_punched_steps = self.nr_loosened = 0
        self.tight_s: int | None = None  # when a request last found no room
        self.used_pages = 0  # outside space
        self.used_peak_pages = 0
        self.drained_peak_pages = 0  # as it was when all magazines were drained

    def copy(self) -> CachingAllocator:
        """An independent copy, to try something on."""
        other = super().copy()
        other.magazines = {thread: kept.copy() for thread, kept in self.magazines.items()}
        other.slabs = {key: slab.copy() for key, slab in self.slabs.items()}
        other.warm = self.warm.copy()
        other.apart, other.clean, other.dirty = self.apart.copy(), self.clean.copy(), self.dirty.copy()
        other.kept_pages = self.kept_pages.copy()
        return other

    # ------------------------------------------------------------------ alloc

    def alloc(self, size: int, align: int = 1, cpu: int = 0, thread: int | None = None) -> Area | None:
        """Allocate `size` bytes, a page multiple; None if nothing that may bring room helped.

        A large range may be a warm one, and then a little larger. `thread` names the owner of the
        magazines, by default the CPU. What is longer than the window, or aligned to more, is refused and
        counted nowhere: no station is asked.
        """
        if max(size, align) > self.window[1] - self.window[0]:
            return None
        kept = self._magazines(cpu, thread)
        ready = kept.sizes.get(size // PAGE)
        if not ready or ready[-1].start & (align - 1):
            area = self._hit_whole(kept, size // PAGE, align)
            if area is not None:
                self._now_busy(area, "magazine")
                return area
            self._tighten(kept, cpu)
        failed = self.served["none"]
        area = None
        for attempt in range(AT_FIRST, ROOM_ATTEMPTS):
            if area is not None or self._is_barred(size, align, attempt):
                break
            if attempt == AT_FIRST:
                area, _ = self.attempt(size, align, cpu, thread)
                continue
            self._make_room(size // PAGE, attempt, kept, cpu)
            area, _ = self.attempt(size, align, cpu, thread)
        self.served["none"] = failed + (area is None)  # once, however often it tried
        return area

    def attempt(
        self, size: int, align: int = 1, cpu: int = 0, thread: int | None = None
    ) -> tuple[Area | None, Level]:
        """One pass through the stations."""
        area, level = self._whole(size // PAGE, align, cpu, thread)
        if area is None:
            area, level = self._from_caches(size, align, cpu, thread)
        if area is None and self._loosen(size // PAGE, cpu, thread):
            area, level = self._from_warm(size // PAGE, align, cpu, thread), "lazy"
        if area is None:
            area, level = self._from_space(size, align, cpu, thread), "space"
        if area is None:
            self.served["none"] += 1
            return None, "none"
        self._now_busy(area, level)
        return area, level

    def _may_be_barred(self, size: int, align: int, attempt: int) -> bool:
        """Whether that is worth a walk: where an aligned request could begin in few places; and for one that
        no magazine could serve, before more is given back than what is lazy, or anything if that cannot be
        enough."""
        start, end = self.window
        lacks = (self.used_pages - self.lazy_pages) * PAGE + size > end - start
        if size > POOL_PAGES_MAX * PAGE and (attempt == 2 or (attempt == AT_FIRST and lacks)):
            return True
        return attempt != AT_FIRST and self._has_few_places(size, align)

    def _has_few_places(self, size: int, align: int) -> bool:
        """Whether a request could begin in few places only."""
        start, end = self.window
        return align > PAGE and (end - size - start) // align < PLACES_FEW

    def _is_barred(self, size: int, align: int, attempt: int) -> bool:
        """Whether an area in use lies in each place where the request could begin."""
        start, last = self.window[0], self.window[1] - size
        if not self._may_be_barred(size, align, attempt):
            return False
        place = -(-start // align) * align
        for area in sorted(self.busy.areas.values(), key=lambda area: area.start):
            if place > last or area.start >= place + size:
                break
            if area.end > place:
                place = -(-area.end // align) * align
        return place > last

    def _make_room(self, pages: int, attempt: int, kept: Magazines, cpu: int) -> None:
        """What may still bring ranges back, cheapest first. Repeated, since neighbours go on meanwhile.

        For a request of a pooled size space is short and memory need not be: what is lazy goes there with its
        pages, the oldest first.
        """
        self.is_keeping = pages <= POOL_PAGES_MAX and attempt <= 2
        if attempt == 0 and self.is_keeping:
            self._step(ROOM_PAGES_FACTOR * pages)
        else:
            until = self.now_s + (TIGHT_CLOSED_S if attempt > 3 else 0)
            self.tight_s = until if self.tight_s is None else max(self.tight_s, until)
            if attempt == 2:
                self._tighten(kept, cpu)
                self._to_pool(kept.drain(), cpu)
            if attempt > 2:
                self.drain_magazines()
            self.purge(full=attempt > 1)
        self.is_keeping = False
        self._put_with_pages()

    def _tighten(self, kept: Magazines, cpu: int) -> None:
        """A moment after a request found no room a thread's magazines keep few large ranges."""
        is_tight = self.tight_s is not None and self.now_s - self.tight_s <= TIGHT_S
        if is_tight == kept.is_tight:
            kept.nr_tight += is_tight
            is_due = kept.nr_tight % TIGHT_LOOK_OPERATIONS == 0 or (kept.gets_whole and self._is_very_tight)
            if is_tight and is_due:
                self._look_at_budget(kept, cpu)
            return
        kept.is_tight = is_tight
        if is_tight:
            self._to_pool(kept.drain(), cpu)
            kept.close_large()
            self._look_at_budget(kept, cpu)
        else:
            kept.open_large()

    @property
    def _is_very_tight(self) -> bool:
        """Emptying all magazines did not help either, a moment ago."""
        return self.tight_s is not None and self.tight_s > self.now_s

    def _look_at_budget(self, kept: Magazines, cpu: int) -> None:
        """While space is short it is counted now and then how much is idle."""
        had_large = kept.gets_whole
        may_keep = self.has_magazines and not self._is_very_tight
        kept.open_whole(self._tight_budget(kept) if may_keep else 0)
        if had_large and not kept.gets_whole:
            self._to_pool(kept.drain(), cpu)

    def _tight_budget(self, kept: Magazines) -> int:
        """What a thread may keep of rounded sizes: its share of twice what is idle beyond a reserve, as if
        the others had as much in theirs."""
        threads = len(self.magazines)
        idle = self._idle_beyond_reserve(self._pooled_pages) + kept.large_pages * threads
        return 2 * idle // max(threads, TIGHT_THREADS)

    def _idle_beyond_reserve(self, ready_pages: int) -> int:
        """Of what is in space, warm, or ready: all but a reserve."""
        pages = (self.window[1] - self.window[0]) // PAGE
        live = self.used_pages - self.lazy_pages
        return max(pages + ready_pages - live - (pages >> TIGHT_RESERVE_SHIFT), 0)

    def _whole_sizes(self, kept: Magazines, pages: int, align: int) -> list[int]:
        """The rounded sizes that such a request may get now, the tightest first."""
        if not (self.has_magazines and kept.gets_whole) or align > PAGE or pages <= FLOW_PAGES:
            return []
        return [n for n in WHOLE_SIZES if pages <= n <= pages + (pages >> TIGHT_SLACK_SHIFT)]

    def _hit_whole(self, kept: Magazines, pages: int, align: int) -> Area | None:
        """A range of a rounded size from the magazines."""
        taken = (kept.take(n, align) for n in self._whole_sizes(kept, pages, align))
        return next((area for area in taken if area is not None), None)

    def _whole(self, pages: int, align: int, cpu: int, thread: int | None) -> tuple[Area | None, Level]:
        """A range of a rounded size from the pools; where enough is idle cut to it."""
        kept = self._magazines(cpu, thread)
        sizes = self._whole_sizes(kept, pages, align)
        for n in sizes:
            area = kept.take(n, align)
            if area is not None:
                return area, "magazine"
            area, level = self._from_pool(n, align, cpu, kept)
            if area is not None:
                return area, level
        may_cut = kept.cap(POOL_PAGES_MAX) >= TIGHT_CUT_CAP or self._idle_beyond_reserve(0)
        if not sizes or sizes[0] == pages or not may_cut:
            return None, "none"
        area = self._from_warm(sizes[0], align, cpu, thread)
        if area is not None:
            return area, "lazy"
        return self._from_space(sizes[0] * PAGE, align, cpu, thread), "space"

    def _from_caches(self, size: int, align: int, cpu: int, thread: int | None) -> tuple[Area | None, Level]:
        """What stands in front of space: magazines and pools for a small size, warm ranges for any.

        Without pools a small size has nothing there, as in the kernel before 6.9.
        """
        pages = size // PAGE
        if pages > POOL_PAGES_MAX:
            return self._from_warm(pages, align, cpu, thread), "lazy"
        kept = self._magazines(cpu, thread) if self.has_magazines else None
        if kept is not None:
            kept.opened.add(pages)
        area = kept.take(pages, align) if kept is not None else None
        if area is not None:
            return area, "magazine"
        area, level = self._from_pool(pages, align, cpu, kept)
        if area is None and kept is not None and kept.is_tight:
            area, level = self._from_longer(pages, align, cpu)
        if area is not None or not self.has_pools:
            return area, level
        return self._from_warm(pages, align, cpu, thread), "lazy"

    def _from_pool(
        self, pages: int, align: int, cpu: int, kept: Magazines | None
    ) -> tuple[Area | None, Level]:
        """The head of the first pool that has an aligned one: this CPU's node's, then the next nodes'.

        Magazines that missed take a batch along, and so does the CPU's slab, which is asked first.
        """
        slab = self.slabs.get((cpu, pages))
        area = slab.take(align) if slab is not None else None
        if area is not None:
            return area, "slab"
        nodes, nr_nodes = self.nodes, self.nr_nodes
        for offset in range(nr_nodes):
            pool = nodes[(cpu + offset) % nr_nodes].pools.get(pages)
            if pool is None or not pool.areas:
                continue
            area = pool.take(align, "in place")
            if area is not None:
                if kept is not None:
                    self._refill(kept, pool, pages, align, cpu)
                elif self.has_slabs and align <= PAGE:
                    self._refill_slab(pool, pages, cpu)
                return area, "neighbour" if offset else "pool"
        return None, "none"

    def _from_longer(self, pages: int, align: int, cpu: int) -> tuple[Area | None, Level]:
        """While space is short: a ready range that is a little longer, whole, the tightest first."""
        most = min(pages + (pages >> WARM_SLACK_SHIFT), POOL_PAGES_MAX)
        for longer in range(pages + 1, most + 1):
            area, level = self._from_pool(longer, align, cpu, None)
            if area is not None:
                return area, level
        return None, "none"

    def _from_warm(self, pages: int, align: int, cpu: int, thread: int | None) -> Area | None:
        """A warm range; of a pooled size magazines that missed take a batch along."""
        has_magazine = self.has_magazines and pages <= POOL_PAGES_MAX
        kept = self._magazines(cpu, thread) if has_magazine else None
        want = 1 if kept is None else kept.refill(pages)
        areas = self.warm.take(self, pages, align, want)
        if kept is not None:
            if len(areas) == want and kept.cap(pages):
                kept.grow(pages)
            self._to_pool(kept.fill(areas[1:]), cpu)
        return areas[0] if areas else None

    def _loosen(self, pages: int, cpu: int, thread: int | None) -> bool:
        """Before more is used than ever: what lies ready for one size only becomes warm, if it is much.

        All magazines are asked each time the peak has risen by a part of itself, else this thread's only.
        """
        live = self.used_pages - self.lazy_pages + pages
        if not self.memory_bytes or not self.has_pools or live <= self.used_peak_pages:
            return False
        kept, drained = self._magazines(cpu, thread), self.drained_peak_pages
        of_all = self.has_magazines and live > drained + max(drained >> WARM_ROOM_SHIFT, DRAIN_BYTES // PAGE)
        ready = kept.pages + self._pooled_pages
        much = max(pages, DRAIN_BYTES // PAGE, self.used_peak_pages >> WARM_ROOM_SHIFT)
        if not of_all and ready < much:
            return False
        self._to_pool(kept.drain(), cpu)
        if of_all:
            self.drained_peak_pages = live
            for area in [area for other in self.magazines.values() for area in other.drain()]:
                self._to_lazy(area, cpu)
        self._pools_to_warm(cpu)
        self.nr_loosened += 1
        return True

    @property
    def _pooled_pages(self) -> int:
        """Pages that lie ready in pools and slabs."""
        pools = sum(len(pool) * pages for node in self.nodes for pages, pool in node.pools.items())
        return pools + sum(slab.pages for slab in self.slabs.values())

    def _pools_to_warm(self, cpu: int) -> None:
        """What pools keep becomes lazy: small sizes first, of each the hottest, but of a slab the oldest."""
        for node in self.nodes:
            for pages in sorted(node.pools):
                pool = node.pools[pages]
                for area in pool.cut(len(pool), hot=True):
                    self._to_lazy(area, cpu)
            for area in self._cut_slabs(node, 100):
                self._to_lazy(area, cpu)

    def _cut_slabs(self, node: Node, percent: int) -> list[Area]:
        """So much of what the slabs of a node's CPUs keep: CPU by CPU, small sizes first."""
        of_node = [at for at in sorted(self.slabs) if at[0] % self.nr_nodes == node.id]
        return [area for at in of_node for area in self.slabs[at].cut(percent)]

    def _from_space(self, size: int, align: int, cpu: int, thread: int | None) -> Area | None:
        """The lowest place that fits; for a size that a magazine keeps, several ranges side by side.

        Pages are cold there: while more is lazy than may be, as much is given back as is taken.
        """
        if self.purge_is_due:
            self.step(max(2 * size // PAGE, PURGE_STEP_PAGES))
        if self.has_magazines and align <= PAGE and size <= POOL_PAGES_MAX * PAGE:
            area = self._stock_up(size, cpu, self._magazines(cpu, thread))
            if area is not None:
                return area
        start = self._find(size, align)
        if start is None:
            return None
        if not self._take_space(start, size):
            self.clean.add(start)
        if size <= POOL_PAGES_MAX * PAGE < align and self._has_few_places(size, align):
            self.apart.add(start)
        return Area(start, size)

    def _find(self, size: int, align: int) -> int | None:
        start = self.space.find(size, align, self.window[0])
        return None if start is None or start + size > self.window[1] else start

    def _take_space(self, start: int, size: int) -> bool:
        """Cut it out of the free range around it; whether that one had pages."""
        free = self.space.covering(start)
        self.space.take(start, size)
        is_dirty = free is not None and free[0] in self.dirty
        if free is not None and is_dirty:
            self.dirty.discard(free[0])
            self.dirty |= {at for at, end in ((free[0], start), (start + size, free[1])) if at < end}
            self.dirty_pages -= size // PAGE
        self.used_pages += size // PAGE
        self.used_peak_pages = max(self.used_peak_pages, self.used_pages - self.lazy_pages)
        return is_dirty

    def _stock_up(self, size: int, cpu: int, kept: Magazines) -> Area | None:
        """Ranges side by side from the space: one for the request, the others for the thread's magazine."""
        pages = size // PAGE
        want = kept.stock(pages)
        start = self._find(size, PAGE) if want > 1 else None
        free = self.space.covering(start) if start is not None else None
        kept.stocked(pages, want == 1 or start is not None)
        if start is None or free is None:
            return None
        count = min(want, (free[1] - start) // size)
        self._take_space(start, count * size)
        areas = [Area(start + at * size, size) for at in range(count)]
        kept.budget_pages = self._magazine_budget()
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

    def _refill_slab(self, pool: Pool, pages: int, cpu: int) -> None:
        """Move the rest of a batch into the CPU's slab, the pool's head on top again."""
        batch = [pool.areas.pop() for _ in range(min(slab_refill(pages) - 1, len(pool.areas)))]
        self._to_pool(reversed(batch), cpu)

    def _magazines(self, cpu: int, thread: int | None) -> Magazines:
        """The magazines of a thread, by default of the CPU's."""
        owner = cpu if thread is None else thread
        kept = self.magazines.get(owner)
        if kept is None:
            kept = self.magazines[owner] = Magazines()
        kept.budget_pages = self._magazine_budget()
        kept.is_crowd = len(self.magazines) > CROWD_THREADS * self.nr_nodes
        return kept

    def _magazine_budget(self) -> int:
        """By so many pages all caps of a thread may grow now."""
        window_pages = (self.window[1] - self.window[0]) // PAGE
        free_pages = window_pages - self.used_pages
        return self.design.magazine_budget_pages(free_pages, is_alone=len(self.magazines) <= 1)

    # ------------------------------------------------------------------ free

    def free(self, start: int, cpu: int = 0, thread: int | None = None) -> Area | None:
        """Free the range that starts here; returns it, or None if nothing busy starts here.

        A free that does more than to fill a place in a magazine or a slab looks whether too much is lazy; so
        does the first free of a range that came alone from space, since its word in the core says that it is
        clean.
        """
        area = self._no_longer_busy(start)
        if area is None:
            return None
        kept = self._magazines(cpu, thread) if self.has_magazines else None
        is_apart = start in self.apart
        is_quick = not is_apart and start not in self.clean and self._has_room(kept, area.pages, cpu)
        self.clean.discard(start)
        self.apart.discard(start)
        if kept is not None and not is_quick:
            self._tighten(kept, cpu)
        if area.pages > POOL_PAGES_MAX or not self.has_pools:
            self._to_lazy(area, cpu)
        elif is_apart:
            self._put(area, has_pages=False, may_clean=0)
        elif kept is not None:
            self._to_pool(kept.put(area), cpu)
        else:
            self._to_pool([area], cpu)
        if not is_quick and self.purge_is_due:
            most = min(2 * area.pages, self.lazy_excess, PURGE_STEP_PAGES_MAX)
            self.step(max(most, PURGE_STEP_PAGES))
        return area

    def _has_room(self, kept: Magazines | None, pages: int, cpu: int) -> bool:
        """Whether a place in a magazine or a slab is free for one."""
        if kept is not None:
            return kept.has_room(pages)
        if not self.has_slabs or pages > POOL_PAGES_MAX:
            return False
        slab = self.slabs.get((cpu, pages))
        return slab is None or slab.has_room(pages)

    def _to_pool(self, areas: Iterable[Area], cpu: int) -> None:
        """Give ranges to this CPU's slab, if there are slabs, else to the pool of its node."""
        for area in areas:
            if self.has_slabs:
                slab = self.slabs.setdefault((cpu, area.pages), Slab())
                self._to_node(slab.put(area), cpu)
            else:
                self._to_node((area,), cpu)

    def _to_node(self, areas: Iterable[Area], cpu: int) -> None:
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
    def lazy_pages_max(self) -> int:
        """The threshold now, which moves with use."""
        live, peak = self.used_pages - self.lazy_pages, self.used_peak_pages
        chosen = self.lazy_pages_fixed
        return chosen or self.design.lazy_pages_max(self.cpus, peak, self.memory_bytes, live)

    @property
    def purge_is_due(self) -> bool:
        """Whether more is idle than may be: a free then gives back a step, a request from space as well."""
        return self.lazy_excess > 0

    @property
    def lazy_excess(self) -> int:
        """By how many pages more is idle than may be."""
        return max(self.lazy_pages + self.dirty_pages - self.lazy_pages_max, 0) if self.lazy_pages > 0 else 0

    def step(self, most_pages: int) -> None:
        """A bounded part of a purge: the oldest lazy ranges to the space; the pools keep theirs."""
        self._step(most_pages)
        self.nr_punched_steps += 1
        if self.nr_punched_steps % PEAK_SINK_STEPS == 0:
            self._sink_peak()

    def _step(self, most_pages: int) -> None:
        given = self.warm.collect(self, most_pages, PURGE_STEP_RANGES)
        self.reclaim(given)
        self.nr_purged += len(given)
        self.nr_steps += 1

    def _sink_peak(self) -> None:
        """The peak sinks towards present use."""
        peak, used = self.used_peak_pages, self.used_pages - self.lazy_pages
        self.used_peak_pages = max(peak - (peak - used) * PEAK_SINK_PERCENT // 100, used)
        self.drained_peak_pages = min(self.drained_peak_pages, self.used_peak_pages)

    def decay_pools(self, node: Node, full: bool) -> list[Area]:
        """Cut the cold end of every pool: those added first."""
        cut = cut_pools(node, None if full else self.design.decay_quota, hot=False)
        return cut + self._cut_slabs(node, 100 if full else DECAY_PERCENT)

    def take_lazy(self, n: int) -> list[Area]:
        """Detach node n's lazy ranges, in address order; what is sorted goes with the last node's."""
        areas = super().take_lazy(n)
        for area in areas:
            del self.warm.ages[area.start]
        return sorted(areas + self.warm.take_all()) if n == self.nr_nodes - 1 else areas

    def reclaim(self, areas: Iterable[Area]) -> None:
        """Put ranges back into the space, merged with what they touch."""
        if self.is_keeping and self.memory_bytes:
            self.kept_pages += areas
        else:
            self._put_runs(areas, has_pages=False)

    def _put_with_pages(self) -> None:
        """What was kept goes to space with its pages."""
        areas, self.kept_pages = self.kept_pages, []
        self._put_runs(areas, has_pages=True)

    def _put_runs(self, areas: Iterable[Area], has_pages: bool) -> None:
        """Into the space, neighbours as one, by a few at a time as the core's."""
        may_clean = 0
        for i, run in enumerate(_runs_of(areas)):
            may_clean = CLEAN_TURN_PAGES if i % RUNS_PER_LOCK == 0 else may_clean
            may_clean -= self._put(run, has_pages, may_clean)

    def _put(self, area: Area, has_pages: bool, may_clean: int) -> int:
        """Into the space. A free range may have pages or not as a whole: the few that would make a long clean
        one dirty are given back, up to `may_clean`. Returns how many."""
        around = [self.space.covering(at) for at in (area.start - 1, area.end)]
        free = [one for one in around if one is not None]
        parts = [one for one in free if one[0] in self.dirty]
        dirty = _pages_of(parts) + (area.pages if has_pages else 0)
        clean = _pages_of(free) + area.pages - dirty
        is_cleaned = 0 < dirty <= may_clean and clean > MUCH_CLEAN_FACTOR * dirty
        self.space.add(area.start, area.size)
        self.used_pages -= area.pages
        if dirty:
            self._note_dirty(area.start, parts, is_cleaned)
        return dirty if is_cleaned else 0

    def _note_dirty(self, start: int, parts: list[tuple[int, int]], is_cleaned: bool) -> None:
        """The free range around `start` may have pages, as these parts of it did, or they were given back."""
        self.dirty -= {part[0] for part in parts}
        self.dirty_pages -= _pages_of(parts)
        free = self.space.covering(start)
        if free is not None and not is_cleaned:
            self.dirty.add(free[0])
            self.dirty_pages += _pages_of([free])

    def count(self, purge: Purge) -> None:
        """Add a finished purge to the counters.

        One that gives pages back gives back those of the space too, and the peak sinks towards present use.
        """
        super().count(purge)
        if not self.is_keeping:
            self.dirty, self.dirty_pages = set(), 0
            self._sink_peak()

    @property
    def nr_ranges(self) -> int:
        """How many ranges there are, free or not, but for those that are lazy."""
        pools = sum(node.pooled for node in self.nodes) + sum(map(len, self.slabs.values()))
        return len(self.space) + len(self.busy.areas) + pools + sum(map(len, self.magazines.values()))

    def drain_magazines(self) -> int:
        """Give every magazine's ranges back to the space; returns how many. The core's go there by way of
        the pools, and come to the same place in the full purge that always follows."""
        drained = [area for kept in self.magazines.values() for area in kept.drain()]
        self.reclaim(drained)
        return len(drained)

    def shrink(self) -> int:
        """Give everything ready and everything lazy back to the space; returns the ranges moved."""
        moved = self.drain_magazines() + shrink_count(self) + sum(map(len, self.slabs.values()))
        return moved + self.purge(full=True).nr_purged
