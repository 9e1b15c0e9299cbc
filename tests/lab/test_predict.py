# SPDX-License-Identifier: MIT
"""The model predicts real kernels, recorded in tests/data."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.lab.trace_samples import DATA

from vmalloc.lab.events import Event, TraceError
from vmalloc.lab.generation import CHANCE_MAX, chance, generation_said
from vmalloc.lab.null import predict_null
from vmalloc.lab.replay import Recording, load, predict, rank, run_on_model
from vmalloc.lab.state import State, StateError, compare, read_state
from vmalloc.model import KERNEL_PRESETS, PAGE, PRESETS, Area

ONE_WORKER = ["random_size_1t", "vm_map_ram_1t", "pcpu_1t"]
ONE_WORKER_BIG = ["fix_align_1t", "align_shift_1t", "long_busy", "mix_smp1", "mix_smp8"]
SEVERAL_WORKERS = ["fix_size", "random_size", "kvfree_rcu_1"]


def guest(name: str, state: bool = True) -> tuple[Recording, Path]:
    folder = DATA / "guest"
    start = folder / f"{name}.state0.xz" if state else None
    return load(folder / f"{name}.trace.xz", start), folder / f"{name}.state1.xz"


def live(name: str, **known: Path) -> Recording:
    return load(DATA / "live" / f"{name}.trace.xz", **known)


@pytest.mark.parametrize("name", ONE_WORKER + ONE_WORKER_BIG)
def test_one_worker_is_predicted_to_the_page_and_ends_in_the_dumped_state(name):
    recording, end = guest(name)
    outcome = predict(recording, KERNEL_PRESETS["linux-6.9"], end)
    p = outcome.prediction
    assert p.page.share >= 0.999
    assert p.above.exact + p.within_bounds == p.above.allocs
    assert p.purges_as_told == p.purges
    assert outcome.end is not None
    assert outcome.end.equal, outcome.end


@pytest.mark.parametrize("name", SEVERAL_WORKERS)
def test_several_workers_are_predicted_and_few_orders_are_inferred(name):
    recording, end = guest(name)
    outcome = predict(recording, KERNEL_PRESETS["linux-6.9"], end)
    p = outcome.prediction
    assert p.all.share >= 0.95
    assert p.orders_inferred / p.all.allocs < 0.01
    assert outcome.end is not None
    assert outcome.end.equal, outcome.end


def test_a_share_of_nothing_is_not_all_of_it():
    whole, _ = guest("pcpu_1t", state=False)
    small = [event for event in whole.events if event.align <= PAGE]
    told = predict(Recording(small, whole.window, whole.cpus), KERNEL_PRESETS["linux-6.9"]).as_dict()
    assert (told["larger_alignment"], told["after_warm_up"]) == (0, 0)
    shares = "exact_larger_alignment", "within_bounds", "exact_after_warm_up", "level_right_after_warm_up"
    assert [told[share] for share in shares] == [None] * 4


def test_per_cpu_areas_show_only_when_they_are_freed():
    recording, end = guest("pcpu_1t")
    outcome = predict(recording, KERNEL_PRESETS["linux-6.9"], end)
    assert outcome.prediction.assumed == {"area freed but never seen allocated": 35}
    assert outcome.end is not None
    assert outcome.end.untraced == 1


@pytest.mark.parametrize(("design", "at_most"), [("linux-6.8", 0.5), ("linux-6.16", 0.8), ("llist", 0.8)])
def test_a_wrong_design_is_clearly_worse(design, at_most):
    recording, _ = guest("random_size_1t")
    assert predict(recording, KERNEL_PRESETS[design]).prediction.all.share < at_most


def test_every_miss_has_a_category():
    recording, _ = guest("random_size_1t")
    p = predict(recording, KERNEL_PRESETS["linux-6.8"]).prediction
    missed = p.all.allocs - p.all.exact - p.within_bounds
    assert sum(p.misses.values()) == missed > 0
    assert p.first_miss is not None


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("random_size_1t", "6.9 to 6.15"),
        ("random_size", "6.9 to 6.15"),
        ("vm_map_ram_1t", "cannot tell"),
        ("long_busy", "6.9 to 6.15"),
    ],
)
def test_the_generation_is_named_from_the_trace_alone(name, generation):
    assert rank(guest(name, state=False)[0]).best == generation


def test_only_events_on_which_designs_disagree_decide():
    ranking = rank(guest("long_busy", state=False)[0])
    against = {runner.designs[0].name: runner.against for runner in ranking.runners}
    won, lost = against["linux-6.16"]
    assert won == 0
    assert lost >= 10  # 15: the wrong design too is put right by the pools that it had given up (0066)
    assert chance(won, lost) < 1e-4


def test_designs_that_decide_alike_are_replayed_once_and_hopeless_ones_are_stopped():
    recording = guest("random_size_1t", state=False)[0]
    ranking = rank(recording)
    assert [d.name for d in ranking.runners[0].designs] == ["patch-v3", "linux-6.9"]
    assert len(ranking.runners) == 4
    assert all(
        runner.stopped and runner.predictor.at < len(recording.events) for runner in ranking.runners[1:]
    )


@pytest.mark.parametrize(
    ("few", "many", "decided"), [(0, 6, True), (1, 9, True), (2, 8, False), (0, 5, False)]
)
def test_a_sign_test_needs_more_than_chance(few, many, decided):
    assert (chance(few, many) < CHANCE_MAX) == decided


def test_one_node_has_no_pools_so_later_versions_cannot_be_told_apart():
    ranking = rank(guest("mix_smp1", state=False)[0])
    assert ranking.best == "cannot tell"
    assert "to 6.8" not in ranking.candidates


@pytest.mark.parametrize(
    ("version", "generation"),
    [
        ("6.1.0", "to 6.8"), ("6.8.12", "to 6.8"), ("6.9.1-x", "6.9 to 6.15"), ("6.15", "6.9 to 6.15"),
        ("6.16.0", "6.16 and later"), ("6.18.44-fc-v595", "6.16 and later"), ("7.0", "6.16 and later"),
    ],
)  # fmt: skip
def test_a_header_names_a_generation(version: str, generation: str) -> None:
    assert generation_said(["clock mono", f"kernel {version} x86_64, page size 4096"]) == generation
    assert generation_said([]) is None


def test_where_the_start_is_unseen_events_do_not_overrule_the_version_in_the_header() -> None:
    recording = guest("random_size_1t", state=False)[0]
    recording.header = ["kernel 6.18.1 x86_64, page size 4096"]  # events: 6.9 to 6.15
    ranking = rank(recording)
    assert (ranking.best, set(ranking.candidates)) == ("cannot tell", {"6.9 to 6.15", "6.16 and later"})


def test_a_live_machine_with_an_unseen_start_is_named_too():
    assert rank(live("l1_admin")).best == "6.16 and later"


def test_what_has_been_seen_of_a_live_machine_is_predicted():
    p = predict(live("l1_admin"), KERNEL_PRESETS["linux-6.16"]).prediction
    assert p.warm.share >= 0.90
    assert p.level.share >= 0.97
    assert sum(p.assumed.values()) > 0
    assert p.warm.allocs < p.all.allocs


def test_a_null_allocator_shows_what_a_live_figure_is_worth():
    recording = live("l1_admin")
    null = predict_null(recording, KERNEL_PRESETS["linux-6.16"])
    kernel = predict(recording, KERNEL_PRESETS["linux-6.16"]).prediction
    assert (
        null.warm.exact == 0
    )  # what was seen freed is forecast, and a null allocator never gives it out again
    assert kernel.warm.share > 0.95
    assert null.level.share > 0.95  # so this figure says nothing over all


def test_a_pool_that_seemed_given_back_is_learned_of_again():
    p = predict(live("l8_consist"), KERNEL_PRESETS["linux-6.16"]).prediction
    assert p.assumed["pool entry taken back"] > 100
    assert p.misses.total() <= 3300  # 3,626 while what seemed given back stayed so
    assert p.last_quarter.exact >= 2084  # first fit, which goes upwards, is not taken for such a pool


@pytest.mark.soak
@pytest.mark.parametrize(("name", "over_all"), [("l2_proc", 0.90), ("l8_consist", 0.60)])
def test_busy_live_machines_are_predicted_after_the_warm_up(name, over_all):
    p = predict(live(name), KERNEL_PRESETS["linux-6.16"]).prediction
    assert p.warm.share >= 0.90
    assert p.level_warm.share >= 0.97
    assert p.all.share >= over_all


def test_a_snapshot_of_vmallocinfo_makes_a_start_state():
    known = live("l8_consist", vmallocinfo=DATA / "live" / "l8_snap_before.real.xz")
    unknown = live("l8_consist")
    with_it, without = (predict(r, KERNEL_PRESETS["linux-6.16"]).prediction for r in (known, unknown))
    assert with_it.all.share > without.all.share
    assert (
        with_it.warm.share >= without.warm.share
    )  # what lies between its areas may be pooled: not known free


def test_a_hashed_snapshot_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="hashed"):
        live("l8_consist", vmallocinfo=DATA / "traces" / "vmallocinfo.hashed.xz")


def test_a_state_dump_comes_back_as_it_was_read():
    state = read_state(DATA / "guest" / "random_size_1t.state1.xz")
    again = State.of(state.kernel(KERNEL_PRESETS["linux-6.9"], (0, 1 << 64)))
    assert compare(again, state).equal
    assert sum(map(len, state.pools.values())) == 226


HEADER = "# nr_vmap_nodes=4 zone=65536 lazy_nr=0"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["# nr_vmap_nodes=4 zone=65536"], "line 1"),
        (["# nr_vmap_nodes=0 zone=65536 lazy_nr=0"], "line 1"),
        (["# nr_vmap_nodes=4 zone=x lazy_nr=0"], "line 1"),
        ([HEADER, "hello"], "line 2: not a line of a state dump: 'hello'"),
        ([HEADER, "B 0 0 1000 2000"], "line 2"),
        ([HEADER, "Q 0 0 1000 2000 0"], "line 2"),
        ([HEADER, "B 0 0 1000 20q0 0"], "line 2"),
        ([HEADER, "B 0 0 2000 1000 0"], "line 2"),
        ([HEADER, "B 0 0 -1000 1000 0"], "line 2"),
        ([HEADER, "B 0 0 1000 1800 0"], "line 2"),
        ([HEADER, "B 4 0 1000 2000 0"], "line 2"),
        ([HEADER, "P 0 2 1000 2000 0"], "line 2"),
        ([HEADER, "F -1 0 1000 20000000000000000 0"], "line 2"),
        ([HEADER, "B 0 0 4000 6000 0", "F -1 0 5000 8000 0"], "the areas of lines 2 and 3 overlap"),
        ([HEADER], "no area in it"),
    ],
)
def test_what_is_no_dump_or_a_damaged_one_is_refused_with_file_and_line(tmp_path, lines, said):
    (tmp_path / "dump").write_text("\n".join(lines) + "\n")
    with pytest.raises(StateError, match=f"dump: .*{said}") as caught:
        read_state(tmp_path / "dump")
    assert "\n" not in str(caught.value)


def test_a_dump_that_is_cut_off_is_refused_in_a_line(tmp_path):
    (tmp_path / "dump.xz").write_bytes((DATA / "guest" / "pcpu_1t.state0.xz").read_bytes()[:900])
    with pytest.raises(StateError, match=r"dump\.xz: the compressed file is cut off$"):
        read_state(tmp_path / "dump.xz")


def test_a_start_that_contradicts_itself_is_refused(tmp_path):
    trace, state = DATA / "guest" / "pcpu_1t.trace.xz", DATA / "guest" / "pcpu_1t.state0.xz"
    with pytest.raises(ValueError, match="give one of them"):
        load(trace, state, DATA / "live" / "l8_snap_before.real.xz")
    with pytest.raises(ValueError, match="4 CPUs are at work in it"):
        load(trace, state, cpus=2)


def test_an_empty_vmallocinfo_is_no_start(tmp_path):
    (tmp_path / "empty").write_text("")
    with pytest.raises(TraceError, match="empty: not /proc/vmallocinfo: there is no area in it"):
        load(DATA / "guest" / "pcpu_1t.trace.xz", vmallocinfo=tmp_path / "empty")


# ---------------------------------------------------------------------- orders, on events made by hand

WINDOW = (1 << 40, (1 << 40) + (1 << 30) - 1)
BASE = WINDOW[0]


def alloc(time: int, cpu: int, page: int, pages: int = 2) -> Event:
    return Event(
        time, cpu, 100 + cpu, f"w{cpu}", "alloc", BASE + page * PAGE, pages * PAGE, 1, WINDOW[0], WINDOW[1]
    )


def by_hand(*events: Event) -> Recording:
    start = State(2, free=[(BASE, BASE + (1 << 29))])
    return Recording(list(events), WINDOW, 2, start, complete=True)


def test_two_cpus_that_print_in_the_wrong_order_are_put_right_and_counted():
    p = predict(by_hand(alloc(1, 0, 2), alloc(2, 1, 0)), KERNEL_PRESETS["linux-6.9"]).prediction
    assert p.all.exact == 2
    assert p.orders_inferred == 1


def test_one_task_never_overtakes_itself():
    p = predict(by_hand(alloc(1, 0, 2), alloc(2, 0, 0)), KERNEL_PRESETS["linux-6.9"]).prediction
    assert p.orders_inferred == 0
    assert p.all.exact == 1  # the second is right once the first is put right
    assert p.misses == {"model wrong": 1}


def test_an_order_is_not_inferred_unless_every_moved_event_fits():
    p = predict(by_hand(alloc(1, 0, 4), alloc(2, 1, 0)), KERNEL_PRESETS["linux-6.9"]).prediction
    assert p.orders_inferred == 0
    assert p.misses == {"unexplained": 1}  # page 2 is free in every order


def test_the_head_of_another_cpus_pool_is_a_migration():
    recording = by_hand(alloc(1, 0, 0))
    assert recording.start is not None
    recording.start.pools[1, 2] = [Area(BASE, 2 * PAGE, 1)]
    recording.start.free = [(BASE + 2 * PAGE, BASE + (1 << 29))]
    p = predict(recording, KERNEL_PRESETS["linux-6.9"]).prediction
    assert p.misses == {"migration between choice and event": 1}


def pooled_recording(*events: Event) -> Recording:
    """Four ranges of 2 pages in CPU 0's pool, nothing else free below page 8; the head is page 6."""
    recording = by_hand(*events)
    assert recording.start is not None
    recording.start.pools[0, 2] = [Area(BASE + page * PAGE, 2 * PAGE, 0) for page in (6, 4, 2, 0)]
    recording.start.free = [(BASE + 8 * PAGE, BASE + (1 << 29))]
    return recording


