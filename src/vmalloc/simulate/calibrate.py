# SPDX-License-Identifier: MIT
"""Calibrate: the costs of the machine at hand, as a file like those in costs/; and the suite beside it.

Medians of several rounds, of the suite the best one. What this machine cannot show (another socket, a
sibling) keeps the value of the base file and says so. Our own pool designs are measured with the suite, one
worker, one page: a pair of design `off` is shared among its steps by OFF_SHARES, which nothing measures one
by one.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import median

from vmalloc.simulate import _engine
from vmalloc.simulate.costs import Cost, Machine, Topology, load_machine
from vmalloc.simulate.design import SIMULATED_POOLS
from vmalloc.simulate.plan import Plan, run_plan

__all__ = ["Beside", "beside", "calibrated", "found_in", "here", "ranking", "table", "write_machine"]

BASE = "threadripper-3970x"
ROUNDS = 7
SUITE_LOOPS = 50_000
"""Pairs of a first look at the suite, which says how long a round of RUN_S is."""
RUN_S = 0.1
"""A measured round lasts about so long: 64 threads take turns of some ms, and are started and waited for."""
RUN_LOOPS_MAX = 1 << 24
SIMULATED_PAIRS = 350_000
OFF_SHARES = {"ours_space": 0.4, "ours_give": 0.25, "ours_lazy": 0.15, "ours_sort": 0.1}
"""Of a pair of design `off`; ours_sort is paid twice."""
DIFFERS = 0.15
WORKERS = (1, 2, 4, 8, 16, 32, 64)
RANKED = (2, 8, 64)
"""The numbers of workers at which the order of the designs is compared."""

Say = Callable[[str], None]


# ---- where CPUs stand --------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A CPU: its socket, its last-level cache, its core."""

    cpu: int
    socket: int
    cluster: str
    core: int


def _read(path: Path, default: str) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return default


def _place(cpu: int) -> Place:
    folder = Path(f"/sys/devices/system/cpu/cpu{cpu}")
    caches = sorted(folder.glob("cache/index*/shared_cpu_list"))
    cluster = _read(caches[-1], "") if caches else ""
    socket = int(_read(folder / "topology/physical_package_id", "0"))
    return Place(cpu, socket, cluster, int(_read(folder / "topology/core_id", str(cpu))))


def relation(a: Place, b: Place) -> str:
    """The cost that a line between the two stands for."""
    if a.socket != b.socket:
        return "line_remote"
    if a.core == b.core:
        return "line_core"
    return "line_cluster" if a.cluster == b.cluster else "line_socket"


