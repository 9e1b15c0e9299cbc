# SPDX-License-Identifier: MIT
"""Hand this process's regions to others of the same user over a socket, where /proc is closed to them.

The socket is abstract: it is no file and ends with its process. Its name is 128 random bits, so names do
not collide between pid namespaces and nobody can bind one beforehand. Whoever asks sends a region's id
and gets the descriptor by SCM_RIGHTS. Both sides look at the other's user id (SO_PEERCRED) first: names
of abstract sockets can be read by every user of the machine.

A socket that is a file (`start_at()`) serves one region, whose id nobody needs to know; its folder may be
shared between containers. Asked with ANY as the id, and else the same.

One socket and one daemon thread for a process, however many regions it serves; none before the first
one is needed, because a thread makes os.fork warn from Python 3.12 on. A forked child has neither.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["fetch", "fetch_at", "start", "start_at"]


class HasFileno(Protocol):
    """A region."""

    def fileno(self) -> int: ...


#: From a region's id to the region; None for what is not served here.
Lookup = Callable[[bytes], HasFileno | None]

_NAME = re.compile("vmalloc-[0-9a-f]{32}")
_ID_BYTES = 16
ANY = bytes(_ID_BYTES)
_PATH_BYTES_MAX = 107  # of sun_path, its end left out
_WAIT_S = 5.0  # for the process that serves: it may be stopped
_WAIT_FOR_CLIENT_S = 0.5  # the others queue meanwhile
_HERE, _NOT_HERE = b"+", b"-"
_FD = struct.Struct("i")
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid

_lock = threading.Lock()
_listener: socket.socket | None = None
_name = ""
_at: dict[str, socket.socket] = {}  # this process's sockets that are files


def _forget_in_child() -> None:
    """Close the parent's socket here: it must end with the parent, not with its last child."""
    global _listener, _lock
    _lock = threading.Lock()
    if _listener is not None:
        _listener.close()
        _listener = None
    for listener in _at.values():
        listener.close()
    _at.clear()


def _unlink_all() -> None:
    for path in _at:
        try:
            os.unlink(path)
        except OSError:
            pass


atexit.register(_unlink_all)
os.register_at_fork(after_in_child=_forget_in_child)


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
                    target=_serve, args=(listener, lookup), name="vmalloc-serve", daemon=True
                ).start()
            except (OSError, RuntimeError) as e:
                listener.close()
                _listener = None
                if isinstance(e, OSError):
                    raise
                raise OSError(errno.EAGAIN, str(e)) from None  # no more threads
            _name = name
        return _name


def start_at(path: str, region: Callable[[], HasFileno | None]) -> None:
    """Serve the region at a socket file, in place of one that a dead process left. OSError, ValueError."""
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > _PATH_BYTES_MAX:
        raise ValueError(f"a socket's path has at most {_PATH_BYTES_MAX} bytes: {path}")

    def lookup(_: bytes) -> HasFileno | None:
        return _open(region())

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        if os.path.lexists(path):
            if _answers(path):
                raise OSError(errno.EADDRINUSE, "a process serves there already")
            os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen()
        with _lock:
            _at[path] = listener
        threading.Thread(target=_serve, args=(listener, lookup), name="vmalloc-serve-at", daemon=True).start()
    except BaseException:
        listener.close()
        raise


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


def _serve(listener: socket.socket, lookup: Lookup) -> None:
    while True:
        try:
            asking, _ = listener.accept()
        except OSError:  # out of descriptors, perhaps not for long
            time.sleep(0.1)
            continue
        with asking:
            try:
                _answer(asking, lookup)
            except Exception:
                pass  # whoever asked is gone, or the region was closed just now: serve the next one


def _answer(asking: socket.socket, lookup: Lookup) -> None:
    if _uid_of(asking) not in (os.geteuid(), 0):
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
    return _fetch("\0" + name, id)


def fetch_at(path: str) -> int:
    """The same of the region that is served at a socket file."""
    if len(os.fsencode(path)) > _PATH_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, f"a socket's path has at most {_PATH_BYTES_MAX} bytes")
    return _fetch(path, ANY)


def _fetch(address: str, id: bytes) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as there:
        there.settimeout(_WAIT_S)
        _connect(there, address)
        uid = _uid_of(there)
        if uid not in (os.geteuid(), 0) and os.geteuid() != 0:
            raise PermissionError(errno.EPERM, f"the socket belongs to user {uid}")
        there.send(id)
        try:  # socket.recv_fds() drops its flags
            answer, attached, flags, _ = there.recvmsg(1, socket.CMSG_LEN(_FD.size), socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer in {_WAIT_S:g} s (stopped?)") from None
    for level, kind, data in attached:
        if (level, kind, len(data)) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.size):
            return int(_FD.unpack(data)[0])
    if flags & socket.MSG_CTRUNC:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    if answer == _NOT_HERE:
        raise FileNotFoundError(errno.ENOENT, "the process there does not have it any more")
    raise PermissionError(errno.EPERM, "the process there refused: it is another user's")
