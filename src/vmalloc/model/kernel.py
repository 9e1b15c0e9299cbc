# SPDX-License-Identifier: MIT
"""Kernel: the way of a request through the stations of the kernel, in each of its versions.

    alloc   pool of this CPU's node -> space -> purge everything, space once more
    free    busy -> lazy of the stamped node; above the threshold ask for a purge
    purge   decay pools, take the lazy sets, fill pools, the rest to space
    shrink  all pools to space

A pool serves only requests for exactly the vmalloc window. A request that the pool cannot serve is served by
the space and still stamped with this CPU's node, so that a later purge brings the area into this pool. What
versions decide differently is in design.py.

After: Linux mm/vmalloc.c, alloc_vmap_area(), node_alloc(), free_vmap_area_noflush(),
reclaim_and_purge_vmap_areas().
"""

from __future__ import annotations

from collections.abc import Iterable

from vmalloc.model.allocator import WINDOW, Allocator, Level
from vmalloc.model.area import NO_NODE, PAGE, Area
from vmalloc.model.busy import ZONE_PAGES, Busy
from vmalloc.model.decay import cut_pools
from vmalloc.model.design import Design
from vmalloc.model.node import Node
from vmalloc.model.shrink import shrink_scan
from vmalloc.model.space import search_length


class Kernel(Allocator):
    """The kernel's allocator, in one design, on a machine with `cpus` possible CPUs."""

    __slots__ = ("design",)
    _fields = (*Allocator._fields, *__slots__)

    def __init__(
        self,
        design: Design,
        cpus: int = 1,
        window: tuple[int, int] = WINDOW,
        free: Iterable[tuple[int, int]] | None = None,
    ) -> None:
        nr_nodes = design.nodes(cpus)
        nodes = [Node(n, design.lazy_merges) for n in range(nr_nodes)]
        busy = Busy(nr_nodes, ZONE_PAGES * PAGE, design.lookup_descending)
        super().__init__(cpus, nodes, busy, window, free)
        self.design = design
        self.pooled_pages_max = design.pool_pages_max
        self.pool_ranges_max = design.pool_ranges_max

    @property
    def lazy_pages_max(self) -> int:
        """The threshold: fls(CPUs) times a fixed number of pages."""
        return self.design.lazy_pages_max(self.cpus)

    # ------------------------------------------------------------------ alloc

    def alloc(
        self, size: int, align: int = 1, cpu: int = 0, vstart: int = 0, vend: int = 0, flags: int = 0
    ) -> Area | None:
        """Allocate `size` bytes (a page multiple, guard included); None if even a full purge did not help.

        `vstart` and `vend` bound the search; 0 and 0 mean the vmalloc window.
        """
        area, _ = self.attempt(size, align, cpu, vstart, vend, flags)
        if area is None:
            self.purge(full=True)
            area = self.attempt_space(size, align, cpu, vstart, vend, flags)
        return area

    def attempt(
        self, size: int, align: int = 1, cpu: int = 0, vstart: int = 0, vend: int = 0, flags: int = 0
    ) -> tuple[Area | None, Level]:
        """One attempt, without the purge: what one alloc_vmap_area event stands for."""
        window = self.window
        if (vend == 0 or vend == window[1]) and (vstart == window[0] or vstart == 0):
            area = self._from_pool(size // PAGE, align, cpu)
            if area is not None:
                if area.flags != flags:
                    area = area._replace(flags=flags)
                self._now_busy(area, "pool")
                return area, "pool"
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
        self.space.take(start, size)
        area = Area(start, size, self.stamp(cpu, vstart, vend), flags)
        self._now_busy(area, "space")
        return area

    def peek(
        self, size: int, align: int = 1, cpu: int = 0, vstart: int = 0, vend: int = 0
    ) -> tuple[int | None, Level]:
        """The start and level that `attempt` would give, changing nothing."""
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
        start = self.space.find(size, align, vstart, search_length(size, align, vstart, vend))
        return None if start is None or start + size > vend else start

    def stamp(self, cpu: int, vstart: int, vend: int) -> int:
        """The node an area allocated on this CPU belongs to."""
        if self.nr_nodes > 1 and (vstart, vend) == self.window:
            return cpu % self.nr_nodes
        return NO_NODE

    def _from_pool(self, pages: int, align: int, cpu: int) -> Area | None:
        if self.nr_nodes == 1:
            return None
        pool = self.nodes[cpu % self.nr_nodes].pools.get(pages)
        return None if pool is None else pool.take(align, self.design.pool_discipline)

    # ------------------------------------------------------------------ free

    def free(self, start: int, cpu: int = 0) -> Area | None:
        """Make the area that starts here lazy; returns it, or None if nothing busy starts here.

        Whether a purge is due now is `purge_is_due`: the kernel only schedules it.
        """
        area = self._no_longer_busy(start)
        if area is not None:
            self.lazy_pages += area.size // PAGE
            node = area.node if area.node != NO_NODE else self.busy.node_of(start)
            self.nodes[node].lazy.add(area)
        return area

    # ------------------------------------------------------------------ purge and shrink

    def decay_pools(self, node: Node, full: bool) -> list[Area]:
        """Cut the hot end of every pool: those added last."""
        return cut_pools(node, None if full else self.design.decay_quota, hot=True)

    def shrink(self) -> int:
        """Give every pool's areas back to the space, as under memory pressure; returns the areas moved."""
        return shrink_scan(self)
