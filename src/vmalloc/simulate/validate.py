# SPDX-License-Identifier: MIT
"""Validation: what others measured, what the simulation says, and how far apart they are.

    python -m vmalloc.simulate.validate docs/simulator

writes validation.md there. Every source has one vote: the median of its figures' errors. What a cost was
fitted to is shown and not scored, and so are designs that the model does not have. Nothing is tuned to a
scored figure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from vmalloc.simulate import published as known
from vmalloc.simulate.calibrate import found_in, table
from vmalloc.simulate.costs import load_machine
from vmalloc.simulate.plan import Plan
from vmalloc.simulate.sweep import run_on_processes

__all__ = ["Figure", "Source", "main"]

BARS = {"median": 0.25, "ratio": 0.25, "times": 1.5}
SUITE_SHRUNK = 64
SEED = 1
V1_LOOPS = 20_000
ALIBABA_TOPOLOGY = "1x1x24x2"
ALIBABA_LOOPS = 1500
LOOKUPS_MOST = 200


@dataclass(frozen=True)
class Figure:
    """One published number and the simulated one."""

    name: str
    published: float
    simulated: float
    unit: str
    scored: bool = True

    @property
    def error(self) -> float:
        return self.simulated / self.published - 1


@dataclass
class Source:
    """Figures of one source: one vote."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    note: str = ""

    @property
    def vote(self) -> float | None:
        errors = [abs(figure.error) for figure in self.figures if figure.scored]
        return median(errors) if errors else None


Run = Callable[[list[Plan]], list[dict[str, Any]]]


def headline(run: Run) -> Source:
    designs = list(known.HEADLINE_S)
    rows = dict(zip(designs, run([Plan(d, shrunk=SUITE_SHRUNK, seed=SEED) for d in designs]), strict=True))
    times = [Figure(f"{d}, wall time", known.HEADLINE_S[d], rows[d]["wall_s"], "s") for d in designs]
    shares = [
        Figure(f"{d}, spinning", known.HEADLINE_SPIN[d] * 100, rows[d]["lock_wait_share"] * 100, "%")
        for d in designs
    ]
    ratio = Figure(
        "ratio of the two times",
        times[0].published / times[1].published,
        times[0].simulated / times[1].simulated,
        "",
        scored=False,
    )
    return Source(
        "The headline: 3970X, 64 threads, mask 7 (v3, January 2024)",
        [*times, ratio, *shares],
        "The ratio follows from the two times, so it has no vote of its own.",
    )


def v1_default(run: Run) -> Source:
    jobs = list(known.V1_DEFAULT)
    plans = [
        Plan("linux-6.8", nr_threads=n, run_test_mask=1, test_loop_count=V1_LOOPS, shrunk=1, seed=SEED)
        for n in jobs
    ]
    figures = [
        Figure(f"{n} jobs", known.V1_DEFAULT[n], row["us_per_pair"], "us", n not in known.V1_CALIBRATES)
        for n, row in zip(jobs, run(plans), strict=True)
    ]
    return Source(
        "v1's default column: 3970X, 1 page (May 2023)", figures, "1, 8 and 32 jobs calibrate (fit.py)."
    )


def v2_default(run: Run) -> Source:
    (row,) = run([Plan("linux-6.8", run_test_mask=127, shrunk=4 * SUITE_SHRUNK, seed=SEED)])
    share = Figure("spinning", known.V2_SPIN["linux-6.8"] * 100, row["lock_wait_share"] * 100, "%")
    return Source("v2's default shares: 3970X, 64 threads, mask 127 (August 2023)", [share])


def lenovo(run: Run) -> Source:
    cells = [(machine, atomic) for machine in known.LENOVO_US for atomic in (1, 0)]
    plans = [
        Plan("linux-6.9", machine, atomic_per_area=atomic, shrunk=SUITE_SHRUNK, seed=SEED)
        for machine, atomic in cells
    ]
    figures = []
    for (machine, atomic), row in zip(cells, run(plans), strict=True):
        way = "one atomic per area" if atomic else "one per node"
        name = f"{load_machine(machine).topology.cpus} CPUs, {way}"
        value = known.LENOVO_US[machine][1 - atomic]
        figures.append(Figure(name, value, row["node_purge_us"], "us", machine != "xeon-72"))
    return Source(
        "Lenovo: mean time in purge_vmap_node, mask 7 (August 2024)",
        figures,
        "72 CPUs calibrate the cost of an area.",
    )


