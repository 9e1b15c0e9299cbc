# SPDX-License-Identifier: MIT
# pyright: reportPrivateUsage=false
"""Images: a region's metadata in a sparse file, to be checked later or elsewhere.

An image is the region's file as it was: the same bytes at the same offsets, holes where nothing was ever
written. The data behind the metadata is left out unless asked for. `load()` copies an image into private
memory, sealed like a region, so that what is done to it there never reaches the file, and nobody who cuts
the file short disturbs whoever looks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from vmalloc._core import attached
from vmalloc.address_space import AddressSpace
from vmalloc.errors import RegionUnavailable
from vmalloc.region import Region, RegionBase

__all__ = ["attach_any", "is_image", "load", "save"]

_MAGIC = b"vmalloc1"
_CHUNK = 1 << 20
_HEADER = 1 << 16  # more than a header takes
_LOOKS = 5


def attach_any(source: int | str, *, readonly: bool = False) -> RegionBase:
    """Attach a region, whether it has memory or is an address space. RegionUnavailable."""
    try:
        return Region.attach(source, readonly=readonly)
    except RegionUnavailable as e:
        if e.errno != errno.EINVAL:
            raise
    return AddressSpace.attach(source, readonly=readonly)


def _metadata_bytes(region: RegionBase) -> int:
    info = region._info()
    return int(info["total_bytes"]) - (int(info["nr_pages"] * info["granule"]) if info["has_pages"] else 0)


def _chunks(fd: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of what is there below `end`, holes left out."""
    at = 0
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:
                return
            raise
        hole = min(os.lseek(fd, at, os.SEEK_HOLE), end)
        while at < hole:
            nbytes = min(_CHUNK, hole - at)
            yield at, nbytes
            at += nbytes


def _copy(source: int, target: int, end: int) -> int:
    """Copy what differs; how many chunks did."""
    nr = 0
    for at, nbytes in _chunks(source, end):
        there = os.pread(source, nbytes, at)
        if os.pread(target, nbytes, at) != there:
            os.pwrite(target, there, at)
            nr += 1
    return nr


def save(region: RegionBase, path: str | os.PathLike[str], *, data: bool = False) -> bool:
    """Write an image of `region`, of what is resident of its metadata; with `data`, of its pages too.

    FileExistsError if `path` is there. Copies what changed again, some times; returns whether a copy ended
    without finding any change: else the image is of several moments, and may not parse.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        total = os.fstat(region.fileno()).st_size
        os.ftruncate(fd, total)
        end = total if data else _metadata_bytes(region)
        return any(_copy(region.fileno(), fd, end) == 0 for _ in range(_LOOKS))
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def is_image(path: str) -> bool:
    """Is there a regular file, which is no region that lives?"""
    try:
        there = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(there.st_mode) and not path.startswith("/proc/")


def load(path: str, *, readonly: bool = True) -> RegionBase:
    """The region of an image: a private copy of its metadata. RegionUnavailable.

    Without `readonly` the copy can be changed. All processes it tells of are dead there, so attaching
    recovers what they held.
    """
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise RegionUnavailable(e.errno, f"cannot open {path}: {e.strerror}") from None
    try:
        return _load_from(source, path, readonly)
    finally:
        os.close(source)


def _attach_apart(copy: int, readonly: bool) -> RegionBase:
    """Attach it; what messages name by the same id is still the region that lives."""
    region = attach_any(copy, readonly=True)
    if readonly:
        return region
    id = region._info()["id"]
    living = attached.pop(id)
    try:
        return attach_any(copy)
    finally:
        attached.pop(id)
        if living is not None:
            attached[id] = living


def _load_from(source: int, path: str, readonly: bool) -> RegionBase:
    if os.pread(source, len(_MAGIC), 0) != _MAGIC:
        raise RegionUnavailable(errno.ENOEXEC, f"{path} is no image of a region")
    copy = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(copy, os.fstat(source).st_size)
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        _copy(source, copy, _HEADER)  # it says how much else there is
        _copy(source, copy, _metadata_bytes(attach_any(copy, readonly=True)))
        return _attach_apart(copy, readonly)
    except OSError as e:
        if isinstance(e, RegionUnavailable):
            raise RegionUnavailable(e.errno, f"{path}: {e.strerror}") from None
        raise RegionUnavailable(e.errno, f"cannot copy {path}: {e.strerror}") from None
    finally:
        os.close(copy)
