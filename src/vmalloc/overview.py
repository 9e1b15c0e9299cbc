# SPDX-License-Identifier: MIT
# pyright: reportPrivateUsage=false
"""What is to be seen of every region of this machine, without a registry and without disturbing anybody.

Each is attached read-only for a moment: no slot, no lock, nothing recovered. `vmalloc ps` shows it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmalloc.errors import RegionCorrupt, VmallocError
from vmalloc.facts import PROCESSES_MAX
from vmalloc.find import Found, find_regions

if TYPE_CHECKING:
    from vmalloc.region import RegionBase

__all__ = ["Seen", "SeenProcess", "look", "look_at_all"]


@dataclass
class SeenProcess:
    """A process that has a region open, or died with it."""

    pid: int
    command: str  #: its arguments, as they are: not safe for a terminal
    nbytes: int  #: what it holds; what several share counts for each
    state: (
        str  #: running, stopped, zombie, dead; elsewhere: the pid is of another pid namespace, or used again
    )


@dataclass
class Seen:
    """One region at one moment. What could not be read is None, and `health` says why."""

    name: str
    uid: int
    age_s: float | None
    resident_bytes: int  #: metadata included
    nbytes: int | None = None  #: what can be allocated
    used_bytes: int | None = None
    limit: int | None = None
    health: str = "ok"
    processes: list[SeenProcess] = field(default_factory=list[SeenProcess])
    inode: int = 0


# ---- processes ----


def _command_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            words = f.read(4096).rstrip(b"\0").split(b"\0")
        return " ".join(os.fsdecode(word) for word in words) or _name_of(pid)
    except OSError:
        return ""


def _name_of(pid: int) -> str:
    with open(f"/proc/{pid}/comm", "rb") as f:
        return os.fsdecode(f.read().strip())


def _state_of(pid: int) -> str:
    """As its letter in /proc/<pid>/stat says."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            letter = f.read().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return "dead"
    return {b"T": "stopped", b"t": "stopped", b"Z": "zombie", b"X": "dead"}.get(letter, "running")


# ---- since when ----

_BTIME = 0x800
_AT_FDCWD = -100


def _born(path: str) -> float | None:
    """When the file was made, in seconds since 1970; None where the kernel does not say."""
    room = ctypes.create_string_buffer(256)
    try:
        if ctypes.CDLL(None).statx(_AT_FDCWD, os.fsencode(path), 0, _BTIME, room) != 0:
            return None
    except AttributeError:  # a libc without it
        return None
    (mask,) = struct.unpack_from("I", room, 0)
    seconds, nanoseconds = struct.unpack_from("qI", room, 80)
    return seconds + nanoseconds / 1e9 if mask & _BTIME else None


# ---- regions ----


def look_at_all() -> list[Seen]:
    """Every region that a process of this user has open (of any user, for root). OSError without /proc."""
    return [look(found) for found in find_regions()]


def look(found: Found) -> Seen:
    """One region, by a moment's read-only attachment."""
    born = _born(found.path)
    seen = Seen(
        found.name,
        found.uid,
        None if born is None else max(time.time() - born, 0.0),
        found.resident_bytes,
        inode=found.inode,
    )
    held: dict[int, int] = {}
    try:
        region = _attach(found)
        try:
            held = _look_inside(region, seen)
        finally:
            region.close()
    except RegionCorrupt as error:
        seen.health = f"corrupt: {error}; see vmalloc check"
    except (VmallocError, MemoryError) as error:
        seen.health = _why_not(error)
    _add_processes(seen, found, held)
    return seen


def _why_not(error: Exception) -> str:
    """The short form: a table has no room for what to do about it."""
    match getattr(error, "errno", None):
        case errno.EPROTO:
            return "of another version"
        case errno.EUCLEAN:
            return "damaged header, or just being made"
        case errno.EACCES | errno.EPERM:
            return "not yours"
        case errno.ENOENT | errno.ESTALE:
            return "gone meanwhile"
        case _:
            return f"cannot be looked at: {error}"


def _attach(found: Found) -> RegionBase:
    from vmalloc.image import attach_any

    return attach_any(found.path, readonly=True)


def _look_inside(region: RegionBase, seen: Seen) -> dict[int, int]:
    """Fill in what the region says; bytes held, by pid."""
    info, stats = region._info(), region.stats()
    size = int(info["nr_pages"] * info["granule"])
    seen.nbytes, seen.limit = size, region.limit
    seen.used_bytes = stats.busy_bytes
    if seen.used_bytes >= (seen.limit or size):
        seen.health = "full"
    return {pid: nbytes for _, pid, nbytes in region._holdings(PROCESSES_MAX + 1, idle_too=True) if pid}


def _add_processes(seen: Seen, found: Found, held: dict[int, int]) -> None:
    for pid in found.pids:
        seen.processes.append(SeenProcess(pid, _command_of(pid), held.pop(pid, 0), _state_of(pid)))
    for pid, nbytes in held.items():  # has a slot, and nothing open that we can see
        is_ours = _state_of(pid) != "dead"
        state = "elsewhere" if is_ours else "dead"  # the number means another process by now, or by us
        seen.processes.append(SeenProcess(pid, "", nbytes, state))
    dead = [p for p in seen.processes if p.state == "dead"]
    stopped = [p for p in seen.processes if p.state == "stopped"]
    notes: list[str] = []
    if dead:
        notes.append(f"{len(dead)} dead not yet recovered")
    if stopped:
        notes.append(f"{len(stopped)} stopped")
    if notes:
        seen.health = ", ".join(notes if seen.health == "ok" else [seen.health, *notes])
