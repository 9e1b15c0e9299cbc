# SPDX-License-Identifier: MIT
# pyright: reportPrivateUsage=false
"""SharedMemory and ShareableList with the shape of `multiprocessing.shared_memory`.

    from vmalloc.shared_memory import SharedMemory   # the one line that changes

What differs: the memory is a block of a region with the named reference `shm:NAME`. There is no file and no
resource tracker. It stays until unlink() or **until the last process that has the region ends**; then it
is gone, and nothing is left behind. An object that is dropped without close() prints nothing.
"""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from multiprocessing import managers
from multiprocessing import shared_memory as _stock
from types import FunctionType
from typing import TYPE_CHECKING, Any

from vmalloc._core import Holding, attached
from vmalloc.adapters.registry import describe, holding_of
from vmalloc.attach import Where, attach_found, where_of
from vmalloc.description import encode
from vmalloc.errors import RegionUnavailable
from vmalloc.facts import NAME_BYTES_MAX, NAMES_MAX
from vmalloc.region import Region, default_region, default_region_if_made, region_at, set_default_region

if TYPE_CHECKING:
    from vmalloc.find import Found

__all__ = ["ShareableList", "SharedMemory", "SharedMemoryManager"]

_PREFIX, _LONG_PREFIX = "shm:", "shm#"
_NAME_BYTES_MAX = 255  # as the system has it for the standard library's
_CHUNK = bytes(1 << 20)
_DEFAULT_NAME, _MORE_NAME = "default", "default.more"
_more: list[Region] = []  # regions beside the default one, for more names than one has


class SharedMemory:
    """Memory that other processes find by its name: `buf` is a writable memoryview of `size` bytes.

    With `create`, new zeroed memory; FileExistsError if the name is taken. Else what has that name;
    FileNotFoundError if nothing has. `track` is accepted and ignored. ValueError as the standard library's
    class raises; OutOfPages.

    `region` says where. Without it memory is made in the default region (that of the parent in a process
    that multiprocessing started, if it has one), and a name is looked for in the regions of this process,
    then in the default regions of this user's other processes, those of its parent first. So a name is
    unique in a region, not on the machine: two programs that create it at the same time and share no
    region may both succeed.

    Pickled, it names its region too, and loads wherever that can be attached.
    """

    # so that close() and unlink() do nothing for one that could not be made
    _name: str | None = None
    _buf: memoryview | None = None
    _holding: Holding | None = None
    _region: Region
    _size = 0

    def __init__(
        self,
        name: str | None = None,
        create: bool = False,
        size: int = 0,
        *,
        track: bool = True,
        region: Region | None = None,
    ) -> None:
        if not size >= 0:
            raise ValueError("'size' must be a positive integer")
        if create and size == 0:
            raise ValueError("'size' must be a positive number different from zero")
        if name is None and not create:
            raise ValueError("'name' can only be None if create=True")
        if name is not None:
            _check(name)
        if create:
            self._create(name, size, region)
        else:
            assert name is not None
            self._open(name, _region_with(name) if region is None else region)

    def _create(self, name: str | None, size: int, region: Region | None) -> None:
        if region is None:
            if name is not None and _region_named(name) is not None:
                raise _exists(name)
            region = _home()
            if len(region) >= NAMES_MAX:
                region = _home_for_more()
        block = region.alloc(size)
        if not block.zeroed:
            _clear(memoryview(block))
        meta = encode(describe(block, block))
        while True:
            tried = _new_name() if name is None else f"/{name}"
            try:
                region._name_set(_key(tried), block, meta, True)
                break
            except FileExistsError:
                if name is not None:
                    raise _exists(name) from None
        self._name, self._region = tried, region
        self._hold(memoryview(block))

    def _open(self, name: str, region: Region) -> None:
        try:
            buf = region[_key(name)]
        except KeyError:
            raise _missing(name) from None
        self._name, self._region = f"/{name}", region
        self._hold(buf)

    def _hold(self, buf: memoryview) -> None:
        self._buf, self._size = buf, buf.nbytes
        self._holding = holding_of(buf)

    @property
    def name(self) -> str:
        """What other processes find it by."""
        assert self._name is not None
        return self._name[1:]

    @property
    def size(self) -> int:
        """Bytes, as created."""
        return self._size

    @property
    def buf(self) -> memoryview | None:
        """A memoryview of the memory; None after close()."""
        return self._buf

    def close(self) -> None:
        """Let go of the memory here; a second call does nothing.

        BufferError while views of `buf` exist, as in the standard library. An array that
        `np.ndarray(..., buffer=buf)` made is none that could be seen, but keeps the memory and stays valid.
        """
        if self._buf is not None:
            try:
                self._buf.release()
            except BufferError as e:
                raise self._in_use(str(e)) from None
            self._buf = None
        if self._holding is not None:
            # as in the standard library, which releases buf and then finds that it cannot unmap
            if self._holding._nr_exports:
                raise self._in_use("an array or a slice")
            self._holding = None

    def _in_use(self, by: str) -> BufferError:
        return BufferError(
            f"views of {self!r}.buf exist ({by}): drop them, or drop the SharedMemory instead of closing it"
        )

    def unlink(self) -> None:
        """Drop the name, once for all processes: FileNotFoundError if it is gone already.

        The memory goes with its last user, so what is still open stays valid.
        """
        if self._name is None:
            return
        try:
            del self._region[_key(self._name)]
        except KeyError:
            raise _missing(self.name) from None

    def __del__(self) -> None:
        """For subclasses that call it. It closes nothing: what is in use stays valid."""

    @property
    def _fd(self) -> int:
        """A descriptor of the whole region, which stays the region's; -1 after close()."""
        return -1 if self._buf is None else self._region.fileno()

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, (type(self), where_of(self._region), self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, size={self._size})"


