# SPDX-License-Identifier: MIT
"""Hand this process's regions to others of the same user over a socket, where /proc is closed to them.

The socket is abstract: it is no file and ends with its process. Its name is 128 random bits, so names do
not collide between pid namespaces and nobody can bind one beforehand. Whoever asks sends a region's id
and gets the descriptor by SCM_RIGHTS. Both sides look at the other's user id (SO_PEERCRED) first: names
of abstract sockets can be read by every user of the machine.

A socket that is a file (`start_at()`) serves one region, whose id nobody needs to know; its folder may be
shared between containers. Asked with ANY as the id, and else the same. Both sides may name further users
whom they trust with the region. It ends with the region's close(), or with the region.

One socket and one daemon thread for a process, however many regions it serves; none before the first
one is needed, because a thread makes os.fork warn from Python 3.12 on. A forked child has neither.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import operator
import os
import re
import socket
import stat
import struct
import threading
import time
import weakref
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from typing import Any, Protocol

from vmalloc.facts import SERVE_WAIT_S, SOCKET_PATH_BYTES_MAX

__all__ = ["fetch", "fetch_at", "start", "start_at", "stop", "stop_at"]


class HasFileno(Protocol):
    """A region."""

    def fileno(self) -> int: ...


#: From a region's id to the region; None for what is not served here.
Lookup = Callable[[bytes], HasFileno | None]

_NAME = re.compile("vmalloc-[0-9a-f]{32}")
_ID_BYTES = 16
ANY = bytes(_ID_BYTES)
_FOR_US, _FOR_ALL = 0o600, 0o666
_WAIT_S: float = SERVE_WAIT_S
_WAIT_FOR_CLIENT_S = 0.5  # the others queue meanwhile
_PASSING = (  # refusals of accept() after which the next one may go well
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED, errno.EPERM, errno.EINTR,
    errno.EPROTO,
)  # fmt: skip
_HERE, _NOT_HERE = b"+", b"-"
_FD = struct.Struct("i")
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid

_lock = threading.RLock()  # a finalizer may call stop()
_listener: socket.socket | None = None
_name = ""
_at: dict[str, _SocketFile] = {}  # this process's


def _forget_in_child() -> None:
    """Close the parent's socket here: it must end with the parent, not with its last child."""
    global _listener, _lock
    _lock = threading.RLock()
    if _listener is not None:
        _listener.close()
        _listener = None
    for there in list(_at.values()):
        there.listener.close()
    _at.clear()


def _unlink_all() -> None:
    for there in list(_at.values()):
        there.unlink()


atexit.register(_unlink_all)
os.register_at_fork(after_in_child=_forget_in_child)


def _end(listener: socket.socket) -> None:
    """Its thread wakes, closes it and ends."""
    try:
        listener.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # a child's, or ended already


class _SocketFile:
    """A socket that is a file, and the region that is to be had there."""

    def __init__(self, path: str, listener: socket.socket, region: HasFileno) -> None:
        self.path, self.listener = path, listener
        self.made = os.lstat(path)
        self.region = weakref.ref(region, lambda _: self.end())

    def unlink(self) -> None:
        try:
            if os.path.samestat(os.lstat(self.path), self.made):  # else another process serves there by now
                os.unlink(self.path)
        except OSError:
            pass

    def end(self) -> None:
        """No lock is taken: a finalizer may come here at any time."""
        if _at.get(self.path) is self:
            del _at[self.path]
            self.unlink()
            _end(self.listener)


def start(lookup: Lookup) -> str:
    """The name of this process's socket; the first call opens it and starts the thread. OSError."""
    global _listener, _name
    with _lock:
        if _listener is None:
            name = f"vmalloc-{os.urandom(16).hex()}"
            listener = _listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # known to a fork
            try:
                listener.bind("\0" + name)
                listener.listen()
                threading.Thread(
                    target=_serve, args=(listener, lookup, ()), name="vmalloc-serve", daemon=True
                ).start()
            except (OSError, RuntimeError) as e:
                listener.close()
                _listener = None
                if isinstance(e, OSError):
                    raise
                raise OSError(errno.EAGAIN, str(e)) from None  # no more threads
            _name = name
        return _name


def stop() -> None:
    """End this process's socket, until the next start()."""
    global _listener
    with _lock:
        if _listener is not None:
            _end(_listener)
            _listener = None


def _checked(path: str) -> str:
    """As a socket's address. ValueError."""
    if not path or "\0" in path:
        raise ValueError(f"{path!r} is no path of a socket")
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise ValueError(f"a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes: {path}")
    return path


def _open_to_all_who_get_it(fd: int) -> None:
    """Who attaches opens the memfd once more, for the lock by which others see that it lives."""
    if os.fstat(fd).st_mode & _FOR_ALL != _FOR_ALL:
        os.fchmod(fd, _FOR_ALL)


