# SPDX-License-Identifier: MIT
"""Our errors; each is also the builtin that people catch.

* VmallocError
  + OutOfPages (MemoryError)            no free range of that size, after shrink and drain
  + NotAllocated (ValueError)           not the start of a live range: freed already, or never was
  + StaleReference (ReferenceError)     what the reference named is gone
  + RegionUnavailable (OSError)         cannot be created, attached or reached; says what is missing
  + RegionBusy (TimeoutError)           a lock's owner is alive but does not run; names the pid
  + RegionCorrupt                       an invariant failed; the region takes no more changes
  + RegionClosed (ValueError)           used after close()
  + NotLoaded                           what a message names cannot be loaded in this process
  + MemoryMisused                       in a hardened region: written past an end, or after it was freed

Within a message, RegionUnavailable and RegionBusy become NotLoaded, with the
original as its cause: Pool and Queue take an OSError for the end of a pipe.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "MemoryMisused",
    "NotAllocated",
    "NotLoaded",
    "OutOfPages",
    "RegionBusy",
    "RegionClosed",
    "RegionCorrupt",
    "RegionUnavailable",
    "StaleReference",
    "VmallocError",
]


class VmallocError(Exception):
    """Base of all errors of this package."""


class OutOfPages(VmallocError, MemoryError):
    """No free range of that size is left, even after shrink and drain; or no lease, no name.

    Where pages ran out the attributes say why, in bytes, as they were when the error was made.
    """

    #: "space" (no run of free pages is long enough), "limit", "quota", "memory" (of the machine), "cgroup"
    cause: str | None = None
    requested: int | None = None
    free: int | None = None  #: outside all limits; perhaps in pieces
    largest: int | None = None  #: the longest free run
    lazy: int | None = None  #: freed, and still resident
    limit: int | None = None  #: the region's, if it has one
    quota: int | None = None  #: each process's, if there is one
    holders: tuple[tuple[int, int], ...] = ()  #: (pid, bytes) of the processes that hold most, the most first


class NotAllocated(VmallocError, ValueError):
    """The page is not the start of a live range."""


class StaleReference(VmallocError, ReferenceError):
    """What the reference named was freed."""


class RegionUnavailable(VmallocError, OSError):
    """The region cannot be created, attached or reached."""


class RegionBusy(VmallocError, TimeoutError):
    """A lock's owner is alive but did not let go in time."""


class RegionCorrupt(VmallocError):
    """An invariant does not hold."""


class RegionClosed(VmallocError, ValueError):
    """The region was closed in this process."""


class NotLoaded(VmallocError):
    """What a message names cannot be loaded in this process; the cause says why."""


class MemoryMisused(VmallocError):
    """A hardened region found bytes changed that nobody may change: past an end, or after a free.

    `kind` is "overrun" or "use after free"; `made` and `freed` are FILE:LINE in the program, with the process
    if it is another, "" where not known or not freed yet; `offset` is the range's, in bytes, and `byte` which
    one of it was changed first.
    """

    def __init__(
        self, text: str, kind: str = "", offset: int = 0, byte: int = 0, made: str = "", freed: str = ""
    ) -> None:
        super().__init__(text)
        self.kind, self.offset, self.byte, self.made, self.freed = kind, offset, byte, made, freed

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.kind, self.offset, self.byte, self.made, self.freed)
