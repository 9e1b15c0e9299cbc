# SPDX-License-Identifier: MIT
"""What a run looks like: the table, the kernel's own lines, a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table

from vmalloc.suite.results import Result, Run, Tally

__all__ = ["as_json", "dmesg", "headline", "table"]


def headline(run: Run) -> str:
    """One line that says what ran."""
    p = run.parameters
    fit = f"L={run.nr_fit} (the kernel's {run.nr_fit_kernel}, scaled to region and workers)"
    return (
        f"{p.nr_threads} {run.workers_are}, {p.test_loop_count:,} loops, repeated {p.test_repeat_count} x, "
        f"mask {p.run_test_mask}, region {run.region_bytes / (1 << 30):g} GiB, full_fit {fit}"
    )


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x" if ratio < 100 else f"{ratio:.0f}x"


def _outcome(result: Result) -> str:
    parts = [f"{result.passed} ok"] if result.passed or not result.xfailed else []
    if result.xfailed:
        parts.append(f"{result.xfailed} xfailed")
    if result.failed:
        parts.append(f"[bold red]{result.failed} failed[/]" + (f" ({result.error})" if result.error else ""))
    return ", ".join(parts)


def _time(usec: float) -> str:
    return f"{usec / 1e6:.2f} s" if usec >= 1e6 else f"{usec / 1e3:.2f} ms"


def table(run: Run) -> Table:
    """Per test and design: mean time of a worker, how often faster than `off`, lock wait."""
    shown = Table(
        title=headline(run), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1)
    )
    shown.add_column("test", no_wrap=True)
    shown.add_column("pools", no_wrap=True)
    shown.add_column("time", justify="right", no_wrap=True)
    shown.add_column("off / this", justify="right")
    if run.single:
        shown.add_column("same at 1 worker", justify="right")
    shown.add_column("lock wait", justify="right")
    shown.add_column("outcome")
    for name in dict.fromkeys(r.test for r in run.results):
        shown.add_section()
        for i, result in enumerate(r for r in run.results if r.test == name):
            cells = [name if i == 0 else "", result.pools, _time(result.usec), _times(run.speedup(result))]
            if run.single:
                cells.append(_times(run.speedup(result, single=True)))
            shown.add_row(*cells, f"{result.lock_wait_share:.1%}", _outcome(result))
    return shown


def dmesg(run: Run) -> Iterator[str]:
    """The lines the newest kernel prints, per design and worker."""
    p = run.parameters
    for design, workers in run.workers.items():
        yield f"vmalloc suite: pools={design} {p.words()}"
        for number, worker in enumerate(workers):
            for test in p.tests:
                t = worker.tests.get(test.number, Tally())
                yield (
                    f"Summary: {test.kernel_name} passed: {t.passed} failed: {t.failed} xfailed: {t.xfailed} "
                    f"repeat: {p.test_repeat_count} loops: {p.test_loop_count} "
                    f"avg: {t.ns // p.test_repeat_count // 1000} usec"
                )
            yield f"All test took worker{number}={worker.cycles} cycles"


def as_json(run: Run) -> list[dict[str, Any]]:
    """One object per design and test, and one per design with "test": "all"."""
    return [result.as_json() for result in run.results]
