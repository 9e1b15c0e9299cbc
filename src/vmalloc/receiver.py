# SPDX-License-Identifier: MIT
"""Whether the receiver at the other end of a connection can attach a region.

It cannot on another machine, and not as another user. A connection knows its family and, on this machine, the
user at its other end; both stay what they are as long as it lives, so each is looked at once.
"""

from __future__ import annotations

import os
import socket
import struct
from multiprocessing.connection import Connection
from typing import Any

from vmalloc._core import CAN_ATTACH

__all__ = ["can_attach"]

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_ROOT = 0


def can_attach(connection: Connection[Any, Any]) -> bool:
    """False for a network connection, also to this machine, and for another user's; pipes are this user's."""
    told: bool | None = connection.__dict__.get(CAN_ATTACH)
    if told is None and not connection.closed:
        told = connection.__dict__[CAN_ATTACH] = _is_near(connection.fileno())
    return told is not False


def _is_near(fd: int) -> bool:
    try:
        is_blocking = os.get_blocking(fd)
        there = socket.socket(fileno=fd)
    except OSError:
        return True  # a pipe, or what is no descriptor: sending will tell
    try:
        os.set_blocking(fd, is_blocking)  # a default timeout for sockets would change it
        if there.family != socket.AF_UNIX:
            return False
        packed = there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return True
    finally:
        there.detach()  # it is the connection's
    return _CREDENTIALS.unpack(packed)[1] in (os.geteuid(), _ROOT)
