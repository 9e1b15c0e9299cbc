# SPDX-License-Identifier: MIT
"""Arrays of numpy, and for want of another adapter whatever numpy makes an array of.

Views of arrays, memoryviews and other objects that say by `base` or `obj` what they lie in count as what
they are views of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmalloc._core import Holding, holding_below, offset_of
from vmalloc.adapters.registry import Adapter
from vmalloc.array import copy_of
from vmalloc.description import Description, extent

if TYPE_CHECKING:
    import numpy as np

    from vmalloc.region import Region

__all__ = ["ArrayAdapter"]

_PLAIN = "biufc"
_PLAIN_NUM_MAX = 24  # numpy's own dtypes have smaller numbers, those of extension packages larger ones
_VALUES = (bool, int, float, complex)  # array-likes: numpy makes all of them that they are
_SEQUENCES = (list, tuple, range)


class ArrayAdapter(Adapter):
    """What other adapters can build on: their values are often arrays within."""

    kind = "array"

    def holding(self, x: Any) -> Holding | None:
        return holding_below(x)

    def nbytes(self, x: Any) -> int | None:
        return None if x.dtype.hasobject else x.nbytes

    def describe(self, x: Any, holding: Holding) -> Description:
        import numpy as np

        if isinstance(x, memoryview):
            x = np.asarray(x)
        _check_says_all(x, np)
        dtype, flags = x.dtype, x.flags
        return Description(
            dtype.str if _is_plain(dtype) else dtype,
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
        import numpy as np

        _check_says_all(x, np)
        return copy_of(np.asarray(x), region)


def _is_plain(dtype: Any) -> bool:
    """Whether its text says all of it."""
    return (
        dtype.kind in _PLAIN
        and dtype.num < _PLAIN_NUM_MAX
        and dtype.fields is None
        and dtype.metadata is None
    )


def _check_says_all(x: Any, np: Any) -> None:
    """TypeError for what is more than the array that numpy makes of it: a mask, a unit, an index, a class.

    The same holds for text: in an array it loses its trailing zeros.
    """
    if type(x) is np.ndarray or isinstance(
        x, (*_VALUES, np.number, np.bool_, np.datetime64, bytearray, memoryview)
    ):
        return
    if type(x) in _SEQUENCES:
        if type(x) is not range:
            for item in x:
                _check_says_all(item, np)
        return
    name = f"{type(x).__module__}.{type(x).__qualname__}"
    if isinstance(x, np.ma.MaskedArray):
        way = "pass x.data and x.mask as two arrays, or x.filled()"
    elif isinstance(x, str | bytes):
        way = "pass np.array(x), or np.frombuffer(x, 'u1') for its bytes"
    else:
        way = "pass np.asarray(x) if the bare array is enough, or x by value, or register an adapter"
    raise TypeError(f"a {name} is more than an array, and the rest would be lost by reference: {way}")


def lies_within(a: Any, holding: Holding) -> bool:
    """For what is no buffer; holding_below() looks at buffers itself."""
    low, high = extent(a.itemsize, a.shape, a.strides)
    if low == high:
        return True
    start = offset_of(a, holding)
    return start + low >= 0 and start + high <= holding.nbytes
