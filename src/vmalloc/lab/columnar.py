# SPDX-License-Identifier: MIT
"""Our own file of events: the columns of `Event` as Parquet, for kernels' events and our allocator's alike.

    file
    +-- key-value metadata "vmalloc.trace": JSON {"version", "source", "release", "clock", "page_size", ...}
    +-- row group 0     ROW_GROUP_SIZE events in the order of recording
    |   +-- time_ns | cpu | pid | comm | kind | addr | size | ... | line      one compressed chunk a column
    +-- row group 1
    ...

docs/trace-format.md describes every column and every kind. A reader ignores columns it does not know and
takes 0 for those that are missing, so columns can be added; `version` changes only when a column changes its
meaning. Needs pyarrow (`pip install vmalloc[lab]`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

try:
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]
    from pyarrow.fs import LocalFileSystem  # type: ignore[import-untyped,unused-ignore]
except ImportError as error:
    text = "columnar traces need pyarrow: pip install 'vmalloc[lab]'"
    raise ModuleNotFoundError(text, name="pyarrow") from error

from vmalloc.lab.columns import DTYPES, NAMED, Columns, Names, events_of_columns
from vmalloc.lab.events import Event, TraceError
from vmalloc.lab.files import StrPath

VERSION = 1
METADATA_KEY = b"vmalloc.trace"
ROW_GROUP_SIZE = 1 << 19

ARROW_TYPES = {"i2": pa.int16(), "i4": pa.int32(), "i8": pa.int64(), "u4": pa.uint32(), "u8": pa.uint64()}
SCHEMA = pa.schema(
    [
        pa.field(
            name,
            pa.dictionary(pa.int32(), pa.string()) if name in NAMED else ARROW_TYPES[dtype],
            nullable=False,
        )
        for name, dtype in DTYPES.items()
    ]
)


def to_arrow(columns: Columns) -> Any:
    """The columns as a pyarrow.Table; the numbers are not copied."""
    names = pa.array(columns.names.strings, pa.string())
    arrays = [
        pa.DictionaryArray.from_arrays(pa.array(columns[name], pa.int32()), names)
        if name in NAMED
        else pa.array(columns[name], ARROW_TYPES[dtype])
        for name, dtype in DTYPES.items()
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def from_arrow(table: Any, names: Names | None = None) -> Columns:
    """Columns of a pyarrow.Table or RecordBatch; missing ones are 0, unknown ones are left out."""
    names = names or Names()
    present = set(table.schema.names)
    columns = {}
    for name, dtype in DTYPES.items():
        columns[name] = _column(table, name, names) if name in present else np.zeros(table.num_rows, dtype)
    return Columns(columns, names)


def _column(table: Any, name: str, names: Names) -> np.ndarray[Any, Any]:
    if name in NAMED:
        return _codes(table.column(name), names).astype(DTYPES[name], copy=False)
    return np.ascontiguousarray(table.column(name).to_numpy(), DTYPES[name])


def _codes(column: Any, names: Names) -> np.ndarray[Any, Any]:
    """A column of strings, dictionary or not, as indices into `names`."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [np.zeros(0, "i4")]
    for chunk in chunks:
        encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        codes = np.array([names.code(name or "") for name in encoded.dictionary.to_pylist()] or [0], "i4")
        parts.append(codes[encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)])
    return np.concatenate(parts)


class Writer:
    """Writes a columnar file piece by piece; a context manager. metadata: source, release, clock and what
    else is known."""

    def __init__(self, path: StrPath, metadata: Mapping[str, object] | None = None) -> None:
        about = json.dumps({"version": VERSION, **(metadata or {})})
        schema = SCHEMA.with_metadata({METADATA_KEY: about.encode()})
        self._writer = pq.ParquetWriter(
            _whole(path), schema, compression="zstd", filesystem=LocalFileSystem()
        )
        self._schema = schema

    def write(self, columns: Columns) -> None:
        if columns.nr_rows:
            self._writer.write_table(to_arrow(columns).cast(self._schema), ROW_GROUP_SIZE)

    def write_events(self, events: Iterable[Event]) -> None:
        """Write events one by one; text columns are numbered here."""
        stream = iter(events)
        while batch := list(islice(stream, ROW_GROUP_SIZE)):
            self.write(columns_of_events(batch))

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def columns_of_events(events: list[Event]) -> Columns:
    names = Names()
    columns = {}
    for (name, dtype), values in zip(DTYPES.items(), zip(*events, strict=True), strict=True):
        columns[name] = np.array([names.code(value) for value in values] if name in NAMED else values, dtype)
    return Columns(columns, names)


def write_columnar(path: StrPath, events: Columns | Iterable[Event], **metadata: object) -> None:
    """Write a whole recording; metadata is kept in the file (source="kernel", release="6.18.1",
    clock="mono")."""
    with Writer(path, metadata) as writer:
        if isinstance(events, Columns):
            writer.write(events)
        else:
            writer.write_events(events)


def read_metadata(path: StrPath) -> dict[str, Any]:
    """What the writer said about the recording. Raises TraceError if it is not a columnar trace of ours."""
    with _open(path) as file:
        return _metadata(path, file)


def columns_of_file(path: StrPath) -> Columns:
    """The whole file as columns; read one after another, so that only one is in memory twice."""
    with _open(path) as file:
        _metadata(path, file)
        names = Names()
        nr_rows = file.metadata.num_rows
        present = set(file.schema_arrow.names)
        columns = {
            name: np.zeros(nr_rows if name not in present else 0, dtype) for name, dtype in DTYPES.items()
        }
        for name in present & set(DTYPES):
            columns[name] = _column(file.read([name]), name, names)
    return Columns(columns, names)


def events_of_file(path: StrPath) -> Iterator[Event]:
    """The events of a file, a batch in memory at a time."""
    file = _open(path)
    _metadata(path, file)
    return _events(file)


def _events(file: Any) -> Iterator[Event]:
    with file:
        for batch in file.iter_batches(1 << 16):
            yield from events_of_columns(from_arrow(batch))


def _whole(path: StrPath) -> str:
    """As pyarrow wants it beside a file system: else a colon in it makes it the address of another.

    Dots that lead back stay in it: behind a link they lead elsewhere than the text says.
    """
    return str(Path(path).absolute())


def _open(path: StrPath) -> Any:
    try:
        return pq.ParquetFile(_whole(path), filesystem=LocalFileSystem())
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise TraceError(f"{path}: not a readable Parquet file: {error}") from error


def _metadata(path: StrPath, file: Any) -> dict[str, Any]:
    raw = (file.schema_arrow.metadata or {}).get(METADATA_KEY)
    if raw is None and "kind" not in file.schema_arrow.names:
        raise TraceError(f"{path}: a Parquet file, but not a trace: no column `kind`")
    about: dict[str, Any] = json.loads(raw) if raw else {"version": VERSION}
    if about["version"] > VERSION:
        raise TraceError(
            f"{path}: trace format {about['version']}, this vmalloc reads up to {VERSION}: update it"
        )
    return about
