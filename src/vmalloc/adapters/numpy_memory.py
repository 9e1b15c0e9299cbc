# SPDX-License-Identifier: MIT
"""numpy's own allocations: large arrays of code that knows nothing of us, in a region (NEP 49).

    with region.numpy_arrays():
        a = np.load("frames.npy") * 2      # a is in the region, and goes by reference

The handler itself is C (_numpy_memory.pxi). An array that numpy made under it has no base: that it lies
in the region is found by its address.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from vmalloc._core import numpy_handler, set_numpy_handler

if TYPE_CHECKING:
    from vmalloc.region import Region

__all__ = ["NumpyArrays"]


# as numpy's handler itself, of a thread or a task: who was entered, and what to go back to
_entered: ContextVar[tuple[tuple[NumpyArrays, Any], ...]] = ContextVar("vmalloc_numpy_arrays", default=())


class NumpyArrays:
    """A context, to be entered any number of times, in one another, by several threads and tasks."""

    def __init__(self, region: Region, min_size: int) -> None:
        self._handler = numpy_handler(region, min_size)

    def __enter__(self) -> None:
        before = set_numpy_handler(self._handler)
        _entered.set((*_entered.get(), (self, before)))

    def __exit__(self, *_: object) -> None:
        entered = _entered.get()
        if entered:  # else it was entered in another task, whose handler is not ours to put back
            _entered.set(entered[:-1])
            set_numpy_handler(entered[-1][1])
