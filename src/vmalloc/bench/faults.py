# SPDX-License-Identifier: MIT
"""Page faults of a process tree, and what one of them costs on this machine.

A fault of a virtual machine costs several times one of bare metal, which flatters whoever avoids them.
So every result says how many there were, and about how much of the time they were.
"""

from __future__ import annotations

import mmap
import os
import resource
import time
from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

import numpy as np

from vmalloc.bench.processes import stat_of

__all__ = ["Faults", "calibrate", "count"]

SAMPLE_BYTES = 16 << 20
REPEATS = 5
_PAGE = mmap.PAGESIZE


class Faults(NamedTuple):
    """Minor and major faults."""

    minor: int
    major: int

    def since(self, before: Faults) -> Faults:
        """What came on top; a process that ended meanwhile must not make it negative."""
        return Faults(max(self.minor - before.minor, 0), max(self.major - before.major, 0))


def count(pids: Iterable[int]) -> Faults:
    """The faults of these processes since each began, threads included (ru_minflt, ru_majflt)."""
    fields = [stat for pid in pids if (stat := stat_of(pid))]
    return Faults(sum(int(f[7]) for f in fields), sum(int(f[9]) for f in fields))


def calibrate() -> dict[str, float]:
    """Microseconds per fault here and now, medians of a few tries.

    `shared`: the first touch of a new page of shared memory. `private`: of an anonymous 4 KiB page.
    `attached`: of a page that another mapping has already; the kernel maps its neighbours too.
    """
    tries: dict[str, list[float]] = {"shared": [], "private": [], "attached": []}
    for _ in range(REPEATS):
        fd = os.memfd_create("vmalloc-bench")
        os.ftruncate(fd, SAMPLE_BYTES)
        with mmap.mmap(fd, SAMPLE_BYTES) as first, mmap.mmap(fd, SAMPLE_BYTES) as second:
            tries["shared"].append(_us_per_fault(first, is_write=True))
            tries["attached"].append(_us_per_fault(second, is_write=False))
        os.close(fd)
        with mmap.mmap(-1, SAMPLE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as private:
            private.madvise(mmap.MADV_NOHUGEPAGE)
            tries["private"].append(_us_per_fault(private, is_write=True))
    return {kind: median(values) for kind, values in tries.items()}


def _us_per_fault(memory: mmap.mmap, *, is_write: bool) -> float:
    """What touching one word of every page takes longer than touching it again, over the faults."""
    pages = np.frombuffer(memory, np.uint64)[:: _PAGE // 8]

    def touch() -> int:
        start = time.perf_counter_ns()
        if is_write:
            pages.fill(1)
        else:
            pages.sum()
        return time.perf_counter_ns() - start

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    cold_ns = touch()
    nr_faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    warm_ns = min(touch(), touch())
    return max(cold_ns - warm_ns, 0) / 1e3 / max(nr_faults, 1)
