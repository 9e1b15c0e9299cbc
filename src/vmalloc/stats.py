# SPDX-License-Identifier: MIT
"""What a region tells about itself: `Region.stats()` and `Region.ranges()`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from vmalloc.facts import LEVELS

__all__ = ["Holder", "ProcessSlot", "Range", "Stats"]

PRESSURES = ("none", "some", "high")
PER_CPU = {0: "never", 1: "on", -1: "no: no restartable sequences here (they want glibc 2.35)"}
PRESSURE_SOURCES = ("PSI", "cgroup v2", "cgroup v1", "meminfo")


class Holder(NamedTuple):
    """How much one process holds: what is busy, and what is ready in its threads' magazines."""

    pid: int  #: as in that process's own pid namespace
    nbytes: int  #: what several processes share counts for each
    process: int  #: its slot


class ProcessSlot(NamedTuple):
    """A process that is attached, or that died and was not recovered yet."""

    pid: int  #: as in that process's own pid namespace; 0 for the region itself, which holds what is named
    nbytes: int  #: what it holds; what several processes share counts for each
    slot: int  #: a busy range's `owner`


class Range(NamedTuple):
    """One range, as its word says: pages [start, end)."""

    start: int
    end: int
    state: str  #: free, busy, cached, pooled, lazy, moving, purging or freeing
    owner: int  #: busy: process slot; cached, moving, purging: thread slot; pooled, lazy: node
    id: int  #: of a busy range, never repeated in the region's life; else 0
    shared: bool
    dirty: bool  #: pages may be resident and not zero

    @property
    def nr_pages(self) -> int:
        return self.end - self.start


def served_of(counters: Mapping[str, int]) -> dict[str, int]:
    """Requests since the region was made, by the level that served them, nearest first."""
    return {level: counters[f"nr_{level}_hit"] for level in LEVELS}


@dataclass(frozen=True, slots=True)
class Stats:
    """Counted from the words at one moment; sums of all states are the region's size."""

    page_size: int
    nr_pages: int
    free_pages: int  #: in space
    busy_pages: int  #: referenced by processes
    cached_pages: int  #: in magazines
    pooled_pages: int  #: in the nodes' pools
    lazy_pages: int  #: waiting for a purge
    moving_pages: int  #: between two of these right now
    nr_ranges: int
    nr_busy: int
    nr_shared: int
    nr_free_ranges: int
    largest_free_pages: int
    resident_bytes: int  #: of the whole memfd, metadata included
    nr_processes: int
    nr_thread_slots: int
    nr_alloc: int  #: requests that the hit path of a magazine did not serve
    nr_magazine_hit: int  #: served by the thread's magazine, on the hit path or off it
    nr_slab_hit: int  #: by the CPU's slab (pools="percpu")
    nr_pool_hit: int  #: by the node's pool
    nr_neighbour_hit: int  #: by another node's pool
    nr_lazy_hit: int  #: by warm ranges
    nr_space_hit: int  #: by free space
    nr_failed: int
    lock_wait_ns: int  #: of all threads, ever
    nr_purges: int
    nr_purged_pages: int
    nr_discards: int  #: holes punched
    nr_splits: int
    nr_merges: int
    nr_recovered: int  #: pages reclaimed from dead processes
    nr_leases: int  #: references in messages that nobody has loaded yet, and Refs
    nr_ticks: int  #: rounds of upkeep, by helpers and tick()
    nr_decayed_pages: int  #: given back by them because nobody used them
    helper_pid: int  #: the process whose helper thread is elected; 0: there is none, or it is stopped
    pressure: str  #: on memory, as the last tick saw it: none, some or high
    pressure_sources: tuple[str, ...]  #: who was asked: PSI, cgroup v2, cgroup v1, meminfo
    per_cpu: str  #: "never"; "on"; or "no: " and why this thread uses the shared pools (pools="percpu")
    huge: str  #: "never"; "on: " and the system's setting; or "no: " and why the system gives no huge pages

    @property
    def busy_bytes(self) -> int:
        return self.busy_pages * self.page_size

    @property
    def free_bytes(self) -> int:
        """What could be handed out after a shrink: everything that is not busy."""
        return (self.nr_pages - self.busy_pages) * self.page_size

    @property
    def served(self) -> dict[str, int]:
        """Requests since the region was made, by the level that served them, nearest first."""
        return served_of(asdict(self))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
