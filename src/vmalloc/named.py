# SPDX-License-Identifier: MIT
"""Open or create: one region for a name, however many processes ask at the same moment.

No file says which names there are: the regions that this user's processes have open do (find.py). Two that
look at once would both find none, so the look and the making happen under a mutex: an abstract Unix socket
whose name only one process can have bound. It is no file, and it ends with its owner, however that ends.
Another user could bind it first; that is told and not waited out. See docs/decisions/0033.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from vmalloc.errors import RegionBusy, RegionUnavailable

if TYPE_CHECKING:
    from vmalloc.find import Found
    from vmalloc.region import RegionBase

    AnyRegion = TypeVar("AnyRegion", bound=RegionBase)

__all__ = ["open_or_create"]

_RETRY_S = 0.01
_ATTEMPTS = 5
_VANISHED = (errno.ENOENT, errno.ESTALE, errno.ESRCH)


@contextmanager
def _mutex(name: str, timeout_s: float) -> Generator[None, None, None]:
    """Held by one process of this user for each name. RegionBusy, RegionUnavailable."""
    of_name = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    address = f"\0vmalloc-name-{os.geteuid()}-{of_name}"
    until = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as held:
        while True:
            try:
                held.bind(address)
                break
            except OSError as e:
                if e.errno != errno.EADDRINUSE:
                    raise RegionUnavailable(
                        e.errno, f"cannot make the name {name!r} unique: {e.strerror}"
                    ) from None
            if time.monotonic() > until:
                raise RegionBusy(
                    f"somebody has been opening region {name!r} for {timeout_s:g} s: a stopped process of "
                    "this user, or another user who took the socket @vmalloc-name-... (see /proc/net/unix)"
                )
            time.sleep(_RETRY_S)
        yield


def _called(name: str) -> Found | None:
    """This user's only region of that name. RegionUnavailable if there are several, or /proc is not there."""
    from vmalloc.find import find_regions

    try:
        there = [f for f in find_regions() if f.uid == os.geteuid() and f.name == name]
    except OSError as e:
        raise RegionUnavailable(e.errno, f"cannot look for region {name!r}: {e.strerror}") from None
    if len(there) > 1:
        pids = ", ".join(" ".join(map(str, f.pids)) for f in there)
        raise RegionUnavailable(
            errno.EEXIST, f"{len(there)} regions are called {name!r} (pids {pids}): attach one by its pid"
        )
    return there[0] if there else None


def open_or_create(
    cls: type[AnyRegion], name: str, create: Callable[[], AnyRegion], timeout_s: float, helper: bool
) -> AnyRegion:
    """What Region.open_or_create() does."""
    from vmalloc.attach import attach_found

    if not name:
        raise ValueError("a region to be found again needs a name")
    if not timeout_s >= 0:  # nor a NaN, which no time is beyond
        raise ValueError(f"timeout_s must be 0 or more, not {timeout_s}")
    with _mutex(name, timeout_s):
        for _ in range(_ATTEMPTS):
            found = _called(name)
            if found is None:
                return create()
            try:
                return attach_found(cls, found, helper=helper)
            except RegionUnavailable as e:
                if e.errno not in _VANISHED:  # else its last process ended just now
                    raise
    raise RegionUnavailable(errno.ESTALE, f"region {name!r} came and went {_ATTEMPTS} times; try again")
