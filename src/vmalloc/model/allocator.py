# SPDX-License-Identifier: MIT
"""Allocator: what both policies stand on. It owns the stations and keeps the counters; it decides nothing.

Two policies use it: kernel.py, which is the kernel in its versions, and caching.py, which is ours. A policy
says the way of a request through the stations; the stations are the mechanism:

    node, pool    ready ranges of one exact size, a pool for each size and node
    space         every free range; lowest-address first fit
    busy          areas in use
    lazy          freed areas that wait for a purge
    purge, decay  how areas come back; shrink: all at once

There are no locks and no bytes here, only decisions; time is the order of the calls. One call is one critical
section: nothing else happens within it, anything may happen between two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal, Self, get_args

from vmalloc.model.area import PAGE, Area
from vmalloc.model.busy import Busy
from vmalloc.model.node import Node
from vmalloc.model.pool import Pool
from vmalloc.model.purge import Purge
from vmalloc.model.space import Space

Level = Literal["magazine", "slab", "pool", "neighbour", "lazy", "space", "none"]
"""Who served a request: vmalloc.facts.LEVELS; none: nobody."""
WINDOW = (0xFFFFC90000000000, 0xFFFFE8FFFFFFFFFF)
"""The vmalloc window of an x86-64 kernel with 4-level page tables and no KASLR, as events print it."""


class Allocator(ABC):
    """The stations of one machine with `cpus` possible CPUs, and what is counted.

    `free` lists the free ranges at the start, by default the whole window.
    """

    __slots__ = (
        "busy",
        "cpus",
        "lazy_pages",
        "live_pages",
        "nodes",
        "nr_nodes",
        "nr_purged",
        "nr_purges",
        "pool_ranges_max",
        "pooled_pages_max",
        "served",
        "space",
        "window",
    )
    _fields: ClassVar[tuple[str, ...]] = __slots__

    def __init__(
        self,
        cpus: int,
        nodes: list[Node],
        busy: Busy,
        window: tuple[int, int],
        free: Iterable[tuple[int, int]] | None,
    ) -> None:
        self.cpus = cpus
        self.nodes = nodes
        self.nr_nodes = len(nodes)
        self.busy = busy
        self.window = window
        self.space = Space([(window[0], window[1] & -PAGE)] if free is None else free)
        self.lazy_pages = 0
        self.pooled_pages_max = 0  # the largest size that a purge puts into pools; 0: none
        self.pool_ranges_max = 0  # so many areas a purge leaves in one pool; 0: no limit
        self.live_pages = 0
        self.served: dict[Level, int] = dict.fromkeys(get_args(Level), 0)
        self.nr_purges = 0
        self.nr_purged = 0

    def copy(self) -> Self:
        """An independent copy, to try something on."""
        other = type(self).__new__(type(self))
        for name in self._fields:
            setattr(other, name, getattr(self, name))
        other.nodes = [node.copy() for node in self.nodes]
        other.space = self.space.copy()
        other.busy = self.busy.copy()
        other.served = self.served.copy()
        return other

    # ------------------------------------------------------------------ what a policy says

    @property
    @abstractmethod
    def lazy_pages_max(self) -> int:
        """The threshold: the lazy backlog above which a purge is due."""

    @abstractmethod
    def alloc(self, size: int, align: int = 1, cpu: int = 0) -> Area | None:
        """Allocate `size` bytes, a page multiple; None if nothing that may bring room helped."""

    @abstractmethod
    def free(self, start: int, cpu: int = 0) -> Area | None:
        """Free the area that starts here; returns it, or None if nothing busy starts here.

        Whether a purge is due now is `purge_is_due`: no whole one is run here.
        """

    @abstractmethod
    def decay_pools(self, node: Node, full: bool) -> list[Area]:
        """Cut every pool of the node, all of it if `full`; returns what belongs to the space now."""

    @abstractmethod
    def shrink(self) -> int:
        """Give back what memory pressure asks for; returns the areas moved."""

    # ------------------------------------------------------------------ what the policies share

    def _now_busy(self, area: Area, level: Level) -> None:
        self.busy.insert(area)
        self.served[level] += 1
        self.live_pages += area.size // PAGE

    def _no_longer_busy(self, start: int) -> Area | None:
        area = self.busy.unlink(start)
        if area is not None:
            self.live_pages -= area.size // PAGE
        return area

    @property
    def purge_is_due(self) -> bool:
        """Whether the lazy backlog is above the threshold."""
        return self.lazy_pages > self.lazy_pages_max

    def take_lazy(self, n: int) -> list[Area]:
        """Detach node n's lazy areas, in address order."""
        return self.nodes[n].lazy.take_all()

    def purge(self, full: bool = False) -> Purge:
        """Run a whole purge now and return its report."""
        purge = Purge(self, full)
        purge.run(self)
        self.count(purge)
        return purge

    def pool_takes(self, pool: Pool) -> bool:
        """Whether a purge may add an area to this pool."""
        return not self.pool_ranges_max or len(pool.areas) < self.pool_ranges_max

    def count(self, purge: Purge) -> None:
        """Add a finished purge to the counters."""
        self.nr_purges += 1
        self.nr_purged += purge.nr_purged

    def reclaim(self, areas: Iterable[Area]) -> None:
        """Put areas back into the space, merged with what they touch."""
        add = self.space.add
        for area in areas:
            add(area.start, area.size)
