# SPDX-License-Identifier: MIT
"""Reading recordings: the public face.

    for event in read_events("trace.xz"):      one Event at a time, any format, standard library only
        ...
    columns = read_columns("trace.xz")         the same as numpy columns, several times faster
    areas = read_vmallocinfo("before.gz")      /proc/vmallocinfo as typed areas

The format (ftrace text, `trace-cmd report`, `perf script`, our Parquet) and the compression (gzip, xz, zstd)
are told from the content. What is wrong with a file is collected in `problems` with line numbers and logged
once, at the end, by the logger `vmalloc.lab`; only a file from which nothing can be used raises `TraceError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vmalloc.lab.dialect import Dialect
from vmalloc.lab.events import Event, Problem, Problems, TraceError
from vmalloc.lab.files import PARQUET_MAGIC, StrPath, chunks, create_bytes, open_bytes
from vmalloc.lab.ftrace import FTRACE
from vmalloc.lab.lines import Reading, events_of_chunk, plain
from vmalloc.lab.perf_script import PERF_SCRIPT
from vmalloc.lab.trace_cmd import TRACE_CMD
from vmalloc.lab.vmallocinfo import Area, VmallocInfo, read_vmallocinfo

if TYPE_CHECKING:
    from vmalloc.lab.columns import Columns

__all__ = [
    "FORMATS",
    "Area",
    "Event",
    "Problem",
    "TraceError",
    "VmallocInfo",
    "create_bytes",
    "header_of",
    "metadata_of",
    "open_bytes",
    "read_columns",
    "read_events",
    "read_vmallocinfo",
    "sniff",
]

T = TypeVar("T")

DIALECTS = {dialect.name: dialect for dialect in (FTRACE, TRACE_CMD, PERF_SCRIPT)}
FORMATS = (*DIALECTS, "columnar")
SNIFFED_BYTES = 1 << 16

HEADER_SIGNS = (
    "# entries-in-buffer",  # with #P:, the CPUs
    "# os release",
    "# arch",
    "# kernel ",  # vmalloc record
    "# nrcpus online",
    "cpus=",
    "version =",
)
# First bytes of files that hold a trace but not as text, and how to get the text.
BINARY_FORMATS = {
    b"\x17\x08\x44tracing": "trace-cmd's binary file; run `trace-cmd report -i FILE > trace.txt`",
    b"PERFILE2": "perf's binary file; run `perf script -i FILE > trace.txt`",
    b"2ELIFREP": "perf's binary file of a big-endian machine; run `perf script -i FILE > trace.txt` there",
}

OWN_KNOWS = (
    "a recording of our own allocator knows its CPUs, and there is no start state of it: "
    "--state, --vmallocinfo and --cpus are for kernels"
)


def read_events(
    path: StrPath, *, format: str | None = None, problems: list[Problem] | None = None
) -> Iterator[Event]:
    """The events of a recording, in file order.

    format is one of FORMATS, or told from the content. What is wrong with the file is appended to `problems`
    while it is read. Takes numpy when it is there and is several times faster with it.

    Raises TraceError when nothing in the file can be used (at once, or at the end of a file without one
    event).
    """
    name, stream = _open(path, format)
    noted = Problems(problems)
    if name == "columnar":
        from vmalloc.lab.columnar import events_of_file

        stream.close()
        return events_of_file(path)
    reading = Reading(DIALECTS[name], noted)
    try:
        from vmalloc.lab.chunks import parse_chunks
        from vmalloc.lab.columns import events_of_columns
    except ImportError:
        return _finish(path, stream, reading, _plain_events(stream, reading))
    tables = parse_chunks(chunks(stream, reading.damage), reading, threads=1)
    return _finish(path, stream, reading, (event for table in tables for event in events_of_columns(table)))


def read_columns(
    path: StrPath,
    *,
    format: str | None = None,
    problems: list[Problem] | None = None,
    threads: int | None = None,
) -> Columns:
    """The whole recording as numpy columns named like the fields of Event; needs numpy.

    comm, kind and text are indices into `columns.names`. Chunks are parsed by `threads` threads (default: as
    many as there are CPUs, at most 4). Raises as read_events does.
    """
    from vmalloc.lab.chunks import parse_chunks
    from vmalloc.lab.columns import Columns

    name, stream = _open(path, format)
    noted = Problems(problems)
    if name == "columnar":
        from vmalloc.lab.columnar import columns_of_file

        stream.close()
        return columns_of_file(path)
    reading = Reading(DIALECTS[name], noted)
    tables = parse_chunks(chunks(stream, reading.damage), reading, threads)
    return Columns.join(_finish(path, stream, reading, tables))


def header_of(path: StrPath) -> list[str]:
    """What the recording says of its machine: comment lines with a version, a release or a count of CPUs."""
    if _sniff_file(path) == "columnar":
        return []
    with open_bytes(path) as stream:
        lines = stream.read1(SNIFFED_BYTES).decode("utf-8", "replace").splitlines()
    return [line.strip("# \t") for line in lines if line.startswith(HEADER_SIGNS)]


def metadata_of(path: StrPath) -> dict[str, Any]:
    """What the writer of a columnar file said about the recording; {} for text."""
    if _sniff_file(path) != "columnar":
        return {}
    from vmalloc.lab.columnar import read_metadata

    return read_metadata(path)


def sniff(head: bytes, name: str = "file") -> str:
    """The format of a file, one of FORMATS, from its first bytes (decompressed). Raises TraceError."""
    if head.startswith(PARQUET_MAGIC):
        return "columnar"
    for magic, what in BINARY_FORMATS.items():
        if head.startswith(magic):
            raise TraceError(f"{name}: line 1: this is {_with_machine(head, what)}")
    if b"\0" in head:
        raise TraceError(f"{name}: line 1: binary data, not a text trace")
    lines = plain(head).split(b"\n")[:500]
    hits = {name: sum(_counts(dialect, line) for line in lines) for name, dialect in DIALECTS.items()}
    best = max(hits, key=lambda name: hits[name])  # of equals the first: ftrace and trace-cmd share a head
    if hits[best] == 0:
        if lines[0].startswith(b"0x") and b"-0x" in lines[0]:
            raise TraceError(f"{name}: line 1: this is /proc/vmallocinfo, not a trace")
        if any(line.strip() and not line.startswith(b"#") for line in lines[:-1]):
            number = next(n for n, line in enumerate(lines, 1) if line.strip() and not line.startswith(b"#"))
            text = lines[number - 1][:60].decode("utf-8", "replace")
            raise TraceError(f"{name}: line {number}: not a line of ftrace, trace-cmd or perf: {text!r}")
    return best


def _counts(dialect: Dialect, line: bytes) -> bool:
    return line.startswith(dialect.signs) or dialect.head.fullmatch(line) is not None


def _with_machine(head: bytes, what: str) -> str:
    """trace-cmd's header goes on with version, endianness and the size of a long: say what machine it was."""
    if not head.startswith(b"\x17\x08\x44tracing"):
        return what
    fields = head[10:].split(b"\0", 1)[-1][:2]
    if len(fields) < 2:
        return what
    endian = "big-endian" if fields[0] else "little-endian"
    return f"{what} ({fields[1] * 8}-bit {endian} machine)"


