# SPDX-License-Identifier: MIT
"""The plan, the rounds, and what was found.

In a round every peer has its turn, in an order that moves by one from round to round: whatever else the
machine does meets all of them. A turn is one hand-over, or of small arrays a burst of BURST_MS, of which
the median counts: else it would tell how a process wakes up after the others. Before the rounds of a
size each peer hands over WARM_UPS arrays; the first of them is kept as its cold time. Ratios are medians
over the rounds of a peer's time over ours in the same round.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from vmalloc.bench import faults
from vmalloc.bench.crew import Host, PeerFailed, Sample
from vmalloc.bench.peers import OURS, PEERS, WAYS
from vmalloc.bench.peers.peer import seed_after
from vmalloc.bench.processes import Neighbours
from vmalloc.region import parse_size

__all__ = ["SIZES", "Found", "Plan", "Series", "run"]

SIZES = ("4K", "64K", "1M", "16M", "256M")
WARM_UPS = 3
BURST_MS, BURST_MAX = 5.0, 50
ROUNDS_MIN, ROUNDS_MAX = 5, 101
#: How many arrays of a size each peer may keep: one that is new and one that is not yet given back.
ARRAYS_KEPT = 2
MIN_BYTES = 64

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Plan:
    """What to measure. ValueError says what is wrong with it."""

    sizes: tuple[int | str, ...] = SIZES
    ways: tuple[str, ...] = WAYS
    peers: tuple[str, ...] = tuple(PEERS)
    rounds: int | None = None  # default: what fits into `seconds`
    seconds: float = 10.0
    start_method: str | None = None
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for words, known, what in ((self.peers, PEERS, "peer"), (self.ways, WAYS, "way")):
            for word in words:
                if word not in known:
                    raise ValueError(f"{word!r} is no {what}; the {what}s are {', '.join(known)}")
            if not words or len(set(words)) != len(words):
                raise ValueError(f"name each {what} once, from {', '.join(known)}")
        if not self.nbytes:
            raise ValueError("name at least one size")
        for nbytes in self.nbytes:
            if nbytes < MIN_BYTES or nbytes % 8:
                raise ValueError(f"a size is a multiple of 8 from {MIN_BYTES} bytes on, not {nbytes}")

    @property
    def nbytes(self) -> tuple[int, ...]:
        """The sizes in bytes, ascending."""
        return tuple(sorted({parse_size(size) for size in self.sizes}))


@dataclass
class Series:
    """All hand-overs of one peer, way and size."""

    way: str
    nbytes: int
    peer: str
    title: str
    cold: Sample
    samples: dict[int, Sample] = field(default_factory=dict)  # by round

    @property
    def times_us(self) -> list[float]:
        return [sample.ns / 1e3 for sample in self.samples.values()]

    @property
    def median_us(self) -> float:
        return median(self.times_us)

    @property
    def quartiles_us(self) -> tuple[float, float]:
        if len(self.samples) < 2:
            return self.median_us, self.median_us
        low, _, high = quantiles(self.times_us, n=4, method="inclusive")
        return low, high

    @property
    def minor(self) -> float:
        return median(sample.minor for sample in self.samples.values())

    @property
    def major(self) -> float:
        return median(sample.major for sample in self.samples.values())

    def fault_share(self, us_per_fault: dict[str, float]) -> float:
        """About what part of the time was faults; an estimate, at most 1."""
        us = us_per_fault[PEERS[self.peer].faults]
        return min((self.minor + self.major) * us / self.median_us, 1.0)

    def times(self, other: Series) -> float | None:
        """Median over the rounds both took part in of this peer's time over the other's."""
        both = self.samples.keys() & other.samples.keys()
        return median(self.samples[r].ns / other.samples[r].ns for r in both) if both else None


@dataclass
class Found:
    """What a run measured, and what it could not."""

    plan: Plan
    fault_us: dict[str, float] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)
    not_installed: dict[str, str] = field(default_factory=dict)  # peer: what pip calls it
    failed: list[tuple[str, str, str]] = field(default_factory=list)  # title, where, reason
    left_out: list[str] = field(default_factory=list)
    foreign_share: float = 0.0  # of the CPUs, by processes that are none of ours; of the worse way
    is_interrupted: bool = False

    @property
    def measured(self) -> list[Series]:
        """The series that have at least one round."""
        return [one for one in self.series if one.samples]

    def peers_of(self, way: str) -> list[str]:
        """The peers measured in one way, in the plan's order."""
        have = {one.peer for one in self.measured if one.way == way}
        return [name for name in self.plan.peers if name in have]

    def of(self, way: str, nbytes: int) -> list[Series]:
        """One way and size, the fastest first."""
        return sorted(
            (one for one in self.measured if (one.way, one.nbytes) == (way, nbytes)),
            key=lambda one: one.median_us,
        )

    def ratio(self, one: Series) -> float | None:
        """This peer's time over ours; None where ours is not measured."""
        ours = next((s for s in self.of(one.way, one.nbytes) if s.peer == OURS), None)
        return None if ours is None else one.times(ours)

    def as_json(self) -> dict[str, Any]:
        """Everything, every single time included."""
        return {
            "machine": machine(),
            "start_method": self.plan.start_method or "default",
            "warm_ups": WARM_UPS,
            "us_per_fault": self.fault_us,
            "foreign_share": self.foreign_share,
            "is_interrupted": self.is_interrupted,
            "results": [
                {
                    "way": one.way,
                    "nbytes": one.nbytes,
                    "peer": one.peer,
                    "title": one.title,
                    "rounds": len(one.samples),
                    "median_us": one.median_us,
                    "quartiles_us": list(one.quartiles_us),
                    "times_ours": self.ratio(one),
                    "minor_faults": one.minor,
                    "major_faults": one.major,
                    "fault_share": one.fault_share(self.fault_us),
                    "cold_us": one.cold.ns / 1e3,
                    "cold_faults": one.cold.minor + one.cold.major,
                    "times_us": one.times_us,
                }
                for one in self.measured
            ],
            "not_installed": [
                {"peer": p, "install": f"pip install {i}"} for p, i in self.not_installed.items()
            ],
            "failed": [{"title": t, "where": w, "reason": r} for t, w, r in self.failed],
            "left_out": self.left_out,
        }


