# SPDX-License-Identifier: MIT
"""Replay: a recording, what is known beside it, and what the model says to it.

    recording = load("fix_size.trace.xz", state="fix_size.state0.xz")
    outcome = predict(recording, PRESETS["linux-6.9"])        where each area lands: predict.py
    ranking = rank(recording)                                 which kernel generation: generation.py
    course = run_on_model(recording, PRESETS["vmalloc"])      the same requests, the model's own decisions

A recording may hold the marks STATE0 and STATE1, which say where a state was dumped; then only the events
between them are replayed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vmalloc.lab.events import ALLOC, FREE, MARK, Event, TraceError, rows_between_marks
from vmalloc.lab.files import StrPath
from vmalloc.lab.orders import Timeline
from vmalloc.lab.predict import Prediction, Predictor, lost_events, most_used_window
from vmalloc.lab.restore import restore, unseen_frees
from vmalloc.lab.state import EndDifference, State, compare, read_state, state_of_vmallocinfo
from vmalloc.lab.tidy import tidy
from vmalloc.lab.trace import OWN_KNOWS, header_of, metadata_of, read_events, read_vmallocinfo
from vmalloc.model import (
    PAGE,
    Allocator,
    CachingAllocator,
    CachingDesign,
    Design,
    Kernel,
    allocator_of,
)

if TYPE_CHECKING:
    from vmalloc.lab.generation import Ranking

OWN_BASE = 1 << 40
"""Where the model's window begins for our own recordings: aligned to whatever is asked for."""
SAMPLES = 200
"""Points of a course over time."""


@dataclass(frozen=True)
class Own:
    """Of a recording of our own allocator: what its region and machine were."""

    pools: str
    nr_pages: int
    nr_nodes: int
    nr_cpus: int
    memory_bytes: int

    def model(self, design: CachingDesign) -> CachingAllocator:
        return CachingAllocator(
            replace(design, pools=self.pools, nodes_max=self.nr_nodes),
            self.nr_cpus,
            self.window,
            memory_bytes=self.memory_bytes,
        )

    @property
    def window(self) -> tuple[int, int]:
        return OWN_BASE, OWN_BASE + self.nr_pages * PAGE


@dataclass
class Recording:
    """Events between the state marks, and what is known about the machine and its start.

    Made of all the events of a file: what stands on the wrong side of a mark is put back before they are cut.
    """

    events: list[Event]
    window: tuple[int, int]
    cpus: int
    start: State | None = None
    complete: bool = False
    header: list[str] = field(default_factory=list)
    own: Own | None = None
    restored: Counter[str] = field(init=False)
    line: Timeline = field(init=False)

    def __post_init__(self) -> None:
        if self.own is not None:  # nothing of it is out of place, or can be told from a counter
            self.restored, self.line = Counter(), Timeline(self.events)
            return
        ordered, put_right = tidy(self.events)
        ordered = between_marks(ordered)
        busy = self.start.busy if self.start is not None else ()
        lazy = [area for _, area in self.start.lazy] if self.start is not None else None
        self.events, self.restored = restore(ordered, busy, lazy)
        self.restored += put_right
        self.line = Timeline(self.events, unseen_frees(self.events, busy))

    def kernel(self, design: Design) -> Kernel:
        """A model kernel at the recording's start; with nothing free if nothing is known."""
        if self.start is None:
            return Kernel(design, self.cpus, self.window, [])
        return self.start.kernel(design, self.window, self.cpus)

    @property
    def lost(self) -> int:
        return lost_events(self.events)


