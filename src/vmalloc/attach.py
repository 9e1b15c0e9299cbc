# SPDX-License-Identifier: MIT
# pyright: reportPrivateUsage=false
"""Attach: from a descriptor, a path, a name or what a message says to the region.

A message carries a **where**: the region's id, and where its sender has it open. `attach_where()` takes the
first of these that leads to that region:

1. this process has it attached;
2. a descriptor that this process keeps since it was started (`Kept`);
3. a descriptor that multiprocessing handed to this process when it started it;
4. /proc/<pid>/fd/<n> of the sender;
5. the sender's socket (serve.py), if it has one;
6. /proc/<pid>/fd of any other process of this user: the sender may have ended.

Pids and descriptor numbers are used again, and mean something else in another pid namespace. So a file
is opened only if its inode and device are those of the message, and attached only if the 128-bit id in
its header is.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vmalloc._core import Window, attached
from vmalloc.errors import RegionUnavailable

if TYPE_CHECKING:
    from vmalloc.find import Found
    from vmalloc.region import RegionBase

    AnyRegion = TypeVar("AnyRegion", bound=RegionBase)

__all__ = [
    "Kept",
    "Where",
    "attach",
    "attach_found",
    "attach_where",
    "is_given",
    "kept_ids",
    "kept_where",
    "kept_window",
    "open_where",
    "serve_at",
    "serve_region",
    "where_of",
]

#: Region id, and of the sender: pid, descriptor, its inode and device, name of the socket or None; last,
#: in what a process that is being started gets, multiprocessing's descriptor for it, else None.
Where = tuple[bytes, int, int, int, int, str | None, Any]

_MAGIC = b"vmalloc1"
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_attach_lock = threading.RLock()  # a finalizer may attach, too
_serve_lock = threading.RLock()  # or close

#: What a process that is being started was already given: by descriptor, once each.
_given: weakref.WeakKeyDictionary[Any, dict[int, Any]] = weakref.WeakKeyDictionary()

#: Regions that this process was given when it was started, by id.
_kept: weakref.WeakValueDictionary[bytes, Kept] = weakref.WeakValueDictionary()
_kept_ids: list[bytes] = []  # of those and of some that are gone: asked for at each message
_RETRY_S = 1.0

T = TypeVar("T")


def _start_anew_in_child() -> None:
    global _attach_lock, _serve_lock
    _attach_lock, _serve_lock = threading.RLock(), threading.RLock()
    for region in attached.values():
        region._where = None


os.register_at_fork(after_in_child=_start_anew_in_child)


# ---- from what a user has ----


def attach(
    cls: type[AnyRegion],
    source: int | str | os.PathLike[str],
    expected_id: str | None,
    readonly: bool = False,
    helper: bool = True,
    allow_uids: Collection[int] = (),
) -> AnyRegion:
    """What Region.attach() does."""
    is_served = isinstance(source, str) and source.startswith("unix:")
    if allow_uids and not is_served:
        raise ValueError("allow_uids are for a socket, unix:PATH: elsewhere nobody says whose it is")
    if isinstance(source, int):
        return _attach_fd(cls, source, expected_id, readonly, helper)
    if isinstance(source, str) and is_served:
        path = source.removeprefix("unix:")
        return _attach_served(cls, path, expected_id, readonly, helper, allow_uids)
    if isinstance(source, str) and "/" not in source:
        return attach_found(cls, _named(source), expected_id, readonly, helper)
    try:
        fd = os.open(source, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as e:
        is_socket = e.errno == errno.ENXIO and Path(source).is_socket()  # or gone again
        hint = (
            f"; it is a socket: unix:{os.fspath(source)} attaches what is served there" if is_socket else ""
        )
        raise RegionUnavailable(e.errno, f"cannot open {os.fspath(source)}: {_reason(e)}{hint}") from None
    except ValueError as e:
        raise RegionUnavailable(errno.EINVAL, f"cannot open {source!r}: {e}") from None
    try:
        return _attach_fd(cls, fd, expected_id, readonly, helper)
    finally:
        os.close(fd)


def attach_found(
    cls: type[AnyRegion],
    found: Found,
    expected_id: str | None = None,
    readonly: bool = False,
    helper: bool = True,
) -> AnyRegion:
    """Attach what find_regions() found, and nothing that took its place since. RegionUnavailable."""
    try:
        fd = _open_same(found.path, (found.inode, found.device), readonly)
    except OSError as e:
        raise RegionUnavailable(e.errno, f"cannot open {found.path}: {_reason(e)}") from None
    try:
        return _attach_fd(cls, fd, expected_id, readonly, helper)
    finally:
        os.close(fd)


def _attach_served(
    cls: type[AnyRegion],
    path: str,
    expected_id: str | None,
    readonly: bool,
    helper: bool,
    allow_uids: Collection[int],
) -> AnyRegion:
    """Attach what a process serves at a socket that is a file. RegionUnavailable."""
    from vmalloc import serve

    try:
        fd, uid = serve.fetch_at(path, allow_uids)
    except OSError as e:
        hint = "; does its process still serve it?" if e.errno in (errno.ECONNREFUSED, errno.ENOENT) else ""
        raise RegionUnavailable(e.errno, f"cannot attach by the socket {path}: {_reason(e)}{hint}") from None
    try:
        return _attach_fd(cls, fd, expected_id, readonly, helper, uid in allow_uids)
    finally:
        os.close(fd)


def _named(which: str) -> Found:
    """The one region of this user that is called `which`, or that process `which` has. RegionUnavailable."""
    from vmalloc.find import find_regions

    try:
        there = find_regions()
    except OSError as e:
        raise RegionUnavailable(e.errno, f"cannot look for region {which!r}: {_reason(e)}") from None
    # anybody may call a region anything, so names count among this user's only, also for root
    mine = [f for f in there if f.uid == os.geteuid() and f.name]
    fitting = [f for f in mine if f.name == which]
    fitting += [f for f in there if which.isdecimal() and int(which) in f.pids and f not in fitting]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise RegionUnavailable(
            errno.EEXIST,
            f"{len(fitting)} regions fit {which!r}: {_list(fitting)}. Attach one by a pid or a name that "
            "only it has, or by /proc/PID/fd/N",
        )
    raise RegionUnavailable(
        errno.ENOENT,
        f"no region of this user is called {which!r}"
        + (f" and no process {which} has one" if which.isdecimal() else "")
        + f"; there {'is' if len(mine) == 1 else 'are'} {_list(mine) or 'none with a name'}",
    )


def _list(regions: list[Found]) -> str:
    most = 10
    text = ", ".join(
        f"{f.name!r} ({'pid' if len(f.pids) == 1 else 'pids'} {' '.join(map(str, f.pids[:most]))})"
        for f in regions[:most]
    )
    return text + (f" and {len(regions) - most} more" if len(regions) > most else "")


def _attach_fd(
    cls: type[AnyRegion],
    fd: int,
    expected_id: str | None,
    readonly: bool = False,
    helper: bool = True,
    is_given: bool = False,
) -> AnyRegion:
    """`is_given`: by a process of another user that ours chose to trust."""
    try:
        there = os.fstat(fd)
    except (OSError, OverflowError) as e:
        raise RegionUnavailable(errno.EBADF, f"descriptor {fd} is not open: {e}") from None
    if not stat.S_ISREG(there.st_mode):
        raise RegionUnavailable(errno.ENOEXEC, f"descriptor {fd} is no vmalloc region")
    try:
        head = os.pread(fd, 32, 0)
    except OSError as e:
        raise RegionUnavailable(e.errno, f"descriptor {fd} cannot be read: {e.strerror}") from None
    id = head[16:]
    if expected_id is not None and head.startswith(_MAGIC) and id.hex() != expected_id:
        raise RegionUnavailable(errno.ESTALE, f"descriptor {fd} is region {id.hex()}, not {expected_id}")
    if readonly:
        looked_in = cls.__new__(cls)
        looked_in._attach(fd, True, is_given)
        looked_in._opened()
        return looked_in
    with _attach_lock:
        region = attached.get(id)
        if region is None or region.closed or not os.path.samestat(os.fstat(region.fileno()), there):
            region = cls.__new__(cls)
            region._attach(fd, is_given=is_given)
            region._opened(helper=helper)
    if not isinstance(region, cls):
        raise RegionUnavailable(errno.EINVAL, f"descriptor {fd} is {region!r}; attach it by its own class")
    return region


# ---- from a message ----


def where_of(region: RegionBase) -> Where:
    """What a message says of `region`, for attach_where() in the process that gets it. RegionClosed."""
    where: Where | None = region._where
    if where is None:
        where = region._where = _new_where(region)
    context = sys.modules.get("multiprocessing.context")
    if context is not None and (starting := context.get_spawning_popen()) is not None:
        return (*where[:6], _given_to(starting, where[2]))
    return where


def _new_where(region: RegionBase) -> Where:
    fd = region.fileno()
    there = os.fstat(fd)
    socket = None
    try:
        if region._is_served or _is_hidden():
            socket = _open_socket(region)
    except (ImportError, OSError):
        pass  # the receiver may not need it, and says so if it does
    return region._info()["id"], os.getpid(), fd, there.st_ino, there.st_dev, socket, None


def _given_to(starting: Any, fd: int) -> Any:
    """multiprocessing's picklable form of `fd` for a process that it is about to start."""
    given = _given.setdefault(starting, {})
    if fd not in given:  # spawn refuses the same number twice
        given[fd] = starting.DupFd(starting.duplicate_for_child(fd))
    return given[fd]


