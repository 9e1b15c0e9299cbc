# SPDX-License-Identifier: MIT
"""Lines to events, one at a time: the specification of reading, in plain Python.

chunks.py gives the same answers many lines at a time, and hands every line it does not know by heart to
`parse_line` here; a test holds the two equal.

A reading keeps little between lines: the counts of a ring's header, the time of the last event, and the last
time on each CPU, from which shuffled files are told. That is `Reading`.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmalloc.lab.dialect import (
    ALLOC_BODY,
    ALLOC_EVENT,
    COLOUR,
    ENTRIES_LINE,
    FREE_BODY,
    FREE_EVENT,
    LOST_LINE,
    MARK_EVENTS,
    PURGE_BODY,
    PURGE_EVENT,
    RAW_ALLOC_BODY,
    RAW_FREE_BODY,
    RAW_PURGE_BODY,
    STACK_LINE,
    Dialect,
)
from vmalloc.lab.events import ALLOC, FREE, LOST, MARK, PAGE_SIZE_MIN, PURGE, Event, Problems

U64_MAX = (1 << 64) - 1
NARROW_END = 1 << 32  # a window that ends below this belongs to a 32-bit kernel


class Reading:
    """What is remembered from line to line of one file."""

    def __init__(self, dialect: Dialect, problems: Problems) -> None:
        self.dialect = dialect
        self.problems = problems
        self.nr_entries = 0  # lines that were an event of any kind, ours or not
        self.nr_events = 0  # events handed out
        self.nr_allocs = self.nr_frees = 0  # of those
        self.unreadable: dict[str, tuple[int, str]] = {}  # event: line and text of the first one damaged
        self.nr_lines = 0  # lines read so far; the next one has this number plus 1
        self.damage: list[str] = []  # why a compressed file ended early
        self.ring: tuple[int, int, int] | None = None  # entries in buffer, entries written, CPUs
        self.last_time_ns = 0
        self.last_on_cpu: dict[int, int] = {}

    def check(self, event: Event) -> Event:
        """Note what is wrong beside the grammar; give a loss the time of the event before it."""
        self.nr_events += 1
        self.nr_allocs += event.kind == ALLOC
        self.nr_frees += event.kind == FREE
        if event.kind == LOST and not event.time_ns:
            return event._replace(time_ns=self.last_time_ns)
        if event.time_ns < self.last_on_cpu.get(event.cpu, 0):
            self.problems.backwards(event.line, event.cpu)
        self.last_on_cpu[event.cpu] = self.last_time_ns = event.time_ns
        if event.kind == ALLOC and event.vend < NARROW_END:
            self.problems.narrow(event.line, event.vend)
        if (
            event.kind in (ALLOC, FREE)
            and not event.failed
            and (event.addr % PAGE_SIZE_MIN or not event.addr)
        ):
            self.problems.hidden(event.line, event.addr)
        return event

    def finish(self) -> None:
        """Note what is known only at the end: damage, and entries that are counted but not there."""
        for damage in self.damage:
            self.problems.note("compressed", self.nr_lines, damage)
        if self.ring is not None and self.nr_entries < self.ring[0] and not self._is_of_one_cpu(self.ring[2]):
            counts = f"the header counts {self.ring[0]:,} entries, the file has {self.nr_entries:,}"
            self.problems.note("missing", self.nr_lines, counts + ": its end is missing")

    def _is_of_one_cpu(self, nr_cpus: int) -> bool:
        """Whether this may be per_cpu/cpuN/trace: its header counts the entries of all CPUs."""
        return nr_cpus > 1 and len(self.last_on_cpu) <= 1

    def refusal(self) -> str | None:
        """Why a file cannot be used though events were read: not one allocation, or not one free, was."""
        for name, nr_read in ((ALLOC_EVENT, self.nr_allocs), (FREE_EVENT, self.nr_frees)):
            damaged = self.unreadable.get(name.decode())
            if damaged is not None and nr_read == 0:
                return (
                    f"line {damaged[0]}: no {name.decode()} can be read, the first is {damaged[1][:60]!r}; "
                    "print the recording anew in the kernel's own format: trace-cmd report or perf script "
                    "with their default fields, or the file trace itself"
                )
        return None


def plain(data: bytes) -> bytes:
    """A text without colours and with bare newlines."""
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    return COLOUR.sub(b"", data) if b"\x1b[" in data else data


def events_of_chunk(data: bytes, reading: Reading) -> Iterator[Event]:
    """The events of a chunk of lines, in file order."""
    lines = plain(data).split(b"\n")
    whole = lines[-1] == b""
    if whole:
        lines.pop()
    first = reading.nr_lines + 1
    reading.nr_lines += len(lines)
    for number, line in enumerate(lines, first):
        event = parse_line(line, number, reading, cut=not whole and number == reading.nr_lines)
        if event is not None:
            yield reading.check(event)


def parse_line(line: bytes, number: int, reading: Reading, *, cut: bool = False) -> Event | None:
    """One line to an event; None for comments and what is noted as a problem. `cut`: it had no newline."""
    line = line.rstrip(b"\r")
    matched = reading.dialect.head.fullmatch(line)
    if matched is None:
        return _special_line(line, number, reading, cut)
    reading.nr_entries += 1
    event = _event(matched.groupdict(), number, reading, cut)
    if cut:
        reading.problems.cut_off(number, used=event is not None)
    return event


def _event(head: dict[str, bytes | None], number: int, reading: Reading, cut: bool) -> Event | None:
    comm, name, body = head["comm"] or b"", head["event"] or b"", head["body"] or b""
    pid, cpu = int(head["pid"] or 0), int(head["cpu"] or -1)
    time_ns = _time_ns(head, number, reading.problems)
    common = (time_ns, cpu, pid, comm.decode("utf-8", "replace"))
    if name == ALLOC_EVENT and (match := ALLOC_BODY.fullmatch(body)):
        addr, size, align, vstart, vend, failed = match.groups()
        sizes = (int(addr), int(size), int(align), int(vstart, 16), int(vend, 16), int(failed))
        if max(sizes) <= U64_MAX:
            return Event(*common, ALLOC, *sizes, line=number)
    if name == FREE_EVENT and (match := FREE_BODY.fullmatch(body)):
        addr, nr_lazy, nr_lazy_max = match.groups()
        counts = (int(nr_lazy), int(nr_lazy_max))
        if max(counts) <= U64_MAX:
            return Event(*common, FREE, int(addr, 16), nr_lazy=counts[0], nr_lazy_max=counts[1], line=number)
    if name == PURGE_EVENT and (match := PURGE_BODY.fullmatch(body)):
        start, end, npurged = int(match[1], 16), int(match[2], 16), int(match[3])
        return Event(*common, PURGE, start, max(end - start, 0), npurged=npurged, line=number)
    if (event := _raw_event(common, name, body, number)) is not None:
        return event
    if name in MARK_EVENTS:
        text = body.removeprefix(b"tracing_mark_write: ").decode("utf-8", "replace").strip()
        return Event(*common, MARK, text=text, line=number)
    if cut:
        return None  # told by the caller
    text = body.decode("utf-8", "replace")
    if name in (ALLOC_EVENT, FREE_EVENT, PURGE_EVENT):
        if not any(body_of.fullmatch(body) for body_of in (ALLOC_BODY, FREE_BODY, PURGE_BODY)):
            reading.unreadable.setdefault(name.decode(), (number, text))  # else a number is too large: damage
        reading.problems.bad_fields(number, name.decode(), text)
    else:
        reading.problems.other_event(number, name.decode())
    return None


def _raw_event(common: tuple[int, int, int, str], name: bytes, body: bytes, number: int) -> Event | None:
    """An event whose body is the record's fields."""
    if name == ALLOC_EVENT and (match := RAW_ALLOC_BODY.fullmatch(body)):
        addr, size, align, vstart, vend, failed = (int(text, 0) for text in match.groups())
        if max(addr, size, align, vstart, vend) <= U64_MAX:
            return Event(*common, ALLOC, addr, size, align, vstart, vend, failed, line=number)
    if name == FREE_EVENT and (match := RAW_FREE_BODY.fullmatch(body)):
        addr, nr_lazy, nr_lazy_max = (int(text, 0) for text in match.groups())
        if max(addr, nr_lazy, nr_lazy_max) <= U64_MAX:
            return Event(*common, FREE, addr, nr_lazy=nr_lazy, nr_lazy_max=nr_lazy_max, line=number)
    if name == PURGE_EVENT and (match := RAW_PURGE_BODY.fullmatch(body)):
        start, end, npurged = (int(text, 0) for text in match.groups())
        if max(start, end, npurged) <= U64_MAX and npurged < 1 << 32:
            return Event(*common, PURGE, start, max(end - start, 0), npurged=npurged, line=number)
    return None


