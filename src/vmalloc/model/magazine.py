# SPDX-License-Identifier: MIT
"""Magazine: ready ranges of one size owned by one thread. Ours only; no kernel has it.

It keeps the hot path free of anything shared: a free puts the range here, an alloc of the same size takes
the one put last. Overflow and refill move `magazine_batch` ranges to or from the pool of the thread's node at
once, so the pool is touched once per batch. An overflow gives away the coldest ranges, a refill takes the
hottest of the pool.

After: Bonwick and Adams, "Magazines and Vmem", 2001.
"""

from __future__ import annotations

from collections import deque

from vmalloc.model.area import Area


class Magazines:
    """One thread's magazines, by page count; the right end is the hot end."""

    __slots__ = ("sizes",)

    def __init__(self) -> None:
        self.sizes: dict[int, deque[Area]] = {}

    def copy(self) -> Magazines:
        other = Magazines()
        other.sizes = {pages: ranges.copy() for pages, ranges in self.sizes.items()}
        return other

    def take(self, pages: int, align: int) -> Area | None:
        """The range freed last, if there is one and it is aligned."""
        ranges = self.sizes.get(pages)
        if not ranges or ranges[-1].start & (align - 1):
            return None
        return ranges.pop()

    def put(self, area: Area) -> int:
        """Keep a freed range; returns how many of its size are kept now."""
        ranges = self.sizes.setdefault(area.pages, deque())
        ranges.append(area)
        return len(ranges)

    def coldest(self, pages: int, count: int) -> list[Area]:
        """Remove and return up to `count` ranges from the cold end."""
        ranges = self.sizes.get(pages, deque())
        return [ranges.popleft() for _ in range(min(count, len(ranges)))]

    def drain(self) -> list[Area]:
        """Remove and return everything."""
        areas = [area for ranges in self.sizes.values() for area in ranges]
        self.sizes = {}
        return areas
