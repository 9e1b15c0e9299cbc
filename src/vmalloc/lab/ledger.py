# SPDX-License-Identifier: MIT
"""Ledger: a space that remembers which areas were cut from it, so that a replay can be put right.

When a kernel hands out an address that the model has elsewhere, everything in the way has to leave its place:
a pool, a lazy set, a purge under way. The ledger finds it by address. What is neither free nor in the ledger
has never been seen: on a machine whose start state is unknown that is most of the window at first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from sortedcontainers import SortedDict

from vmalloc.lab._predict import Ledger
from vmalloc.model import Area, Kernel, Space


class LedgerSpace(Space):
    """A Space with the areas that are out of it, by start."""

    __slots__ = ("out",)

    def __init__(self, ranges: Iterable[tuple[int, int]] = (), out: Iterable[Area] = ()) -> None:
        super().__init__(ranges)
        # start -> size; Any, because sortedcontainers brings no types
        self.out: Any = SortedDict((area.start, area.size) for area in out)

    def copy(self) -> LedgerSpace:
        other = LedgerSpace.__new__(LedgerSpace)
        self.copy_into(other)
        other.out = self.out.copy()
        return other

    def take(self, start: int, size: int) -> None:
        super().take(start, size)
        self.out[start] = size

    def add(self, start: int, size: int) -> None:
        super().add(start, size)
        out = self.out
        if out.pop(start, None) != size:
            for inner in list(out.irange(start, start + size, (True, False))):
                del out[inner]

    @property
    def areas(self) -> list[tuple[int, int]]:
        """The (start, size) of all that is out, in order."""
        return list(self.out.items())

    def is_out(self, start: int) -> bool:
        """Whether an area that starts here is out of the space."""
        return start in self.out

    def rejoin(self, start: int, size: int) -> None:
        """What is out of this range, in whatever pieces, is one area now."""
        for at in list(self.out.irange(start, start + size, (True, False))):
            del self.out[at]
        self.out[start] = size

    def overlapping(self, start: int, size: int) -> list[tuple[int, int]]:
        """The (start, size) of every area out of the space that shares a byte with this range."""
        out = self.out
        first = out.bisect_right(start) - 1
        before: tuple[int, int] = out.peekitem(first) if first >= 0 else (0, 0)
        overlaps = [before] if before[0] < start < before[0] + before[1] else []
        return overlaps + [(at, out[at]) for at in out.irange(start, start + size, (True, False))]

    def next_known(self, start: int, limit: int) -> int:
        """The lowest address at or after `start` that is free or in the ledger; `limit` if there is none."""
        at = self.out.bisect_left(start)
        taken: int = self.out.peekitem(at)[0] if at < len(self.out) else limit
        if self.overlapping(start, 1) or self.covering(start) is not None:
            return start
        return min(taken, self.next_free(start), limit)


def ledger_of(kernel: Kernel) -> LedgerSpace:
    """The ledger of a kernel `with_ledger`."""
    return cast(LedgerSpace, kernel.space)


def with_ledger(kernel: Kernel, compiled: bool = False) -> Kernel:
    """Give a kernel's space a ledger of everything that is busy, lazy or pooled now. Returns the kernel.

    compiled: the one of _predict.pyx, which does the same.
    """
    areas = list(kernel.busy.areas.values())
    for node in kernel.nodes:
        areas += node.lazy.areas.values()
        for pool in node.pools.values():
            areas += pool.areas
    kernel.space = (Ledger if compiled else LedgerSpace)(kernel.space, areas)
    return kernel
