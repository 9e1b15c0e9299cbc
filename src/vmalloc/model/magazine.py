# SPDX-License-Identifier: MIT
"""Magazine: ready ranges of one size owned by one thread. Ours only; no kernel has it.

It keeps the hot path free of anything shared: a free puts the range here, an alloc of the same size takes
the one put last (the newest that is aligned, for an alignment above a page).

* A magazine's cap starts at one range. An overflow doubles it, up to MAGAZINE_CAP and MAGAZINE_CAP_PAGES, as
  long as the growth of all caps of the thread, beyond one range each, stays within its budget. A cap shrinks
  only when a request found no room: then of the sizes above FLOW_PAGES only the rounded ones (whole_pages())
  are kept, as many of each as there is room for, and none of these caps grows while space is short. After
  that each is 1, as at first.
* An overflow that may not grow the cap gives the older half of it to the pool of the thread's node, oldest
  first, so that the pool's head is the hottest of them.
* A miss takes a batch from the head of a pool: the first for the request, the others into the magazine as far
  as they go there, the rest back. If the pool had the whole batch, the cap doubles as well.
* In a crowd, more than CROWD_THREADS threads a node, every batch is at most CROWD_BATCH_PAGES, but one range
  in any case: most threads do not run, and what they took beyond their need nobody else gets.
* A miss that the pools cannot serve either takes neighbouring ranges from the lowest place of the space where
  one fits: one the first time, twice as many each time after, up to MAGAZINE_STOCK_PAGES, and half
  as many after a failure. The cap doubles until they find room in the magazine; what does not goes to the
  pool.

After: Bonwick and Adams, "Magazines and Vmem", 2001. The core's are in core/cache/magazine.c.
"""

from __future__ import annotations

from collections import deque

from vmalloc.facts import (
    CROWD_BATCH_PAGES,
    FLOW_PAGES,
    MAGAZINE_CAP,
    MAGAZINE_CAP_PAGES,
    MAGAZINE_REFILL_MAX,
    MAGAZINE_REFILL_PAGES,
    MAGAZINE_STOCK_PAGES,
    POOL_PAGES_MAX,
    TIGHT_CAP,
    WARM_SLACK_SHIFT,
)
from vmalloc.model.area import Area