def _time_ns(head: dict[str, bytes | None], number: int, problems: Problems) -> int:
    sec, frac, ticks = head["sec"], head["frac"], head.get("ticks")
    if sec is None or frac is None:
        problems.note("clock", number, "times have no decimals: a clock that counts ticks, not seconds")
        return int(ticks or 0)
    return int(sec) * 1_000_000_000 + int(frac) * (1000 if len(frac) == 6 else 1)


def _special_line(line: bytes, number: int, reading: Reading, cut: bool) -> Event | None:
    """A line that is no event: the ring's counts, a loss, a comment, a tool's header, or damage."""
    if match := LOST_LINE.fullmatch(line):
        cpu = next((int(match[group]) for group in ("cpu1", "cpu2", "cpu3") if match[group]), -1)
        lost = next((int(match[group]) for group in ("n1", "n2", "n4") if match[group]), 0)
        what = "events lost while recording" if lost else "events lost while recording, how many is not said"
        reading.problems.note("lost", number, what)
        return Event(cpu=cpu, kind=LOST, lost=lost, text=line.decode("ascii", "replace").strip(), line=number)
    if match := ENTRIES_LINE.match(line):
        inside, written = int(match[1]), int(match[2])
        reading.ring = (inside, written, int(match[3] or 1))
        if written > inside:
            gone = written - inside
            what = f"the ring was overwritten: {gone:,} of {written:,} events before the first are lost"
            reading.problems.note("overwritten", number, what)
            return Event(cpu=-1, kind=LOST, lost=gone, text="ring overwritten", line=number)
        return None
    if STACK_LINE.fullmatch(line):
        reading.nr_entries += line.endswith(b">") and b": <" in line
        return None
    stripped = line.strip()
    if not stripped or stripped.startswith((b"#", b"cpus=", b"version =", b"CPU ", b"cpu ")):
        return None
    if cut:
        reading.problems.cut_off(number, used=False)
    else:
        reading.problems.not_a_line(number, stripped.decode("utf-8", "replace"))
    return None