def test_a_shrinker_run_is_inferred_when_several_allocations_show_it():
    upwards = [alloc(time, 0, 2 * time) for time in range(4)]  # pools go downwards, an emptied space upwards
    p = predict(pooled_recording(*upwards), KERNEL_PRESETS["linux-6.9"]).prediction
    assert (p.shrinks_inferred, p.all.exact) == (1, 4)


def test_one_odd_address_is_not_enough_for_a_shrinker_run():
    p = predict(pooled_recording(alloc(0, 0, 0)), KERNEL_PRESETS["linux-6.9"]).prediction
    assert (p.shrinks_inferred, p.all.exact) == (0, 0)
    assert p.misses == {"model wrong": 1}


# ---------------------------------------------------------------------- the model on its own


def test_the_model_replays_a_hundred_thousand_events_a_second():
    recording, _ = guest("random_size_1t")
    design = KERNEL_PRESETS["linux-6.9"]
    best = max(run_on_model(recording, design).as_dict()["events_per_s"] for _ in range(5))
    assert best >= 100_000


def test_the_model_tells_how_long_its_searches_were():
    # one free range: the summary and the range are 2 steps. The aligned request leaves a hole of 2 pages in
    # front of it; the last request looks at that too: 3 steps
    events = [alloc(1, 0, 0), alloc(2, 0, 4)._replace(align=4 * PAGE), alloc(3, 0, 6, pages=4)]
    told = run_on_model(Recording(events, WINDOW, 1), KERNEL_PRESETS["linux-6.9"]).as_dict()
    assert [sample["search_length_max"] for sample in told["samples"]] == [2, 2, 3]
    assert (told["searches"], told["search_length_max"]) == (3, 3)
    assert told["search_length_mean"] == pytest.approx(7 / 3)


def test_our_design_serves_from_magazines_and_needs_less_room():
    recording, _ = guest("random_size_1t")
    ours, kernels = (run_on_model(recording, PRESETS[name]).as_dict() for name in ("vmalloc", "linux-6.16"))
    assert ours["hit_share"]["magazine"] > 0.9
    assert ours["footprint_pages_max"] < kernels["footprint_pages_max"]