def serve_region(region: RegionBase) -> None:
    """What Region.serve() does."""
    region.fileno()  # RegionClosed
    try:
        _open_socket(region)
    except OSError as e:
        raise RegionUnavailable(e.errno, f"cannot open a socket to serve {region!r}: {_reason(e)}") from None
    region._where = None


def serve_at(region: RegionBase, path: str, allow_uids: Collection[int]) -> None:
    """What Region.serve(path) does."""
    from vmalloc import serve

    region.fileno()  # RegionClosed
    try:
        serve.start_at(path, region, allow_uids)
        region._serves_at = True
    except OSError as e:
        raise RegionUnavailable(e.errno, f"cannot serve {region!r} at {path}: {_reason(e)}") from None


def _open_socket(region: RegionBase) -> str:
    """Its name; the process has one."""
    from vmalloc import serve  # most processes never need it

    with _serve_lock:
        region._is_served = True  # so that a finalizer which closes another one leaves the socket
        try:
            return serve.start(_served)
        except BaseException:
            region._is_served = False
            raise


def stop_serving(region: RegionBase) -> None:
    """After close(): its sockets end, the common one with the last region that it serves."""
    serve = sys.modules.get("vmalloc.serve")
    if serve is None:  # never asked for, or the interpreter ends and a finalizer closes: an import would fail
        return
    if region._serves_at:
        serve.stop_at(region)
    if region._is_served:
        with _serve_lock:
            region._is_served = False
            if not any(other._is_served and not other.closed for other in list(attached.values())):
                serve.stop()


