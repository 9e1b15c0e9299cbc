# SPDX-License-Identifier: MIT
"""What a run found: tallies of workers and tests, and the lines a table or a file has."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from vmalloc.suite.parameters import Parameters, SuiteTest

__all__ = ["Result", "Run", "Tally", "WorkerTally", "results_of"]

_ENDS = {1: "overlap: a page had two owners", 2: "wrong contents or placement", 3: "stopped"}


@dataclass
class Tally:
    """One test, of one worker or of all, over all rounds."""

    passed: int = 0
    failed: int = 0
    xfailed: int = 0
    ns: int = 0
    lock_wait_ns: int = 0
    error: int = 0

    def add(self, other: Tally) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.xfailed += other.xfailed
        self.ns += other.ns
        self.lock_wait_ns += other.lock_wait_ns
        self.error = other.error or self.error

    @property
    def ends(self) -> str:
        """Why the last one that did not pass did not; empty if all passed."""
        return _ENDS.get(self.error, os.strerror(-self.error)) if self.error else ""


@dataclass
class WorkerTally:
    """What one worker did: a tally per test number."""

    tests: dict[int, Tally] = field(default_factory=dict)
    cycles: int = 0


@dataclass(frozen=True)
class Result:
    """One line: a design and a test, or `all`.

    `usec` is a worker's mean time for the test (all its loops), as the kernel's `avg`; of `all` it is the
    wall time of the whole run. `lock_wait_share` is the part of the workers' time spent waiting for locks.
    """

    pools: str
    workers: int
    test: str
    passed: int
    failed: int
    xfailed: int
    usec: float
    lock_wait_share: float
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "pools": self.pools,
            "workers": self.workers,
            "test": self.test,
            "passed": self.passed,
            "failed": self.failed,
            "xfailed": self.xfailed,
            "usec": round(self.usec, 1),
            "lock_wait_share": round(self.lock_wait_share, 4),
        }


@dataclass
class Run:
    """Everything `vmalloc suite` prints from."""

    parameters: Parameters
    designs: tuple[str, ...]
    workers_are: str
    region_bytes: int
    nr_fit: int
    nr_fit_kernel: int
    results: list[Result] = field(default_factory=list)
    single: list[Result] = field(default_factory=list)
    workers: dict[str, list[WorkerTally]] = field(default_factory=dict)
    is_interrupted: bool = False  #: by Ctrl-C: results are of the rounds that ended

    @property
    def failed(self) -> int:
        return sum(r.failed for r in (*self.results, *self.single) if r.test == "all")

    def speedup(self, result: Result, *, single: bool = False) -> float | None:
        """How often faster than `off` this line is; None without `off`, or without the one-worker run."""
        lines = self.single if single else self.results
        usec = {r.pools: r.usec for r in lines if r.test == result.test}
        if not usec.get("off") or not usec.get(result.pools):
            return None
        return usec["off"] / usec[result.pools]


def results_of(
    pools: str, tests: tuple[SuiteTest, ...], workers: list[WorkerTally], repeat: int, wall_ns: int
) -> list[Result]:
    """A line per test in table order, then `all`."""
    lines: list[Result] = []
    everything = Tally()
    for test in tests:
        total = Tally()
        for worker in workers:
            total.add(worker.tests.get(test.number, Tally()))
        everything.add(total)
        usec = total.ns / (len(workers) * repeat) / 1e3
        lines.append(_line(pools, len(workers), test.name, total, usec))
    lines.append(_line(pools, len(workers), "all", everything, wall_ns / 1e3))
    return lines


def _line(pools: str, workers: int, test: str, total: Tally, usec: float) -> Result:
    share = total.lock_wait_ns / total.ns if total.ns else 0.0
    error = total.ends if total.failed else ""
    return Result(pools, workers, test, total.passed, total.failed, total.xfailed, usec, share, error)
