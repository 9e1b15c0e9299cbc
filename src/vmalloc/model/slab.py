# SPDX-License-Identifier: MIT
"""Slab: what one CPU keeps of one exact size, in front of the nodes' pools, in the design `percpu`.

A stack of places: what is freed goes on top, a request gets the top. An entry is a hint: a purge takes ranges
out of a slab and leaves the entries, and who comes to such a stale one skips it. It may name a range that has
another entry by now; then whoever comes first has it.

When a slab is full, its older half goes to the pool behind. The C is core/cache/pool_percpu.c.
"""

from __future__ import annotations

from vmalloc.facts import MAGAZINE_REFILL_MAX, SLAB_CAP, SLAB_CAP_MIN, SLAB_CAP_PAGES
from vmalloc.model.area import Area


def slab_cap(pages: int) -> int:
    """How many entries a slab of so many pages has."""
    return min(max(SLAB_CAP_PAGES // pages, SLAB_CAP_MIN), SLAB_CAP)


def slab_refill(pages: int) -> int:
    """How many ranges a miss takes from a pool at once."""
    return min(slab_cap(pages) // 2, MAGAZINE_REFILL_MAX)


class Slab:
    """Entries, the newest last, and the areas that are still there."""

    __slots__ = ("areas", "entries")

    def __init__(self) -> None:
        self.entries: list[int] = []
        self.areas: dict[int, Area] = {}

    def __len__(self) -> int:
        return len(self.areas)

    @property
    def pages(self) -> int:
        """Pages of what is there; an entry that is named twice counts as the core counts it."""
        return sum(self.areas[start].pages for start in self.entries if start in self.areas)

    def copy(self) -> Slab:
        other = Slab()
        other.entries, other.areas = self.entries.copy(), self.areas.copy()
        return other

    def has_room(self, pages: int) -> bool:
        """Whether a place of this slab of so many pages is free."""
        return len(self.entries) < slab_cap(pages)

    def put(self, area: Area) -> list[Area]:
        """Put one on top; returns what had to make room, the oldest first."""
        entries, cap = self.entries, slab_cap(area.pages)
        out: list[Area] = []
        if len(entries) >= cap:
            older = len(entries) - cap // 2
            out = [self.areas.pop(start) for start in entries[:older] if start in self.areas]
            del entries[:older]
        entries.append(area.start)
        self.areas[area.start] = area
        return out

    def take(self, align: int) -> Area | None:
        """The newest, unless the top is not aligned as asked."""
        while self.entries and not self.entries[-1] & (align - 1):
            start = self.entries.pop()
            if start in self.areas:
                return self.areas.pop(start)
        return None

    def cut(self, percent: int) -> list[Area]:
        """Take out so much of what is there, rounded up, the oldest first; the entries stay."""
        there = [start for start in self.entries if start in self.areas]
        goes = -(-len(there) * percent // 100)
        cut: list[Area] = []
        for start in there:
            if len(cut) < goes and start in self.areas:
                cut.append(self.areas.pop(start))
        return cut
