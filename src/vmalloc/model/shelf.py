# SPDX-License-Identifier: MIT
"""Shelf: a few places for lazily freed ranges too large for pools. Ours only; one for all nodes.

A request of nearly the same size takes the closest fit from here, whole and still warm; a purge clears it.
What finds no place is lazy like any other range. The core's is in its lazy station.
"""

from __future__ import annotations

from vmalloc.facts import SHELF_RANGES, SHELF_SLACK_SHIFT
from vmalloc.model.area import PAGE, Area


class Shelf:
    """SHELF_RANGES places; a range stands in the lowest that was free."""

    __slots__ = ("places",)

    def __init__(self) -> None:
        self.places: list[Area | None] = [None] * SHELF_RANGES

    def copy(self) -> Shelf:
        other = Shelf.__new__(Shelf)
        other.places = self.places[:]
        return other

    def put(self, area: Area) -> bool:
        """Whether there was a place for it."""
        if None not in self.places:
            return False
        self.places[self.places.index(None)] = area
        return True

    def take(self, size: int, align: int) -> Area | None:
        """The closest fit that wastes no more than size >> SHELF_SLACK_SHIFT; of equals the lowest place."""
        most = size + (size // PAGE >> SHELF_SLACK_SHIFT) * PAGE
        fits = [
            (area.size, place)
            for place, area in enumerate(self.places)
            if area is not None and size <= area.size <= most and not area.start & (align - 1)
        ]
        if not fits:
            return None
        place = min(fits)[1]
        area, self.places[place] = self.places[place], None
        return area

    def take_all(self) -> list[Area]:
        """All ranges in address order, leaving the shelf empty."""
        taken = sorted(area for area in self.places if area is not None)
        self.places = [None] * len(self.places)
        return taken
