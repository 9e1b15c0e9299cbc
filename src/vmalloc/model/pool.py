# SPDX-License-Identifier: MIT
"""Pool: ready ranges of one exact size in one node.

The kernel fills it by purges only, ours by frees; either way everything in it may be handed out at once. The
head is the entry added last. What happens to the entries that a taker does not get is the discipline:

* list: look at the head only. If its start is not aligned as asked, move it to the tail and report a miss;
  one candidate is examined per attempt, never more.
* llist: a lock-free list cannot give up one entry safely to several takers, so the taker detaches the whole
  chain, takes the newest if it is aligned, and puts the rest back as a batch, reversed.
* in place: look at the head only, and leave it there if it is not aligned. Ours, with a lock and without.

After: Linux mm/vmalloc.c, node_pool_del_va() and node_pool_add_va(); the llist discipline after the thread
of "mm: vmalloc: Offload free_vmap_area_lock lock", January 2024.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

from vmalloc.model.area import Area

Discipline = Literal["list", "llist", "in place"]


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
        other = Pool.__new__(Pool)
        other.areas = self.areas.copy()
        return other

    def push(self, area: Area) -> None:
        """Add an area at the head."""
        self.areas.append(area)

    def take(self, align: int, discipline: Discipline) -> Area | None:
        """The head, if it is aligned; the discipline says what else moves."""
        areas = self.areas
        if not areas:
            return None
        area = areas.pop()
        is_aligned = area.start & (align - 1) == 0
        if not is_aligned:
            areas.append(area)
        if discipline == "llist":
            areas.reverse()
        elif discipline == "list" and not is_aligned:
            areas.rotate(1)
        return area if is_aligned else None

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