def topology_of(places: list[Place]) -> Topology:
    """Of these CPUs, if all parts are alike; otherwise one cluster of them all."""
    sockets = len({p.socket for p in places})
    clusters = len({(p.socket, p.cluster) for p in places})
    cores = len({(p.socket, p.core) for p in places})
    exact = clusters % sockets == 0 and cores % clusters == 0 and len(places) % cores == 0
    if not exact:
        return Topology(1, 1, len(places), 1)
    return Topology(sockets, clusters // sockets, cores // clusters, len(places) // cores)


def _places() -> list[Place]:
    return [_place(cpu) for cpu in sorted(os.sched_getaffinity(0))]


# ---- measuring ---------------------------------------------------------------------------------


def _median(measure: Callable[[], float]) -> float:
    return median(measure() for _ in range(ROUNDS))


def _lines(places: list[Place], say: Say) -> dict[str, float]:
    found: dict[str, float] = {}
    wake: float | None = None
    for a, b in combinations(places, 2):
        name = relation(a, b)
        if name in found:
            continue
        say(f"a line between CPU {a.cpu} and CPU {b.cpu}")
        found[name] = _median(lambda a=a, b=b: _engine.measure_line(a.cpu, b.cpu))  # type: ignore[misc]
        if wake is None:
            wake = _median(lambda a=a, b=b: _engine.measure_wake(a.cpu, b.cpu))  # type: ignore[misc]
    if wake is not None:
        found["wake"] = wake
    if found:  # a waiter sees the lock's line, then what lies under the lock
        found["handover_floor"] = 2 * max(value for name, value in found.items() if name.startswith("line_"))
        found["handover_queue"] = 0.0
    return found


def _suite_once(pools: str, workers: int, each: int) -> float:
    """The suite's fix_size test on the real allocator: ns of wall time a pair, all workers together."""
    from vmalloc.suite import Plan as SuitePlan
    from vmalloc.suite import run
    from vmalloc.suite.parameters import Parameters

    parameters = Parameters(nr_threads=workers, run_test_mask=1, test_loop_count=each)
    result = run(SuitePlan(parameters, (pools,), single=False))
    (line,) = (line for line in result.results if line.test == "all")
    return line.usec * 1e3 / (each * workers)


def rounds_of(ns_per_pair: float, workers: int) -> int:
    """Pairs of each worker in a round of RUN_S."""
    return max(min(int(RUN_S * 1e9 / ns_per_pair / workers), RUN_LOOPS_MAX), 1)


def suite_ns_per_pair(pools: Iterable[str], workers: int) -> dict[str, float]:
    """The best of ROUNDS rounds of each design, in turn.

    Other work on the machine only ever adds. Half of the rounds may be disturbed, and a median is then: so
    one design was calibrated at 1.4 times what it took a few seconds later, and stood behind a slower one.
    """
    each = {
        name: rounds_of(_suite_once(name, workers, max(SUITE_LOOPS // workers, 1)), workers) for name in pools
    }
    found: dict[str, list[float]] = {name: [] for name in each}
    for _ in range(ROUNDS):
        for name, loops in each.items():
            found[name].append(_suite_once(name, workers, loops))
    return {name: min(values) for name, values in found.items()}


def _ours(say: Say) -> dict[str, float]:
    say("the suite with one worker")
    pair, move = suite_ns_per_pair(SIMULATED_POOLS, 1), load_machine(BASE).values["ours_move"]
    costs = {f"ours_{name}": max(pair[name] - move, 0.0) / 2 for name in ("locked", "llist", "tagged")}
    costs |= {f"ours_{name}": pair[name] / 2 for name in ("magazine", "percpu")}
    return costs | {name: pair["off"] * share for name, share in OFF_SHARES.items()} | {"ours_discard": 0.0}


def calibrated(say: Say = lambda text: None) -> tuple[Machine, list[str]]:
    """The machine at hand, and what else was measured, in lines."""
    base, places = load_machine(BASE), _places()
    say("locked instructions, pages")
    add = _median(lambda: _engine.measure_locked()[0])
    cas = _median(lambda: _engine.measure_locked()[1])
    pages = [_engine.measure_pages() for _ in range(ROUNDS)]
    touch, hot, cold = (median(page[i] for page in pages) for i in range(3))
    found = {"locked_instruction": add, **_lines(places, say), **_ours(say)}
    unmap = {n: _median(lambda n=n: _engine.measure_unmap(n)) for n in (0, 1, 4)}  # type: ignore[misc]
    where = f"{_model()}, measured by vmalloc calibrate"
    costs = {name: Cost(round(value, 2), where) for name, value in found.items()}
    kept = {
        name: replace(cost, source=f"not measured here; {base.name}: {cost.source}")
        for name, cost in base.costs.items()
        if name not in costs
    }
    notes = [
        f"compare-exchange {cas:.1f} ns",
        f"first touch of a page {touch:.0f} ns; 4 KiB cleared {hot:.0f} ns in the cache, {cold:.0f} ns"
        f" out of it",
        "a page given back beside "
        + ", ".join(f"{n} running threads {ns:.0f} ns" for n, ns in unmap.items()),
    ]
    meaning = f"{_model()}, {len(places)} CPUs"
    return Machine("here", meaning, topology_of(places), {**kept, **costs}), notes


def here() -> Machine:
    """The machine at hand, without what else was measured."""
    return calibrated()[0]


def _model() -> str:
    lines = _read(Path("/proc/cpuinfo"), "").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names[0] if names else platform.machine()).replace('"', "'")


def write_machine(machine: Machine, path: Path) -> None:
    """The machine as a file that load_machine() reads."""
    t = machine.topology
    lines = [
        f'meaning = "{machine.meaning}"',
        "",
        "[topology]",
        *(f"{name} = {getattr(t, name)}" for name in ("sockets", "clusters", "cores", "smt")),
    ]
    for name, cost in machine.costs.items():
        key = "ns" if _engine.COSTS[name] == "ns" else "number"
        source = cost.source.replace("\\", "/").replace('"', "'")
        lines += ["", f"[cost.{name}]", f"{key} = {cost.value:g}", f'source = "{source}"']
    path.write_text("\n".join(lines) + "\n")


# ---- the suite beside the simulation ------------------------------------------------------------


@dataclass(frozen=True)
class Beside:
    """One design with so many workers: ns a pair, all workers together."""

    pools: str
    workers: int
    measured: float
    simulated: float


def beside(machine_file: str, workers: Iterable[int] = WORKERS, say: Say = lambda text: None) -> list[Beside]:
    """The suite here and in simulation, on a machine that write_machine() wrote."""
    found = []
    for count in workers:
        say(f"the suite with {count} workers")
        measured = suite_ns_per_pair(SIMULATED_POOLS, count)
        for pools in SIMULATED_POOLS:
            plan = Plan(f"vmalloc/{pools}", machine_file, nr_threads=count, run_test_mask=1, shrunk=1,
                        test_loop_count=max(SIMULATED_PAIRS // count, 1))  # fmt: skip
            row = run_plan(plan)
            found.append(Beside(pools, count, measured[pools], row["wall_s"] * 1e9 / row["pairs"]))
    return found


def clear_pairs(found: Iterable[Beside], workers: int) -> list[tuple[Beside, Beside]]:
    """Pairs of designs that differ by more than DIFFERS in both, the faster one as measured first."""
    mine = sorted((one for one in found if one.workers == workers), key=lambda one: one.measured)
    return [
        (a, b)
        for a, b in combinations(mine, 2)
        if b.measured / a.measured > 1 + DIFFERS
        and max(a.simulated / b.simulated, b.simulated / a.simulated) > 1 + DIFFERS
    ]


def ranking(found: Iterable[Beside], workers: int) -> tuple[int, list[tuple[Beside, Beside]]]:
    """(How many pairs of designs differ clearly, those that the simulation has the other way round)."""
    clear = clear_pairs(found, workers)
    return len(clear), [(a, b) for a, b in clear if a.simulated > b.simulated]


def found_in(path: Path) -> tuple[str, list[Beside]]:
    """What `vmalloc calibrate --beside --json` wrote: the machine, and the rows."""
    document = json.loads(path.read_text())
    return document["meaning"], [Beside(**row) for row in document["beside"]]


def table(meaning: str, found: Iterable[Beside]) -> str:
    """All of it as Markdown, and whether the designs are in the same order."""
    found = list(found)
    lines = [f"{meaning}: fix_size, one page, ns a pair of all workers together.", ""]
    lines += ["| workers | design | measured | simulated | |", "|---|---|---|---|---|"]
    lines += [
        f"| {one.workers} | {one.pools} | {one.measured:.1f} | {one.simulated:.1f} |"
        f" {one.simulated / one.measured:.2f} |"
        for one in found
    ]
    lines += ["", f"The order of the designs, in pairs that differ by more than {DIFFERS:.0%} in both:", ""]
    for workers in RANKED:
        clear, others = ranking(found, workers)
        line = f"* {workers} workers: {clear - len(others)} of {clear} pairs are in the same order."
        lines.append(line + "".join(f" Not {a.pools} before {b.pools}." for a, b in others))
    return "\n".join(lines)
