# SPDX-License-Identifier: MIT
"""Hardened regions: overruns and use after free are found, and told with the lines of both.

    | what was asked for | canary ...           | record: where it was made |
    0                    nbytes                                       end of the range

Behind what was asked for come bytes that nobody may change, and a record, so that every process that holds
the range can tell. Who drops the last reference has it for itself (vm_free_kept), poisons it and puts it in
quarantine. What comes out again, the oldest first, must still be poison.

An error is raised by what the program calls: release(), check(), close(). What a finalizer finds goes to
`sys.unraisablehook`, as every error in one, and check() tells it again. What the core frees itself (a name
that is deleted, what a dead process held, a lease that expires) is neither looked at nor poisoned.
"""

from __future__ import annotations

import inspect
import os
import struct
import zlib
from collections import deque
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from vmalloc.errors import MemoryMisused, NotAllocated
from vmalloc.facts import GUARD_CANARY_BYTES, GUARD_RECORD_BYTES, QUARANTINE_BYTES, QUARANTINE_SHARE

if TYPE_CHECKING:
    from vmalloc._core import CoreRegion

__all__ = ["GUARD_BYTES", "Guard"]

GUARD_BYTES = GUARD_CANARY_BYTES + GUARD_RECORD_BYTES
CANARY = 0xA7
POISON = 0xDB

_HERE = os.path.dirname(__file__) + os.sep
_HEAD = struct.Struct("<8sQII")  # magic, nbytes, pid, bytes of the text
_MAGIC = b"vmguard1"
_TEXT_BYTES = GUARD_RECORD_BYTES - _HEAD.size - 4  # a checksum ends the record


class Made(NamedTuple):
    """What a record says."""

    nbytes: int
    where: str


class Quarantined(NamedTuple):
    """A range that is poisoned and ours until it may be used again. The core makes it, in free_guarded()."""

    page: int
    nr_pages: int
    id: int
    former_id: int
    made: Made
    freed: str


class Freeing(NamedTuple):
    """What is known of a range before it is freed, and what the core does with it."""

    kind: type[Quarantined]
    made: Made
    where: str
    record: bytes
    found: MemoryMisused | None
    poison: int


def _is_program(frame: FrameType) -> bool:
    """And neither we, nor numpy, which makes arrays here for the program."""
    is_numpy = str(frame.f_globals.get("__name__")).partition(".")[0] == "numpy"
    return not is_numpy and not frame.f_code.co_filename.startswith(_HERE)


def _caller() -> str:
    """FILE:LINE of the program that called us."""
    frame = inspect.currentframe()
    while frame is not None and not _is_program(frame):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""


def _record(nbytes: int, where: str) -> bytes:
    text = where.encode(errors="replace")[-_TEXT_BYTES:]
    body = (_HEAD.pack(_MAGIC, nbytes, os.getpid(), len(text)) + text).ljust(GUARD_RECORD_BYTES - 4, b"\0")
    return body + zlib.crc32(body).to_bytes(4, "little")


def _read_record(data: bytes) -> Made | None:
    """None: it was written over."""
    magic, nbytes, pid, length = _HEAD.unpack_from(data)
    if magic != _MAGIC or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        return None
    where = data[_HEAD.size : _HEAD.size + length].decode(errors="replace")
    return Made(nbytes, where if pid == os.getpid() else f"{where} in process {pid}")