def _set_mode(path: str, mode: int) -> None:
    """Of the socket that was bound there. OSError for what took its place: a link, which is not followed."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError(errno.EEXIST, "something else took the socket's place")
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def start_at(path: str, region: HasFileno, allow_uids: Collection[int]) -> None:
    """Serve the region at a socket file, in place of one that a dead process left. OSError, ValueError."""
    path = _checked(path)
    uids = frozenset(operator.index(uid) for uid in allow_uids)
    of_region = weakref.ref(region)

    def lookup(_: bytes) -> HasFileno | None:
        return _open(of_region())

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    there: _SocketFile | None = None
    try:
        with _one_at_a_time(os.path.dirname(path)):
            if os.path.lexists(path):
                if _answers(path):
                    raise OSError(errno.EADDRINUSE, "a process serves there already")
                os.unlink(path)
            listener.bind(path)
            there = _SocketFile(path, listener, region)
            _set_mode(path, _FOR_ALL if uids else _FOR_US)
            if uids:  # nobody is answered before the next line
                _open_to_all_who_get_it(region.fileno())
            listener.listen()
            if path in _at:  # its file is gone
                _end(_at.pop(path).listener)
            _at[path] = there
        threading.Thread(
            target=_serve, args=(listener, lookup, uids), name="vmalloc-serve-at", daemon=True
        ).start()
    except BaseException as e:
        if there is not None:
            there.end()
            there.unlink()  # it may not have been served yet
        listener.close()
        if isinstance(e, RuntimeError):  # no more threads
            raise OSError(errno.EAGAIN, str(e)) from None
        raise


def stop_at(region: HasFileno) -> None:
    """End the socket files where the region is served by this process."""
    for there in list(_at.values()):
        if there.region() is region:
            there.end()


@contextmanager
def _one_at_a_time(folder: str) -> Generator[None, None, None]:
    """A socket that is bound and does not listen yet looks like a dead process's.

    The folder is locked, which holds between containers, too. Whoever may read it could keep the lock: then,
    after a while, and where it may not be read, it goes without.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        until = time.monotonic() + _WAIT_S
        while time.monotonic() < until:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(fd)


def _open(region: Any) -> HasFileno | None:
    """None for a region that is gone or closed."""
    found: HasFileno | None = None if region is None or region.closed else region
    return found


def _answers(path: str) -> bool:
    """Whether a process listens there. OSError if it is no socket at all."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as there:
        there.settimeout(_WAIT_S)
        try:
            there.connect(path)
        except ConnectionRefusedError:
            return False
    return True


def _serve(listener: socket.socket, lookup: Lookup, allow_uids: Collection[int]) -> None:
    """Until _end()."""
    listener.settimeout(None)  # what is the program's default is not ours
    while True:
        try:
            asking, _ = listener.accept()
        except OSError as e:
            if e.errno not in _PASSING:
                listener.close()
                return
            time.sleep(0.1)
            continue
        with asking:
            try:
                _answer(asking, lookup, allow_uids)
            except Exception:
                pass  # whoever asked is gone, or the region was closed just now: serve the next one


def _answer(asking: socket.socket, lookup: Lookup, allow_uids: Collection[int]) -> None:
    if _uid_of(asking) not in (os.geteuid(), 0, *allow_uids):
        return
    asking.settimeout(_WAIT_FOR_CLIENT_S)
    region = lookup(asking.recv(_ID_BYTES))
    if region is None:
        asking.send(_NOT_HERE)
    else:
        socket.send_fds(asking, [_HERE], [region.fileno()])


def _uid_of(peer: socket.socket) -> int:
    """The user that the kernel noted when the other side connected or listened."""
    data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


def _connect(there: socket.socket, address: str) -> None:
    """A full backlog is no reason to give up at once."""
    until = time.monotonic() + _WAIT_S
    while True:
        try:
            return there.connect(address)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def fetch(name: str, id: bytes) -> int:
    """A descriptor of the region, from the process whose socket that is; the caller closes it. OSError."""
    if not _NAME.fullmatch(name):
        raise OSError(errno.EINVAL, f"{name!r:.80} is no name of such a socket")
    return _fetch("\0" + name, id, ())[0]


def fetch_at(path: str, allow_uids: Collection[int]) -> tuple[int, int]:
    """The same of the region that is served at a socket file, and the user who serves it."""
    try:
        return _fetch(_checked(path), ANY, allow_uids)
    except ValueError as e:
        raise OSError(errno.EINVAL, str(e)) from None


def _fetch(address: str, id: bytes, allow_uids: Collection[int]) -> tuple[int, int]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as there:
        there.settimeout(_WAIT_S)
        _connect(there, address)
        uid = _uid_of(there)
        if uid not in (os.geteuid(), 0, *allow_uids) and os.geteuid() != 0:
            raise PermissionError(errno.EPERM, f"the socket belongs to user {uid}")
        refused = PermissionError(errno.EPERM, f"the process there refused: it is user {uid}'s")
        try:  # socket.recv_fds() drops its flags
            there.send(id)
            answer, attached, flags, _ = there.recvmsg(1, socket.CMSG_LEN(_FD.size), socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer in {_WAIT_S:g} s (stopped?)") from None
        except (BrokenPipeError, ConnectionResetError):  # it hung up before it heard us
            raise refused from None
    for level, kind, data in attached:
        if (level, kind, len(data)) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.size):
            return int(_FD.unpack(data)[0]), uid
    if flags & socket.MSG_CTRUNC:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    if answer == _NOT_HERE:
        raise FileNotFoundError(errno.ENOENT, "the process there does not have it any more")
    raise refused
