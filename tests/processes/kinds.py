# SPDX-License-Identifier: MIT
"""Arrays of every kind that a message may carry, and what their receivers tell of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

POINT = np.dtype([("x", "f4"), ("id", "u2"), ("path", "i1", (3,))])
Array = np.ndarray[Any, Any]


def read_only(a: Array) -> Array:
    a.flags.writeable = False
    return a


def filled(region: Any, shape: Any, dtype: Any, order: str = "C") -> Array:
    """An array in `region` (in private memory, if None) without a zero element."""
    a = (np if region is None else region).empty(shape, dtype, order)
    numbers = np.arange(1, a.size + 1).reshape(a.shape)
    if a.dtype.names:
        for name in a.dtype.names:
            a[name] = numbers.reshape(a.shape + (1,) * (a[name].ndim - a.ndim)) % 100 + 1
    else:
        a[...] = True if a.dtype.kind == "b" else numbers.astype(a.dtype)
    return a


#: By name: makes the array in a region, or in private memory.
KINDS: dict[str, Callable[[Any], Array]] = {
    "plain": lambda region: filled(region, (100, 7), "f8"),
    "one dimension": lambda region: filled(region, 5000, "i4"),
    "sliced": lambda region: filled(region, (100, 70), "i4")[3:50, 10:20],
    "strided": lambda region: filled(region, 5000, "u2")[5:4000:3],
    "transposed": lambda region: filled(region, (20, 30, 4), "f4").transpose(2, 0, 1),
    "Fortran order": lambda region: filled(region, (50, 60), "f8", "F"),
    "backwards": lambda region: filled(region, (50, 60), "i8")[::-1, ::-2],
    "broadcast": lambda region: as_strided(filled(region, 30, "i8"), (7, 30), (0, 8)),
    "structured": lambda region: filled(region, 300, POINT),
    "a field": lambda region: filled(region, 300, POINT)["path"],
    "dates": lambda region: filled(region, 1000, "M8[ns]"),
    "durations": lambda region: filled(region, 1000, "m8[ms]"),
    "text": lambda region: filled(region, (40, 40), "U7"),
    "bytes": lambda region: filled(region, 900, "S5"),
    "truth values": lambda region: filled(region, 9000, "?"),
    "complex": lambda region: filled(region, 600, "c16"),
    "other byte order": lambda region: filled(region, 1000, ">i4"),
    "read-only": lambda region: read_only(filled(region, 1000, "u1")),
    "zero-size": lambda region: filled(region, (5, 0, 3), "f4"),
    "an empty slice": lambda region: filled(region, 100, "f8")[7:7],
    "no dimension": lambda region: filled(region, (), "f8"),
    "one element": lambda region: filled(region, (1, 1, 1), "u8"),
}


def facts(a: Array) -> tuple[Any, ...]:
    """Everything about an array but where it lies."""
    return a.dtype, a.shape, a.strides if a.size else None, a.flags.writeable, zlib.crc32(a.tobytes())


def clear(a: Array) -> Array:
    """Write zeros, whatever that is in its dtype, if it may be written."""
    if a.flags.writeable:
        a[...] = np.zeros((), a.dtype)
    return a


def is_clear(a: Array) -> bool:
    return a.tobytes() == bytes(a.nbytes)


def told_and_cleared(a: Array) -> tuple[Any, ...]:
    """What a worker does: tell what arrived, write to it, send it back."""
    return facts(a), clear(a)