def _served(id: bytes) -> RegionBase | None:
    region = attached.get(id)
    return region if region is not None and region._is_served and not region.closed else None


def _is_hidden() -> bool:
    """Whether this process forbids others to look into its /proc/<pid>/fd."""
    import ctypes  # numpy has it loaded

    PR_GET_DUMPABLE = 3
    return bool(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 1)


def attach_where(where: Where, cls: type[AnyRegion]) -> AnyRegion:
    """The region that a message tells of, attached if need be. RegionUnavailable says what was tried."""
    try:
        region = attached.get(where[0])
        if region is not None and not region.closed and isinstance(region, cls):
            return region
    except (IndexError, KeyError, TypeError):
        pass  # no where at all
    where = _checked(where)
    kept = _kept.get(where[0])
    if kept is None:
        return _find(where, lambda fd, id: _attach_fd(cls, fd, id))
    return kept.attach(where, cls)


def open_where(where: Where, use: Callable[[int], T]) -> T:
    """What `use` makes of a descriptor of the region that a message tells of. RegionUnavailable."""
    return _find(_checked(where), lambda fd, id: use(_with_id(fd, id)))


class Kept:
    """A region that this process was given: attached at its first use, and held from then on.

    Until then it takes no slot and no address space, and the process may change its limits or its user first.
    """

    def __init__(self, where: Where) -> None:
        """RegionUnavailable."""
        self.where: Where = (*where[:6], None)
        # a window: who can attach nothing later, even for want of a descriptor, receives copies through it
        self.window = open_where(where, lambda fd: Window(fd, True))
        self._region: Any = None
        self._failed: tuple[Exception, float] | None = None
        _kept[where[0]] = self
        if where[0] not in _kept_ids:
            _kept_ids.append(where[0])

    def attach(self, where: Where, cls: type[AnyRegion]) -> AnyRegion:
        """After a failure the same error for a while: a look costs a mapping."""
        if self._failed is not None and time.monotonic() < self._failed[1]:
            raise self._failed[0].with_traceback(None)
        try:
            region = _find(where, lambda fd, id: _attach_fd(cls, fd, id))
        except (OSError, MemoryError) as e:
            self._failed = e, time.monotonic() + _RETRY_S
            raise
        self._region = region
        return region

    def is_it(self, fd: int) -> bool:
        """Whether `fd` is the very file that was given, whoever owns it."""
        return _is_same(os.fstat(fd), self.where[3:5])


def kept_ids() -> Sequence[bytes]:
    """Of regions that this process was given when it was started; most have none or one."""
    return _kept_ids


def kept_where(id: bytes) -> Where | None:
    """Where such a region is."""
    kept = _kept.get(id)
    return None if kept is None else kept.where


def kept_window(id: bytes) -> Window | None:
    """To such a region; None too if the program closed its descriptor."""
    kept = _kept.get(id)
    try:
        return kept.window if kept is not None and kept.is_it(kept.window.fileno()) else None
    except OSError:
        return None


def is_given(id: bytes, fd: int) -> bool:
    """Whether `fd` is what this process was given as region `id` when it was started."""
    kept = _kept.get(id)
    return kept is not None and kept.is_it(fd)


