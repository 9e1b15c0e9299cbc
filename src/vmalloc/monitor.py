# SPDX-License-Identifier: MIT
# pyright: reportPrivateUsage=false
"""Look at a region again and again without taking part: what `vmalloc top` shows.

The region is attached read-only: no slot, no lock, nothing recovered. Counters are read at every look. A look
at all words, which holders and largest ranges need, comes as seldom as its cost asks for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmalloc._core import Monitor, RecordingWatch
from vmalloc.facts import EVENTS, MONITOR_SHARE
from vmalloc.overview import command_of, state_of
from vmalloc.stats import PRESSURES, served_of

if TYPE_CHECKING:
    from vmalloc.region import RegionBase
    from vmalloc.stats import Range

__all__ = ["Held", "Holder", "Look", "Watcher"]

_RATES = ("nr_failed", "nr_purges", "nr_purged_pages", "nr_discards", "nr_decayed_pages", "nr_recovered")
_STATES = ("busy", "cached", "pooled", "lazy", "moving", "free")


@dataclass
class Holder:
    """A process with a slot, and what it holds."""

    pid: int  #: as in its own pid namespace; 0: the region itself, which holds what is named
    nbytes: int
    state: str  #: running, stopped, zombie or dead, as this machine's pid says
    command: str  #: not safe for a terminal


@dataclass
class Held:
    """One busy range."""

    offset: int
    nbytes: int
    pid: int | None  #: None: of nobody that has a slot
    shared: bool


@dataclass
class Look:
    """One region at one moment; rates are since the look before, a second."""

    name: str
    nbytes: int
    granule: int
    limit: int | None
    resident_bytes: int
    interval_s: float
    nr_processes: int
    nr_leases: int
    helper_pid: int
    pressure: str
    allocs: float = 0.0  #: requests served a second
    hits: dict[str, float] = field(default_factory=dict[str, float])  #: share of each level of those
    rates: dict[str, float] = field(default_factory=dict[str, float])
    lock_wait: float = 0.0  #: seconds that threads waited for locks, a second
    is_recorded: bool = False  #: somebody records the region; then:
    events: dict[str, float] = field(default_factory=dict[str, float])  #: a second, by kind
    events_seen: float = 1.0  #: share that was read before it was overwritten; the rest is taken to be alike
    pools: dict[str, list[int]] = field(default_factory=dict[str, list[int]])  #: ready ranges, by pages
    words_age_s: float = 0.0  #: since all words were looked at, for what follows
    is_whole: bool = True  #: then the words parsed to the end
    pages: dict[str, int] = field(default_factory=dict[str, int])  #: by state
    holders: list[Holder] = field(default_factory=list[Holder])
    largest: list[Held] = field(default_factory=list[Held])


class Watcher:
    """Looks at one region; `now_s` and `cpu_s` are clocks."""

    def __init__(
        self,
        region: RegionBase,
        name: str,
        now_s: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[], float] = time.thread_time,
    ) -> None:
        """RegionClosed."""
        info = region._info()
        self.region, self.name = region, name
        self._now_s, self._cpu_s = now_s, cpu_s
        self._monitor, self._recording = Monitor(region), RecordingWatch(region)
        self._granule, self._nr_nodes = int(info["granule"]), int(info["nr_nodes"])
        self._nbytes = int(info["nr_pages"]) * self._granule
        self._counters: dict[str, int] | None = None
        self._at_s = 0.0
        self._words_at_s, self._words_due_s = 0.0, 0.0
        self._commands: dict[int, str] = {}
        self._survey_words()

    def look(self) -> Look:
        """RegionClosed."""
        now = self._now_s()
        if now >= self._words_due_s:
            self._survey_words()
        counters, in_magazines = self._monitor.look()
        look = Look(
            name=self.name,
            nbytes=self._nbytes,
            granule=self._granule,
            limit=self.region.limit,
            resident_bytes=counters["resident_bytes"],
            interval_s=now - self._at_s if self._counters else 0.0,
            nr_processes=counters["nr_processes"],
            nr_leases=counters["nr_leases"],
            helper_pid=counters["helper_pid"],
            pressure=PRESSURES[min(counters["pressure"], len(PRESSURES) - 1)],
            pools={"magazines": in_magazines}
            | {f"node {node}": self._monitor.pools(node) for node in range(self._nr_nodes)},
            words_age_s=max(now - self._words_at_s, 0.0),
            is_whole=self._is_whole,
            pages=self._pages,
            holders=self._holders_now(),
            largest=self._largest,
        )
        self._add_rates(look, counters)
        self._add_events(look)
        self._counters, self._at_s = counters, now
        return look

    @property
    def counters(self) -> dict[str, int]:
        """As the last look found them, since the region was made."""
        return self._counters or {}

    def served(self) -> dict[str, int]:
        """Requests by the level that served them, since the region was made."""
        return served_of(self.counters)

    def _add_rates(self, look: Look, now: dict[str, int]) -> None:
        before = self._counters
        if before is None or look.interval_s <= 0:
            return
        new = {name: max(now[name] - before[name], 0) for name in now}
        served = served_of(new)
        total = sum(served.values())
        look.allocs = total / look.interval_s
        if total:
            look.hits = {level: nr / total for level, nr in served.items()}
        look.rates = {name.removeprefix("nr_"): new[name] / look.interval_s for name in _RATES}
        look.lock_wait = new["lock_wait_ns"] / 1e9 / look.interval_s

    def _add_events(self, look: Look) -> None:
        """What threads wrote into their rings, if somebody records."""
        tally = self._recording.tally()
        look.is_recorded = tally is not None
        if tally is None or look.interval_s <= 0:
            return
        nr, lost = dict(zip(EVENTS, tally[0][1:], strict=False)), tally[1]
        del nr["stamp"]
        total = sum(nr.values())
        look.events_seen = total / (total + lost) if total else 1.0
        look.events = {kind: n / look.events_seen / look.interval_s for kind, n in nr.items() if n}

    # ---- what a look at all words tells ----

    def _survey_words(self) -> None:
        begin = self._cpu_s()
        stats, self._holdings, largest, self._is_whole = self._monitor.survey()
        self._words_at_s = self._now_s()
        self._words_due_s = self._words_at_s + (self._cpu_s() - begin) * MONITOR_SHARE
        self._pages = {state: stats[f"{state}_pages"] for state in _STATES}
        self._pages["largest_free"] = stats["largest_free_pages"]
        pids = {slot: pid for slot, pid, _ in self._holdings}
        self._largest = [self._held(r, pids) for r in largest]
        there = set(pids.values())
        self._commands = {pid: text for pid, text in self._commands.items() if pid in there}

    def _held(self, r: Range, pids: dict[int, int]) -> Held:
        return Held(r.start * self._granule, r.nr_pages * self._granule, pids.get(r.owner), r.shared)

    def _holders_now(self) -> list[Holder]:
        return [
            Holder(pid, nbytes, state_of(pid) if pid else "running", self._command_of(pid))
            for _, pid, nbytes in self._holdings
        ]

    def _command_of(self, pid: int) -> str:
        if pid not in self._commands:
            self._commands[pid] = command_of(pid) if pid else "(names)"
        return self._commands[pid]
