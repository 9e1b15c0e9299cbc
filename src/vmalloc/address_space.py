# SPDX-License-Identifier: MIT
"""AddressSpace: the same allocator, without memory behind it."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import ClassVar

from vmalloc.errors import NotAllocated, OutOfPages
from vmalloc.facts import LOCK_TIMEOUT_S, POOLS_DEFAULT
from vmalloc.region import RegionBase

__all__ = ["AddressSpace"]


class AddressSpace(RegionBase):
    """Hands out ranges of numbers in [start, stop), shared by threads and processes like a Region.

    `granule` (a power of two) is the unit. `on_death` says what becomes of a dead process's ranges:
    "keep" (they may name something outside, such as disk blocks) or "reclaim".
    """

    __slots__ = ("granule_size", "start", "stop")
    _has_pages: ClassVar[bool] = False
    start: int
    stop: int
    granule_size: int

    def __init__(
        self,
        start: int,
        stop: int,
        *,
        granule: int = 4096,
        on_death: str = "keep",
        name: str = "",
        pools: str = POOLS_DEFAULT,
        nodes: int | None = None,
        max_threads: int | None = None,
        max_processes: int | None = None,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
    ) -> None:
        if granule <= 0 or granule & (granule - 1):
            raise ValueError(f"granule must be a power of two, not {granule}")
        if not 0 <= start < stop or (stop - start) % granule or stop > 1 << 63:
            raise ValueError(f"[{start}, {stop}) is no range of whole granules of {granule}")
        if on_death not in ("keep", "reclaim"):
            raise ValueError(f"on_death must be 'keep' or 'reclaim', not {on_death!r}")
        self.lock_timeout_s = lock_timeout_s
        self._open(
            (stop - start) // granule,
            name=name,
            pools=pools,
            granule=granule,
            base=start,
            nodes=nodes,
            max_threads=max_threads,
            max_processes=max_processes,
            keep_on_death=on_death == "keep",
        )

    def _opened(self, *, helper: bool = True) -> None:
        super()._opened(helper=helper)
        info = self._info()
        self.start, self.granule_size = int(info["base"]), int(info["granule"])
        self.stop = self.start + int(info["nr_pages"]) * self.granule_size

    def alloc(self, size: int, align: int = 1) -> int:  # type: ignore[override]
        """A range of at least `size` numbers; returns its start, a multiple of `align` from `self.start`.

        Raises OutOfPages, ValueError, RegionClosed.
        """
        return self.start + self._alloc_pages(*self._granules(size, align))[0] * self.granule_size

    def alloc_bulk(self, size: int, count: int, align: int = 1) -> list[int]:  # type: ignore[override]
        """Starts of `count` ranges of `size` numbers each: all of them or, with OutOfPages, none."""
        nr_granules, align_granules = self._granules(size, align)
        count = index(count)
        if count < 0:
            raise ValueError(f"count must not be negative, not {count}")
        if count * nr_granules > self.nr_pages:
            raise OutOfPages(f"{count} ranges of {nr_granules} granules requested; there are {self.nr_pages}")
        pages = self._alloc_pages_bulk(nr_granules, align_granules, count)
        return [self.start + page * self.granule_size for page in pages]

    def free(self, start: int) -> None:
        """Give back the range that starts there. NotAllocated for any other number."""
        self._free_page(self._page(start), start)

    def free_bulk(self, starts: Iterable[int]) -> None:  # type: ignore[override]
        """Give back every range of an iterable; NotAllocated at the first that is none."""
        for start in starts:
            self.free(start)

    def size_of(self, start: int) -> int:
        """Size of the live range that starts there, whole granules."""
        return int(self._lookup(self._page(start), start)[0]) * self.granule_size

    def _granules(self, size: int, align: int) -> tuple[int, int]:
        size, align = index(size), index(align)
        if size <= 0:
            raise ValueError(f"size must be positive, not {size}")
        if align <= 0 or align & (align - 1):
            raise ValueError(f"align must be a power of two, not {align}")
        if self.closed:
            self.fileno()  # RegionClosed
        if max(size, align) > self.stop - self.start:
            raise OutOfPages(f"size {size}, align {align} requested; [{self.start}, {self.stop}) is smaller")
        return -(-size // self.granule_size), max(align // self.granule_size, 1)

    def _page(self, start: int) -> int:
        start = index(start)
        page, rest = divmod(start - self.start, self.granule_size)
        if rest or not self.start <= start < self.stop:
            raise NotAllocated(f"{start} is not the start of a granule of [{self.start}, {self.stop})")
        return page

    def __repr__(self) -> str:
        return f"<vmalloc.AddressSpace [{self.start:#x}, {self.stop:#x}) granule {self.granule_size}>"