def machine() -> str:
    """CPU, how many, kernel, Python: one line."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}"


def run(plan: Plan, progress: Progress | None = None) -> Found:
    """Measure. `progress(what, share)` is called after every round, with the share that is done.

    A peer that fails is noted and left out from then on. Ctrl-C ends the run; what was measured is
    returned, with is_interrupted set.
    """
    found = Found(plan)
    try:
        found.fault_us = faults.calibrate()
        for nr, way in enumerate(plan.ways):
            meter = _Meter(progress, way, nr, len(plan.ways), len(plan.nbytes))
            with ExitStack() as stack:
                hosts = _start(plan, way, found, stack)
                neighbours = Neighbours()
                try:
                    for nbytes in plan.nbytes:
                        if _has_room(nbytes, len(hosts), way, found):
                            _measure(plan, way, nbytes, hosts, found, meter)
                        meter.next_size()
                finally:
                    found.foreign_share = max(found.foreign_share, neighbours.share())
    except KeyboardInterrupt:
        found.is_interrupted = True
    return found


class _Meter:
    """Tells the caller which share of all sizes of all ways is done."""

    def __init__(self, progress: Progress | None, way: str, nr: int, nr_ways: int, nr_sizes: int) -> None:
        self._progress, self._way = progress, way
        self._done, self._total = nr * nr_sizes, nr_ways * nr_sizes

    def show(self, nbytes: int, share: float) -> None:
        if self._progress is not None:
            self._progress(f"{self._way} {size_text(nbytes)}", (self._done + share) / self._total)

    def next_size(self) -> None:
        self._done += 1


def size_text(nbytes: int) -> str:
    """4 KiB, 256 MiB, 100 B."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes >= unit and nbytes % unit == 0:
            return f"{nbytes // unit} {name}"
    return f"{nbytes} B"


def _start(plan: Plan, way: str, found: Found, stack: ExitStack) -> dict[str, Host]:
    """Start all peers of a way at once; those that are ready, by name."""
    hosts: dict[str, Host] = {}
    for name in plan.peers:
        entry = PEERS[name]
        role = entry.way(way)
        if not entry.is_installed:
            found.not_installed[name] = entry.install or name
        elif role is not None:
            title, place = role
            hosts[name] = stack.enter_context(Host(title, place, plan.start_method))
    for name in list(hosts):
        try:
            hosts[name].wait_ready()
        except PeerFailed as error:
            found.failed.append((hosts[name].title, f"{way}, start", str(error)))
            hosts.pop(name).stop()
    return hosts


def _has_room(nbytes: int, nr_peers: int, way: str, found: Found) -> bool:
    need = nbytes * nr_peers * ARRAYS_KEPT
    have = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            have = int(line.split()[1]) << 10
    if need > have:
        found.left_out.append(
            f"{way} {size_text(nbytes)}: {nr_peers} peers may keep {need / 1e9:.1f} GB, "
            f"{have / 1e9:.1f} are free"
        )
    return need <= have


def _measure(plan: Plan, way: str, nbytes: int, hosts: dict[str, Host], found: Found, meter: _Meter) -> None:
    """The rounds of one size. Hosts that fail are taken out of `hosts`."""
    series: dict[str, Series] = {}
    bursts: dict[str, int] = {}
    seed = nbytes

    def turn(nr_round: int) -> float:
        """One round of everybody; seconds spent in hand-overs."""
        nonlocal seed
        names = list(hosts)
        first = nr_round % max(len(names), 1)
        seconds = 0.0
        for name in names[first:] + names[:first]:
            burst = bursts.get(name, 1)
            try:
                sample = hosts[name].measure(nbytes, seed, plan.timeout_s, burst)
            except PeerFailed as error:
                found.failed.append((hosts[name].title, f"{way} {size_text(nbytes)}", str(error)))
                hosts.pop(name).stop()
                continue
            seed = seed_after(seed ^ nr_round)
            seconds += burst * sample.ns / 1e9
            one = series.get(name)
            if one is None:
                one = series[name] = Series(way, nbytes, name, hosts[name].title, sample)
                found.series.append(one)
            if nr_round >= 0:
                one.samples[nr_round] = sample
            else:
                bursts[name] = min(max(int(BURST_MS * 1e6 / sample.ns), 1), BURST_MAX)
        return seconds

    meter.show(nbytes, 0.0)
    seconds = 0.0
    for before in range(-WARM_UPS, 0):
        seconds = turn(before)
    nr_rounds = plan.rounds or min(max(int(plan.seconds / max(seconds, 1e-6)), ROUNDS_MIN), ROUNDS_MAX)
    for nr_round in range(nr_rounds):
        turn(nr_round)
        meter.show(nbytes, (nr_round + 1) / nr_rounds)
