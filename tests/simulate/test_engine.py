# SPDX-License-Identifier: MIT
"""The engine: its decisions are the model's, its times follow from the costs, its only chance is the seed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace

import pytest

from vmalloc.model import PAGE, CachingAllocator, Design, Kernel
from vmalloc.model.purge import Purge
from vmalloc.simulate._engine import COSTS, LEVELS
from vmalloc.simulate.design import MEMORY_BYTES, SIMULATED_POOLS, WINDOW_PAGES, design_named
from vmalloc.simulate.plan import Plan, calls_of, engine_plan, full_fit_areas, run_plan, simulation_of

BASE = 1 << 44
WINDOW = (BASE, BASE + WINDOW_PAGES * PAGE)
FREE_OF_COST = dict.fromkeys(COSTS, 0.0) | {
    "handover_few": 1.0,
    "cached_areas": 1e6,
    "zone_batch": 63.0,
    "zone_high": 315.0,
    "busy_percent": 100.0,
    "all_core_percent": 100.0,
    "shared_percent": 100.0,
    "slice": 3e6,
}


def small(design: str, **changes: object) -> Plan:
    plan = Plan(design, cpus=8, run_test_mask=63, test_loop_count=30_000, shrunk=128)
    return replace(plan, **changes)  # type: ignore[arg-type]


# ---- the same decisions --------------------------------------------------------------------------


class ReplayKernel:
    """The calls of a simulation, made to the model one by one."""

    def __init__(self, design: Design, cpus: int) -> None:
        self.model = Kernel(design, cpus, WINDOW)
        self.purge: Purge | None = None
        self.nr_purges = 0

    def alloc(self, where: int, pages: int, align: int, start: int | None) -> None:
        cpu, level = where >> 3, where & 7
        assert start is not None
        align_bytes = align * PAGE if align > 1 else 1
        if LEVELS[level] == "pool":
            area, found = self.model.attempt(pages * PAGE, align_bytes, cpu)
            assert found == "pool"
        else:
            area = self.model.attempt_space(pages * PAGE, align_bytes, cpu)
        assert area is not None
        assert area.start == BASE + start * PAGE

    def miss(self, cpu: int, pages: int, align: int, start: int | None) -> None:
        assert self.model._from_pool(pages, align * PAGE, cpu) is None

    def free(self, cpu: int, pages: int, align: int, start: int | None) -> None:
        assert start is not None
        assert self.model.free(BASE + start * PAGE) is not None

    def begin(self, _: int, full: int, __: int, ___: int | None) -> None:
        assert self.purge is None or self.purge.done
        self.purge = Purge(self.model, bool(full))
        self.nr_purges += 1

    def collect(self, node: int, _: int, __: int, ___: int | None) -> None:
        assert self.purge is not None
        assert self.purge.advance(self.model).node == node

    def fill(self, node: int, count: int, _: int, __: int | None) -> None:
        assert self.purge is not None
        lane = next(at for at, parts in enumerate(self.purge.lanes) if parts and parts[0].node == node)
        for _ in range(max(count, 0)):
            assert self.purge.advance(self.model, lane).node == node

    def one(self, node: int, _: int, __: int, ___: int | None) -> None:
        self.fill(node, 1, 0, None)

    def shrink(self, first: int, count: int, _: int, __: int | None) -> None:
        for at in range(first, first + count):
            node = self.model.nodes[at % self.model.nr_nodes]
            self.model.reclaim(self.model.decay_pools(node, full=True))

    def calls(self) -> dict[str, Callable[[int, int, int, int | None], None]]:
        steps = dict.fromkeys(("decay", "reclaim", "detach"), self.collect)
        return {
            **steps,
            "alloc": self.alloc,
            "miss": self.miss,
            "free": self.free,
            "begin": self.begin,
            "fill": self.fill,
            "settle": self.one,
            "give back": self.one,
            "shrink": self.shrink,
        }


@pytest.mark.parametrize("pressure", [(0, 0, 0), (300, 0, 0), (300, 3, 0), (300, 3, 1)])
@pytest.mark.parametrize("name", ["linux-6.8", "patch-v3", "linux-6.9", "linux-6.16", "llist"])
def test_a_whole_simulation_of_a_kernel_is_what_the_model_decides(
    name: str, pressure: tuple[int, int, int]
) -> None:
    design = design_named(name)
    assert isinstance(design, Design)
    every, nodes, rotates = pressure
    plan = small(name, shrink_every_us=every, shrink_nodes=nodes, shrink_rotates=rotates)
    simulation = simulation_of(plan, log_calls=True)
    found = simulation.run()
    replay = ReplayKernel(design, 8)
    do = replay.calls()
    for call, *arguments in simulation.calls():
        do[call](*arguments)  # type: ignore[arg-type]
    assert replay.model.served == found["served"]
    assert found["purges"] > 1
    assert replay.nr_purges - found["purges"] in (0, 1)  # one may be under way at the end


@pytest.mark.parametrize("pools", SIMULATED_POOLS)
def test_a_whole_simulation_of_ours_is_what_the_model_decides(pools: str) -> None:
    design = design_named(f"vmalloc/{pools}")
    assert not isinstance(design, Design)
    plan = small(f"vmalloc/{pools}", nr_threads=12)
    simulation = simulation_of(plan, log_calls=True)
    found = simulation.run()
    model = CachingAllocator(design, 8, WINDOW, memory_bytes=MEMORY_BYTES)
    requests = iter(simulation.calls())
    for call, where, pages, thread, start in requests:
        assert start is not None
        if call == "alloc":
            size, align = (pages & 0xFFFFFF) * PAGE, PAGE << (pages >> 24)
            area, _ = model.attempt(size, align, where >> 3, thread)
            assert area is not None
            assert area.start == BASE + start * PAGE
        else:
            assert model.free(BASE + start * PAGE, where, thread) is not None
    assert model.served == found["served"]


# ---- the workload --------------------------------------------------------------------------------


def test_a_worker_makes_as_many_calls_as_the_kernels_module() -> None:
    """Published: 1,000,000 loops each, 15,000 areas held, L = 57,344 on 64 CPUs."""
    assert full_fit_areas(64) == 57_344
    assert calls_of(7, 1_000_000, 64) == {
        "fix_size_alloc": 1_000_000,
        "full_fit_alloc": 1_000_000 + 2 * 57_344,
        "long_busy_list_alloc": 2_000_000 + 15_000,
    }


def test_the_engine_makes_these_calls() -> None:
    found = simulation_of(Plan(cpus=2, run_test_mask=63, test_loop_count=300, shrunk=1)).run()
    expected = calls_of(63, 300, 2)
    assert found["calls"][:6] == [2 * count for count in expected.values()]
    assert found["pairs"] == sum(found["calls"])


def test_a_shrunk_workload_has_fewer_loops_and_fewer_areas_but_the_same_threshold() -> None:
    whole, part = (engine_plan(Plan(shrunk=n)) for n in (1, 100))
    assert (part["loops"], part["long_busy"]) == (10_000, 150)
    assert part["design"] == whole["design"]


# ---- chance and time -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linux-6.9", "vmalloc/magazine"])
def test_the_same_seed_gives_the_same_result_and_another_gives_another(name: str) -> None:
    first, again, other = (run_plan(small(name, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first["wall_s"] != other["wall_s"]


def test_one_thread_pays_for_its_own_work_alone() -> None:
    """Nothing else costs anything: a pair takes 100 + 50 ns, and a page 10 + 5."""
    costs = FREE_OF_COST | {"alloc_work": 100.0, "free_work": 50.0, "page_alloc": 10.0, "page_free": 5.0}
    plan = Plan(nr_threads=1, run_test_mask=1, test_loop_count=1000, nr_pages=4, shrunk=1, costs=costs)
    assert run_plan(plan)["us_per_pair"] == pytest.approx(0.15 + 4 * 0.015, rel=0.01)


@pytest.mark.parametrize("pools", ["locked", "llist", "tagged", "percpu", "magazine"])
def test_one_thread_pays_what_was_measured_of_one_thread(pools: str) -> None:
    """The costs of a design have the lock that nobody else wants, and the compare-exchange, in them."""
    costs = FREE_OF_COST | {f"ours_{pools}": 100.0, "locked_instruction": 5.0}
    plan = Plan(
        f"vmalloc/{pools}", nr_threads=1, run_test_mask=1, test_loop_count=2000, shrunk=1, costs=costs
    )
    assert run_plan(plan)["us_per_pair"] == pytest.approx(0.2, rel=0.01)


def test_who_takes_from_a_neighbours_pool_pays_for_its_line() -> None:
    """Eight sockets, a node each: nothing costs but a line that comes from another one, 1 us."""
    costs = FREE_OF_COST | {"ours_locked": 1.0, "line_remote": 1000.0}
    eight = Plan("vmalloc/locked", topology="8x1x1x1", run_test_mask=8, test_loop_count=1000, shrunk=1)
    found = simulation_of(replace(eight, costs=costs)).run()
    us_per_pair = found["thread_ns"] / found["warm_pairs"] / 1000
    assert 0 < found["served"]["neighbour"] / found["pairs"] < us_per_pair


def test_threads_on_one_lock_take_turns() -> None:
    """Each pair has the busy lock three times, twice for 60 ns and once, for the set-up, for 0."""
    costs = FREE_OF_COST | {"tree_change": 60.0, "handover_floor": 40.0}
    plan = Plan("linux-6.8", cpus=8, run_test_mask=1, test_loop_count=2000, shrunk=1, costs=costs)
    row = run_plan(plan)
    assert row["us_per_pair"] == pytest.approx(8 * (2 * (60 + 40) + 40) / 1000, rel=0.05)
    assert row["busy_wait_share"] > 0.8


def test_the_sibling_on_a_core_slows_its_neighbour_down() -> None:
    costs = FREE_OF_COST | {"alloc_work": 100.0, "busy_percent": 160.0}
    alone = Plan(
        topology="1x1x4x2", nr_threads=4, run_test_mask=1, test_loop_count=500, shrunk=1, costs=costs
    )
    assert run_plan(alone)["us_per_pair"] == pytest.approx(0.1, rel=0.01)
    assert run_plan(replace(alone, nr_threads=8))["us_per_pair"] == pytest.approx(0.16, rel=0.01)


def test_more_threads_than_cpus_take_as_many_times_as_long() -> None:
    costs = FREE_OF_COST | {"alloc_work": 1000.0, "slice": 20_000.0}
    plan = Plan(
        topology="1x1x2x1", nr_threads=2, run_test_mask=1, test_loop_count=2000, shrunk=1, costs=costs
    )
    two, six = run_plan(plan), run_plan(replace(plan, nr_threads=6))
    assert six["wall_s"] == pytest.approx(3 * two["wall_s"], rel=0.02)


def test_a_purge_with_one_atomic_for_each_area_takes_longer() -> None:
    plan = small("linux-6.9", run_test_mask=1, test_loop_count=2_000_000)
    batched, single = run_plan(plan), run_plan(replace(plan, atomic_per_area=1))
    assert single["node_purge_us"] > batched["node_purge_us"]


def test_statistics_begin_after_a_tenth_of_the_pairs_or_at_half_of_them() -> None:
    busy = simulation_of(small("linux-6.9", run_test_mask=8, test_loop_count=1 << 20)).run()
    assert 0.5 <= busy["warm_pairs"] / busy["pairs"] <= 0.9
    idle = simulation_of(Plan(cpus=2, run_test_mask=1, test_loop_count=1000, shrunk=1)).run()
    assert idle["purges"] == 0
    assert idle["warm_pairs"] / idle["pairs"] == pytest.approx(0.5, abs=0.05)


def test_lookups_under_one_lock_take_turns_and_at_many_nodes_do_not() -> None:
    plan = Plan("linux-6.8", cpus=16, lookups=20, request_us=5.0, test_loop_count=200)
    one, many = run_plan(plan), run_plan(replace(plan, design="linux-6.9"))
    assert many["pairs_per_s"] > 5 * one["pairs_per_s"]


def test_the_progress_rises_to_the_end() -> None:
    seen: list[float] = []
    run_plan(small("linux-6.9"), seen.append)
    assert seen == sorted(seen)
    assert seen[-1] > 0.99


def test_a_signal_is_heard_although_nobody_asks_for_the_progress() -> None:
    class Heard(Exception):
        pass

    def hear(*_: object) -> None:
        raise Heard

    before = signal.signal(signal.SIGALRM, hear)
    simulation = simulation_of(Plan(cpus=2, test_loop_count=1 << 28, nr_threads=2))
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(Heard):
            simulation.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert simulation.results()["pairs"] < 2 << 28
