# SPDX-License-Identifier: MIT
"""Costs, machines, topologies: every value has a source, and what contradicts itself is refused in one
line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmalloc.simulate import _engine
from vmalloc.simulate._engine import COSTS
from vmalloc.simulate.calibrate import Place, topology_of, write_machine
from vmalloc.simulate.costs import Topology, load_machine, machines
from vmalloc.simulate.fit import us_per_pair
from vmalloc.simulate.plan import Plan
from vmalloc.simulate.published import V1_CALIBRATES, V1_DEFAULT


@pytest.mark.parametrize("name", machines())
def test_every_cost_of_every_machine_has_a_source(name: str) -> None:
    machine = load_machine(name)
    assert machine.costs.keys() == COSTS.keys()
    assert all(cost.source for cost in machine.costs.values())


@pytest.mark.parametrize(
    ("name", "cpus"),
    [("threadripper-3970x", 64), ("epyc-128", 128), ("xeon-72", 72), ("xeon-192", 192), ("epyc-448", 448)],
)
def test_a_machine_has_as_many_cpus_as_was_published(name: str, cpus: int) -> None:
    assert load_machine(name).topology.cpus == cpus


@pytest.mark.parametrize("jobs", V1_CALIBRATES)
def test_the_fitted_costs_give_what_they_were_fitted_to(jobs: int) -> None:
    assert us_per_pair(jobs, {}) == pytest.approx(V1_DEFAULT[jobs], rel=0.03)


@pytest.mark.parametrize("cpus", [1, 2, 8, 64, 128, 1024])
def test_a_kind_of_machine_can_have_any_size(cpus: int) -> None:
    scaled = load_machine("threadripper-3970x").topology.scaled(cpus)
    assert scaled.cpus == cpus


def test_cpus_that_do_not_fill_clusters_want_a_topology() -> None:
    with pytest.raises(ValueError, match="say --topology"):
        load_machine("threadripper-3970x").topology.scaled(65)


@pytest.mark.parametrize("text", ["", "8", "1x2x3", "1x2x3x4x5", "0x1x1x1", "1xax1x1", "64x64x64x64"])
def test_a_topology_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="topology"):
        Topology.parse(text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"design": "linux-9"}, "there is no design"),
        ({"design": "linux-6.9,nodes=3"}, "is no choice of it"),
        ({"design": "linux-6.9,nodes_max=x"}, "a number is wanted"),
        ({"run_test_mask": 0}, "run_test_mask=0"),
        ({"run_test_mask": 128}, "run_test_mask=128"),
        ({"nr_threads": 1 << 20}, "nr_threads"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Plan(**changes)  # type: ignore[arg-type]


def test_a_topology_with_other_cpus_than_asked_for_is_refused() -> None:
    with pytest.raises(ValueError, match="has 24 CPUs, not 7"):
        Plan(cpus=7, topology="1x2x3x4").on()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not make a file of costs"),
        ("a = [", "does not make a file of costs"),
        ('meaning = "m"\n[cost.wrong]\nns = 1\nsource = "s"', "there is no cost"),
        ('meaning = "m"\nbase = "xeon-72"\n[cost.wake]\nns = 1', "has no source"),
        ('meaning = "m"\nbase = "xeon-72"\n[cost.wake]\nnumber = 1\nsource = "s"', "wake needs `ns`"),
        ('meaning = "m"\nbase = "nowhere"\n[cost.wake]\nns = 1\nsource = "s"', "there is no machine"),
        ('meaning = "m"\n[cost.wake]\nns = 1\nsource = "s"', "no all_core_percent"),
    ],
)
def test_a_file_of_costs_that_is_wrong_says_how(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "here.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        load_machine(str(path))
    assert "\n" not in str(caught.value)


def test_a_calibrated_machine_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    machine = load_machine("xeon-192").with_costs({"wake": 4321.0}, 'measured with a "quote"')
    write_machine(machine, tmp_path / "here.toml")
    back = load_machine(str(tmp_path / "here.toml"))
    assert back.topology == machine.topology
    assert back.values == pytest.approx(machine.values, rel=1e-5)
    assert back.costs["wake"].source == "measured with a 'quote'"


def test_a_topology_is_read_from_where_cpus_stand() -> None:
    places = [Place(cpu, cpu // 4 % 2, f"{cpu // 4 % 2}", cpu % 4) for cpu in range(16)]
    assert topology_of(places) == Topology(2, 1, 4, 2)
    assert topology_of(places[:3]) == Topology(1, 1, 3, 1)
    assert topology_of([*places[:4], places[4]]) == Topology(1, 1, 5, 1)  # uneven: taken as one cluster


def test_every_measurement_gives_a_time() -> None:
    assert min(_engine.measure_locked()) > 0
    assert min(_engine.measure_pages()) > 0
    assert _engine.measure_unmap(2) > 0
    here = sorted(os.sched_getaffinity(0))
    if len(here) > 1:
        assert _engine.measure_line(here[0], here[1]) > 0
        assert _engine.measure_wake(here[0], here[1]) > 0
    assert sorted(os.sched_getaffinity(0)) == here  # nobody stays pinned


def test_a_cpu_that_may_not_be_used_is_an_error() -> None:
    with pytest.raises(OSError):
        _engine.measure_line(-1, 0)
