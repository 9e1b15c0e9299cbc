# SPDX-License-Identifier: MIT
"""Replay on the core: a recording's requests on the real allocator, by one thread for each recorded CPU.

    load = load_of(recording)
    results = run_on_core(load, ["off", "magazine"])

Each thread serves its CPU's events in order, as fast as it can; a free of a range that another CPU allocated
waits for that allocation. The loop is replay_core.c, without the interpreter lock; Python only starts it. The
allocator is an address space, so no memory is touched: what is timed is the allocator's own work. Designs are
interleaved, so that whatever else the machine does meets all of them, and every run starts with nothing
allocated.

What is served: requests for the vmalloc window, guard pages included, as `--on model` serves them. Left out
and counted: other windows, failed requests, frees of what the recording did not see allocated.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from vmalloc import _core
from vmalloc.address_space import AddressSpace
from vmalloc.errors import VmallocError
from vmalloc.facts import PAGES_MAX, POOLS, THREADS_DEFAULT, THREADS_MAX
from vmalloc.lab.events import ALLOC, FREE
from vmalloc.lab.replay import Recording
from vmalloc.model import PAGE

__all__ = ["Load", "Result", "Run", "load_of", "run_on_core"]

REPEATS = 3
ROOM = 4
"""The address space has so many times the pages that are live at once, and at least PAGES_MIN."""
PAGES_MIN = 1 << 20
ALIGN_PAGES_MAX = 1 << 31
"""More pages than an address space can have."""
LOCK_TIMEOUT_S = 600.0
"""On few CPUs a thread of many may wait long for a lock that nobody holds for long."""


@dataclass
class Load:
    """Requests by CPU, as replay_core.c takes them: (slot, pages or 0 to free, alignment in pages) each."""

    requests: dict[int, array[int]]
    allocations: int = 0
    frees: int = 0
    other_windows: int = 0
    failed_in_recording: int = 0
    frees_of_unseen: int = 0
    live_pages_max: int = 0

    @property
    def nr_pages(self) -> int:
        return min(max(ROOM * self.live_pages_max, PAGES_MIN), PAGES_MAX)


def load_of(recording: Recording) -> Load:
    """Turn events into requests. Raises ValueError if there is none."""
    load = Load(defaultdict(lambda: array("I")))
    slots: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    """By recorded address: (slot, pages) of the ranges there. More than one if a free was printed late."""
    live = 0
    is_own = recording.own is not None  # then threads are known, and need not be taken for CPUs
    for event in recording.events:
        if event.kind == ALLOC and event.failed:
            load.failed_in_recording += 1
        elif event.kind == ALLOC and (event.vstart, event.vend) != recording.window:
            load.other_windows += 1
        elif event.kind == ALLOC:
            pages = event.size // PAGE
            slots[event.addr].append((load.allocations, pages))
            lane = event.slot if is_own else event.cpu
            load.requests[lane].extend((load.allocations, pages, _align_pages(event.align)))
            load.allocations += 1
            live += pages
            load.live_pages_max = max(load.live_pages_max, live)
        elif event.kind == FREE and slots.get(event.addr):
            slot, pages = slots[event.addr].pop(0)
            load.requests[event.slot if is_own else event.cpu].extend((slot, 0, 0))
            load.frees += 1
            live -= pages
        elif event.kind == FREE:
            load.frees_of_unseen += 1
    if not load.allocations:
        raise ValueError("the recording has no allocation in its vmalloc window")
    return load


def _align_pages(align: int) -> int:
    """As replay_core.c takes it. Kernels align to more than any address space has: that stays too much."""
    return min(max(align // PAGE, 1), ALIGN_PAGES_MAX)


@dataclass(frozen=True)
class Run:
    """One run of one design."""

    wall_ns: int
    """From the first thread's first request to the last thread's last."""
    cpu_ns: int
    """Of all threads, without waiting for one another's allocations."""
    waits: int
    failed: int
    served: dict[str, int]
    lock_wait_ns: int
    purges: int


