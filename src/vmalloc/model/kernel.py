# SPDX-License-Identifier: MIT
"""Kernel: the way of a request through the stations. This file is the policy; the stations are the mechanism.

    alloc   (magazine) -> pool of this CPU's node -> (shelf) -> space -> purge everything, space once more
    free    busy -> (magazine -> pool) -> lazy of the stamped node; above the threshold ask for a purge
    purge   decay pools, take the lazy sets, fill pools, the rest to space
    shrink  all pools (ours: and all that is lazy) to space

Stations in brackets exist in our own design only. There are no locks and no bytes here, only decisions; time
is the order of the calls. One call is one critical section of the kernel: nothing else happens within it,
anything may happen between two.

A pool serves only requests for exactly the vmalloc window. A request that the pool cannot serve is served by
the space and still stamped with this CPU's node, so that a later purge brings the area into this pool.

After: Linux mm/vmalloc.c, alloc_vmap_area(), node_alloc(), free_vmap_area_noflush(),
reclaim_and_purge_vmap_areas().
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from vmalloc.model.area import NO_NODE, PAGE, Area
from vmalloc.model.busy import Busy
from vmalloc.model.design import Design
from vmalloc.model.lazy import Shelf
from vmalloc.model.magazine import Magazines
from vmalloc.model.node import Node
from vmalloc.model.pool import Pool
from vmalloc.model.purge import Purge
from vmalloc.model.shrink import shrink_scan
from vmalloc.model.space import Space, search_length

Level = Literal["magazine", "pool", "lazy", "space", "none"]
WINDOW = (0xFFFFC90000000000, 0xFFFFE8FFFFFFFFFF)
"""The vmalloc window of an x86-64 kernel with 4-level page tables and no KASLR, as events print it."""


class Kernel:
    """The whole allocator of one design on a machine with `cpus` possible CPUs.

    `free` lists the free ranges at the start, by default the whole window.
    """

    __slots__ = (
        "_lazy_pages_fixed",
        "busy",
        "cpus",
        "design",
        "lazy_pages",
        "live_pages",
        "magazines",
        "nodes",
        "nr_nodes",
        "nr_purged",
        "nr_purges",
        "served",
        "shelf",
        "shrink_next",
        "space",
        "used_pages",
        "used_peak_pages",
        "window",
    )

    def __init__(
        self,
        design: Design,
        cpus: int = 1,
        window: tuple[int, int] = WINDOW,
        free: Iterable[tuple[int, int]] | None = None,
    ) -> None:
        self.design = design
        self.cpus = cpus
        self.nr_nodes = design.nodes(cpus)
        self.window = window
        self.nodes = [Node(n, design.lazy_merges) for n in range(self.nr_nodes)]
        self.space = Space([(window[0], window[1] & -PAGE)] if free is None else free)
        self.busy = Busy(self.nr_nodes, design.zone_pages * PAGE, design.lookup_descending)
        self._lazy_pages_fixed = design.lazy_pages_max(cpus)
        self.lazy_pages = 0
        self.live_pages = 0
        self.used_pages = 0
        self.used_peak_pages = 0
        self.shelf = Shelf(design)
        self.magazines: dict[int, Magazines] = {}
        self.served: dict[Level, int] = {"magazine": 0, "pool": 0, "lazy": 0, "space": 0, "none": 0}
        self.nr_purges = 0
        self.nr_purged = 0
        self.shrink_next = 0

    def copy(self) -> Kernel:
        """An independent copy, to try something on."""
        other = Kernel.__new__(Kernel)
        for name in Kernel.__slots__:
            setattr(other, name, getattr(self, name))
        other.nodes = [node.copy() for node in self.nodes]
        other.space = self.space.copy()
        other.busy = self.busy.copy()
        other.magazines = {thread: kept.copy() for thread, kept in self.magazines.items()}
        other.shelf = self.shelf.copy()
        other.served = self.served.copy()
        return other

    # ------------------------------------------------------------------ alloc

    def alloc(
        self,
        size: int,
        align: int = 1,
        cpu: int = 0,
        vstart: int = 0,
        vend: int = 0,
        flags: int = 0,
        thread: int | None = None,
    ) -> Area | None:
        """Allocate `size` bytes (a page multiple, guard included); None if even a full purge did not help.

        Ours may return up to an eighth more, if the range is a warm one.
        `vstart` and `vend` bound the search; 0 and 0 mean the vmalloc window. `thread` names the owner of the
        magazines, by default the CPU.
        """
        area, _ = self.attempt(size, align, cpu, vstart, vend, flags, thread)
        design = self.design
        for attempt in range(design.rescue_purges + design.rescue_gently):
            if area is not None:
                break
            full = attempt > 0 or not design.rescue_gently
            if full:
                self.drain_magazines()
            self.purge(full)
            if design.rescue_asks_all:
                area, _ = self.attempt(size, align, cpu, vstart, vend, flags, thread)
            else:
                area = self.attempt_space(size, align, cpu, vstart, vend, flags)
        return area

    def attempt(
        self,
        size: int,
        align: int = 1,
        cpu: int = 0,
        vstart: int = 0,
        vend: int = 0,
        flags: int = 0,
        thread: int | None = None,
    ) -> tuple[Area | None, Level]:
        """One attempt, without the purge: what one alloc_vmap_area event stands for."""
        window = self.window
        if (vend == 0 or vend == window[1]) and (vstart == window[0] or vstart == 0):
            area, level = self._from_caches(size, align, cpu, thread)
            if area is None and self.design.magazine_stock_pages and align <= PAGE:
                area, level = self._stock_up(size, cpu, thread), "space"
            if area is not None:
                if area.flags != flags:
                    area = area._replace(flags=flags)
                self._now_busy(area, level)
                return area, level
        area = self.attempt_space(size, align, cpu, vstart, vend, flags)
        return area, "none" if area is None else "space"

    def attempt_space(
        self, size: int, align: int = 1, cpu: int = 0, vstart: int = 0, vend: int = 0, flags: int = 0
    ) -> Area | None:
        """The part of an attempt behind the pools; also the retry after a purge."""
        vstart, vend = vstart or self.window[0], vend or self.window[1]
        start = self.find_space(size, align, vstart, vend)
        if start is None:
            self.served["none"] += 1
            return None
        self._take_space(start, size)
        area = Area(start, size, self.stamp(cpu, vstart, vend), flags)
        self._now_busy(area, "space")
        return area

    def _take_space(self, start: int, size: int) -> None:
        self.space.take(start, size)
        self.used_pages += size // PAGE
        if self.used_pages > self.used_peak_pages:
            self.used_peak_pages = self.used_pages

    def peek(
        self, size: int, align: int = 1, cpu: int = 0, vstart: int = 0, vend: int = 0
    ) -> tuple[int | None, Level]:
        """The start and level that `attempt` would give (no magazines), changing nothing."""
        vstart, vend = vstart or self.window[0], vend or self.window[1]
        if self.nr_nodes > 1 and vstart == self.window[0] and vend == self.window[1]:
            pool = self.nodes[cpu % self.nr_nodes].pools.get(size // PAGE)
            area = pool.peek(align) if pool is not None else None
            if area is not None:
                return area.start, "pool"
        start = self.find_space(size, align, vstart, vend)
        return start, "none" if start is None else "space"

    def find_space(self, size: int, align: int, vstart: int, vend: int) -> int | None:
        """Lowest-address first fit; the window's end is checked on the one range found."""
        length = size if self.design.fit_is_exact else search_length(size, align, vstart, vend)
        start = self.space.find(size, align, vstart, length)
        return None if start is None or start + size > vend else start

    def stamp(self, cpu: int, vstart: int, vend: int) -> int:
        """The node an area allocated on this CPU belongs to."""
        if self.nr_nodes > 1 and self.design.stamp_from_space and (vstart, vend) == self.window:
            return cpu % self.nr_nodes
        return NO_NODE

    def _from_caches(self, size: int, align: int, cpu: int, thread: int | None) -> tuple[Area | None, Level]:
        """Magazine, pool, neighbours' pools, shelf: whatever the design has in front of the space."""
        design, pages = self.design, size // PAGE
        if pages > design.pool_pages_max:
            area = self.shelf.take(size, align, design.shelf_slack_shift) if design.shelf_ranges else None
            if area is not None:
                self.lazy_pages -= area.pages
            return area, "lazy"
        kept = self._magazines(cpu, thread) if design.freed_to == "magazine" else None
        area = kept.take(pages, align) if kept is not None else None
        if area is not None:
            return area, "magazine"
        if self.nr_nodes > 1 or design.freed_to != "lazy":
            for offset in range(min(design.pool_neighbours + 1, self.nr_nodes)):
                pool = self.nodes[(cpu + offset) % self.nr_nodes].pools.get(pages)
                if pool is not None and pool.areas:
                    area = pool.take(align, design)
                    if area is not None:
                        if kept is not None:
                            self._refill(kept, pool, pages, align, cpu)
                        return area, "pool"
        return None, "none"

    def _magazines(self, cpu: int, thread: int | None) -> Magazines:
        """The magazines of a thread, by default of the CPU's."""
        owner = cpu if thread is None else thread
        kept = self.magazines.get(owner)
        if kept is None:
            kept = self.magazines[owner] = Magazines(self.design)
        return kept

    def _now_busy(self, area: Area, level: Level) -> None:
        self.busy.insert(area)
        self.served[level] += 1
        self.live_pages += area.size // PAGE

    # ------------------------------------------------------------------ free

    def free(self, start: int, cpu: int = 0, thread: int | None = None) -> Area | None:
        """Free the area that starts here; returns it, or None if nothing busy starts here.

        Whether a purge is due now is `purge_is_due`: the kernel only schedules it.
        """
        area = self.busy.unlink(start)
        if area is None:
            return None
        self.live_pages -= area.size // PAGE
        freed_to = self.design.freed_to
        if freed_to == "lazy" or area.pages > self.design.pool_pages_max:
            self.to_lazy(area)
        elif freed_to == "magazine":
            self._to_pool(self._magazines(cpu, thread).put(area), cpu)
        else:
            self._to_pool([area], cpu)
        return area

    def to_lazy(self, area: Area) -> None:
        """Park an area: a large one on the shelf, others in the lazy set of the stamped or address's node."""
        self.lazy_pages += area.size // PAGE
        if area.pages > self.design.pool_pages_max and self.shelf.put(area):
            return
        node = area.node if area.node != NO_NODE else self.busy.node_of(area.start)
        self.nodes[node].lazy.add(area)

    @property
    def purge_is_due(self) -> bool:
        """Whether the lazy backlog is above the threshold."""
        return self.lazy_pages > self.lazy_pages_max

    @property
    def lazy_pages_max(self) -> int:
        """The threshold now."""
        if self.design.lazy_live_share:
            return self.design.lazy_pages_max(self.cpus, self.used_peak_pages)
        return self._lazy_pages_fixed

    def _to_pool(self, areas: Iterable[Area], cpu: int) -> None:
        """Give areas to the pool of this CPU's node; above its cap they become lazy."""
        n = cpu % self.nr_nodes
        for area in areas:
            if self.pool_has_room(n, area.pages):
                self.nodes[n].pool(area.pages).push(area)
            else:
                self.to_lazy(area)

    def _refill(self, kept: Magazines, pool: Pool, pages: int, align: int, cpu: int) -> None:
        """After a pool hit move the rest of a batch into the thread's magazine, the pool's head first."""
        batch: list[Area] = []
        want = kept.refill(pages) - 1
        while len(batch) < want:
            area = pool.take(align, self.design)
            if area is None:
                break
            batch.append(area)
        if len(batch) == want:
            kept.grow(pages)
        self._to_pool(kept.fill(batch), cpu)

    def _stock_up(self, size: int, cpu: int, thread: int | None) -> Area | None:
        """Ranges side by side from the space: one for the request, the others for the thread's magazine."""
        pages = size // PAGE
        if pages > self.design.pool_pages_max or self.design.freed_to != "magazine":
            return None
        kept = self._magazines(cpu, thread)
        want = kept.stock(pages)
        start = self.find_space(size, PAGE, *self.window) if want > 1 else None
        free = self.space.covering(start) if start is not None else None
        kept.stocked(pages, start is not None)
        if start is None or free is None:
            return None
        count = min(want, (free[1] - start) // size)
        self._take_space(start, count * size)
        node = self.stamp(cpu, *self.window)
        areas = [Area(start + at * size, size, node) for at in range(count)]
        kept.grow_for(pages, count)
        self._to_pool(kept.fill(areas[1:]), cpu)
        return areas[0]

    def drain_magazines(self) -> int:
        """Give every magazine's ranges back to the space; returns how many. The core's go there by way of
        the pools, and come to the same place in the full purge that always follows."""
        drained = [area for kept in self.magazines.values() for area in kept.drain()]
        self.reclaim(drained)
        return len(drained)

    # ------------------------------------------------------------------ purge and shrink

    def purge(self, full: bool = False) -> Purge:
        """Run a whole purge now and return its report."""
        purge = Purge(self, full)
        purge.run(self)
        self.count(purge)
        return purge

    def count(self, purge: Purge) -> None:
        """Add a finished purge to the counters; the recent peak of use sinks by a quarter to the present."""
        self.nr_purges += 1
        self.nr_purged += purge.nr_purged
        self.used_peak_pages -= (self.used_peak_pages - self.used_pages) // 4

    def pool_has_room(self, n: int, pages: int) -> bool:
        """Whether the node's pool may take one more entry of this size."""
        most = self.design.pool_capacity(pages)
        return most is None or len(self.nodes[n].pool(pages)) < most

    def reclaim(self, areas: Iterable[Area]) -> None:
        """Put areas back into the global space, merged with what they touch."""
        add, given = self.space.add, 0
        for area in areas:
            add(area.start, area.size)
            given += area.size
        self.used_pages -= given // PAGE

    def shrink(self) -> int:
        """Give everything ready back to the space, as under memory pressure; returns the areas moved."""
        return self.drain_magazines() + shrink_scan(self)