class Guard:
    """Of one region in one process. The region is given to each call, or the two would keep each other."""

    def __init__(self, nr_pages: int, granule: int) -> None:
        self._granule = granule
        self._most_bytes = min(QUARANTINE_BYTES, nr_pages * granule // QUARANTINE_SHARE)
        self._live: dict[int, tuple[int, Made]] = {}  # page -> id, and what it was made as, here
        self._quarantine: deque[Quarantined] = deque()
        self._inherited: deque[Quarantined] = deque()  # in a forked child: the parent's
        self._start_anew()

    def _start_anew(self) -> None:
        """Also if it was begun and broken off."""
        self._inherited = self._quarantine or self._inherited
        self._quarantine = deque()
        self._nbytes = 0
        self._told: dict[int, Quarantined] = {}  # by the id it had
        self._found: list[MemoryMisused] = []  # for check(): what nobody was told yet
        self._pid = os.getpid()

    def _drop_inherited(self, region: CoreRegion) -> None:
        """In a forked child the quarantine is the parent's: let go of it."""
        if self._pid != os.getpid():
            self._start_anew()
        for q in list(self._inherited):
            region._let_out(self._inherited, q, True)

    # ---- ranges come and go ----

    def made(self, region: CoreRegion, page: int, nr_pages: int, id: int, nbytes: int) -> None:
        """A new block or array: canary and record behind it."""
        self._drop_inherited(region)
        granule = self._granule
        start, end = page * granule, (page + nr_pages) * granule - GUARD_RECORD_BYTES
        made = Made(nbytes, _caller())
        region._fill(start + nbytes, end - start - nbytes, CANARY)
        region._write(end, _record(*made))
        self._live[page] = id, made

    def freeing(self, region: CoreRegion, page: int, nr_pages: int, id: int, nbytes: int) -> Freeing:
        """Look at what is to be freed."""
        self._drop_inherited(region)
        where = _caller()
        found = self._overrun(region, page, nr_pages, id, nbytes, where)
        made = self._made_as(region, page, nr_pages, id, nbytes)
        return Freeing(Quarantined, made, where, _record(*made), found, POISON)

    def freed(self, region: CoreRegion, freeing: Freeing) -> None:
        """MemoryMisused if bytes past its end were changed, or some of what leaves quarantine for it."""
        errors = [freeing.found] if freeing.found is not None else []
        self._tell(errors + self._let_out(region, -1 if region.closed else self._most_bytes))

    def tell_later(self, error: MemoryMisused) -> None:
        """What a finalizer found, for check()."""
        self._found.append(error)

    def _let_out(self, region: CoreRegion, most_bytes: int) -> list[MemoryMisused]:
        """The oldest, until no more is left. A finalizer or a signal may come in between two steps."""
        errors: list[MemoryMisused] = []
        while self._nbytes > most_bytes:
            try:
                q = self._quarantine[0]
            except IndexError:  # another thread took the last one
                break
            found = self._use_after_free(region, q)
            if region._let_out(self._quarantine, q) and found is not None:
                errors.append(found)
        return errors

    # ---- looked at ----

    def _made_as(self, region: CoreRegion, page: int, nr_pages: int, id: int, nbytes: int) -> Made:
        """By its record; if that was written over, by what this process knows."""
        end = (page + nr_pages) * self._granule - GUARD_RECORD_BYTES
        made = _read_record(region._read(end, GUARD_RECORD_BYTES))
        if made is not None:
            return made
        known, made = self._live.get(page, (0, None))
        return made if made is not None and known == id else Made(nbytes, "")

    def _overrun(
        self, region: CoreRegion, page: int, nr_pages: int, id: int, nbytes: int, freed: str
    ) -> MemoryMisused | None:
        granule = self._granule
        made = self._made_as(region, page, nr_pages, id, nbytes)
        start, end = page * granule, (page + nr_pages) * granule - GUARD_RECORD_BYTES
        byte = region._first_other(start + made.nbytes, max(end - start - made.nbytes, 0), CANARY)
        is_record_there = _read_record(region._read(end, GUARD_RECORD_BYTES)) is not None
        if byte < 0 and is_record_there:
            return None
        past = byte if byte >= 0 else end - start - made.nbytes
        return MemoryMisused(
            f"overrun: byte {past + 1} past the end of {made.nbytes} bytes at offset {start:#x} was written "
            f"to. The range was made at {made.where or 'a line that was written over'}"
            + (f", and freed at {freed}" if freed else ", and is in use"),
            "overrun",
            start,
            made.nbytes + past,
            made.where,
            freed,
        )

    def _use_after_free(self, region: CoreRegion, q: Quarantined) -> MemoryMisused | None:
        granule = self._granule
        start, end = q.page * granule, (q.page + q.nr_pages) * granule - GUARD_RECORD_BYTES
        byte = region._first_other(start, end - start, POISON)
        if byte < 0 and _read_record(region._read(end, GUARD_RECORD_BYTES)) is not None:
            return None
        byte = byte if byte >= 0 else end - start
        return MemoryMisused(
            f"use after free: byte {byte} of a range of {q.made.nbytes} bytes at offset {start:#x} was "
            f"written to after it was freed at {q.freed}. It was made at "
            f"{q.made.where or 'a line that was written over'}",
            "use after free",
            start,
            byte,
            q.made.where,
            q.freed,
        )

    def check(self, region: CoreRegion) -> None:
        """Look at all that is in quarantine, and at the ends of what this process made. MemoryMisused."""
        self._drop_inherited(region)
        errors = list(self._found)
        errors += [e for q in list(self._quarantine) if (e := self._use_after_free(region, q)) is not None]
        for page, (id, made) in list(self._live.items()):
            try:
                nr_pages, id_now = region._lookup(page, page)
            except NotAllocated:  # freed, by a process that had it last
                nr_pages = id_now = 0
            if id_now != id:
                self._live.pop(page, None)
            elif (e := self._overrun(region, page, nr_pages, id, made.nbytes, "")) is not None:
                errors.append(e)
        self._tell(errors)

    def empty(self, region: CoreRegion) -> bool:
        """Let all out of the quarantine, for whoever found no pages. Whether there was anything."""
        self._drop_inherited(region)
        was_any = bool(self._quarantine)
        self._found += self._let_out(region, -1)
        return was_any

    def end(self, region: CoreRegion) -> None:
        """The region is closed: let all out. MemoryMisused."""
        self._drop_inherited(region)
        self._found += self._let_out(region, -1)
        self._tell(list(self._found))

    def told_of(self, id: int) -> str:
        """For the text of an error: where a range of the quarantine was made and freed."""
        q = self._told.get(id)
        return "" if q is None else f" at {q.freed}; it was made at {q.made.where}"

    def _tell(self, errors: list[MemoryMisused]) -> None:
        """They are forgotten once they are raised: who is interrupted is told the next time."""
        try:
            self._raise(errors)
        except MemoryMisused:
            self._found = [e for e in self._found if e not in errors]
            raise

    @staticmethod
    def _raise(errors: list[MemoryMisused]) -> None:
        if errors:
            for other in errors[1:]:
                errors[0].add_note(str(other))
            raise errors[0]
