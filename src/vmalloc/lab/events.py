# SPDX-License-Identifier: MIT
"""What one trace event is, and what can be wrong with a file of them.

Every reader yields `Event`; its fields are the columns of the columnar file (columnar.py,
docs/trace-format.md). Trouble in a file is not an exception but a `Problem` with a line number, collected in
`Problems`; only a file from which nothing can be used raises `TraceError`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

log = logging.getLogger("vmalloc.lab")

PAGE_SIZE_MIN = 4096  # every kernel with vmap areas uses pages of at least this size


class Event(NamedTuple):
    """One line of a recording. A field that its kind does not use is 0 or empty.

    addr is va_start (alloc, free) or the start of the purged range; of a failed allocation it is what the
    kernel printed: vend up to 6.15, a negative errno as an unsigned number from 6.16 on. size is in bytes and
    includes the guard page; of a purge it is end - start, and 0 when nothing was purged. cpu is -1 where the
    line names none. slot is the thread slot of our own allocator's events.
    """

    time_ns: int = 0
    cpu: int = 0
    pid: int = 0
    comm: str = ""
    kind: str = ""
    addr: int = 0
    size: int = 0
    align: int = 0
    vstart: int = 0
    vend: int = 0
    failed: int = 0
    nr_lazy: int = 0
    nr_lazy_max: int = 0
    npurged: int = 0
    text: str = ""
    lost: int = 0
    line: int = 0
    slot: int = 0


ALLOC, FREE, PURGE, MARK, LOST = "alloc", "free", "purge", "mark", "lost"
KERNEL_KINDS = (ALLOC, FREE, PURGE, MARK, LOST)


def rows_between_marks(marks: Iterable[tuple[int, str]], nr_rows: int) -> slice:
    """The rows after a mark STATE0 and before a mark STATE1, where there are such; marks: rows and texts."""
    named = {text.split()[0]: row for row, text in marks if text}
    return slice(named.get("STATE0", -1) + 1, named.get("STATE1", nr_rows))


class TraceError(ValueError):
    """Nothing in the file can be used; the message names the file, the line and the reason."""


@dataclass
class Problem:
    """One kind of trouble in a file: where it was first seen, what it means, how often it was seen."""

    line: int
    what: str
    count: int = 1

    def __str__(self) -> str:
        again = f" ({self.count:,} times)" if self.count > 1 else ""
        return f"line {self.line}: {self.what}{again}"


class Problems:
    """The problems of one file, in the order in which they were met; each kind is kept once and counted."""

    def __init__(self, keep: list[Problem] | None = None) -> None:
        self.noted: list[Problem] = [] if keep is None else keep
        self._by_key: dict[str, Problem] = {}

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.noted)

    def __len__(self) -> int:
        return len(self.noted)

    def note(self, key: str, line: int, what: str, count: int = 1) -> None:
        """Note trouble at `line`. Of each `key` the first line and text are kept, later ones are counted."""
        known = self._by_key.get(key)
        if known is None:
            known = self._by_key[key] = Problem(line, what, count)
            self.noted.append(known)
        else:
            known.count += count

    def say(self, name: str) -> None:
        """Log every problem as one line."""
        for problem in self.noted:
            log.warning("%s: %s", name, problem)

    # What follows is the wording, in one place for the line reader and the chunk reader.

    def other_event(self, line: int, event: str, count: int = 1) -> None:
        self.note("event " + event, line, f"event {event} is not a vmalloc event, skipped", count)

    def not_a_line(self, line: int, text: str) -> None:
        self.note("grammar", line, f"not a trace line, skipped: {text[:60]!r}")

    def bad_fields(self, line: int, event: str, text: str) -> None:
        self.note("fields", line, f"{event} with damaged fields, skipped: {text[:60]!r}")

    def cut_off(self, line: int, used: bool) -> None:
        fate = "used, but its last number may be short" if used else "skipped"
        self.note("cut", line, f"the file ends in the middle of a line ({fate})")

    def backwards(self, line: int, cpu: int, count: int = 1) -> None:
        what = (
            f"time runs backwards on CPU {cpu}: lines are shuffled or files were joined; kept in file order"
        )
        self.note("backwards", line, what, count)

    def narrow(self, line: int, vend: int, count: int = 1) -> None:
        what = f"addresses of a 32-bit machine (vend={vend:#x}); they are used as they are"
        self.note("32-bit", line, what, count)

    def hidden(self, line: int, addr: int, count: int = 1) -> None:
        if addr == 0:
            what = "addresses are hidden (all zero): sizes and times can be used, places cannot"
        elif addr < 1 << 32:
            what = f"addresses are hashed ({addr:#x} is on no page boundary): sizes and times can be used, "
            what += "places cannot"
        else:
            what = f"address {addr:#x} is on no page boundary: not an address of a vmap area"
        self.note("hidden", line, what, count)
