# SPDX-License-Identifier: MIT
"""Lazy: freed areas that wait for a purge.

A freed area may still sit in translation caches, so it is unusable until a flush covers it. Each node keeps
its own set; a purge takes the whole set at once, in address order. Since 6.9 areas are kept apart, because a
merged area would lose its stamp and its exact size. Up to 6.8 the one global set merged neighbours at once,
so its purges count merged ranges.

In ours, what is lazy is found again by size before a purge takes it: warm.py.

After: Linux mm/vmalloc.c, free_vmap_area_noflush().
"""

from __future__ import annotations

from vmalloc.model.area import Area
from vmalloc.model.space import Space


class Lazy:
    """A set of areas by start; `take_all` empties it."""

    __slots__ = ("areas", "merged")

    def __init__(self, merges: bool) -> None:
        self.areas: dict[int, Area] = {}
        self.merged = Space() if merges else None

    def __len__(self) -> int:
        return len(self.areas) if self.merged is None else len(self.merged)

    def copy(self) -> Lazy:
        other = Lazy.__new__(Lazy)
        other.areas = self.areas.copy()
        other.merged = None if self.merged is None else self.merged.copy()
        return other

    def add(self, area: Area) -> None:
        self.areas[area.start] = area
        if self.merged is not None:
            self.merged.add(area.start, area.size)

    def remove(self, start: int) -> Area | None:
        """Take one area out before the purge (reuse, or a correction by the replay)."""
        area = self.areas.pop(start, None)
        if area is not None and self.merged is not None:
            self.merged.take(area.start, area.size)
        return area

    def detach(self) -> list[Area]:
        """All areas, the one added last first, leaving the set empty; ours only, which merges none here."""
        taken = list(reversed(self.areas.values()))
        self.areas = {}
        return taken

    def take_all(self) -> list[Area]:
        """All areas in address order (merged where the design merges), leaving the set empty."""
        if self.merged is None:
            taken = sorted(self.areas.values())
        else:
            taken = [Area(start, end - start) for start, end in self.merged]
            self.merged = Space()
        self.areas = {}
        return taken
