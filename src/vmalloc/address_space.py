"""AddressSpace: the same allocator, without memory behind it."""

from __future__ import annotations

from vmalloc.errors import NotAllocated
from vmalloc.region import RegionBase

__all__ = ["AddressSpace"]


class AddressSpace(RegionBase):
    """Hands out ranges of numbers in [start, stop), shared by threads and processes like a Region.

    `granule` (a power of two) is the unit. `on_death` says what becomes of a dead process's ranges:
    "keep" (they may name something outside, such as disk blocks) or "reclaim".
    """

    def __init__(
        self,
        start: int,
        stop: int,
        *,
        granule: int = 4096,
        on_death: str = "keep",
        name: str = "",
        pools: str = "magazine",
        nodes: int | None = None,
        max_threads: int | None = None,
        locks: str = "futex",
        lock_timeout_s: float = 10.0,
    ) -> None:
        if granule <= 0 or granule & (granule - 1):
            raise ValueError(f"granule must be a power of two, not {granule}")
        if not 0 <= start < stop or (stop - start) % granule or stop > 1 << 63:
            raise ValueError(f"[{start}, {stop}) is no range of whole granules of {granule}")
        if on_death not in ("keep", "reclaim"):
            raise ValueError(f"on_death must be 'keep' or 'reclaim', not {on_death!r}")
        self.lock_timeout_s = lock_timeout_s
        self.start, self.stop, self.granule_size = start, stop, granule
        self._open(
            (stop - start) // granule,
            name=name,
            pools=pools,
            granule=granule,
            base=start,
            nodes=nodes,
            max_threads=max_threads,
            locks=locks,
            keep_on_death=on_death == "keep",
        )

    def alloc(self, size: int, align: int = 1) -> int:  # type: ignore[override]
        """A range of at least `size` numbers; returns its start, a multiple of `align` from `self.start`.

        Raises OutOfPages, ValueError, RegionClosed.
        """
        if size <= 0:
            raise ValueError(f"size must be positive, not {size}")
        if align <= 0 or align & (align - 1):
            raise ValueError(f"align must be a power of two, not {align}")
        page, _, _ = self._alloc_pages(-(-size // self.granule_size), max(align // self.granule_size, 1))
        return self.start + page * self.granule_size

    def free(self, start: int) -> None:
        """Give back the range that starts there. NotAllocated for any other number."""
        self._free_page(self._page(start))

    def size_of(self, start: int) -> int:
        """Size of the live range that starts there, whole granules."""
        return int(self._lookup(self._page(start))[0]) * self.granule_size

    def _page(self, start: int) -> int:
        page, rest = divmod(start - self.start, self.granule_size)
        if rest or not self.start <= start < self.stop:
            raise NotAllocated(f"{start} is not the start of a granule of [{self.start}, {self.stop})")
        return page

    def __enter__(self) -> AddressSpace:
        self.fileno()
        return self

    def __repr__(self) -> str:
        return f"<vmalloc.AddressSpace [{self.start:#x}, {self.stop:#x}) granule {self.granule_size}>"
