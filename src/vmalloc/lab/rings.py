# SPDX-License-Identifier: MIT
"""Rings: what our own allocator wrote of itself, as columns.

A thread's ring holds two words an event (`vm_event` in core/base/layout.h). Times come from stamps: an event
that bears ticks of its own is so much later than the stamp before it, any other has that stamp's time. What
cannot be, because somebody scribbled over a ring, is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vmalloc.facts import (
    EVENT_ALIGN_SHIFT,
    EVENT_CPU_SHIFT,
    EVENT_LEN_SHIFT,
    EVENT_LEVEL_SHIFT,
    EVENT_PAGE_SHIFT,
    EVENT_TICKS_BITS,
    EVENTS,
    LEVELS,
)
from vmalloc.lab.columns import DTYPES, Array, Columns, Mask, Names
from vmalloc.lab.events import LOST

__all__ = ["Decoder"]

Words = npt.NDArray[np.uint64]

NUMBER = {name: number for number, name in enumerate(EVENTS, 1)}
RANGES = ("alloc", "free", "discard")  # have a page and a length that lie in the region
COUNTS = ("refill", "overflow", "purge", "recover")  # have a number of ranges, or of the dead, in its place
KIND_OF = {"failed": "alloc"}  # with `failed` set
ALIGN_BITS = 5
FAR = 1 << EVENT_TICKS_BITS - 1  # an event is less than so many ticks from its stamp
PID_MAX = int(np.iinfo(DTYPES["pid"]).max)
NOTE_NS = 1_000_000_000  # a stamp may be so much off what the reader's clock allows


@dataclass
class _Thread:
    """Where a slot's events stand: its last stamp, and whose it is."""

    ns: int
    ticks: int | None = None  # no stamp yet: the first ones may be lost
    latest_ns: int = 0
    pid: int = 0


