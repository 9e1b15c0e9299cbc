# SPDX-License-Identifier: MIT
"""Pool: ready ranges of one exact size in one node.

Filled only by purges (and, in our own design, by magazines), so everything in it may be handed out at once.
The head is the entry added last. Two disciplines:

* list: look at the head only. If its start is not aligned as asked, move it to the tail (ours: leave it) and
  report a miss; one candidate is examined per attempt, never more.
* llist: a lock-free list cannot give up one entry safely to several takers, so the taker detaches the whole
  chain, takes the newest, and puts the rest back as a batch, in its old order or reversed.

After: Linux mm/vmalloc.c, node_pool_del_va() and node_pool_add_va(); the llist discipline after the thread
of "mm: vmalloc: Offload free_vmap_area_lock lock", January 2024.
"""

from __future__ import annotations

from collections import deque

from vmalloc.model.area import Area
from vmalloc.model.design import Design


class Pool:
    """Areas of one size; the right end of `areas` is the head."""

    __slots__ = ("areas",)

    def __init__(self) -> None:
        self.areas: deque[Area] = deque()

    def __len__(self) -> int:
        return len(self.areas)

    def __bool__(self) -> bool:
        return True

    def copy(self) -> Pool:
        other = Pool()
        other.areas = self.areas.copy()
        return other

    def push(self, area: Area) -> None:
        """Add an area at the head."""
        self.areas.append(area)

    def take(self, align: int, design: Design) -> Area | None:
        """The head, if it is aligned; a misaligned head of a list moves to the tail, or stays."""
        areas = self.areas
        if not areas:
            return None
        area = areas.pop()
        taken = area.start & (align - 1) == 0
        if not taken:
            areas.append(area)
        if design.pool_discipline == "llist":
            if design.pool_put_back == "reversed":
                areas.reverse()
        elif not taken and design.pool_rotates:
            areas.rotate(1)
        return area if taken else None

    def peek(self, align: int) -> Area | None:
        """What `take` would return, changing nothing."""
        areas = self.areas
        if areas and areas[-1].start & (align - 1) == 0:
            return areas[-1]
        return None

    def cut(self, count: int, hot: bool) -> list[Area]:
        """Remove and return `count` entries from the head (hot) or from the tail."""
        areas = self.areas
        return [areas.pop() if hot else areas.popleft() for _ in range(count)]
