# SPDX-License-Identifier: MIT
"""Warm: freed ranges that still have their pages, found again by size, the oldest first to go. Ours only.

lazy.py is the way in: a free leaves its range with a node, and nobody waits. Here the ranges are sorted into
lists by size, one store for all nodes:

* A list for each size up to POOL_PAGES_MAX, above it 1 << WARM_STEPS_LOG lists a doubling. The youngest
  stands in front; of a list the first WARM_LOOK_RANGES, of large ranges WARM_LOOK_LARGE, are looked at for
  the tightest that is aligned.
* A request that misses sorts what was freed since, WARM_SORT_RANGES at a time, until it is served.
* It gets a range of its size. A large one may get up to size >> WARM_SLACK_SHIFT more, all of the range, but
  only after it sorted WARM_SORT_AHEAD times to find its own size: else it would take what is another's.
* Otherwise a longer one is split, and the rest stays warm with its age. For a small request it is at least
  twice as long, so that the rest is of use, unless there is no such one.
* If many were sorted since the last time, or any for a request of no fewer pages than the walk has
  ranges, neighbours become one: before a large request splits one, and after a small one found none to split.

A step of a purge (caching.py) takes the oldest: of the list whose last one is the oldest, up to
WARM_LOOK_RANGES from its end, then of the next such list. From a range that is too long it takes the end.
Ages are whole seconds. Those of the core come round after 2^14 of them; these do not.

After: the segregated fits of two-level allocators; ages as in jemalloc's decay. The core has a station of the
same name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from vmalloc.facts import (
    PAGES_MAX,
    POOL_PAGES_MAX,
    WARM_JOIN_SHARE,
    WARM_LOOK_LARGE,
    WARM_LOOK_RANGES,
    WARM_SLACK_SHIFT,
    WARM_SORT_AHEAD,
    WARM_SORT_RANGES,
    WARM_STEPS_LOG,
)
from vmalloc.model.area import PAGE, Area

if TYPE_CHECKING:
    from vmalloc.model.caching import CachingAllocator


def list_of(pages: int) -> int:
    """The list that ranges of so many pages stand in."""
    if pages <= POOL_PAGES_MAX:
        return pages - 1
    log = pages.bit_length() - 1
    first = POOL_PAGES_MAX + (log - POOL_PAGES_MAX.bit_length() + 1 << WARM_STEPS_LOG)
    return first + (pages >> log - WARM_STEPS_LOG) - (1 << WARM_STEPS_LOG)


class Warm:
    """Lists by size; the right end of a list is its front. `ages` has the second in which each was freed."""

    __slots__ = ("ages", "lists", "nr_sorted", "nr_walked", "unsorted", "used")

    def __init__(self) -> None:
        self.ages: dict[int, int] = {}
        self.lists: dict[int, OrderedDict[int, Area]] = {}
        self.used = 0  # bit n: list n is not empty
        self.unsorted: list[Area] = []  # taken from a node, the youngest first
        self.nr_sorted = 0  # since neighbours were joined
        self.nr_walked = 0  # ranges that were passed then

    def copy(self) -> Warm:
        other = Warm()
        other.ages = self.ages.copy()
        other.lists = {at: areas.copy() for at, areas in self.lists.items() if areas}
        other.used, other.unsorted = self.used, self.unsorted[:]
        other.nr_sorted, other.nr_walked = self.nr_sorted, self.nr_walked
        return other

    def __iter__(self) -> Iterator[Area]:
        """Every range that was taken from a node, sorted or not."""
        for areas in self.lists.values():
            yield from areas.values()
        yield from self.unsorted

    def take_all(self) -> list[Area]:
        """All of these, leaving nothing."""
        taken = list(self)
        for area in taken:
            del self.ages[area.start]
        self.lists, self.used, self.unsorted = {}, 0, []
        return taken

    # ------------------------------------------------------------------ lists

    def _add(self, area: Area, age: int) -> None:
        at = list_of(area.pages)
        self.lists.setdefault(at, OrderedDict())[area.start] = area
        self.used |= 1 << at
        self.ages[area.start] = age

    def _drop(self, area: Area) -> int:
        """Take a range out of its list; returns its age."""
        at = list_of(area.pages)
        del self.lists[at][area.start]
        if not self.lists[at]:
            self.used &= ~(1 << at)
        return self.ages.pop(area.start)

    def _used_from(self, at: int) -> Iterator[int]:
        """The lists from this one on that have entries."""
        used = self.used >> at << at
        while used:
            lowest = used & -used
            yield lowest.bit_length() - 1
            used ^= lowest

    def _sort(self, allocator: CachingAllocator) -> bool:
        """Sort some of what was freed, the oldest of them first; False if all is sorted."""
        if not self.unsorted:
            node = next((node for node in allocator.nodes if node.lazy.areas), None)
            if node is None:
                return False
            self.unsorted = node.lazy.detach()
        some, self.unsorted = self.unsorted[:WARM_SORT_RANGES], self.unsorted[WARM_SORT_RANGES:]
        for area in reversed(some):
            self._add(area, self.ages[area.start])
        self.nr_sorted += len(some)
        return True

    # ------------------------------------------------------------------ taking

    def take(self, allocator: CachingAllocator, pages: int, align: int, count: int) -> list[Area]:
        """Up to `count` ranges of so many pages; of a large size one, which may be a little longer."""
        taken: list[Area] = []
        close = pages + (pages >> WARM_SLACK_SHIFT)
        while allocator.lazy_pages >= pages and len(taken) < count:
            area = self._find(allocator, pages, align, len(taken))
            if area is None:
                break
            whole = pages > POOL_PAGES_MAX and area.pages <= close
            taken.append(self._cut(area, area.pages if whole else pages))
        allocator.lazy_pages -= sum(area.pages for area in taken)
        return taken

    def _cut(self, area: Area, pages: int) -> Area:
        """The first so many pages of a range; the rest stays warm."""
        age, size = self._drop(area), pages * PAGE
        if size < area.size:
            self._add(Area(area.start + size, area.size - size), age)
        return Area(area.start, size)

    def _find(self, allocator: CachingAllocator, pages: int, align: int, moving: int) -> Area | None:
        """The range to take or to split; `moving` ranges were taken from here just now."""
        is_large = pages > POOL_PAGES_MAX
        area = self._sorted(allocator, pages, align)
        if area is None and is_large and self._join(allocator, pages, moving):
            area = self._close(pages, align)
        least = pages + 1 if is_large else 2 * pages
        area = area or self._tightest(least, PAGES_MAX, align)
        if area is None and not is_large and self._join(allocator, pages, moving):
            area = self._close(pages, align) or self._tightest(least, PAGES_MAX, align)
        return area or self._tightest(pages + 1, PAGES_MAX, align)

    def _sorted(self, allocator: CachingAllocator, pages: int, align: int) -> Area | None:
        """One close to that size, after sorting as much as it takes, or just of that size."""
        ahead = WARM_SORT_AHEAD if pages > POOL_PAGES_MAX else 0
        area = self._tightest(pages, pages, align)
        more = True
        while area is None and more:
            more = self._sort(allocator)
            area = self._tightest(pages, pages, align)
            if area is None and (not more or ahead == 0):
                area = self._close(pages, align)
            ahead = max(0, ahead - 1)
        return area

    def _close(self, pages: int, align: int) -> Area | None:
        """One of that size; for a large request one so little longer that it may have all of it."""
        most = pages + (pages >> WARM_SLACK_SHIFT if pages > POOL_PAGES_MAX else 0)
        return self._tightest(pages, min(most, PAGES_MAX), align)

    def _tightest(self, least: int, most: int, align: int) -> Area | None:
        """Of the first list that has one: the tightest of those in front, and the youngest of these."""
        if least > most:
            return None
        last = list_of(most)
        for at in self._used_from(list_of(least)):
            if at > last:
                return None
            looks = WARM_LOOK_LARGE if least > POOL_PAGES_MAX else WARM_LOOK_RANGES
            front = islice(reversed(self.lists[at].values()), looks)
            fits = [a for a in front if least <= a.pages <= most and not a.start & (align - 1)]
            if fits:
                return min(fits, key=lambda area: area.size)
        return None

    def _join(self, allocator: CachingAllocator, pages: int, moving: int) -> bool:
        """Make neighbours one, all of them; whether there were any. Only if enough were sorted."""
        is_dear = pages <= POOL_PAGES_MAX or self.nr_walked > pages
        if self.nr_sorted < (self.nr_walked // WARM_JOIN_SHARE + 1 if is_dear else 1):
            return False
        listed = sorted(area for areas in self.lists.values() for area in areas.values())
        self.nr_sorted = 0
        self.nr_walked = len(listed) + allocator.nr_ranges + moving
        run: Area | None = None
        joined = False
        for area in listed:
            if run is None or run.end != area.start or run.pages + area.pages > PAGES_MAX:
                run = area
                continue
            age = self._drop(run)
            self._drop(area)
            run = Area(run.start, run.size + area.size)
            self._add(run, age)
            joined = True
        return joined

    # ------------------------------------------------------------------ giving up

    def collect(self, allocator: CachingAllocator, pages: int, ranges: int) -> list[Area]:
        """Take the oldest, up to so many pages and so many ranges."""
        collected: list[Area] = []
        self._sort(allocator)
        while self.used and pages > 0 and len(collected) < ranges:
            at = self._oldest()
            for _ in range(min(WARM_LOOK_RANGES, ranges - len(collected))):
                if pages == 0 or not self.lists[at]:
                    break
                collected.append(self._collect_one(at, pages))
                pages -= collected[-1].pages
        allocator.lazy_pages -= sum(area.pages for area in collected)
        return collected

    def _oldest(self) -> int:
        """The list whose last one is the oldest of all; of equals the one of the smallest size."""
        return min(self._used_from(0), key=lambda at: self.ages[next(iter(self.lists[at]))])

    def _collect_one(self, at: int, most: int) -> Area:
        """The last one of a list, or so many pages of its end."""
        area = next(iter(self.lists[at].values()))
        age, size = self._drop(area), most * PAGE
        if area.size <= size:
            return area
        self._add(Area(area.start, area.size - size), age)
        return Area(area.end - size, size)