def _load(cls: type[SharedMemory], where: Where, name: str) -> SharedMemory:
    """What SharedMemory pickles to. FileNotFoundError if it was unlinked or its region ended."""
    try:
        return cls(name, region=region_at(where))
    except RegionUnavailable as e:
        raise FileNotFoundError(errno.ENOENT, f"{os.strerror(errno.ENOENT)}: {e}", name) from e


def _new_name() -> str:
    made: str = getattr(_stock, "_make_filename")()  # noqa: B009  # which typeshed leaves out
    return made


def _check(name: str) -> None:
    """As the system does for the standard library. ValueError, OSError."""
    encoded = os.fsencode(name)
    if b"\0" in encoded:
        raise ValueError("embedded null character")
    stripped = encoded.lstrip(b"/")
    if not stripped or b"/" in stripped:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    if len(stripped) > _NAME_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)


def _key(name: str) -> str:
    """What the region keeps it under. Leading slashes make no difference; what is long goes by its digest."""
    stripped = name.lstrip("/")
    if len(os.fsencode(stripped)) <= NAME_BYTES_MAX - len(_PREFIX) and stripped.isprintable():
        return _PREFIX + stripped
    return _LONG_PREFIX + hashlib.sha256(os.fsencode(stripped)).hexdigest()[:48]


def _exists(name: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)


