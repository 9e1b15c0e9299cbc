# SPDX-License-Identifier: MIT
"""The bytes of a recording: compression undone, cut into chunks of whole lines.

The compression is told by the first bytes, not by the name. gzip and xz are in the standard library; zstd
takes the standard library's `compression.zstd` (3.14), the `zstandard` package or the `zstd` program,
whichever is there.
"""

from __future__ import annotations

import gzip
import importlib
import io
import lzma
import os
import shutil
import subprocess
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, BinaryIO, cast

from vmalloc.lab.events import TraceError

GZIP_MAGIC = b"\x1f\x8b"
XZ_MAGIC = b"\xfd7zXZ\x00"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
PARQUET_MAGIC = b"PAR1"
READ_SIZE = 1 << 18
LONGEST_LINE = 1 << 16  # a text line of a trace is below 4 KiB; more without a newline is not text

StrPath = str | os.PathLike[str]


def open_bytes(path: StrPath) -> BufferedReader:
    """Open a file for reading with gzip, xz or zstd undone."""
    raw = open(path, "rb")  # noqa: SIM115  (handed to the caller or to the decompressor)
    head = raw.read(8)
    if not raw.seekable():
        raise TraceError(f"{path}: not a regular file; copy it first, e.g. `cat {path} > trace.txt`")
    raw.seek(0)
    if head.startswith(GZIP_MAGIC):
        return cast(BufferedReader, gzip.GzipFile(fileobj=raw, mode="rb"))
    if head.startswith(XZ_MAGIC):
        return cast(BufferedReader, lzma.LZMAFile(raw, "rb"))
    if head.startswith(ZSTD_MAGIC):
        return _open_zstd(raw, path)
    return raw


def create_bytes(path: StrPath) -> BinaryIO:
    """Create a file that compresses what is written to it as its name says: .gz, .xz, .zst or plain.

    Levels are chosen for recording: fast enough to keep up with a kernel that prints.
    """
    suffix = Path(path).suffix
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "wb", compresslevel=1))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "wb", preset=0))
    if suffix == ".zst":
        return _create_zstd(path)
    return open(path, "wb")


def chunks(stream: BufferedReader, damage: list[str], chunk_size: int = 1 << 21) -> Iterator[bytes]:
    """Cut a stream into chunks of whole lines; only the last one may lack its final newline.

    A damaged compressed file is read up to the damage, which is appended to `damage`.
    """
    parts: list[bytes] = []
    size = 0
    while read := _read(stream, damage):
        end = read.rfind(b"\n") + 1
        if size + end >= chunk_size and end:
            yield b"".join([*parts, read[:end]])
            parts, size = [], 0
            read = read[end:]
        parts.append(read)
        size += len(read)
        if size > chunk_size + LONGEST_LINE + READ_SIZE:
            raise TraceError(f"no newline in {size:,} bytes: this is not a text trace")
    if size:
        yield b"".join(parts)


def _read(stream: BufferedReader, damage: list[str]) -> bytes:
    """Some bytes, or none at the end and at damage. (read1: read would lose what came before the damage.)"""
    try:
        return stream.read1(READ_SIZE)
    except EOFError:
        damage.append("the compressed file is cut off; used up to here")
    except Exception as error:  # each decompressor has its own
        damage.append(f"the compressed file is damaged ({error}); used up to here")
    return b""


# --------------------------------------------------------------------------------------------------- zstd


def _zstd_module() -> object | None:
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _open_zstd(raw: IO[bytes], path: StrPath) -> BufferedReader:
    module = _zstd_module()
    if module is not None:
        return cast(BufferedReader, module.open(raw, "rb"))  # type: ignore[attr-defined]
    if shutil.which("zstd"):
        done = subprocess.run(["zstd", "-dcq"], stdin=raw, stdout=subprocess.PIPE, check=False)
        return cast(BufferedReader, io.BytesIO(done.stdout))
    raise TraceError(f"{path}: zstd file, but neither Python 3.14, `zstandard` nor the zstd program is there")


def _create_zstd(path: StrPath) -> BinaryIO:
    module = _zstd_module()
    if module is None:
        raise TraceError(f"{path}: writing zstd needs Python 3.14 or `pip install zstandard`")
    return cast(BinaryIO, module.open(path, "wb"))  # type: ignore[attr-defined]