def _open(path: StrPath, format: str | None) -> tuple[str, BufferedReader]:
    if format is not None and format not in FORMATS:
        raise TraceError(f"{path}: no format {format!r}; one of {', '.join(FORMATS)}")
    return format or _sniff_file(path), open_bytes(path)


def _sniff_file(path: StrPath) -> str:
    head = b""
    with open_bytes(path) as stream:
        try:
            while len(head) < SNIFFED_BYTES and (part := stream.read1(SNIFFED_BYTES)):
                head += part
        except Exception as error:  # each decompressor has its own
            if not head:
                raise TraceError(f"{path}: line 1: nothing can be read: {error}") from error
    return sniff(head, str(path))


def _plain_events(stream: BufferedReader, reading: Reading) -> Iterator[Event]:
    for chunk in chunks(stream, reading.damage):
        yield from events_of_chunk(chunk, reading)


def _finish(path: StrPath, stream: BufferedReader, reading: Reading, items: Iterator[T]) -> Iterator[T]:
    """Hand out all items, then check the whole, log the problems and close the file."""
    try:
        yield from items
        reading.finish()
        if reading.nr_events == 0 and reading.problems:
            raise TraceError(f"{Path(path)}: nothing can be used: {next(iter(reading.problems))}")
        if (refusal := reading.refusal()) is not None:
            raise TraceError(f"{Path(path)}: {refusal}")
    finally:
        reading.problems.say(str(path))
        stream.close()
