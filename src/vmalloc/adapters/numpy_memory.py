# SPDX-License-Identifier: MIT
"""numpy's own allocations: large arrays of code that knows nothing of us, in a region (NEP 49).

    with region.numpy_arrays():
        a = np.load("frames.npy") * 2      # a is in the region, and goes by reference

The handler itself is C (_numpy_memory.pxi). An array that numpy made under it has no base: that it lies
in the region is found by its address.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from vmalloc._core import numpy_handler, set_numpy_handler

if TYPE_CHECKING:
    from vmalloc.region import Region

__all__ = ["NumpyArrays"]


class NumpyArrays:
    """A context, to be entered any number of times, in one another and by several threads."""

    def __init__(self, region: Region, min_size: int) -> None:
        self._handler = numpy_handler(region, min_size)
        self._entered = threading.local()

    def __enter__(self) -> None:
        before: list[Any] = self._entered.__dict__.setdefault("before", [])
        before.append(set_numpy_handler(self._handler))

    def __exit__(self, *_: object) -> None:
        set_numpy_handler(self._entered.before.pop())
