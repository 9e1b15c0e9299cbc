# SPDX-License-Identifier: MIT
"""What `vmalloc report` shows, as plain numbers: cli/report_page.py draws it, cli/report.py asks for it.

    report = report_of_recording("run.trace.gz")        the kernel's areas; start: those before, too
    add_replay(report, load("run.trace.gz"), design)    beside them, what the model had in its pools
    report = watch.report("frames")                     a live region, from pictures of it (Watch)

All of them come down to `Lives`: areas, from when to when each was there, and for whom. Everything over time
is told at some instants. Places are in pages, times in seconds since the first event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vmalloc.lab.columns import Array, Columns
from vmalloc.lab.events import (
    ALLOC,
    FREE,
    LOST,
    MARK,
    PAGE_SIZE_MIN,
    PURGE,
    Problem,
    TraceError,
    rows_between_marks,
)
from vmalloc.lab.files import StrPath
from vmalloc.lab.state import read_state
from vmalloc.lab.trace import OWN_KNOWS, header_of, metadata_of, read_columns
from vmalloc.lab.vmallocinfo import read_vmallocinfo

if TYPE_CHECKING:
    from vmalloc.lab.replay import Recording
    from vmalloc.model import CachingDesign, Design

INSTANTS = 160
"""At so many moments, evenly apart, everything over time is told."""
MAP_ROWS = 120
GAP_KEPT = 256
"""Pages. A longer part of the addresses in which nothing ever was is left out of the map."""
CALLERS = 12
LIFETIMES = (
    (1e-5, "under 10 µs"),
    (1e-4, "10 to 100 µs"),
    (1e-3, "0.1 to 1 ms"),
    (1e-2, "1 to 10 ms"),
    (1e-1, "10 to 100 ms"),
    (1.0, "0.1 to 1 s"),
    (10.0, "1 to 10 s"),
    (100.0, "10 to 100 s"),
    (np.inf, "longer"),
)
"""Bounds, the last moment that still counts left out, and what each class is called."""


# ---------------------------------------------------------------------- what a page is made of


@dataclass
class Line:
    """One quantity over time."""

    name: str
    times: list[float]
    values: list[float]


@dataclass
class Bars:
    """One number, or several, for each label."""

    labels: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Map:
    """How much of each part of the addresses was taken at some time since the instant before, in percent."""

    times: list[float]
    starts: list[int]
    percent: list[list[int]]  # a row for each part


@dataclass
class Report:
    """All numbers of a page. What is empty could not be told; `notes` says why."""

    title: str
    began_ns: int = 0  # where the times begin, by the recording's clock
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    map: Map | None = None
    sizes: Bars = field(default_factory=Bars)
    callers: Bars = field(default_factory=Bars)
    lifetimes: Bars = field(default_factory=Bars)
    served: Bars = field(default_factory=Bars)
    pages: list[Line] = field(default_factory=list)
    pools: list[Line] = field(default_factory=list)
    lazy: list[Line] = field(default_factory=list)
    purged: list[Line] = field(default_factory=list)
    fragmentation: list[Line] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# ---------------------------------------------------------------------- areas and their lives


@dataclass(eq=False)
class Lives:
    """Areas, one a row. `died` is infinite for one that was there at the end."""

    start: Array
    nr_pages: Array
    born: Array
    died: Array
    measured: Array  # birth and death were both seen
    caller: Array  # an index into callers
    callers: list[str]

    def __len__(self) -> int:
        return len(self.start)

    def where(self, chosen: Array) -> Lives:
        return Lives(
            self.start[chosen],
            self.nr_pages[chosen],
            self.born[chosen],
            self.died[chosen],
            self.measured[chosen],
            self.caller[chosen],
            self.callers,
        )

    def alive(self, instant: float) -> Array:
        return np.asarray((self.born <= instant) & (instant < self.died))

    def between(self, since: float, until: float) -> Array:
        """Those that were there at some time after `since` and until `until`."""
        return np.asarray((self.born <= until) & (since < self.died))


def instants_until(end: float) -> list[float]:
    """Evenly apart, the last one at the end; one alone where no time passed."""
    return [end * (n / INSTANTS) for n in range(1, INSTANTS + 1)] if end > 0 else [0.0]


class Earlier(NamedTuple):
    """An area that was there before the first event."""

    start: int
    size: int  # bytes
    caller: str


def lives_of(columns: Columns, earlier: Sequence[Earlier] = ()) -> Lives:
    """The areas whose allocation is in the recording, which is in time order; and those of before.

    An earlier one was born at no time that is known: minus infinity.
    """
    nr = len(earlier)
    seconds = np.concatenate((np.full(nr, -np.inf), _seconds(columns)))
    is_alloc = np.concatenate((np.ones(nr, bool), columns.is_kind(ALLOC) & (columns["failed"] == 0)))
    is_free = np.concatenate((np.zeros(nr, bool), columns.is_kind(FREE)))
    all_addresses = np.concatenate((np.array([area.start for area in earlier], "u8"), columns["addr"]))
    sizes = np.concatenate((np.array([area.size for area in earlier], "u8"), columns["size"]))
    comms = np.array([columns.names.code(area.caller) for area in earlier], "i4")
    comms = np.concatenate((comms, columns["comm"]))
    chosen = np.flatnonzero(is_alloc | is_free)
    addresses = all_addresses[chosen]
    order = np.argsort(addresses, kind="stable")  # of one address, still by time
    rows, addresses = chosen[order], addresses[order]
    follows = np.zeros(len(rows), bool)  # the next event is one of the same address
    follows[:-1] = addresses[1:] == addresses[:-1]
    begins = np.flatnonzero(is_alloc[rows])
    ends = np.minimum(begins + 1, len(rows) - 1)
    has_end = follows[begins]
    names, caller = np.unique(comms[rows[begins]], return_inverse=True)
    return Lives(
        start=(addresses[begins] // PAGE_SIZE_MIN).astype("i8"),
        nr_pages=np.maximum(sizes[rows[begins]] // PAGE_SIZE_MIN, 1).astype("i8"),
        born=seconds[rows[begins]],
        died=np.where(has_end, seconds[rows[ends]], np.inf),
        measured=has_end & ~is_alloc[rows[ends]] & (rows[begins] >= nr),
        caller=caller,
        callers=[columns.names.strings[name] for name in names],
    )


def _seconds(columns: Columns) -> Array:
    times = columns["time_ns"]
    return np.asarray((times - times[:1].sum()) / 1e9)


# ---------------------------------------------------------------------- bars


def sizes_of(lives: Lives) -> Bars:
    """Shares of the areas and of their pages, by powers of two."""
    if not len(lives):
        return Bars()
    power = np.ceil(np.log2(lives.nr_pages)).astype(int)
    areas = np.bincount(power)
    pages = np.bincount(power, weights=lives.nr_pages)
    labels = [_size_label(n) for n in range(len(areas))]
    return Bars(labels, {"areas, %": _percent(areas), "pages, %": _percent(pages)})


def _size_label(power: int) -> str:
    least, most = (1 << power >> 1) + 1, 1 << power
    return str(most) if least >= most else f"{least} to {most}"


def _percent(counts: Array) -> list[float]:
    return [round(float(n), 2) for n in counts * 100 / counts.sum()]


def callers_of(lives: Lives) -> Bars:
    """Pages by who asked for them, most first."""
    pages = np.bincount(lives.caller, weights=lives.nr_pages, minlength=len(lives.callers))
    order = np.argsort(-pages, kind="stable")
    labels = [lives.callers[n] or "(no name)" for n in order[:CALLERS]]
    values = [float(pages[n]) for n in order[:CALLERS]]
    if len(order) > CALLERS:
        labels.append(f"{len(order) - CALLERS} others")
        values.append(float(pages[order[CALLERS:]].sum()))
    return Bars(labels, {"pages": values}) if labels else Bars()


def lifetimes_of(lives: Lives) -> Bars:
    """Areas by how long they lived; the others are counted apart."""
    took = (lives.died - lives.born)[lives.measured]
    bounds = [bound for bound, _ in LIFETIMES[:-1]]
    counts = np.bincount(np.searchsorted(bounds, took, side="right"), minlength=len(LIFETIMES))
    labels = [label for _, label in LIFETIMES]
    unknown = np.count_nonzero(~lives.measured & np.isfinite(lives.died))
    there = np.count_nonzero(np.isinf(lives.died))
    extra = {"still there": there, "not known": unknown}
    return Bars([*labels, *extra], {"areas": [float(n) for n in (*counts, *extra.values())]})


# ---------------------------------------------------------------------- over time


def map_of(lives: Lives, instants: Sequence[float]) -> Map | None:
    """The addresses over time. Parts in which nothing ever was are left out if they are long."""
    if not len(lives):
        return None
    lives = lives.where(np.argsort(lives.start, kind="stable"))
    ends = np.maximum.accumulate(lives.start + lives.nr_pages)
    first = np.ones(len(lives), bool)  # of a stretch
    first[1:] = lives.start[1:] > ends[:-1] + GAP_KEPT
    stretch = lives.start[first]
    lengths = np.append(ends[:-1][first[1:]], ends[-1]) - stretch
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    places = lives.start - stretch[np.cumsum(first) - 1] + offsets[np.cumsum(first) - 1]
    nr_rows = int(min(MAP_ROWS, offsets[-1]))
    bounds = np.arange(nr_rows + 1) * offsets[-1] // nr_rows
    at = np.searchsorted(offsets, bounds[:-1], side="right") - 1
    since = [-np.inf, *instants[:-1]]
    covered = [
        _covered(places[there], lives.nr_pages[there], bounds)
        for there in map(lives.between, since, instants)
    ]
    percent = np.array(covered).T * 100 / np.diff(bounds)[:, None]
    return Map(
        [float(instant) for instant in instants],
        [int(start) for start in stretch[at] + bounds[:-1] - offsets[at]],
        [[int(n) for n in row] for row in np.ceil(percent)],
    )


def _covered(places: Array, nr_pages: Array, bounds: Array) -> Array:
    """How many pages between each two bounds lie in an area; areas are sorted, one page may be in several."""
    if not len(places):
        return np.zeros(len(bounds) - 1)
    ends = np.maximum.accumulate(places + nr_pages)
    first = np.ones(len(places), bool)  # of those that overlap or touch
    first[1:] = places[1:] > ends[:-1]
    # below x lie, of each, the pages after its start and before x, less those after its end
    ends = np.append(ends[:-1][first[1:]], ends[-1])
    return np.diff(_sum_below(places[first], bounds) - _sum_below(ends, bounds))


def _sum_below(points: Array, bounds: Array) -> Array:
    """Of each bound its distances to all points below it, added; points are sorted."""
    sums = np.concatenate(([0], np.cumsum(points)))
    below = np.searchsorted(points, bounds)
    return np.asarray(below * bounds - sums[below])


def holes_of(lives: Lives, instants: Sequence[float]) -> tuple[list[Line], list[Line]]:
    """What is between the areas at each instant: pages, and the share of them outside of the largest hole."""
    lives = lives.where(np.argsort(lives.start, kind="stable"))
    live, between, largest, shares = [], [], [], []
    for instant in instants:
        there = lives.where(lives.alive(instant))
        holes = np.maximum(there.start[1:] - (there.start + there.nr_pages)[:-1], 0)
        live.append(float(there.nr_pages.sum()))
        between.append(float(holes.sum()))
        largest.append(float(holes.max(initial=0)))
        shares.append(scattered(between[-1], largest[-1]))
    times = [float(instant) for instant in instants]
    pages = [Line("in areas", times, live), Line("between areas", times, between)]
    return [*pages, Line("largest hole", times, largest)], [
        Line("outside of the largest hole, %", times, shares)
    ]


def scattered(free: float, largest: float) -> float:
    """Fragmentation: the percentage of what is free that one request cannot have; 0 where nothing is free."""
    return round(100 * (1 - largest / free), 2) if free else 0.0


def lazy_of(columns: Columns, instants: Sequence[float]) -> list[Line]:
    """The backlog as frees print it, its most since the instant before; and where a purge is due.

    Nothing where no free tells it, as in recordings of our own allocator.
    """
    seconds, is_free = _seconds(columns), columns.is_kind(FREE)
    if not columns["nr_lazy_max"][is_free].any():
        return []
    at = np.searchsorted(instants, seconds)
    most = _most_at(at[is_free], columns["nr_lazy"][is_free], len(instants))
    threshold = _most_at(at[is_free], columns["nr_lazy_max"][is_free], len(instants))
    times = [float(instant) for instant in instants]
    return [Line("lazy, pages", times, most), Line("a purge is due, pages", times, threshold)]


def purged_of(columns: Columns, instants: Sequence[float]) -> list[Line]:
    """The areas that purges took since the instant before."""
    is_purge = columns.is_kind(PURGE)
    at = np.searchsorted(instants, _seconds(columns)[is_purge])
    counts = np.bincount(at, weights=columns["npurged"][is_purge], minlength=len(instants))
    times = [float(instant) for instant in instants]
    return [Line("areas purged", times, [float(n) for n in counts])] if is_purge.any() else []


def _most_at(at: Array, values: Array, nr: int) -> list[float]:
    """The most of the values at each place; where there are none, the last one before."""
    most: list[float | None] = [None] * nr
    last: dict[int, float] = {}
    for place, value in zip(at.tolist(), values.tolist(), strict=True):
        most[place] = max(float(value), most[place] or 0.0)
        last[place] = float(value)
    held, filled = float(values[0]), []
    for place in range(nr):
        value = most[place]
        filled.append(held if value is None else value)
        held = last.get(place, held)
    return filled


# ---------------------------------------------------------------------- a recording


class Start(NamedTuple):
    """What is known of a recording's start: from which file, its areas, and what is wrong with the file."""

    of: str
    areas: list[Earlier]
    problems: list[Problem]