def load(
    trace: StrPath, state: StrPath | None = None, vmallocinfo: StrPath | None = None, cpus: int | None = None
) -> Recording:
    """Read a recording and its start state, if there is one.

    cpus: possible CPUs; by default what the state says, else the highest CPU seen in an event plus one.
    Raises TraceError (also for no allocation in the trace), StateError or ValueError.
    """
    if state is not None and vmallocinfo is not None:
        raise ValueError("the start is known by a state or by a vmallocinfo: give one of them")
    about = metadata_of(trace)
    if about.get("source") == "vmalloc":
        if state is not None or vmallocinfo is not None or cpus is not None:
            raise ValueError(f"{trace}: {OWN_KNOWS}")
        return _load_own(trace, about)
    events = list(read_events(trace))
    used = between_marks(events)
    if not any(event.kind == ALLOC for event in used):
        raise TraceError(f"{trace}: no allocation in it: nothing to replay")
    window, seen = most_used_window(used), {event.cpu for event in used if event.cpu >= 0}
    if cpus is not None and cpus < len(seen):  # their numbers may be higher: machines leave numbers out
        raise ValueError(f"{trace}: {len(seen)} CPUs are at work in it, so the machine has more than {cpus}")
    header = header_of(trace)
    if state is not None:
        start = read_state(state)
        return Recording(events, window, cpus or start.nr_nodes, start, complete=True, header=header)
    nr_cpus = cpus or max(seen, default=0) + 1
    if vmallocinfo is not None:
        info = read_vmallocinfo(vmallocinfo)
        if info.addresses != "real":
            raise ValueError(
                f"{vmallocinfo}: addresses are {info.addresses}: no start state can be made of them"
            )
        return Recording(events, window, nr_cpus, state_of_vmallocinfo(info, window, nr_cpus), header=header)
    return Recording(events, window, nr_cpus, header=header)


