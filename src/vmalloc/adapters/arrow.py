# SPDX-License-Identifier: MIT
"""pyarrow: buffers by their address, and tables that lie in one block.

pyarrow pickles a table, an array or a column of pandas as its buffers and a little beside. So with the
adapter of buffers all of them go by reference through `install()`: strings, dictionaries, chunks,
whatever it has.

    table = vmalloc.arrow.put(table)    # in a region, in one block: one reference instead of one a buffer
    region["prices"] = table            # does the same
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, cast

from vmalloc._core import Holding, holding_at
from vmalloc.adapters.registry import Adapter
from vmalloc.array import copy_bytes
from vmalloc.description import Description

if TYPE_CHECKING:
    from vmalloc.region import Region

__all__ = ["BufferAdapter", "TableAdapter"]


def _bytes_of(owner: Any, description: Description) -> memoryview:
    """The bytes that a description names. ValueError."""
    (nbytes,) = description.shape
    if not 0 <= description.offset <= owner.nbytes - nbytes or nbytes < 0:
        raise ValueError(f"{nbytes} bytes at {description.offset}")
    return memoryview(owner).cast("B")[description.offset : description.offset + nbytes]


class BufferAdapter(Adapter):
    """A pyarrow.Buffer. It is as immutable where it is received as pyarrow's own pickles make it."""

    kind = "pyarrow.Buffer"

    def holding(self, x: Any) -> Holding | None:
        return holding_at(x.address, x.size, x) if x.is_cpu else None

    def nbytes(self, x: Any) -> int | None:
        return x.size if x.is_cpu else None

    def describe(self, x: Any, holding: Holding) -> Description:
        return Description(shape=(x.size,), offset=x.address - holding.address)

    def rebuild(self, owner: Any, description: Description) -> Any:
        import pyarrow as pa

        return pa.py_buffer(_bytes_of(owner, description).toreadonly())

    def copy_in(self, x: Any, region: Region) -> Any:
        import numpy as np
        import pyarrow as pa

        to = region.empty(x.size, "u1")
        copy_bytes(to, np.frombuffer(x, "u1"))
        return pa.py_buffer(to)


class TableAdapter(Adapter):
    """A pyarrow.Table. One that put() made, or that came as one, is a single reference.

    Others have their columns anywhere: `install()` leaves them to pyarrow, which sends their buffers.
    """

    kind = "pyarrow.Table"

    def __init__(self) -> None:
        self._put: dict[int, tuple[weakref.ref[Any], Any]] = {}  # id of a table -> it, and its array of bytes

    def holding(self, x: Any) -> Holding | None:
        found = self._put.get(id(x))
        return found[1].base if found is not None and found[0]() is x else None

    def describe(self, x: Any, holding: Holding) -> Description:
        return Description(shape=(self._put[id(x)][1].nbytes,))

    def rebuild(self, owner: Any, description: Description) -> Any:
        import numpy as np
        import pyarrow as pa

        stream = np.frombuffer(_bytes_of(owner, description), "u1")
        try:
            table = pa.ipc.open_stream(pa.py_buffer(stream.data.toreadonly())).read_all()
            table.validate()
        except (OSError, pa.ArrowException) as e:
            raise ValueError(f"no table: {e}") from None
        if isinstance(owner, Holding):
            self._note(table, np.ndarray((stream.nbytes,), "u1", cast("Any", owner)))
        return table

    def copy_in(self, x: Any, region: Region) -> Any:
        import pyarrow as pa

        count = pa.MockOutputStream()
        _write(x, count)
        stream = region.empty(count.size(), "u1")
        _write(x, pa.FixedSizeBufferWriter(pa.py_buffer(stream)))
        table = pa.ipc.open_stream(pa.py_buffer(stream.data.toreadonly())).read_all()
        self._note(table, stream)
        return table

    def _note(self, table: Any, stream: Any) -> None:
        key = id(table)
        self._put[key] = weakref.ref(table, lambda _: self._put.pop(key, None)), stream


def _write(table: Any, to: Any) -> None:
    """As a stream of Arrow's interprocess format."""
    import pyarrow as pa

    with pa.ipc.new_stream(to, table.schema) as writer:
        writer.write_table(table)
