# SPDX-License-Identifier: MIT
"""Private: values of a message whose receiver's writes are its own.

The pages are mapped a second time, privately: what is written is copied page by page, what is not is still
the region's. A small array is copied at once, for that is cheaper than a mapping; and so is every one once
the process has too many mappings, of which the kernel allows a number.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from vmalloc._core import Holding, PrivatePages, nr_private_mappings
from vmalloc.adapters.registry import rebuild
from vmalloc.array import copy_bytes
from vmalloc.description import Description, extent
from vmalloc.errors import RegionUnavailable
from vmalloc.facts import PRIVATE_COPY_BYTES, PRIVATE_MAPPINGS_SHARE

__all__ = ["mappings_max", "rebuild_private"]

_LINUX_DEFAULT = 65530


@functools.cache
def mappings_max() -> int:
    """So many private mappings this process makes at most."""
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            allowed = int(file.read())
    except (OSError, ValueError):
        allowed = _LINUX_DEFAULT
    return allowed // PRIVATE_MAPPINGS_SHARE


def rebuild_private(owner: Holding, description: Description) -> Any:
    """The value of that description, in memory that nobody else writes to. StaleReference, MemoryError."""
    shared = rebuild(owner, description) if description.kind == "array" else None
    if shared is not None and (shared.nbytes <= PRIVATE_COPY_BYTES or _overlaps(shared)):
        return _copy(shared)
    try:
        if nr_private_mappings() >= mappings_max():
            raise OSError
        return rebuild(_as_owner(PrivatePages(owner)), description)
    except (OSError, RegionUnavailable):  # or there is no descriptor to map by
        return _copy(shared) if shared is not None else rebuild(_as_owner(_Copy(owner)), description)


class _Copy(bytearray):
    """Of all bytes of a holding."""

    @property
    def nbytes(self) -> int:
        return len(self)


def _as_owner(pages: Any) -> Any:
    """To an adapter it is a buffer of `nbytes` bytes, which is all that it asks of an owner."""
    return pages


def _overlaps(a: Any) -> bool:
    """Whether elements lie upon each other: a write to one would be seen in another."""
    low, high = extent(a.itemsize, a.shape, a.strides)
    return bool(high - low < a.itemsize * math.prod(a.shape))


def _copy(shared: Any) -> Any:
    import numpy as np

    flags = shared.flags
    order: Any = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
    own = np.empty(shared.shape, shared.dtype, order=order)
    copy_bytes(own, shared)
    own.flags.writeable = flags.writeable
    return own
