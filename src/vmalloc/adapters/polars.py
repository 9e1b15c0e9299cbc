# SPDX-License-Identifier: MIT
# pyright: reportAttributeAccessIssue=false
"""polars: frames and series go as the Arrow table that they are, whose buffers go by reference.

Both ways between polars and pyarrow copy nothing. polars' own pickle writes everything into one text of
bytes. It needs pyarrow; without it, and for columns that Arrow does not know, frames go as before.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from vmalloc.adapters.registry import Adapter

if TYPE_CHECKING:
    from vmalloc._core import Holding

__all__ = ["FrameAdapter", "SeriesAdapter"]

_SLICE_FACTOR = 2  # of a part of larger buffers polars sends that part, and Arrow all: not by so much more


def _columns(x: Any) -> Any:
    """Arrow's table or array of it, without copies; None: it has a type that this pyarrow does not know."""
    import polars as pl  # type: ignore[import-not-found,unused-ignore]
    import pyarrow as pa

    newest = {"compat_level": pl.CompatLevel.newest()} if hasattr(pl, "CompatLevel") else {}
    try:
        return x.to_arrow(**newest)
    except (KeyError, pa.ArrowException, pl.exceptions.PolarsError):  # Int128; text's views before pyarrow 16
        return None


def _is_worth_it(x: Any, threshold: int) -> bool:
    return importlib.util.find_spec("pyarrow") is not None and x.estimated_size() > threshold


def _is_part_of_more(x: Any, columns: Any) -> bool:
    chunks = columns.columns if hasattr(columns, "columns") else [columns]
    held = sum(column.get_total_buffer_size() for column in chunks)
    return bool(held > _SLICE_FACTOR * x.estimated_size())


class _Taken(Adapter):
    """What is taken apart: its values lie in no single range."""

    def holding(self, x: Any) -> Holding | None:
        return None

    def take_apart(self, x: Any, threshold: int) -> tuple[Any, ...] | None:
        if not _is_worth_it(x, threshold) or _has_objects(x):
            return None
        columns = _columns(x)
        return None if columns is None or _is_part_of_more(x, columns) else self.reduced(x, columns)

    def reduced(self, x: Any, columns: Any) -> tuple[Any, ...]:
        raise NotImplementedError


def _has_objects(x: Any) -> bool:
    import polars as pl

    types = x.dtypes if isinstance(x, pl.DataFrame) else [x.dtype]
    return any(dtype == pl.Object for dtype in types)


class FrameAdapter(_Taken):
    kind = "polars.DataFrame"

    def reduced(self, x: Any, columns: Any) -> tuple[Any, ...]:
        return load_frame, (columns,)


class SeriesAdapter(_Taken):
    kind = "polars.Series"

    def reduced(self, x: Any, columns: Any) -> tuple[Any, ...]:
        return load_series, (x.name, columns)


def load_frame(table: Any) -> Any:
    """The frame that a table was."""
    import polars as pl

    return pl.from_arrow(table, rechunk=False)


def load_series(name: str, array: Any) -> Any:
    """The series that an array was."""
    import polars as pl

    return pl.from_arrow(array, rechunk=False).alias(name)
