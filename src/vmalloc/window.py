# SPDX-License-Identifier: MIT
# pyright: reportPrivateUsage=false
"""Receive a copy, where a region cannot be attached: no slot is left, or no address space, or no /proc.

The bytes are read through a descriptor of the region, and only those that the value has. The message's
lease keeps them meanwhile, and ends after that. The value is private: writes on one side are not seen on
the other.
"""

from __future__ import annotations

import pickle
from typing import Any

from vmalloc._core import ArrayOwner, Window, attached, leases_of, split_reference
from vmalloc.adapters.registry import adapter_of_kind, rebuild
from vmalloc.attach import is_given, kept_window, open_where
from vmalloc.description import Description, decode, extent
from vmalloc.errors import RegionBusy, RegionUnavailable, StaleReference

__all__ = ["copy_of", "keep_leases_in", "may_copy"]

_ALIGN = 64  # the copy's first byte is as far from a multiple of it as the original's


def may_copy(error: Exception) -> bool:
    """Whether a copy may arrive where a load failed so."""
    return isinstance(error, RegionUnavailable | RegionBusy | MemoryError)


def copy_of(packed: bytes) -> Any:
    """A copy of what a reference refers to. StaleReference; RegionUnavailable, TypeError, MemoryError."""
    page, id, lease, nbytes, description, where = split_reference(packed)
    told = decode(description, may_unpickle=True)
    if adapter_of_kind(told.kind).owner_type is not ArrayOwner:
        raise TypeError(f"a {told.kind} is no value that can be copied")
    window = _window_to(packed[:16], where)
    start, end = _extent(told, nbytes)
    room = _room(end - start)
    if end > start:
        window.read_into(room, page, id, start)
    value = rebuild(room, told._replace(offset=told.offset - start))
    window.done(lease)
    return value


def _window_to(id: bytes, where: bytes) -> Window:
    region = attached.get(id)
    if region is not None and not region.closed:
        return Window(region.fileno(), True)
    kept = kept_window(id)
    if kept is not None:
        return kept
    return open_where(pickle.loads(where), lambda fd: Window(fd, is_given(id, fd)))


def keep_leases_in(message: Any, id: bytes) -> None:
    """Of a message that was read where region `id` cannot be attached: they stay until it was loaded."""
    window = kept_window(id)
    if window is None:
        return
    for lease in leases_of(message, id):
        window.keep(lease)


def _extent(told: Description, nbytes: int) -> tuple[int, int]:
    """Which bytes of its pages the value has; all, if only its adapter knows."""
    if told.kind != "array":
        return 0, nbytes
    try:
        low, high = extent(_itemsize(told.dtype), told.shape, told.strides)
    except (TypeError, ValueError) as e:
        raise StaleReference(f"the reference tells of no array: {e}") from None
    start, end = told.offset + low, told.offset + high
    if not 0 <= start <= end <= nbytes:
        raise StaleReference(f"the reference tells of bytes {start} to {end} of {nbytes}")
    return start - start % _ALIGN, end


def _itemsize(dtype: Any) -> int:
    import numpy as np

    return int(np.dtype(dtype).itemsize)


def _room(nbytes: int) -> Any:
    """Private memory that says how many bytes it has."""
    import numpy as np

    return np.empty(nbytes, "u1")