@dataclass
class Decoder:
    """Words to columns, a piece at a time. `began_ns`: no event is older; `command_of` names a process.

    `pid_of` says whose a slot is, for a thread whose `attach` was overwritten before it was read.
    """

    nr_pages: int
    granule: int
    began_ns: int
    command_of: Callable[[int], str] = field(default=lambda pid: "")
    pid_of: Callable[[int], int] = field(default=lambda slot: 0)
    names: Names = field(default_factory=Names)
    nr_damaged: int = 0
    ns_per_tick: float = 1.0
    _threads: dict[int, _Thread] = field(default_factory=dict[int, _Thread])

    def columns(self, news: Sequence[tuple[int, int, bytes]], now_ns: int) -> Columns:
        """What Recorder.read() gave, by time; what one thread did stays in its order."""
        parts = [self._of_slot(slot, lost, data, now_ns) for slot, lost, data in news]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in DTYPES} if parts else {}
        columns = {name: joined.get(name, np.zeros(0, dtype)) for name, dtype in DTYPES.items()}
        return Columns(columns, self.names).by_time()

    def _of_slot(self, slot: int, lost: int, data: bytes, now_ns: int) -> dict[str, Array]:
        thread = self._threads.setdefault(slot, _Thread(self.began_ns))
        begins_with = thread.pid
        words = np.frombuffer(data, np.uint64).reshape(-1, 2)
        what, when = words[:, 0], words[:, 1]
        kind = _bits(what, 0, EVENT_LEN_SHIFT).astype("i2")
        page = _bits(what, EVENT_PAGE_SHIFT, 64)
        length = _bits(what, EVENT_LEN_SHIFT, EVENT_PAGE_SHIFT)
        stamp_ns = _bits(what, EVENT_LEN_SHIFT, 64)
        is_stamp = kind == NUMBER["stamp"]
        is_right = self._is_right(kind, page, length, stamp_ns, now_ns)
        self.nr_damaged += int(np.count_nonzero(~is_right))
        time = self._times(thread, is_stamp & is_right, stamp_ns, when)
        is_attach = (kind == NUMBER["attach"]) & is_right
        if lost:
            self._has_lost(thread, slot, bool(is_attach.any()))
            begins_with = begins_with or thread.pid
        pid = self._pids(thread, is_attach, page)
        rows = np.flatnonzero(is_right & ~is_stamp)
        columns = self._rows(kind[rows], page[rows], length[rows], when[rows])
        columns["time_ns"], columns["pid"] = time[rows], pid[rows]
        is_death = kind[rows] == NUMBER["die"]
        columns["pid"][is_death] = page[rows][is_death]
        pids, which = np.unique(columns["pid"], return_inverse=True)
        commands = np.array([self.names.code(self.command_of(pid)) for pid in pids.tolist()], "i4")
        columns["comm"] = commands[which]
        columns["slot"] = np.full(len(rows), slot, "i4")
        return self._with_loss(columns, slot, lost, thread, begins_with) if lost else columns

    def _is_right(self, kind: Array, page: Array, length: Array, stamp_ns: Array, now_ns: int) -> Mask:
        has_range = np.isin(kind, [NUMBER[name] for name in RANGES])
        fits = (length > 0) & (page + length <= self.nr_pages)
        in_time = (stamp_ns >= self.began_ns - NOTE_NS) & (stamp_ns <= now_ns + NOTE_NS)
        is_known = (kind > 0) & (kind <= len(EVENTS))
        right: Mask = is_known & (fits | ~has_range) & (in_time | (kind != NUMBER["stamp"]))
        return right

    def _times(self, thread: _Thread, is_stamp: Mask, stamp_ns: Array, when: Words) -> Array:
        """Of each event; never earlier than the one before it."""
        if not len(is_stamp):
            return np.zeros(0, "i8")
        ticks = _bits(when, 0, EVENT_CPU_SHIFT)
        last = _last(is_stamp)
        base_ns = np.where(last < 0, thread.ns, stamp_ns[last])
        base_ticks = np.where(last < 0, ticks if thread.ticks is None else thread.ticks, ticks[last])
        apart = (ticks - base_ticks + FAR & 2 * FAR - 1) - FAR  # of bits that go round
        time = base_ns + np.maximum(apart, 0) * self.ns_per_tick
        time = np.maximum.accumulate(np.maximum(time.astype("i8"), thread.latest_ns))
        thread.latest_ns = int(time[-1])
        if last[-1] >= 0:
            thread.ns, thread.ticks = int(base_ns[-1]), int(base_ticks[-1])
        return np.asarray(time)

    def _has_lost(self, thread: _Thread, slot: int, is_attached_later: bool) -> None:
        """Whose is what follows a loss? Who attaches later had not the slot yet, else who has it now."""
        if thread.pid and is_attached_later:
            return
        told = self.pid_of(slot)
        if told > PID_MAX:  # somebody scribbled over it
            told = 0
        thread.pid = told or thread.pid

    def _pids(self, thread: _Thread, is_attach: Mask, page: Array) -> Array:
        """Whose thread it is: an `attach` says so for what follows."""
        if not len(is_attach):
            return np.zeros(0, "i4")
        last = _last(is_attach)
        pid = np.where(last < 0, thread.pid, page[last]).astype("i4")
        thread.pid = int(pid[-1])
        return pid

    def _rows(self, kind: Array, page: Array, length: Array, when: Words) -> dict[str, Array]:
        """All but time, process and slot."""
        columns = {name: np.zeros(len(kind), dtype) for name, dtype in DTYPES.items()}
        codes = [0, *(self.names.code(KIND_OF.get(name, name)) for name in EVENTS)]
        columns["kind"] = np.array(codes, "i2")[kind]
        columns["cpu"] = _bits(when, EVENT_CPU_SHIFT, EVENT_LEVEL_SHIFT).astype("i2")
        columns["size"] = (length * self.granule).astype("u8")
        has_range = np.isin(kind, [NUMBER[name] for name in RANGES])
        columns["addr"] = np.where(has_range, page * self.granule, 0).astype("u8")
        counts = np.isin(kind, [NUMBER[name] for name in COUNTS])
        columns["npurged"] = np.where(counts, page, 0).astype("u4")
        is_request = np.isin(kind, [NUMBER["alloc"], NUMBER["failed"]])
        align = np.left_shift(1, _bits(when, EVENT_ALIGN_SHIFT, EVENT_ALIGN_SHIFT + ALIGN_BITS))
        columns["align"] = np.where(is_request, align * self.granule, 0).astype("u8")
        columns["vend"] = np.where(is_request, self.nr_pages * self.granule, 0).astype("u8")
        columns["failed"] = (kind == NUMBER["failed"]).astype("i4")
        level = np.array([self.names.code(name) for name in LEVELS] + [0] * (8 - len(LEVELS)), "i4")
        served = level[_bits(when, EVENT_LEVEL_SHIFT, EVENT_ALIGN_SHIFT)]
        columns["text"] = np.where(kind == NUMBER["alloc"], served, 0).astype("i4")
        return columns

    def _with_loss(
        self, columns: dict[str, Array], slot: int, lost: int, thread: _Thread, pid: int
    ) -> dict[str, Array]:
        """A row in front that says how many events of that process are missing before these."""
        told = columns["time_ns"]
        row = {name: np.zeros(1, dtype) for name, dtype in DTYPES.items()}
        row["kind"][0], row["cpu"][0], row["slot"][0] = self.names.code(LOST), -1, slot
        row["lost"][0] = min(lost, (1 << 32) - 1)
        row["pid"][0], row["comm"][0] = pid, self.names.code(self.command_of(pid)) if pid else 0
        row["time_ns"][0] = told[0] if len(told) else max(thread.latest_ns, self.began_ns)
        return {name: np.concatenate([row[name], columns[name]]) for name in DTYPES}


def _bits(words: Words, first: int, end: int) -> Array:
    """The bits from `first` up to `end` of each word."""
    return np.asarray(words >> np.uint64(first) & np.uint64((1 << end - first) - 1), "i8")


def _last(is_it: Mask) -> Array:
    """For each place the last one up to it where this is true; -1: none."""
    last: Array = np.maximum.accumulate(np.where(is_it, np.arange(len(is_it)), -1))
    return last
