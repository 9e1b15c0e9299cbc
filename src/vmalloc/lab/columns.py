# SPDX-License-Identifier: MIT
"""Events as numpy columns: the same fields as `Event`, a million rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vmalloc.lab.events import KERNEL_KINDS, Event

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

# The columns of a table, in the order of Event's fields. comm, kind and text are indices into
# `Columns.names`.
DTYPES: dict[str, str] = {
    "time_ns": "i8",
    "cpu": "i2",
    "pid": "i4",
    "comm": "i4",
    "kind": "i2",
    "addr": "u8",
    "size": "u8",
    "align": "u8",
    "vstart": "u8",
    "vend": "u8",
    "failed": "i4",
    "nr_lazy": "u8",
    "nr_lazy_max": "u8",
    "npurged": "u4",
    "text": "i4",
    "lost": "u4",
    "line": "i8",
    "slot": "i4",
}
assert tuple(DTYPES) == Event._fields
NAMED = ("comm", "kind", "text")


class Names:
    """Strings numbered in the order in which they are met; "" is 0 and the kernel's kinds follow."""

    def __init__(self) -> None:
        self.strings: list[str] = []
        self._codes: dict[str, int] = {}
        for name in ("", *KERNEL_KINDS):
            self.code(name)

    def code(self, name: str) -> int:
        code = self._codes.get(name)
        if code is None:
            code = self._codes[name] = len(self.strings)
            self.strings.append(name)
        return code


class Columns(dict[str, Array]):
    """The columns of a recording (DTYPES), equally long; `names` holds the strings of comm, kind and text."""

    def __init__(self, columns: dict[str, Array], names: Names) -> None:
        super().__init__(columns)
        self.names = names

    @property
    def nr_rows(self) -> int:
        return len(self["line"])

    @classmethod
    def join(cls, parts: Iterable[Columns]) -> Columns:
        """One table of all parts, which share their names and are in memory one at a time."""
        names = Names()
        columns: dict[str, Array] = {}
        nr_rows = 0
        for part in parts:
            names = part.names
            end = nr_rows + part.nr_rows
            for name, piece in part.items():
                if name in columns or piece.strides != (0,):  # else zeros, and nothing but zeros so far
                    _grow(columns, name, end)[nr_rows:end] = piece
            nr_rows = end
        for name, dtype in DTYPES.items():
            if name in columns:
                columns[name].resize(nr_rows, refcheck=False)
            else:
                columns[name] = np.zeros(nr_rows, dtype)
        return cls({name: columns[name] for name in DTYPES}, names)

    def strings(self, name: str) -> list[str]:
        """The column comm, kind or text as strings."""
        table = self.names.strings
        return [table[code] for code in self[name].tolist()]

    def is_kind(self, kind: str) -> Mask:
        return np.asarray(self["kind"] == self.names.code(kind))

    def by_time(self) -> Columns:
        """The rows ordered by time, for files that were shuffled; equal times keep their order."""
        order = np.argsort(self["time_ns"], kind="stable")
        return Columns({name: column[order] for name, column in self.items()}, self.names)

    def events(self) -> Iterator[Event]:
        return events_of_columns(self)


def events_of_columns(columns: Columns) -> Iterator[Event]:
    """The rows of a table as events."""
    fields = [columns.strings(name) if name in NAMED else columns[name].tolist() for name in DTYPES]
    return map(Event._make, zip(*fields, strict=True))


def _grow(columns: dict[str, Array], name: str, nr_rows: int) -> Array:
    """A column with room for nr_rows. Large arrays are moved by the kernel, not copied (realloc, mremap)."""
    column = columns.get(name)
    if column is None:
        column = columns[name] = np.zeros(nr_rows, DTYPES[name])
    elif len(column) < nr_rows:
        column.resize(nr_rows + nr_rows // 8, refcheck=False)
    return column
