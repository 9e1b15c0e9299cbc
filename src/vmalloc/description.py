# SPDX-License-Identifier: MIT
"""Description: what another process needs, beside the pages, to see the same value.

One type with one encoding, for messages, Refs and names alike:

    version flags ndim kind_bytes    a byte each; flags: read-only, has strides, dtype is pickled, private
    dtype_bytes                      32 bits
    extra_bytes, offset              64 bits each
    shape, strides                   64 bits for each dimension; strides only if the flag says so
    kind, dtype, extra               so many bytes

Nothing here knows what a kind means: that is its adapter's part (adapters/). What another process wrote is
not believed: whatever does not parse raises StaleReference. dtypes.py writes and reads dtypes, _message.pxi
the most frequent descriptions as a whole, the same bytes.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

from vmalloc._core import DESCRIPTION_VERSION
from vmalloc.dtypes import bytes_of_dtype, dtype_of_bytes
from vmalloc.errors import StaleReference

__all__ = ["Description", "decode", "encode", "extent"]

_HEAD = struct.Struct("<4BIQq")
_READONLY, _STRIDED, _PICKLED_DTYPE, _PRIVATE = 1, 2, 4, 8


class Description(NamedTuple):
    """How a value lies in the pages of one range. An adapter fills in what it needs for its rebuild()."""

    dtype: Any = None  #: numpy's, or its text where that says all
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] | None = None  #: in bytes; None: C-contiguous
    offset: int = 0  #: of the first element, in bytes from the start of the pages
    readonly: bool = False
    extra: bytes = b""  #: the adapter's own; with all else at most NAME_META_BYTES_MAX (facts.py) for a name
    kind: str = "array"  #: of the adapter; it is filled in for it
    private: bool = False  #: what the receiver writes is its own; install() says so


def encode(description: Description, *, may_pickle: bool = False) -> bytes:
    """The bytes that decode() reads. TypeError for a dtype that they cannot keep.

    `may_pickle`: a dtype may go as a pickle, which keeps everything: for what is pickled anyway. Names live
    in memory that others can write, so they keep text.
    """
    dtype, shape, strides, offset, readonly, extra, kind, private = description
    text, is_pickled = bytes_of_dtype(dtype, may_pickle)
    name = kind.encode()
    flags = _READONLY * bool(readonly) | _STRIDED * (strides is not None) | _PICKLED_DTYPE * is_pickled
    flags |= _PRIVATE * private
    numbers = shape if strides is None else (*shape, *strides)
    head = _HEAD.pack(DESCRIPTION_VERSION, flags, len(shape), len(name), len(text), len(extra), offset)
    return b"".join((head, struct.pack(f"<{len(numbers)}q", *numbers), name, text, extra))


def decode(packed: bytes, *, may_unpickle: bool = False) -> Description:
    """What encode() wrote; StaleReference if it is something else."""
    try:
        return _decode(packed, may_unpickle)
    except Exception as e:  # a pickled dtype may raise anything
        raise StaleReference(f"the reference's description does not parse: {e}") from None


def _decode(packed: bytes, may_unpickle: bool) -> Description:
    version, flags, ndim, kind_bytes, dtype_bytes, extra_bytes, offset = _HEAD.unpack_from(packed)
    if version != DESCRIPTION_VERSION or flags & ~(_READONLY | _STRIDED | _PICKLED_DTYPE | _PRIVATE):
        raise ValueError(
            f"version {version}, flags {flags:#x}; this package writes version {DESCRIPTION_VERSION}"
        )
    nr_numbers = 2 * ndim if flags & _STRIDED else ndim
    kind_at = _HEAD.size + 8 * nr_numbers
    dtype_at = kind_at + kind_bytes
    extra_at = dtype_at + dtype_bytes
    if len(packed) != extra_at + extra_bytes:
        raise ValueError(f"{len(packed)} bytes, {extra_at + extra_bytes} announced")
    numbers = struct.unpack_from(f"<{nr_numbers}q", packed, _HEAD.size)
    if flags & _PICKLED_DTYPE and not may_unpickle:
        raise ValueError("a pickled dtype")
    return Description(
        dtype_of_bytes(packed[dtype_at:extra_at], bool(flags & _PICKLED_DTYPE)),
        numbers[:ndim],
        numbers[ndim:] if flags & _STRIDED else None,
        offset,
        bool(flags & _READONLY),
        packed[extra_at:],
        packed[kind_at:dtype_at].decode(),
        bool(flags & _PRIVATE),
    )


def extent(itemsize: int, shape: Any, strides: Any) -> tuple[int, int]:
    """Bytes from the first element to the lowest one and to the end of the highest one.

    In Python's integers: numpy's own check overflows.
    """
    if shape and min(shape) < 0:
        raise ValueError(f"shape {shape}")
    if strides is None:
        return 0, itemsize * math.prod(shape)
    if len(strides) != len(shape):
        raise ValueError(f"{len(shape)} dimensions, {len(strides)} strides")
    if 0 in shape:
        return 0, 0
    low, high = 0, itemsize
    for n, stride in zip(shape, strides, strict=True):
        if stride < 0:
            low += stride * (n - 1)
        else:
            high += stride * (n - 1)
    return low, high