def _missing(name: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def _clear(view: memoryview) -> None:
    for at in range(0, view.nbytes, len(_CHUNK)):
        view[at : at + len(_CHUNK)] = _CHUNK[: view.nbytes - at]


# ---- where a name is ----


def _region_with(name: str) -> Region:
    region = _region_named(name)
    if region is None:
        raise _missing(name)
    return region


def _last_changed(found: Found) -> int:
    try:
        return os.stat(found.path).st_ctime_ns
    except OSError:
        return 0


def _home() -> Region:
    """Where new memory is made."""
    parent = multiprocessing.parent_process()
    if parent is not None and default_region_if_made() is None:
        theirs = (f for f in _default_regions() if parent.pid in f.pids and f.name == _DEFAULT_NAME)
        found = max(theirs, key=_last_changed, default=None)  # arrays may keep an earlier one in memory
        if found is not None:
            set_default_region(attach_found(Region, found), unless_made=True)
    return default_region()


def _home_for_more() -> Region:
    """A region has so many names: another region, where others look too, but no child makes its memory."""
    for region in _more:
        if not region.closed and len(region) < NAMES_MAX:
            return region
    first = default_region()
    region = Region(first.nr_pages * os.sysconf("SC_PAGESIZE"), name=_MORE_NAME)
    _more.append(region)
    return region


def _region_named(name: str) -> Region | None:
    """The region that has the name: one of this process, else another default region of this user."""
    key = _key(name)
    here = [r for r in attached.values() if isinstance(r, Region) and not r.closed]
    here.sort(key=lambda r: r is not default_region_if_made())
    for region in here:
        if key in region:
            return region
    known = {(st.st_ino, st.st_dev) for st in (os.fstat(region.fileno()) for region in here)}
    for found in _default_regions():
        if (found.inode, found.device) not in known and _has(found, name):
            return attach_found(Region, found)
    return None


def _has(found: Found, name: str) -> bool:
    """Looked up without taking part: no slot, no lock, nothing to recover."""
    try:
        return _key(name) in attach_found(Region, found, readonly=True)
    except RegionUnavailable as e:
        if e.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return False  # it ended meanwhile, or is another version's


def _default_regions() -> Iterator[Found]:
    """Those of this user, its parent's first."""
    from vmalloc.find import find_regions

    parent = multiprocessing.parent_process()
    parents = {os.getppid(), parent.pid if parent is not None else None}
    names = (_DEFAULT_NAME, _MORE_NAME)
    there = [f for f in find_regions() if f.name in names and f.uid == os.geteuid()]
    yield from sorted(there, key=lambda f: parents.isdisjoint(f.pids))


# ---- lists ----

if TYPE_CHECKING:

    class _StockList(_stock.ShareableList[Any]): ...
else:
    from multiprocessing.shared_memory import ShareableList as _StockList


class ShareableList(_StockList):
    """The standard library's list of numbers, strings, bytes and None, on our SharedMemory."""

    if TYPE_CHECKING:

        def __init__(self, sequence: Iterable[Any] | None = None, *, name: str | None = None) -> None: ...
    else:
        # the same code; the SharedMemory that it makes is ours
        __init__ = FunctionType(
            _StockList.__init__.__code__,
            _StockList.__init__.__globals__ | {"SharedMemory": SharedMemory},
            "__init__",
            _StockList.__init__.__defaults__,
        )
        __init__.__kwdefaults__ = _StockList.__init__.__kwdefaults__


# ---- the manager ----


class _Tracker(managers._SharedMemoryTracker):  # type: ignore[misc,name-defined]
    def destroy_segment(self, segment_name: str) -> None:
        self.segment_names.remove(segment_name)  # pyright: ignore[reportUnknownMemberType]
        segment = SharedMemory(segment_name)
        segment.close()
        segment.unlink()


class _ManagerServer(managers.SharedMemoryServer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.shared_memory_context = _Tracker(f"shm_{os.getpid()}", [])


class SharedMemoryManager(managers.SharedMemoryManager):
    """The standard library's manager of segments, on our SharedMemory: its shutdown unlinks them all."""

    _Server = _ManagerServer

    def SharedMemory(self, size: int) -> Any:
        """A new SharedMemory, which the manager unlinks."""
        return self._tracked(SharedMemory(create=True, size=size))

    def ShareableList(self, sequence: Iterable[Any] | None) -> Any:
        """A new ShareableList, which the manager unlinks."""
        return self._tracked(ShareableList(sequence))

    def _tracked(self, made: Any) -> Any:
        segment = made.shm if isinstance(made, ShareableList) else made
        try:
            with self._Client(self._address, authkey=self._authkey) as connection:  # type: ignore[attr-defined]
                managers.dispatch(connection, None, "track_segment", (segment.name,))  # type: ignore[attr-defined]
        except BaseException:
            segment.unlink()
            raise
        return made
