"""Find the regions of this machine: a memfd has no file name, so /proc is where they show."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from vmalloc.errors import RegionUnavailable
from vmalloc.region import Region

__all__ = ["Found", "attach_by_pid_or_name", "find_regions"]

_PREFIX = "/memfd:vmalloc:"


@dataclass
class Found:
    """One region and the processes of this user that have it open."""

    name: str
    inode: int
    nbytes: int  #: of the memfd, metadata included
    resident_bytes: int
    pids: list[int] = field(default_factory=list[int])
    path: str = ""  #: /proc/<pid>/fd/<n> of one of them


def _region_fds(pid: int) -> list[tuple[str, str]]:
    """(path, name) of every region descriptor of a process; none if it is not ours to look at."""
    found: list[tuple[str, str]] = []
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            target = os.readlink(entry.path)
            if target.startswith(_PREFIX):
                found.append((entry.path, target[len(_PREFIX) :].removesuffix(" (deleted)")))
    except OSError:
        pass
    return found


def find_regions() -> list[Found]:
    """Every region that a process of this user (of any user, for root) has open."""
    regions: dict[int, Found] = {}
    for pid in sorted(int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal()):
        for path, name in _region_fds(pid):
            try:
                st = os.stat(path)
            except OSError:
                continue
            region = regions.setdefault(
                st.st_ino, Found(name, st.st_ino, st.st_size, st.st_blocks * 512, path=path)
            )
            if pid not in region.pids:
                region.pids.append(pid)
    return list(regions.values())


def attach_by_pid_or_name(which: str) -> Region:
    """The one region that process `which` (a pid) has, or that is called `which`; RegionUnavailable."""
    fitting = [f for f in find_regions() if which == f.name or (which.isdecimal() and int(which) in f.pids)]
    if len(fitting) != 1:
        raise RegionUnavailable(
            2, f"{len(fitting)} regions fit {which!r}; `vmalloc ps` lists them, by pid and name"
        )
    return Region.attach(fitting[0].path)