class Magazines:
    """One thread's magazines, by page count; the right end is the hot end.

    By `budget_pages` all caps together may grow; whoever uses them says how much that is now, and whether
    there are many others (`is_crowd`).
    """

    __slots__ = (
        "budget_pages", "caps", "grown_pages", "is_crowd", "is_tight", "nr_tight", "opened", "sizes",
        "stocks",
    )  # fmt: skip

    def __init__(self) -> None:
        self.budget_pages = 0
        self.sizes: dict[int, deque[Area]] = {}
        self.caps: dict[int, int] = {}
        self.opened: set[int] = set()  # sizes that its thread asked for or freed; the first time is no hit
        self.grown_pages = 0
        self.is_crowd = False
        self.is_tight = False
        self.nr_tight = 0  # operations since then that were no hits
        self.stocks: dict[int, int] = {}

    def __len__(self) -> int:
        """Ranges of all sizes."""
        return sum(map(len, self.sizes.values()))

    @property
    def pages(self) -> int:
        """Pages of all ranges."""
        return sum(pages * len(ranges) for pages, ranges in self.sizes.items())

    def copy(self) -> Magazines:
        other = Magazines()
        other.budget_pages = self.budget_pages
        other.sizes = {pages: ranges.copy() for pages, ranges in self.sizes.items()}
        other.caps, other.opened = self.caps.copy(), self.opened.copy()
        other.grown_pages, other.is_tight = self.grown_pages, self.is_tight
        other.is_crowd, other.nr_tight = self.is_crowd, self.nr_tight
        other.stocks = self.stocks.copy()
        return other

    def take(self, pages: int, align: int) -> Area | None:
        """The newest range that is aligned, if there is one."""
        ranges = self.sizes.get(pages)
        if not ranges:
            return None
        if not ranges[-1].start & (align - 1):
            return ranges.pop()
        aligned = next((area for area in reversed(ranges) if not area.start & (align - 1)), None)
        if aligned is not None:
            ranges.remove(aligned)
        return aligned

    def has_room(self, pages: int) -> bool:
        """Whether one more of so many pages can be kept as it is; a magazine keeps no large ones."""
        return pages in self.opened and len(self.sizes.get(pages, ())) < self.cap(pages)

    def put(self, area: Area) -> list[Area]:
        """Keep a range; returns what had to leave for it, oldest first."""
        pages = area.pages
        if self.cap(pages) == 0:
            return [area]
        self.opened.add(pages)
        ranges = self.sizes.setdefault(pages, deque())
        left: list[Area] = []
        if len(ranges) >= self.cap(pages):
            self.grow(pages)
        if len(ranges) >= self.cap(pages):
            left = [ranges.popleft() for _ in range((self.cap(pages) + 1) // 2)]
        ranges.append(area)
        return left

    def fill(self, areas: list[Area]) -> list[Area]:
        """Keep areas of one size as far as there is room; returns the others."""
        if not areas:
            return areas
        ranges = self.sizes.setdefault(areas[0].pages, deque())
        room = max(self.cap(areas[0].pages) - len(ranges), 0)
        ranges.extend(areas[:room])
        return areas[room:]

    def cap(self, pages: int) -> int:
        """How many ranges of so many pages are kept."""
        return self.caps.get(pages, 1)

    def refill(self, pages: int) -> int:
        """How many ranges a miss takes from a pool."""
        most = min(self._batch(pages, MAGAZINE_REFILL_PAGES), MAGAZINE_REFILL_MAX)
        return min(self.cap(pages) // 2 + 1, most)

    def stock(self, pages: int) -> int:
        """How many ranges this miss takes from the space."""
        return min(self.stocks.get(pages, 1), self._batch(pages, MAGAZINE_STOCK_PAGES))

    def _batch(self, pages: int, most: int) -> int:
        """So many ranges are at most so many pages, in a crowd few, but one in any case."""
        return max((min(most, CROWD_BATCH_PAGES) if self.is_crowd else most) // pages, 1)

    def stocked(self, pages: int, had_room: bool) -> None:
        """The next miss takes twice as many, or half as many if there were not that many."""
        count = self.stocks.get(pages, 1)
        if not had_room and count > 1:
            self.stocks[pages] = count // 2
        elif 2 * count * pages <= MAGAZINE_STOCK_PAGES:
            self.stocks[pages] = 2 * count

    def drain(self) -> list[Area]:
        """Remove and return everything, small sizes first, of each the oldest first; the caps stay."""
        areas = [area for pages in sorted(self.sizes) for area in self.sizes[pages]]
        self.sizes = {}
        return areas

    def grow(self, pages: int) -> bool:
        """Double a cap; whether the budget allows it, and space is not too short for a large size."""
        cap = self.cap(pages)
        wanted = min(2 * cap or 1, self.cap_most(pages))
        more = (max(wanted, 1) - max(cap, 1)) * pages
        if (self.is_tight and pages > FLOW_PAGES) or self.grown_pages + more > self.budget_pages:
            return False
        self.grown_pages += more
        self.caps[pages] = wanted
        return True

    def grow_for(self, pages: int, count: int) -> None:
        """Double a cap until so many ranges find room."""
        while count > 1 and self.cap(pages) < min(count, self.cap_most(pages)) and self.grow(pages):
            pass

    @staticmethod
    def cap_most(pages: int) -> int:
        """How far a cap grows: few of a large size."""
        return min(max(MAGAZINE_CAP_PAGES // pages, 2), MAGAZINE_CAP)

    @property
    def gets_whole(self) -> bool:
        """Whether large requests get ranges of rounded sizes: space is short, but not very."""
        return self.is_tight and self.cap(POOL_PAGES_MAX) > 0

    @property
    def large_pages(self) -> int:
        """Pages of the ranges of rounded sizes."""
        return sum(pages * len(self.sizes.get(pages, ())) for pages in WHOLE_SIZES)

    def close_large(self) -> None:
        """Keep no range above FLOW_PAGES, ..."""
        for pages in range(FLOW_PAGES + 1, POOL_PAGES_MAX + 1):
            self.grown_pages -= max(self.cap(pages) - 1, 0) * pages
            self.caps[pages] = 0

    def open_whole(self, budget: int) -> None:
        """... but those of rounded sizes: so many of each as the budget has room for, or none; then one more
        of the smallest. That is no growth."""
        cap, left = divmod(budget, sum(WHOLE_SIZES))
        cap = min(cap, TIGHT_CAP)
        for pages in WHOLE_SIZES:
            has_more = 0 < cap < TIGHT_CAP and pages <= left
            left -= pages if has_more else 0
            self.caps[pages] = cap + has_more
            if self.caps[pages]:
                self.opened.add(pages)

    def open_large(self) -> None:
        """Keep one of each size, as at first."""
        for pages in range(FLOW_PAGES + 1, POOL_PAGES_MAX + 1):
            self.caps[pages] = 1


def whole_pages(pages: int) -> int:
    """What a request gets while space is short, but not very: of a large size one of few rounded ones."""
    if not FLOW_PAGES < pages <= POOL_PAGES_MAX:
        return pages
    step = 1 << (pages - 1).bit_length() - 1 - WARM_SLACK_SHIFT
    return -(-pages // step) * step


WHOLE_SIZES = sorted({whole_pages(pages) for pages in range(FLOW_PAGES + 1, POOL_PAGES_MAX + 1)})