def baoquan(run: Run) -> Source:
    threads = list(known.BAOQUAN_S)
    plans = [
        Plan("linux-6.9", "epyc-128", nr_threads=n, run_test_mask=127, shrunk=2 * SUITE_SHRUNK, seed=SEED)
        for n in threads
    ]
    figures = [
        Figure(f"{n} threads", known.BAOQUAN_S[n], row["wall_s"], "s")
        for n, row in zip(threads, run(plans), strict=True)
    ]
    return Source("Baoquan He: 128 CPUs, mask 127 (February 2024)", figures)


def alibaba(run: Run) -> Source:
    """Calibrated on the ceiling (the work of a request) and on before (how many lookups it makes)."""
    machine = load_machine("xeon-72")
    slower = machine.values["busy_percent"] * machine.values["all_core_percent"] / 1e4
    own_us = 48 / known.ALIBABA_PER_S["ceiling"] * 1e6 / slower

    def rate(design: str, lookups: int) -> float:
        plan = Plan(design, "xeon-72", topology=ALIBABA_TOPOLOGY, lookups=lookups, request_us=own_us,
                    test_loop_count=ALIBABA_LOOPS, seed=SEED)  # fmt: skip
        return float(run([plan])[0]["pairs_per_s"])

    low, high = 1, LOOKUPS_MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if rate("linux-6.8", middle) > known.ALIBABA_PER_S["before"] else (low, middle)
        )
    figures = [
        Figure("before", known.ALIBABA_PER_S["before"], rate("linux-6.8", high), "requests/s", scored=False),
        Figure("after", known.ALIBABA_PER_S["after"], rate("linux-6.9", high), "requests/s"),
    ]
    return Source(
        "Alibaba: nginx over SMC, 48 CPUs of a guest (January 2024)",
        figures,
        f"Before and the ceiling calibrate: {own_us:.1f} us of own work and {high} lookups a request. A"
        f" guest's"
        " preempted lock holders are not simulated.",
    )


def not_scored(run: Run) -> list[Source]:
    jobs = (1, 8, 32)
    plans = [
        Plan("patch-v3", nr_threads=n, run_test_mask=1, test_loop_count=V1_LOOPS, shrunk=1, seed=SEED)
        for n in jobs
    ]
    v1 = [
        Figure(f"{n} jobs, patched (v1; here patch-v3)", known.V1_PATCHED[n], row["us_per_pair"], "us", False)
        for n, row in zip(jobs, run(plans), strict=True)
    ]
    (after, hikey) = run([
        Plan("patch-v3", run_test_mask=127, shrunk=4 * SUITE_SHRUNK, seed=SEED),
        Plan("linux-6.8", topology="1x2x4x1", shrunk=SUITE_SHRUNK, seed=SEED),
    ])  # fmt: skip
    v2 = Figure("spinning, patched (v2; here patch-v3)", known.V2_PATCHED_SPIN * 100,
                after["lock_wait_share"] * 100, "%", False)  # fmt: skip
    phone = Figure(
        "8-CPU HiKey960, contention", known.HIKEY_SHARE * 100, hikey["lock_wait_share"] * 100, "%", False
    )
    plans = [
        Plan("linux-6.8", topology="2x1x4x1", nr_threads=n, run_test_mask=1, nr_pages=4,
             test_loop_count=V1_LOOPS, shrunk=1, seed=SEED)
        for n in known.PIGGIN_NS
    ]  # fmt: skip
    piggin = [
        Figure(f"{n} threads, before (2008; here linux-6.8)", before / 1e3, row["us_per_pair"], "us", False)
        for (n, (before, _)), row in zip(known.PIGGIN_NS.items(), run(plans), strict=True)
    ]
    note = "Designs that the model does not have, or figures that do not say what was measured."
    return [Source("Shown, not scored", [*v1, v2, phone, *piggin], note)]