@dataclass
class Result:
    """All runs of one design."""

    pools: str
    runs: list[Run] = field(default_factory=list)

    def as_dict(self, load: Load) -> dict[str, Any]:
        """Medians over the runs; shares between 0 and 1, of the allocations."""
        requests = load.allocations + load.frees
        wall = median(run.wall_ns for run in self.runs)
        levels = self.runs[0].served
        return {
            "pools": self.pools,
            "wall_s": wall / 1e9,
            "walls_s": [run.wall_ns / 1e9 for run in self.runs],
            "ns_per_request": wall / requests,
            "cpu_ns_per_request": median(run.cpu_ns for run in self.runs) / requests,
            "hit_share": {
                level: median(run.served[level] for run in self.runs) / load.allocations for level in levels
            },
            "failed": max(run.failed for run in self.runs),
            "waits": median(run.waits for run in self.runs),
            "lock_wait_s": median(run.lock_wait_ns for run in self.runs) / 1e9,
            "purges": median(run.purges for run in self.runs),
        }


def run_on_core(
    load: Load,
    designs: Sequence[str] = POOLS,
    repeats: int = REPEATS,
    progress: Callable[[int], object] | None = None,
) -> list[Result]:
    """Serve the load with each design, `repeats` times in turn; `progress` is told the runs done.

    Raises ValueError for an unknown design, RegionUnavailable where the core does not run.
    """
    unknown = [design for design in designs if design not in POOLS]
    if unknown or not designs:
        raise ValueError(f"{', '.join(unknown) or 'nothing'}: the pool designs are {', '.join(POOLS)}")
    results = [Result(design) for design in dict.fromkeys(designs)]
    done = 0
    for _ in range(repeats):
        for result in results:
            result.runs.append(_run_once(load, result.pools))
            done += 1
            if progress is not None:
                progress(done)
    return results


def summary(load: Load, results: Sequence[Result]) -> dict[str, Any]:
    """What `--json` writes."""
    return {
        "on": "core",
        "threads": len(load.requests),
        "machine_cpus": os.cpu_count() or 1,
        "allocations": load.allocations,
        "frees": load.frees,
        "left_out": {
            "other windows": load.other_windows,
            "failed in the recording": load.failed_in_recording,
            "frees of what was not seen allocated": load.frees_of_unseen,
        },
        "live_pages_max": load.live_pages_max,
        "repeats": len(results[0].runs),
        "designs": [result.as_dict(load) for result in results],
    }


def _run_once(load: Load, pools: str) -> Run:
    nr_threads = len(load.requests)
    with (
        AddressSpace(
            0,
            load.nr_pages * PAGE,
            granule=PAGE,
            pools=pools,
            name=f"replay-{pools}",
            max_threads=min(max(nr_threads + 16, THREADS_DEFAULT), THREADS_MAX),
            lock_timeout_s=LOCK_TIMEOUT_S,
        ) as space,
        closing(mmap.mmap(-1, _core.replay_board_bytes(load.allocations))) as board,
    ):
        measured = _in_threads(space, board, list(load.requests.values()))
        stats = space.stats()
    started, ended, cpu, wait, waits, failed, _, _ = zip(*measured, strict=True)
    return Run(
        max(ended) - min(started),
        sum(cpu) - sum(wait),
        sum(waits),
        sum(failed),
        stats.served,
        stats.lock_wait_ns,
        stats.nr_purges,
    )


Measures = tuple[int, int, int, int, int, int, int, int]
"""What _core.replay_work() returns."""


def _in_threads(space: AddressSpace, board: mmap.mmap, requests: Sequence[array[int]]) -> list[Measures]:
    """Run one loop for each array of requests; what each returned."""
    measured: dict[int, Measures] = {}
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            measured[number] = _core.replay_work(space, board, len(requests), requests[number])
        except BaseException as error:
            errors.append(error)
            _core.replay_stop(board)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(requests))]
    started: list[threading.Thread] = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
        for thread in started:
            while thread.is_alive():
                thread.join(0.1)  # so that Ctrl-C is seen
    except BaseException:
        _core.replay_stop(board)
        for thread in started:
            thread.join()
        raise
    if errors:
        raise errors[0]
    codes = {result[-1] for result in measured.values()} - {0, -errno.EINTR}
    if codes:
        code = codes.pop()
        raise VmallocError(f"a free of what the replay had allocated failed: {os.strerror(-code)}")
    return [measured[number] for number in range(len(requests))]
