# SPDX-License-Identifier: MIT
# pyright: basic
"""pyarrow tables in regions: `vmalloc.arrow.put(table)`."""

from __future__ import annotations

from typing import Any

from vmalloc.reference import copy_in
from vmalloc.region import Region

__all__ = ["put"]


def put(table: Any, region: Region | None = None) -> Any:
    """A copy of a pyarrow.Table in one block of a region (the default one), which goes as a single reference.

    What lies so in the region already is returned as it is. Slices of it, and tables made from its columns,
    go by reference too, a buffer at a time. OutOfPages, TypeError.
    """
    import pyarrow as pa

    if not isinstance(table, pa.Table):
        raise TypeError(f"put() takes a pyarrow.Table, not a {type(table).__name__}: pa.table() makes one")
    return copy_in(table, region)
