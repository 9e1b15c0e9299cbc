# SPDX-License-Identifier: MIT
"""Find the regions of this machine: a memfd has no file name, so /proc is where they show."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Found", "find_regions"]

_PREFIX = "/memfd:vmalloc:"


@dataclass
class Found:
    """One region and the processes, of those that may be looked at, that have it open."""

    name: str
    inode: int
    nbytes: int  #: of the memfd, metadata included
    resident_bytes: int
    pids: list[int] = field(default_factory=list[int])
    path: str = ""  #: /proc/<pid>/fd/<n> of one of them
    uid: int = 0  #: the user who made it
    device: int = 0


def _region_fds(pid: int) -> list[tuple[str, str]]:
    """(path, name) of every region descriptor of a process; none if it is not ours to look at."""
    found: list[tuple[str, str]] = []
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return found
    for number in numbers:
        path = f"{folder}/{number}"
        try:
            target = os.readlink(path)
        except OSError:  # closed meanwhile
            continue
        if target.startswith(_PREFIX):
            found.append((path, target[len(_PREFIX) :].removesuffix(" (deleted)")))
    return found


def find_regions() -> list[Found]:
    """Every region that a process of this user (of any user, for root) has open. OSError without /proc."""
    if not os.path.isdir("/proc/self/fd"):  # an empty folder of that name is no mount
        raise FileNotFoundError(errno.ENOENT, "/proc is not mounted")
    regions: dict[tuple[int, int], Found] = {}
    for pid in sorted(int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal()):
        for path, name in _region_fds(pid):
            try:
                st = os.stat(path)
            except OSError:
                continue
            new = Found(
                name, st.st_ino, st.st_size, st.st_blocks * 512, path=path, uid=st.st_uid, device=st.st_dev
            )
            region = regions.setdefault((st.st_ino, st.st_dev), new)
            if pid not in region.pids:
                region.pids.append(pid)
    return list(regions.values())
