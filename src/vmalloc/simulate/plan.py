# SPDX-License-Identifier: MIT
"""Plan: one cell of a simulation, as plain values that can be sent to any worker; and its result as a row.

The workload is the kernel's test suite, with the suite's own parameter names. A large one is simulated
`shrunk` times smaller: loops and held areas are, the trees that they stand in are priced as large as
they would be, and times are multiplied. Thresholds, pools and purges are not shrunk, so a purge comes
after as many pairs as it would; only the beginning, until the pools are filled, weighs more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

from vmalloc.facts import LAZY_BYTES_PER_CPU_BIT
from vmalloc.model.area import PAGE
from vmalloc.model.design import Design
from vmalloc.simulate._engine import Simulation
from vmalloc.simulate.costs import Machine, Topology, load_machine
from vmalloc.simulate.design import design_named, twin_design
from vmalloc.suite.parameters import TESTS

__all__ = ["MASK_MAX", "Plan", "calls_of", "run_plan", "simulation_of"]

LONG_BUSY_AREAS = 15000
"""What long_busy_list_alloc holds in the kernel's suite."""
MASK_MAX = 127
"""The tests that are simulated: the first seven; align_shift_alloc's 64 calls are left out."""
LOOKUP_MASK = 1 << 7
WARM_PURGES = 3
SETUP_TWICE_BEFORE = ("linux-6.8", "patch-v3", "linux-6.9")
"""Until 6.10 an allocation went to the busy lock twice."""
PAIRS_AT_ONCE = 4_000_000
"""A plan that does not say how much it is to be shrunk is shrunk to so many pairs."""


@dataclass(frozen=True)
class Plan:
    """What one run simulates. Costs are read from the machine's file; `costs` changes some."""

    design: str = "linux-6.9"
    machine: str = "threadripper-3970x"
    cpus: int = 0
    """0: as many as the machine has."""
    topology: str = ""
    nr_threads: int = 0
    """0: one for each CPU."""
    run_test_mask: int = 7
    test_loop_count: int = 1_000_000
    nr_pages: int = 1
    sequential_test_order: int = 0
    shrunk: int = 0
    seed: int = 0
    atomic_per_area: int = 0
    shrink_every_us: int = 0
    shrink_nodes: int = 0
    """A scan under pressure empties so many nodes, in index order; 0: all."""
    shrink_rotates: int = 0
    """A scan begins where the last one stopped, not with the first node."""
    purge_is_full: int = 0
    lookups: int = 0
    """Not the suite: requests of `request_us` own work that look up so many of `looked_at` areas."""
    looked_at: int = 1 << 14
    request_us: float = 0.0
    costs: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not 0 < self.run_test_mask <= MASK_MAX or self.run_test_mask == 1 << 6:
            names = ", ".join(f"{test.bit} {test.name}" for test in TESTS[:6])
            raise ValueError(f"run_test_mask={self.run_test_mask}: wanted 1 to {MASK_MAX}, made of {names}")
        if not 1 <= self.test_loop_count <= 1 << 28:
            raise ValueError(f"test_loop_count={self.test_loop_count}: wanted 1 to {1 << 28}")
        if not 1 <= self.nr_pages <= 1 << 16:
            raise ValueError(f"nr_pages={self.nr_pages}: wanted 1 to {1 << 16}")
        if not 0 <= self.nr_threads <= 1 << 14:
            raise ValueError(f"nr_threads={self.nr_threads}: wanted 1 to {1 << 14}")
        if not 0 <= self.shrunk <= 1 << 16:
            raise ValueError(f"shrunk={self.shrunk}: wanted 1 to {1 << 16}")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"seed {self.seed}: wanted 0 to {(1 << 64) - 1}")
        if not 0 <= self.shrink_every_us < 1 << 32:
            raise ValueError(f"a shrink every {self.shrink_every_us} us: wanted 0 (never) to {(1 << 32) - 1}")
        design_named(self.design)

    def on(self) -> tuple[Machine, Topology]:
        """The machine, and the topology with the CPUs asked for."""
        machine = load_machine(self.machine)
        topology = Topology.parse(self.topology) if self.topology else machine.topology
        if self.cpus and self.topology and topology.cpus != self.cpus:
            raise ValueError(f"topology {topology} has {topology.cpus} CPUs, not {self.cpus}")
        topology = topology.scaled(self.cpus or topology.cpus)
        if self.costs:
            machine = machine.with_costs(self.costs, "chosen")
        return machine, topology


def full_fit_areas(cpus: int) -> int:
    """L of full_fit_alloc: fls(CPUs) times 32 MiB, in pages."""
    return cpus.bit_length() * LAZY_BYTES_PER_CPU_BIT // PAGE


def calls_of(mask: int, loops: int, cpus: int) -> dict[str, int]:
    """Allocations of one worker in each test, as the kernel's module makes them."""
    held = {"full_fit_alloc": 2 * full_fit_areas(cpus), "long_busy_list_alloc": LONG_BUSY_AREAS}
    return {
        test.name: (2 if test.name == "long_busy_list_alloc" else 1) * loops + held.get(test.name, 0)
        for test in TESTS[:6]
        if mask & test.bit
    }


