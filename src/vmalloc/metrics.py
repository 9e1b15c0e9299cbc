# SPDX-License-Identifier: MIT
# pyright: reportPrivateUsage=false
"""Regions as Prometheus metrics: `vmalloc.metrics.export()`, then serve them as prometheus_client does.

Needs `pip install 'vmalloc[metrics]'`. A scrape takes no lock: counters are read at each, and all words as
seldom as their cost asks for (vmalloc.monitor).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from vmalloc._core import attached, sent_counts
from vmalloc.errors import VmallocError
from vmalloc.monitor import Look, Watcher
from vmalloc.stats import PRESSURES

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from vmalloc.region import RegionBase

__all__ = ["RegionCollector", "export"]

WAYS = ("by reference", "copied in", "as before", "by value")  # in the order of sent_counts()

_Told = tuple[Look, Watcher]

#: name, help, what it is of a region
_GAUGES: tuple[tuple[str, str, Callable[[_Told], float]], ...] = (
    ("size_bytes", "What can be allocated.", lambda t: t[0].nbytes),
    ("limit_bytes", "What may be handed out or kept ready at once.", lambda t: t[0].limit or t[0].nbytes),
    ("resident_bytes", "Memory in use, metadata included.", lambda t: t[0].resident_bytes),
    (
        "largest_free_bytes",
        "The longest run of free pages.",
        lambda t: t[0].pages["largest_free"] * t[0].granule,
    ),
    ("processes", "Processes that are attached.", lambda t: t[0].nr_processes),
    ("leases", "References in messages that nobody has loaded yet.", lambda t: t[0].nr_leases),
    ("pressure", "On memory: 0 none, 1 some, 2 high.", lambda t: PRESSURES.index(t[0].pressure)),
    ("words_age_seconds", "Since states and holders were counted.", lambda t: t[0].words_age_s),
)
_COUNTERS: tuple[tuple[str, str, Callable[[_Told], float]], ...] = (
    ("failed_requests", "Requests that found no room.", lambda t: t[1].counters["nr_failed"]),
    ("purges", "Purges.", lambda t: t[1].counters["nr_purges"]),
    ("discards", "Holes punched.", lambda t: t[1].counters["nr_discards"]),
    (
        "recovered_bytes",
        "Reclaimed from dead processes.",
        lambda t: t[1].counters["nr_recovered"] * t[0].granule,
    ),
    ("lock_wait_seconds", "Of all threads.", lambda t: t[1].counters["lock_wait_ns"] / 1e9),
)


class RegionCollector(Collector):
    """Tells of some regions, or of all that this process has attached at the time; register it once."""

    def __init__(self, regions: Iterable[RegionBase] | None = None) -> None:
        self._regions = None if regions is None else list(regions)
        self._watchers: dict[str, Watcher] = {}
        self._lock = threading.Lock()  # two scrapes at once

    def describe(self) -> list[Metric]:
        """So that registering it looks at nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            told = self._look()
        yield from _families(told)
        sent = CounterMetricFamily("vmalloc_sent", "What this process sent.", labels=["way"])
        for way, nr in zip(WAYS, sent_counts(), strict=True):
            sent.add_metric([way], nr)
        yield sent

    def _look(self) -> dict[str, _Told]:
        """By id, whatever is open."""
        there = attached.values() if self._regions is None else self._regions
        regions = {region.id: region for region in there if not region.closed}
        self._watchers = {id: w for id, w in self._watchers.items() if regions.get(id) is w.region}
        told: dict[str, _Told] = {}
        for id, region in regions.items():
            try:
                if id not in self._watchers:
                    self._watchers[id] = Watcher(region, region.name or id)
                told[id] = self._watchers[id].look(), self._watchers[id]
            except VmallocError:  # closed meanwhile
                continue
        return told


def _families(told: dict[str, _Told]) -> Iterator[Metric]:
    """Names may be the same in several regions, ids are not."""
    labels = ["region", "id"]
    for name, text, of in _GAUGES:
        gauge = GaugeMetricFamily(f"vmalloc_{name}", text, labels=labels)
        for id, one in told.items():
            gauge.add_metric([one[0].name, id], of(one))
        yield gauge
    for name, text, of in _COUNTERS:
        counter = CounterMetricFamily(f"vmalloc_{name}", text, labels=labels)
        for id, one in told.items():
            counter.add_metric([one[0].name, id], of(one))
        yield counter
    yield from _by_kind(told, labels)


def _by_kind(told: dict[str, _Told], labels: list[str]) -> Iterator[Metric]:
    state = GaugeMetricFamily("vmalloc_state_bytes", "Memory by state.", labels=[*labels, "state"])
    held = GaugeMetricFamily("vmalloc_held_bytes", "What each process holds.", labels=[*labels, "pid"])
    served = CounterMetricFamily(
        "vmalloc_requests", "Requests by who served them.",
        labels=[*labels, "level"],
    )  # fmt: skip
    for id, (look, watcher) in told.items():
        for name, nr_pages in look.pages.items():
            if name != "largest_free":
                state.add_metric([look.name, id, name], nr_pages * look.granule)
        by_pid: dict[int, int] = {}
        for holder in look.holders:  # pids of several namespaces may be the same
            by_pid[holder.pid] = by_pid.get(holder.pid, 0) + holder.nbytes
        for pid, nbytes in by_pid.items():
            held.add_metric([look.name, id, str(pid)], nbytes)
        for level, nr in watcher.served().items():
            served.add_metric([look.name, id, level], nr)
    yield from (state, held, served)


def export(*regions: RegionBase, registry: CollectorRegistry = REGISTRY) -> RegionCollector:
    """Register `regions`, or without any all that this process has attached at each scrape.

    Returns what to unregister. Regions that are named here stay attached until they
    are closed or the result is dropped.
    """
    collector = RegionCollector(regions or None)
    registry.register(collector)
    return collector