def convergence(run: Run) -> str:
    """How much the headline depends on the shrinking."""
    lines = ["| design | shrunk | wall time, s | spinning, % |", "|---|---|---|---|"]
    cells = [(d, n) for d in known.HEADLINE_S for n in (256, 128, SUITE_SHRUNK)]
    for (design, shrunk), row in zip(
        cells, run([Plan(d, shrunk=n, seed=SEED) for d, n in cells]), strict=True
    ):
        lines.append(f"| {design} | {shrunk} | {row['wall_s']:.1f} | {row['lock_wait_share'] * 100:.1f} |")
    return "\n".join(lines)


def _table(source: Source) -> str:
    lines = ["| figure | published | simulated | error | |", "|---|---|---|---|---|"]
    for one in source.figures:
        mark = "" if one.scored else "not scored"
        unit = f" {one.unit}" if one.unit else ""
        lines.append(
            f"| {one.name} | {one.published:,.5g}{unit} | {one.simulated:,.4g}{unit} | {one.error:+.0%} |"
            f" {mark} |"
        )
    vote = "" if source.vote is None else f"\nVote: {source.vote:.0%}.\n"
    note = f"\n{source.note}\n" if source.note else ""
    return f"## {source.name}\n\n" + "\n".join(lines) + f"\n{vote}{note}"


def _met(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


def bars(sources: list[Source]) -> str:
    """Each bar, with what came out."""
    votes = [source.vote for source in sources if source.vote is not None]
    before, after, ratio, *_ = sources[0].figures
    worst = max(max(1 + f.error, 1 / (1 + f.error)) for f in (before, after))
    middle = median(votes)
    return "\n".join(
        [
            "| bar | wanted | got | |",
            "|---|---|---|---|",
            f"| median error over {len(votes)} sources | at most {BARS['median']:.0%} | {middle:.0%} |"
            f" {_met(middle <= BARS['median'])} |",
            f"| the headline's ratio | within {BARS['ratio']:.0%} | {ratio.error:+.0%} |"
            f" {_met(abs(ratio.error) <= BARS['ratio'])} |",
            f"| both its times | within {BARS['times']}x | {worst:.2f}x | {_met(worst <= BARS['times'])} |",
        ]
    )


def calibrated() -> str:
    """Which costs were fitted, and to what."""
    lines = ["| cost | value | fitted to |", "|---|---|---|"]
    for name, cost in load_machine("threadripper-3970x").costs.items():
        if cost.calibrated:
            lines.append(f"| `{name}` | {cost.value:g} | {cost.calibrated} |")
    return "\n".join(lines)


def here_section(folder: Path) -> str:
    """Our designs, measured and simulated: what `vmalloc calibrate --beside --json` left in the folder."""
    path = folder / "here.json"
    if not path.exists():
        return ""
    return f"""## The suite on one machine

Pool designs of our own, the suite on the allocator itself beside its simulation: [what it says](here.md).
{table(*found_in(path))}

"""


def document(run: Run, folder: Path) -> str:
    sources = [headline(run), v1_default(run), v2_default(run), lenovo(run), baoquan(run), alibaba(run)]
    shown = not_scored(run)
    tables = "\n".join(_table(source) for source in [*sources, *shown])
    return f"""# How far the simulator can be trusted

Made by `python -m vmalloc.simulate.validate`; do not edit. One vote per source: the median of its
figures' errors.

## The bars

{bars(sources)}

## What was fitted

{calibrated()}

All other costs have a source of their own, in the machine's file. What a cost was fitted to is not
scored. The lines of change_lines, the cost of a page, the way in which a long run is shrunk and the cost of
an area in a purge were chosen while the headline and Lenovo's figures were known. So those two are no blind
test.

{tables}
{here_section(folder)}## Shrinking

A long run is simulated with fewer loops and fewer held areas ([how](../simulator.md)). The result should not
depend on it:

{convergence(run)}
"""


def main(folder: str, store: str | None = None) -> None:
    """Simulate everything and write FOLDER/validation.md."""
    workers = os.cpu_count() or 1

    def run(plans: list[Plan]) -> list[dict[str, Any]]:
        return run_on_processes(plans, min(workers, len(plans)), store)

    (Path(folder) / "validation.md").write_text(document(run, Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