def shrunk_of(plan: Plan, cpus: int, threads: int) -> int:
    """By how much a plan is shrunk: as said, or so that it has about PAIRS_AT_ONCE pairs; a power of two."""
    if plan.shrunk or plan.lookups:
        return plan.shrunk or 1
    pairs = threads * sum(calls_of(plan.run_test_mask, plan.test_loop_count, cpus).values())
    return 1 << max((pairs // PAIRS_AT_ONCE).bit_length() - 1, 0)


def engine_plan(plan: Plan, *, log_calls: bool = False) -> dict[str, Any]:
    """The plan as the engine takes it."""
    machine, topology = plan.on()
    design = design_named(plan.design)
    is_kernel = isinstance(design, Design)
    cpus, threads = topology.cpus, plan.nr_threads or topology.cpus
    shrunk = shrunk_of(plan, cpus, threads)
    return {
        "design": twin_design(design, cpus),
        "topology": (topology.sockets, topology.clusters, topology.cores, topology.smt),
        "costs": machine.values,
        "threads": threads,
        "mask": LOOKUP_MASK if plan.lookups else plan.run_test_mask,
        "loops": max(plan.test_loop_count // shrunk, 1),
        "nr_pages": plan.nr_pages,
        "lookups": plan.lookups,
        "looked_at": plan.looked_at,
        "request_us": plan.request_us,
        "full_fit": max(full_fit_areas(cpus) // shrunk, 1),
        "long_busy": max(LONG_BUSY_AREAS // shrunk, 1),
        "shrunk": shrunk,
        "in_order": plan.sequential_test_order,
        "guard_pages": int(is_kernel),
        "setup_twice": plan.design.partition(",")[0] in SETUP_TWICE_BEFORE,
        "atomic_per_area": plan.atomic_per_area,
        "shrink_every_us": plan.shrink_every_us,
        "shrink_nodes": plan.shrink_nodes,
        "shrink_rotates": plan.shrink_rotates,
        "purge_is_full": plan.purge_is_full,
        "log_calls": log_calls,
        "warm_purges": WARM_PURGES,
        "seed": plan.seed,
    }


def simulation_of(plan: Plan, *, log_calls: bool = False) -> Simulation:
    """The engine, ready to run a plan."""
    return Simulation(engine_plan(plan, log_calls=log_calls))


def run_plan(plan: Plan, progress: Callable[[float], None] | None = None) -> dict[str, Any]:
    """Run one plan; the row says what was asked and what came out, in numbers and words only."""
    values = engine_plan(plan)
    found = Simulation(values).run(progress)
    if found["error"]:
        raise RuntimeError(f"{plan.design}: the address space of the simulation was used up")
    asked = asdict(plan) | {"cpus": values["design"]["cpus"], "nr_threads": values["threads"]}
    asked["costs"] = ",".join(f"{name}={value:g}" for name, value in sorted(plan.costs.items()))
    return asked | {"shrunk": values["shrunk"]} | _measured(values, found)


def _measured(values: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    shrunk, threads, cpus = values["shrunk"], values["threads"], values["design"]["cpus"]
    seconds = max(found["end_ns"] - found["warm_ns"], 1e-3) / 1e9
    cpu_ns = max(found["thread_ns"] * min(threads, cpus) / threads, 1e-3)
    spin = {name: lock["wait_ns"] / cpu_ns for name, lock in found["locks"].items()}
    row = {
        "wall_s": found["end_ns"] * shrunk / 1e9,
        "mean_wall_s": sum(found["test_ns"]) / threads * shrunk / 1e9,
        "pairs": found["pairs"],
        "pairs_per_s": found["warm_pairs"] / seconds,
        "us_per_pair": cpu_ns / max(found["warm_pairs"], 1) / 1e3,
        "lock_wait_share": sum(share for name, share in spin.items() if name != "counter"),
        **{f"{name}_wait_share": share for name, share in spin.items()},
        **{f"{what}_{name}_us": value for what in ("alloc", "free") for name, value in _marks(found[what])},
        "pool_hit_share": _share(found["served"], "magazine", "slab", "pool", "neighbour"),
        "pool_hit_first_share": _hits(found["quarters"][:1]),
        "pool_hit_others_share": _hits(found["quarters"][1:]),
        "space_share": _share(found["served"], "space"),
        "purges": found["purges"],
        "helped": found["helped"],
        "purged_per_node": found["purged"] / max(found["node_purges"], 1),
        "node_purge_us": found["node_purge_ns"] / max(found["node_purges"], 1) / 1e3,
        "node_purge_max_us": found["node_purge_max_ns"] / 1e3,
    }
    for name in ("lazy_max", "lazy_mean", "pooled_max", "pooled_mean", "top", "live_max"):
        row[f"{name}_mib"] = found[f"{name}_pages"] * PAGE / 2**20
    row["footprint_ratio"] = found["top_pages"] / max(found["live_max_pages"], 1)
    return row


def _share(served: dict[str, int], *levels: str) -> float:
    return sum(served[level] for level in levels) / max(sum(served.values()), 1)


def _hits(quarters: list[tuple[int, int]]) -> float:
    """Of the allocations on some quarters of the nodes, those that pools served."""
    return sum(hits for hits, _ in quarters) / max(sum(calls for _, calls in quarters), 1)


def _marks(histogram: list[tuple[float, int]]) -> list[tuple[str, float]]:
    """Median, 99th percentile and maximum, in us."""
    if not histogram:
        return [("p50", 0.0), ("p99", 0.0), ("max", 0.0)]
    sums = list(accumulate(count for _, count in histogram))
    at = {name: bisect_left(sums, share * sums[-1]) for name, share in (("p50", 0.5), ("p99", 0.99))}
    marks = [(name, histogram[min(i, len(histogram) - 1)][0] / 1e6) for name, i in at.items()]
    return [*marks, ("max", histogram[-1][0] / 1e6)]