def _with_id(fd: int, id: str) -> int:
    head = os.pread(fd, 32, 0)
    if not head.startswith(_MAGIC) or head[16:].hex() != id:
        raise RegionUnavailable(errno.ESTALE, f"descriptor {fd} is not region {id}")
    return fd


def _checked(where: Any) -> Where:
    match where:
        case (bytes() as id, int(), int(), int(), int(), str() | None, _):
            if len(id) == 16 and all(0 <= n < 1 << 63 for n in where[1:5]):
                return tuple(where)
        case _:
            pass
    raise RegionUnavailable(errno.EINVAL, f"the reference tells of no region: {where!r:.200}")


def _find(where: Where, use: Callable[[int, str], T]) -> T:
    """`use` gets a descriptor, which is closed after it, and the id that the region must have."""
    id, pid = where[:2]
    tried: list[str] = []
    failed = errno.ENOENT
    for way, get_fd in _ways(where):
        try:
            fd = get_fd()
        except OSError as e:
            failed = e.errno or failed
            tried.append(f"{way}: {_reason(e)}")
            if failed in _OUT_OF_DESCRIPTORS:
                break
            continue
        try:
            return use(fd, id.hex())
        except RegionUnavailable as e:
            failed = e.errno or failed
            if failed != errno.ESTALE:  # it is the right one; another way would lead to the same
                raise RegionUnavailable(failed, f"region {id.hex()} by {way}: {_reason(e)}") from None
            tried.append(f"{way}: {_reason(e)}")
        finally:
            os.close(fd)
    raise RegionUnavailable(
        failed,
        f"region {id.hex()} of process {pid} cannot be reached: {'; '.join(tried)}. A process of this user "
        "must still have it; if that runs in another container or hides its descriptors, call "
        "region.serve() there first",
    )


def _ways(where: Where) -> Iterator[tuple[str, Callable[[], int]]]:
    """What is tried, with a function that gives a descriptor or raises OSError."""
    id, pid, fd, inode, device, socket, given = where
    file = (inode, device)
    kept = _kept.get(id)
    if kept is not None:
        yield "the descriptor kept since the start", lambda: _dup_same(kept.window.fileno(), file)
    if given is not None:
        yield "the descriptor given at the start", lambda: _take_given(given, file)
    yield f"/proc/{pid}/fd/{fd}", lambda: _open_same(f"/proc/{pid}/fd/{fd}", file)
    if socket is not None:
        yield "the sender's socket", lambda: _fetch(socket, id)
    yield "other processes", lambda: _open_anywhere(file)


def _is_same(there: os.stat_result, file: tuple[int, int]) -> bool:
    return (there.st_ino, there.st_dev) == file


def _dup_same(fd: int, file: tuple[int, int]) -> int:
    if not _is_same(os.fstat(fd), file):
        raise OSError(errno.ESTALE, "the program closed it")
    return os.dup(fd)


def _take_given(given: Any, file: tuple[int, int]) -> int:
    try:
        fd = given.detach()
        if not _is_same(os.fstat(fd), file):
            raise OSError(errno.ESTALE, "it is another file")
    except OSError:
        raise
    except Exception as e:  # forged, or loaded where it was not meant for
        raise OSError(errno.EBADF, f"it is none of this process ({e})") from None
    process = sys.modules.get("multiprocessing.process")
    is_starting = process is not None and getattr(process.current_process(), "_inheriting", False)
    # while this process is being started the descriptor is ours to close; later it may be anybody's
    return int(fd) if is_starting else os.dup(fd)


def _open_same(path: str, file: tuple[int, int], readonly: bool = False) -> int:
    # looked at first: to open what the number means by now may do something
    if _is_same(os.stat(path), file):
        fd = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
        if _is_same(os.fstat(fd), file):
            return fd
        os.close(fd)
    raise OSError(errno.ESTALE, "it is another file by now, or another pid namespace")


def _fetch(socket: str, id: bytes) -> int:
    from vmalloc import serve

    return serve.fetch(socket, id)


def _open_anywhere(file: tuple[int, int]) -> int:
    from vmalloc.find import find_regions

    for found in find_regions():
        if (found.inode, found.device) == file:
            return _open_same(found.path, file)
    raise OSError(errno.ENOENT, "none that may be looked at has it")


def _reason(e: OSError) -> str:
    text = e.strerror or str(e)
    if e.errno in _OUT_OF_DESCRIPTORS:
        most = os.sysconf("SC_OPEN_MAX")  # no module can be imported now
        return f"{text}: attaching takes 4, this process may have {most}; close some or raise ulimit -n"
    if str(e.filename).startswith("/proc/"):
        if isinstance(e, PermissionError):
            return f"{text} (the process belongs to another user, or hides its descriptors)"
        if isinstance(e, FileNotFoundError):
            return f"{text} (the process ended, or runs in another pid namespace)"
    return text