NOTHING_KNOWN = Start("", [], [])


def start_of_state(path: StrPath) -> Start:
    """The areas in use in a guest's dump, which does not say whose they are. Raises StateError."""
    busy = read_state(path).busy
    return Start(Path(path).name, [Earlier(a.start, a.size, "(before)") for a in busy], [])


def start_of_vmallocinfo(path: StrPath) -> Start:
    """The areas in use in a snapshot, each with the function that made it. Raises TraceError."""
    problems: list[Problem] = []
    info = read_vmallocinfo(path, problems=problems)
    if info.addresses != "real":
        raise TraceError(
            f"{path}: addresses are {info.addresses}: the areas cannot be found in the recording"
        )
    areas = [Earlier(a.start, a.size, a.function or "(before)") for a in info.busy()]
    return Start(Path(path).name, areas, problems)


def report_of_recording(path: StrPath, start: Start = NOTHING_KNOWN) -> Report:
    """Of a recording of a kernel and what was there before it. Raises TraceError if nothing can be used."""
    is_own = metadata_of(path).get("source") == "vmalloc"
    if is_own and start.of:
        raise TraceError(f"{path}: {OWN_KNOWS}")
    problems: list[Problem] = list(start.problems)
    columns = read_columns(path, problems=problems).by_time()
    if start.of:
        columns = _between_marks(columns)
    lives = lives_of(columns, start.areas)
    nr_frees = int(np.count_nonzero(columns.is_kind(FREE)))
    if len(lives) == len(start.areas) and not nr_frees:
        raise TraceError(f"{path}: no allocation and no free in it")
    end = float(_seconds(columns)[-1])
    instants = instants_until(end)
    report = Report(f"Recording {Path(path).name}", began_ns=int(columns["time_ns"][0]))
    report.notes = [str(problem) for problem in problems]
    report.facts = _facts(columns, lives, nr_frees, end, start) | {
        "machine": "; ".join(header_of(path)) or "not told"
    }
    report.sizes, report.callers = sizes_of(lives), callers_of(lives)
    report.lifetimes = lifetimes_of(lives)
    report.lazy, report.purged = lazy_of(columns, instants), purged_of(columns, instants)
    _add_places(report, columns, lives, instants)
    if is_own:
        report.notes.append("A recording tells of ranges that were made while it ran, not of those before.")
    elif not start.of:
        report.notes.append(
            "A recording tells of areas that were made while it ran. --state or --vmallocinfo add those that "
            "were there before."
        )
    report.notes.append(
        "A recording does not tell what waits in pools: --replay DESIGN shows the pools of the model, which "
        "begin empty."
    )
    return report