def _load_own(trace: StrPath, about: Mapping[str, Any]) -> Recording:
    """In units of the model's pages, which begin at OWN_BASE."""
    try:
        unit = int(about["page_size"])
        own = Own(
            str(about["pools"]),
            *(int(about[name]) for name in ("nr_pages", "nr_nodes", "nr_cpus", "memory_bytes")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(f"{trace}: a recording of our own allocator that does not say its {error}") from None
    if min(unit, own.nr_pages, own.nr_nodes, own.nr_cpus) < 1:
        raise TraceError(f"{trace}: a recording of our own allocator that cannot be: {about}")
    start, end = own.window
    events = [
        event._replace(
            addr=start + event.addr // unit * PAGE,
            size=event.size // unit * PAGE,
            align=event.align // unit * PAGE,
            vstart=start,
            vend=end,
        )
        for event in sorted(read_events(trace), key=lambda event: event.time_ns)
    ]
    return Recording(events, own.window, own.nr_cpus, own=own)


def between_marks(events: list[Event]) -> list[Event]:
    """The events after a mark STATE0 and before the following STATE1, if there are such marks."""
    marks = ((at, event.text) for at, event in enumerate(events) if event.kind == MARK)
    return events[rows_between_marks(marks, len(events))]


# ---------------------------------------------------------------------- prediction


@dataclass
class Outcome:
    """A prediction with the kernel it ended in, and how long it took."""

    prediction: Prediction
    kernel: Kernel
    seconds: float
    end: EndDifference | None = None
    generation: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `--json`; shares between 0 and 1, None where they are of nothing."""
        p = self.prediction
        return {
            "design": p.design,
            "generation": self.generation or self.kernel.design.generation,
            "events": p.events,
            "allocations": p.all.allocs,
            "exact": p.all.share,
            "exact_page_aligned": p.page.share,
            "exact_larger_alignment": p.above.share if p.above.allocs else None,
            "larger_alignment": p.above.allocs,
            "within_bounds": (p.above.exact + p.within_bounds) / p.above.allocs if p.above.allocs else None,
            "exact_or_within_bounds": (p.all.exact + p.within_bounds) / p.all.allocs if p.all.allocs else 1.0,
            "exact_last_quarter": p.last_quarter.share,
            "exact_after_warm_up": p.warm.share if p.warm.allocs else None,
            "after_warm_up": p.warm.allocs / p.all.allocs if p.all.allocs else 0.0,
            "level_right": p.level.share,
            "level_right_after_warm_up": p.level_warm.share if p.level_warm.allocs else None,
            "levels": dict(p.levels),
            "orders_inferred": p.orders_inferred,
            "orders_inferred_share": p.orders_inferred / p.all.allocs if p.all.allocs else 0.0,
            "shrinks_inferred": p.shrinks_inferred,
            "misses": dict(p.misses),
            "assumed": dict(p.assumed),
            "purges": p.purges,
            "purges_as_told": p.purges_as_told,
            "by_cpu": {str(cpu): tally.share for cpu, tally in sorted(p.by_cpu.items())},
            "by_pages": {str(pages): tally.share for pages, tally in sorted(p.by_pages.items())},
            "by_window": {name: tally.share for name, tally in sorted(p.by_window.items())},
            "first_miss": p.first_miss,
            "end_state_equal": None if self.end is None else self.end.equal,
            "end_state": None
            if self.end is None
            else {name: getattr(self.end, name) for name in EndDifference.__dataclass_fields__},
            "seconds": self.seconds,
        }


PURGES_WANTED = 3
"""After so many purges most of what a forecast rests on was seen."""


def too_short(recording: Recording, design: Design, prediction: Prediction) -> str | None:
    """What to say where no forecast rests on what was seen: how long to record."""
    if prediction.warm.allocs or not prediction.all.allocs:
        return None
    seconds = _seconds_wanted(recording, design, prediction.purges)
    advice = (
        "record longer, while areas are freed" if seconds is None else f"record about {seconds:,} seconds"
    )
    return f"too short: {prediction.purges} purges seen, {advice}"


def _seconds_wanted(recording: Recording, design: Design, purges: int) -> int | None:
    """Until PURGES_WANTED purges: by those that were seen, else by how fast frees reach the threshold."""
    events = recording.events
    seconds = (events[-1].time_ns - events[0].time_ns) / 1e9
    done = float(purges) or _freed_pages(events) / design.lazy_pages_max(recording.cpus)
    return math.ceil(seconds * PURGES_WANTED / done) if done and seconds > 0 else None


def _freed_pages(events: list[Event]) -> int:
    sizes: dict[int, int] = {}
    freed = 0
    for event in events:
        if event.kind == ALLOC:
            sizes[event.addr] = event.size
        elif event.kind == FREE:
            freed += sizes.pop(event.addr, PAGE)  # at least, of one that was there before
    return freed // PAGE


def predict(
    recording: Recording,
    design: Design,
    end_state: StrPath | None = None,
    progress: Callable[[int], object] | None = None,
) -> Outcome:
    """Feed the requests to one design and compare every address; `progress` is told the event reached."""
    end = None if end_state is None else read_state(end_state)
    predictor = Predictor(recording.kernel(design), recording.line, recording.complete)
    began = time.perf_counter()
    prediction = predictor.run(progress)
    outcome = Outcome(prediction, predictor.kernel, time.perf_counter() - began)
    if end is not None:
        named = {event.addr for event in recording.events if event.kind in (ALLOC, FREE)}
        outcome.end = compare(State.of(predictor.kernel), end, named)
    return outcome


def rank(recording: Recording, progress: Callable[[int], object] | None = None) -> Ranking:
    """Which kernel generation the recording comes from: generation.py."""
    from vmalloc.lab import generation  # it stands on this file

    return generation.rank(recording, progress)


# ---------------------------------------------------------------------- the model on its own


@dataclass(frozen=True)
class Sample:
    """The model at one event; the searches of space are those since the sample before."""

    event: int
    live_pages: int
    lazy_pages: int
    pooled: int
    free_ranges: int
    longest_free: int
    footprint_pages: int
    searches: int
    search_steps: int
    search_length_max: int


@dataclass
class Course:
    """The model's own statistics while it serves a recording's requests; seconds of processor time."""

    design: str
    events: int
    seconds: float
    bare_seconds: float
    served: dict[str, int]
    failed: int
    purges: int
    purged: int
    samples: list[Sample]
    compared: int = 0  # allocations of ours, of which so many ...
    exact: int = 0  # ... got the recorded address

    def as_dict(self) -> dict[str, Any]:
        total = sum(self.served.values()) or 1
        return {
            "design": self.design,
            "events": self.events,
            "events_per_s": self.events / self.seconds if self.seconds else 0.0,
            "bare_loop_events_per_s": self.events / self.bare_seconds if self.bare_seconds else 0.0,
            "hit_share": {level: count / total for level, count in self.served.items() if count},
            "failed": self.failed,
            "purges": self.purges,
            "purged": self.purged,
            **({"compared": self.compared, "exact": self.exact / self.compared} if self.compared else {}),
            "footprint_pages_max": max((s.footprint_pages for s in self.samples), default=0),
            "searches": sum(s.searches for s in self.samples),
            "search_length_mean": search_length_mean(self.samples),
            "search_length_max": search_length_max(self.samples),
            "samples": [
                vars_of(sample) | {"search_length_mean": search_length_mean([sample])}
                for sample in self.samples
            ],
        }


def search_length_mean(samples: Sequence[Sample]) -> float:
    """Steps of a search of space, on average; 0 if there was none. What a step is: model/space.py."""
    searches = sum(sample.searches for sample in samples)
    return sum(sample.search_steps for sample in samples) / searches if searches else 0.0


def search_length_max(samples: Sequence[Sample]) -> int:
    """Steps of the longest search of space."""
    return max((sample.search_length_max for sample in samples), default=0)


def vars_of(sample: Sample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in Sample.__dataclass_fields__}


def run_on_model(
    recording: Recording,
    design: Design | CachingDesign,
    progress: Callable[[int], object] | None = None,
) -> Course:
    """Serve the recording's requests from an empty window; a kernel purges at its own threshold.

    Ours serves a kernel's as an address space, without memory behind it, as replay_on_core does. Its own it
    serves as the region that was recorded, each thread from its magazines, and the addresses are compared.
    """
    events = recording.events
    own = recording.own if isinstance(design, CachingDesign) else None
    if own is not None and isinstance(design, CachingDesign):
        model: Allocator = own.model(design)
    else:
        model = allocator_of(design, recording.cpus, recording.window, memory_bytes=0)
    compared = exact = failed = 0
    every = max(1, len(events) // SAMPLES)
    samples: list[Sample] = []
    seconds = 0.0
    places: dict[int, int] = {}
    for start in range(0, len(events), every):
        part = events[start : start + every]
        began = time.process_time()
        if isinstance(model, CachingAllocator) and own is not None:
            served = _serve_own(model, part, places)
            compared, exact, failed = compared + served[0], exact + served[1], failed + served[2]
        else:
            failed += _serve(model, part, places)
        seconds += time.process_time() - began
        samples.append(_sample(model, start + len(part)))
        if progress is not None:
            progress(start + len(part))
    return Course(
        design.name,
        len(events),
        seconds,
        _bare_loop(events),
        {str(level): count for level, count in model.served.items()},
        failed,
        model.nr_purges,
        model.nr_purged,
        samples,
        compared,
        exact,
    )


def _serve(model: Allocator, events: Sequence[Event], places: dict[int, int]) -> int:
    """Alloc and free as the events say; `places` maps the recording's addresses to the model's. How many
    requests failed."""
    alloc, free, window = model.alloc, model.free, model.window
    failed = 0
    purges = isinstance(model, Kernel)  # ours gives back in steps, in its own calls
    for event in events:
        kind = event.kind
        if kind == ALLOC:
            if event.failed or (event.vstart, event.vend) != window:
                continue
            area = alloc(event.size, event.align, event.cpu)
            if area is not None:
                places[event.addr] = area.start
            else:
                failed += 1
        elif kind == FREE:
            place = places.pop(event.addr, None)
            if place is not None:
                free(place, event.cpu)
                if purges and model.purge_is_due:
                    model.purge()
    return failed


def _serve_own(
    model: CachingAllocator, events: Sequence[Event], places: dict[int, int]
) -> tuple[int, int, int]:
    """As _serve(), by threads and at the recorded seconds; what failed then is asked for too, since it makes
    room for what follows. Allocations, those at the recorded address, and how many failed here."""
    compared = exact = failed = 0
    for event in events:
        model.now_s = event.time_ns // 1_000_000_000
        if event.kind == ALLOC:
            area = model.alloc(event.size, event.align, event.cpu, event.slot)
            failed += area is None
            compared += not event.failed
            if area is not None and event.failed:
                model.free(area.start, event.cpu, event.slot)  # nobody does it later
            elif area is not None:
                places[event.addr] = area.start
                exact += area.start == event.addr
        elif event.kind == FREE:
            place = places.pop(event.addr, None)
            if place is not None:
                model.free(place, event.cpu, event.slot)
    return compared, exact, failed


def _sample(model: Allocator, event: int) -> Sample:
    """The model now. Search counts begin anew, so that each sample has its own maximum."""
    pooled = sum(len(pool) * pages for node in model.nodes for pages, pool in node.pools.items())
    top = model.space.covering((model.window[1] & -PAGE) - 1)
    highest = top[0] if top is not None else model.window[1]
    space = model.space
    searched = space.searches, space.steps, space.steps_max
    space.searches = space.steps = space.steps_max = 0
    return Sample(
        event,
        model.live_pages,
        model.lazy_pages,
        pooled,
        len(model.space),
        model.space.longest // PAGE,
        (highest - model.window[0]) // PAGE,
        *searched,
    )


def _bare_loop(events: Sequence[Event]) -> float:
    """Seconds that a loop over the parsed events takes which only looks at their kinds."""
    began = time.process_time()
    seen = 0
    for event in events:
        kind = event.kind
        if kind == ALLOC:
            seen += event.size
        elif kind == FREE:
            seen += event.addr
    return time.process_time() - began
