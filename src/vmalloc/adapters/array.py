# SPDX-License-Identifier: MIT
"""Arrays of numpy, and for want of another adapter whatever numpy makes an array of.

Views of arrays, memoryviews and other objects that say by `base` or `obj` what they lie in count as what
they are views of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmalloc._core import Holding, offset_of
from vmalloc.adapters.registry import Adapter
from vmalloc.description import Description, extent

if TYPE_CHECKING:
    import numpy as np

    from vmalloc.region import Region

__all__ = ["ArrayAdapter"]

_PLAIN = "biufc?"
_BASES_MAX = 1000


class ArrayAdapter(Adapter):
    """What other adapters can build on: their values are often arrays within."""

    kind = "array"

    def holding(self, x: Any) -> Holding | None:
        holding = _below(x)
        # whatever has a `base` may say that it is a region's
        if holding is None or not hasattr(x, "strides") or _lies_within(x, holding):
            return holding
        return None

    def nbytes(self, x: Any) -> int | None:
        return None if x.dtype.hasobject else x.nbytes

    def describe(self, x: Any, holding: Holding) -> Description:
        if isinstance(x, memoryview):
            import numpy as np

            x = np.asarray(x)
        dtype, flags = x.dtype, x.flags
        return Description(
            dtype.str if dtype.kind in _PLAIN else dtype,
            x.shape,
            None if flags.c_contiguous else x.strides,
            offset_of(x, holding) if x.nbytes else 0,  # numpy lets that of an empty slice lie anywhere
            not flags.writeable,
        )

    def rebuild(self, owner: Any, description: Description) -> np.ndarray[Any, Any]:
        import numpy as np

        dtype, shape, strides, offset, readonly, *_ = description
        if dtype is None:
            raise TypeError("no dtype")
        dtype = np.dtype(dtype)
        if dtype.hasobject:
            raise TypeError(f"dtype {dtype} holds pointers")
        low, high = extent(dtype.itemsize, shape, strides)
        if offset + low < 0 or offset + high > owner.nbytes:
            raise ValueError(f"shape {shape}, strides {strides}, offset {offset}")
        a: np.ndarray[Any, Any] = np.ndarray(shape, dtype, owner, offset, strides)
        if readonly:
            a.flags.writeable = False
        return a

    def copy_in(self, x: Any, region: Region) -> np.ndarray[Any, Any]:
        return region.array(x)


def _below(x: Any) -> Holding | None:
    """The block or owner whose pages an array, view or memoryview lies in."""
    for _ in range(_BASES_MAX):
        if x is None or isinstance(x, Holding):
            return x
        x = x.obj if isinstance(x, memoryview) else getattr(x, "base", None)
    return None


def _lies_within(a: Any, holding: Holding) -> bool:
    low, high = extent(a.itemsize, a.shape, a.strides)
    if low == high:
        return True
    start = offset_of(a, holding)
    return start + low >= 0 and start + high <= holding.nbytes