def _between_marks(columns: Columns) -> Columns:
    """The rows that the replay takes too: a start state is of the moment of its mark."""
    texts = columns.names.strings
    marks = ((int(row), texts[columns["text"][row]]) for row in np.flatnonzero(columns.is_kind(MARK)))
    rows = rows_between_marks(marks, columns.nr_rows)
    return Columns({name: column[rows] for name, column in columns.items()}, columns.names)


def _facts(columns: Columns, lives: Lives, nr_frees: int, end: float, start: Start) -> dict[str, str]:
    failed = np.count_nonzero(columns.is_kind(ALLOC) & (columns["failed"] != 0))
    lost = columns["lost"][columns.is_kind(LOST)]
    before = {"areas before": f"{len(start.areas):,}, by {start.of}"} if start.of else {}
    return {
        "seconds": f"{end:,.3f}",
        "areas": f"{len(lives) - len(start.areas):,}",
        **before,
        "frees": f"{nr_frees:,}, {nr_frees - np.count_nonzero(lives.measured):,} of them of older areas",
        "failed": f"{failed:,}",
        "purges": f"{np.count_nonzero(columns.is_kind(PURGE)):,}",
        "events lost": f"{lost.sum():,}" if len(lost) else "none",
    }


def _add_places(report: Report, columns: Columns, lives: Lives, instants: Sequence[float]) -> None:
    """What wants real addresses; of the window that most requests were for."""
    is_alloc = columns.is_kind(ALLOC) & (columns["failed"] == 0)
    addresses = columns["addr"][is_alloc]
    if not len(addresses):
        return
    if (addresses % PAGE_SIZE_MIN).any() or not addresses.any():
        report.notes.append("The addresses are hidden or hashed: no map, nothing of fragmentation.")
        return
    windows, counts = np.unique(columns["vstart"][is_alloc], return_counts=True)
    chosen = columns["vstart"][is_alloc] == windows[counts.argmax()]
    end = columns["vend"][is_alloc][chosen].max()
    start = int(windows[counts.argmax()])
    inside = (lives.start >= start // PAGE_SIZE_MIN) & (lives.start <= int(end) // PAGE_SIZE_MIN)
    report.facts["window of the map"] = f"{start:#x} to {int(end):#x}, {np.count_nonzero(inside):,} areas"
    report.map = map_of(lives.where(inside), instants)
    if report.map is not None:
        report.map.starts = [page * PAGE_SIZE_MIN for page in report.map.starts]
    report.pages, report.fragmentation = holes_of(lives.where(inside), instants)


def add_replay(report: Report, recording: Recording, design: Design | CachingDesign) -> None:
    """What a design's model has in its pools while it serves the recording's requests, from nothing on."""
    from vmalloc.lab.replay import run_on_model

    course = run_on_model(recording, design)
    stamps = [recording.events[sample.event - 1].time_ns for sample in course.samples]
    times = [(stamp - report.began_ns) / 1e9 for stamp in stamps]

    def line(name: str, values: Sequence[float]) -> Line:
        return Line(f"{name} ({design.name})", times, [float(value) for value in values])

    samples = course.samples
    report.pools = [
        line("in pools", [s.pooled for s in samples]),
        line("in areas", [s.live_pages for s in samples]),
        line("lazy", [s.lazy_pages for s in samples]),
    ]
    report.lazy.append(line("lazy, pages", [s.lazy_pages for s in samples]))
    taken = [s.live_pages + s.lazy_pages + s.pooled for s in samples]
    unused = [scattered(s.footprint_pages, n) for s, n in zip(samples, taken, strict=True)]
    report.fragmentation.append(line("free below the highest address, %", unused))
    served = {str(level): float(count) for level, count in course.served.items()}
    report.served = Bars(list(served), {"requests": list(served.values())})
    report.facts["replay"] = f"{design.name}: {course.purges:,} purges, {course.failed:,} failed"


# ---------------------------------------------------------------------- a live region


class Watch:
    """Pictures of a region, each the table of its ranges at one moment."""

    STATES = ("busy", "cached", "pooled", "lazy", "free")

    def __init__(self, granule: int, states: Sequence[str]) -> None:
        self.granule, self.states = granule, states
        self.times: list[float] = []
        self.names: dict[int, str] = {}
        self._fresh: list[Array] = []  # of each picture, the busy ranges that the one before did not show
        self._gone: list[tuple[Array, float]] = []  # of each picture, which of all those were there no more
        self._ids = np.zeros(0, "u8")  # of the last picture
        self._at = np.zeros(0, "i8")  # and which of all those they are
        self._pages: dict[str, list[float]] = {state: [] for state in self.STATES}
        self._largest: list[float] = []

    def add(self, seconds: float, rows: Array, pids: dict[int, int]) -> None:
        """rows: start, nr_pages, id, state, owner of each range; pids by process slot, 0: the region."""
        self.times.append(seconds)
        for slot, pid in pids.items():
            self.names[slot] = f"process {pid}" if pid else "the region itself, by name"
        for state, pages in self._pages.items():
            pages.append(float(rows["nr_pages"][rows["state"] == self.states.index(state)].sum()))
        free = rows["nr_pages"][rows["state"] == self.states.index("free")]
        self._largest.append(float(free.max(initial=0)))
        self._add_busy(seconds, rows[rows["state"] == self.states.index("busy")])

    def _add_busy(self, seconds: float, busy: Array) -> None:
        """A million ranges that stay are kept once, not once a picture."""
        stays = np.isin(self._ids, busy["id"])
        fresh = busy[~np.isin(busy["id"], self._ids)]
        at = sum(map(len, self._fresh)) + np.arange(len(fresh))
        self._gone.append((self._at[~stays], seconds))
        self._fresh.append(fresh)
        self._ids = np.concatenate((self._ids[stays], fresh["id"]))
        self._at = np.concatenate((self._at[stays], at))

    def lives(self) -> Lives:
        """A range lives from the first picture that shows its id until the first that does not any more."""
        rows = np.concatenate(self._fresh)
        picture = np.repeat(np.arange(len(self._fresh)), [len(fresh) for fresh in self._fresh])
        died = np.full(len(rows), np.inf)
        for at, seconds in self._gone:
            died[at] = seconds
        owners, caller = np.unique(rows["owner"], return_inverse=True)
        return Lives(
            start=rows["start"].astype("i8"),
            nr_pages=rows["nr_pages"].astype("i8"),
            born=np.array(self.times)[picture],
            died=died,
            measured=(picture > 0) & np.isfinite(died),
            caller=caller,
            callers=[self.names.get(int(owner), f"slot {owner}") for owner in owners],
        )

    def report(self, name: str) -> Report:
        lives = self.lives()
        report = Report(f"Region {name}", map=map_of(lives, self.times))
        if report.map is not None:
            report.map.starts = [page * self.granule for page in report.map.starts]
        report.facts = {
            "pictures": f"{len(self.times):,} in {self.times[-1]:,.1f} s",
            "ranges seen busy": f"{len(lives):,}",
            "bytes a page": f"{self.granule:,}",
        }
        report.sizes, report.callers = sizes_of(lives), callers_of(lives)
        report.lifetimes = lifetimes_of(lives)
        self._add_lines(report)
        report.notes.append(
            "A range that came and went between two pictures is in none. Life times are as exact as pictures "
            "are apart."
        )
        return report

    def _add_lines(self, report: Report) -> None:
        def line(name: str, values: list[float]) -> Line:
            return Line(name, self.times, values)

        free = self._pages["free"]
        report.pages = [line("in busy ranges", self._pages["busy"]), line("free", free)]
        report.pages.append(line("largest free range", self._largest))
        report.pools = [line("in magazines", self._pages["cached"]), line("in pools", self._pages["pooled"])]
        report.lazy = [line("lazy, pages", self._pages["lazy"])]
        shares = [scattered(*both) for both in zip(free, self._largest, strict=True)]
        report.fragmentation = [line("outside of the largest free range, %", shares)]
