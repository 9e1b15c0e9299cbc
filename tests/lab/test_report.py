# SPDX-License-Identifier: MIT
"""The numbers of a report, from areas that can be counted by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")

from tests.lab import trace_samples  # noqa: E402
from tests.lab.trace_samples import DATA, SAMPLES  # noqa: E402

from vmalloc.lab.columns import DTYPES, Columns, Names  # noqa: E402
from vmalloc.lab.events import ALLOC, FREE, PURGE, TraceError  # noqa: E402
from vmalloc.lab.report import (  # noqa: E402
    GAP_KEPT,
    INSTANTS,
    Earlier,
    Lives,
    Watch,
    add_replay,
    callers_of,
    holes_of,
    instants_until,
    lazy_of,
    lifetimes_of,
    lives_of,
    map_of,
    purged_of,
    report_of_recording,
    sizes_of,
    start_of_state,
    start_of_vmallocinfo,
)
from vmalloc.lab.vmallocinfo import read_vmallocinfo  # noqa: E402

PAGE = 4096
NEVER = math.inf
STATES = ("free", "busy", "cached", "pooled", "lazy")
ROW = [("start", "u8"), ("nr_pages", "u8"), ("id", "u8"), ("state", "u4"), ("owner", "u4")]


def lives(*areas: tuple[int, int, float, float], callers: tuple[str, ...] = ()) -> Lives:
    """Areas of start, pages, birth, death; a caller each, or one for all."""
    start, nr_pages, born, died = (np.array(column) for column in zip(*areas, strict=True))
    names = callers or ("somebody",) * len(areas)
    who = sorted(set(names))
    caller = np.array([who.index(name) for name in names])
    return Lives(start, nr_pages, born, died.astype(float), np.isfinite(died), caller, who)


def columns(*events: dict[str, Any]) -> Columns:
    names = Names()
    table = {name: np.zeros(len(events), dtype) for name, dtype in DTYPES.items()}
    for at, event in enumerate(events):
        for name, value in event.items():
            table[name][at] = names.code(value) if isinstance(value, str) else value
    return Columns(table, names)


def alloc(second: int, page: int, nr_pages: int = 1, comm: str = "a", **more: int) -> dict[str, Any]:
    event = {"time_ns": second * 10**9, "kind": ALLOC, "addr": page * PAGE, "size": nr_pages * PAGE}
    return event | {"comm": comm} | more


def free(second: int, page: int, nr_lazy: int = 0, nr_lazy_max: int = 0) -> dict[str, Any]:
    event = {"time_ns": second * 10**9, "kind": FREE, "addr": page * PAGE}
    return event | {"nr_lazy": nr_lazy, "nr_lazy_max": nr_lazy_max}


# ---- lives ----


def test_an_area_lives_from_its_allocation_until_its_free():
    found = lives_of(columns(alloc(10, 7, 3), alloc(11, 20), free(14, 7)))
    assert found.start.tolist() == [7, 20]
    assert found.nr_pages.tolist() == [3, 1]
    assert found.born.tolist() == [0, 1]
    assert found.died.tolist() == [4, NEVER]
    assert found.measured.tolist() == [True, False]


def test_an_address_that_is_used_again_is_another_area():
    found = lives_of(columns(alloc(0, 7), free(1, 7), alloc(2, 7), free(5, 7)))
    assert (found.died - found.born).tolist() == [1, 3]


def test_an_area_whose_free_was_lost_ends_when_its_address_is_given_again_and_is_not_measured():
    found = lives_of(columns(alloc(0, 7), alloc(2, 7), free(5, 7)))
    assert found.died.tolist() == [2, 5]
    assert found.measured.tolist() == [False, True]


def test_failed_allocations_and_frees_of_older_areas_are_no_areas():
    assert len(lives_of(columns(alloc(0, 7, failed=1), free(1, 99)))) == 0


def test_an_area_of_before_lives_until_its_free_and_is_not_measured():
    earlier = [Earlier(8 * PAGE, 2 * PAGE, "vmap_pages"), Earlier(20 * PAGE, PAGE, "stack")]
    found = lives_of(columns(free(2, 8), alloc(3, 8)), earlier)
    assert found.start.tolist() == [8, 8, 20]
    assert found.born.tolist() == [-NEVER, 1, -NEVER]
    assert found.died.tolist() == [0, NEVER, NEVER]
    assert found.nr_pages.tolist() == [2, 1, 1]
    assert found.measured.tolist() == [False, False, False]
    assert [found.callers[n] for n in found.caller] == ["vmap_pages", "a", "stack"]


# ---- bars ----


def test_sizes_are_shares_of_areas_and_of_pages_by_powers_of_two():
    bars = sizes_of(lives((0, 1, 0, 1), (5, 1, 0, 1), (10, 2, 0, 1), (20, 4, 0, 1)))
    assert bars.labels == ["1", "2", "3 to 4"]
    assert bars.values == {"areas, %": [50, 25, 25], "pages, %": [25, 25, 50]}


def test_who_asked_for_most_pages_comes_first():
    areas = lives((0, 1, 0, 1), (5, 8, 0, 1), (20, 2, 0, 1), callers=("bash", "init", "bash"))
    bars = callers_of(areas)
    assert (bars.labels, bars.values) == (["init", "bash"], {"pages": [8, 3]})


def test_callers_beyond_the_twelfth_are_added_up():
    areas = lives(*((n, n + 1, 0, 1) for n in range(15)), callers=tuple(f"task-{n}" for n in range(15)))
    bars = callers_of(areas)
    assert bars.labels[0] == "task-14"
    assert (bars.labels[-1], bars.values["pages"][-1]) == ("3 others", 1 + 2 + 3)


def test_life_times_are_counted_by_tens_and_those_not_seen_apart():
    areas = lives((0, 1, 0, 0.5), (1, 1, 0, 0.5), (2, 1, 0, 1), (3, 1, 2, 2.000002), (4, 1, 0, NEVER))
    bars = lifetimes_of(areas)
    counts = dict(zip(bars.labels, bars.values["areas"], strict=True))
    assert {label: n for label, n in counts.items() if n} == {
        "under 10 µs": 1,
        "0.1 to 1 s": 2,
        "1 to 10 s": 1,
        "still there": 1,
    }


# ---- over time ----


def test_the_map_says_how_much_of_each_part_was_taken_since_the_instant_before():
    drawn = map_of(lives((10, 2, 0, 3), (12, 1, 1, 2)), [0.5, 1.5, 2.5, 3.5, 4.5])
    assert drawn is not None
    assert drawn.starts == [10, 11, 12]
    assert drawn.percent == [[100, 100, 100, 100, 0], [100, 100, 100, 100, 0], [0, 100, 100, 0, 0]]


def test_pages_that_several_areas_had_one_after_the_other_are_taken_once():
    drawn = map_of(lives((0, 30, 0, 1), (0, 30, 1, 2), (20, 11, 2, 3), (0, 240, 9, 9.5)), [3.0])
    assert drawn is not None
    assert [row[0] for row in drawn.percent[14:17]] == [100, 50, 0]  # two pages a part: 0 to 30 were taken


def test_a_part_of_the_map_can_be_taken_in_part():
    drawn = map_of(lives((0, 60, 0, 9), (60, 180, 5, 9)), [1.0])  # 240 pages, two a part
    assert drawn is not None
    assert drawn.starts == list(range(0, 240, 2))
    assert [row[0] for row in drawn.percent] == [100] * 30 + [0] * 90
    drawn = map_of(lives((0, 61, 0, 9), (61, 179, 5, 9)), [1.0])
    assert drawn is not None
    assert [row[0] for row in drawn.percent[29:32]] == [100, 50, 0]


def test_a_long_part_of_the_addresses_in_which_nothing_ever_was_is_left_out():
    far = 1 << 33
    drawn = map_of(lives((0, 1, 0, 9), (far, 2, 0, 9)), [1.0])
    assert drawn is not None
    assert drawn.starts == [0, far, far + 1]
    kept = map_of(lives((0, 1, 0, 9), (1 + GAP_KEPT, 1, 0, 9)), [1.0])
    assert kept is not None
    assert kept.starts[-1] > 1
    assert kept.percent[60] == [0]


def test_nothing_is_drawn_of_nothing():
    assert map_of(lives_of(columns(free(0, 1))), [0.0]) is None
    assert sizes_of(lives_of(columns(free(0, 1)))).labels == []


def test_holes_are_what_is_between_areas():
    areas = lives((0, 10, 0, 9), (20, 10, 0, 9), (30, 10, 0, 5), (70, 10, 0, 9))
    pages, scattered = holes_of(areas, [1.0, 6.0])
    told = {line.name: line.values for line in pages + scattered}
    assert told == {
        "in areas": [40, 30],
        "between areas": [10 + 30, 10 + 40],
        "largest hole": [30, 40],
        "outside of the largest hole, %": [25, 20],
    }


def test_without_holes_nothing_is_scattered():
    _, scattered = holes_of(lives((0, 10, 0, 9), (10, 10, 0, 9)), [1.0])
    assert scattered[0].values == [0]


def test_the_backlog_is_the_most_since_the_instant_before_and_stays_where_nothing_was_freed():
    table = columns(free(0, 1, 5, 64), free(1, 2, 9, 64), free(1, 3, 2, 64), free(4, 4, 1, 32))
    lazy, due = lazy_of(table, [1.0, 2.0, 3.0, 4.0])
    assert lazy.values == [9, 2, 2, 1]
    assert due.values == [64, 64, 64, 32]


def test_purged_areas_are_added_between_instants():
    purges = [{"time_ns": n * 10**9, "kind": PURGE, "npurged": 10 + n} for n in (0, 1, 2)]
    (line,) = purged_of(columns(*purges), [1.0, 2.0])
    assert line.values == [10 + 11, 12]


def test_instants_are_evenly_apart_and_end_with_the_recording():
    assert instants_until(8.0)[:2] == [0.05, 0.1]
    assert (len(instants_until(8.0)), instants_until(8.0)[-1]) == (INSTANTS, 8.0)
    assert instants_until(0.0) == [0.0]


def test_the_last_instant_is_the_end_whatever_its_last_digit():
    ends = [n / 1e9 for n in range(1, 100)]
    assert [instants_until(end)[-1] for end in ends] == ends


# ---- recordings ----


def test_a_recording_of_a_kernel_is_counted_as_its_events_are():
    report = report_of_recording(DATA / "guest" / "random_size.trace.xz")
    assert report.facts["areas"] == "8,008"  # lines with alloc_vmap_area
    assert report.facts["frees"] == "8,009, 1 of them of older areas"
    assert report.facts["purges"] == "19"
    assert sum(report.lifetimes.values["areas"]) == 8008
    assert report.map is not None
    assert len(report.map.percent) == len(report.map.starts) == 120


def test_with_a_snapshot_before_all_that_is_in_the_snapshot_after_is_still_there():
    live = DATA / "live"
    start = start_of_vmallocinfo(live / "l8_snap_before.real.xz")
    report = report_of_recording(live / "l8_consist.trace.xz", start)
    after = read_vmallocinfo(live / "l8_snap_after.real.xz").busy()
    there = dict(zip(report.lifetimes.labels, report.lifetimes.values["areas"], strict=True))["still there"]
    assert (report.facts["areas before"], there) == ("640, by l8_snap_before.real.xz", len(after))
    assert "kernel_clone" in report.callers.labels


def test_a_start_state_is_of_the_moment_of_its_mark():
    path = DATA / "guest" / "random_size.trace.xz"
    report = report_of_recording(path, start_of_state(DATA / "guest" / "random_size.state0.xz"))
    assert report.facts["areas before"] == "109, by random_size.state0.xz"
    lived = dict(zip(report.lifetimes.labels, report.lifetimes.values["areas"], strict=True))
    assert (report.facts["areas"], report.facts["frees"]) == ("8,008", "8,009, 1 of them of older areas")
    assert (lived["not known"], lived["still there"]) == (1, 108)


def test_a_snapshot_with_hashed_addresses_is_no_start():
    with pytest.raises(TraceError, match="addresses are hashed"):
        start_of_vmallocinfo(DATA / "traces" / "vmallocinfo.hashed.xz")


def test_a_replay_adds_pools_on_the_same_time_axis():
    pytest.importorskip("sortedcontainers")
    from vmalloc.lab import replay
    from vmalloc.model import PRESETS

    path = DATA / "guest" / "random_size.trace.xz"
    report = report_of_recording(path)
    add_replay(report, replay.load(path), PRESETS["linux-6.9"])
    assert [line.name for line in report.pools] == [
        "in pools (linux-6.9)",
        "in areas (linux-6.9)",
        "lazy (linux-6.9)",
    ]
    assert report.pools[0].times[0] > 0  # the replay begins at a mark, after the recording
    assert report.pools[0].times[-1] <= float(report.facts["seconds"])
    assert sum(report.served.values["requests"]) == 8004  # of the window of the map
    assert "8,004 areas" in report.facts["window of the map"]


def test_hidden_addresses_make_no_map_and_say_so(tmp_path: Path):
    line = (
        "  a-1 [000] ..... {time}: alloc_vmap_area: va_start: {addr} size=8192 align=1 vstart=0x1000 "
        "vend=0xffffe8ffffffffff failed=0\n"
    )
    path = tmp_path / "hashed.trace"
    path.write_text(
        line.format(time="1.000000", addr=0x9ABCD123) + line.format(time="2.000000", addr=0x1234567)
    )
    report = report_of_recording(path)
    assert report.map is None
    assert report.fragmentation == []
    assert any("hidden or hashed" in note for note in report.notes)
    assert report.sizes.labels[-1] == "2"


def test_of_frees_alone_the_backlog_is_told(tmp_path: Path):
    path = tmp_path / "frees.trace"
    path.write_bytes(trace_samples.FREE)
    report = report_of_recording(path)
    assert (report.map, report.sizes.labels, report.callers.labels) == (None, [], [])
    assert [line.values for line in report.lazy] == [[118], [16384]]
    assert len(report.notes) == 2  # of what a recording does not tell


def test_what_is_wrong_with_a_recording_stands_in_its_notes():
    report = report_of_recording(SAMPLES / "live_overwritten.trace.xz")
    assert report.facts["events lost"] != "none"


def test_a_recording_without_one_request_is_refused(tmp_path: Path):
    path = tmp_path / "empty.trace"
    path.write_text("# tracer: nop\n")
    with pytest.raises(TraceError, match="no allocation and no free"):
        report_of_recording(path)


# ---- pictures of a region ----


def picture(*ranges: tuple[int, int, int, str, int]) -> Any:
    return np.array([(*r[:3], STATES.index(r[3]), r[4]) for r in ranges], ROW)


def test_a_region_is_told_from_its_pictures():
    watch = Watch(PAGE, STATES)
    pids = {0: 0, 3: 1234}
    watch.add(0.0, picture((0, 2, 1, "busy", 0), (2, 8, 0, "free", 0)), pids)
    watch.add(0.1, picture((0, 2, 1, "busy", 0), (2, 4, 2, "busy", 3), (6, 4, 0, "free", 0)), pids)
    watch.add(0.2, picture((0, 2, 0, "free", 0), (2, 4, 0, "lazy", 0), (6, 4, 0, "free", 0)), pids)
    report = watch.report("frames")
    assert report.callers.labels == ["process 1234", "the region itself, by name"]
    assert report.callers.values == {"pages": [4, 2]}
    counts = dict(zip(report.lifetimes.labels, report.lifetimes.values["areas"], strict=True))
    assert {label: n for label, n in counts.items() if n} == {"0.1 to 1 s": 1, "not known": 1}
    assert report.map is not None
    assert report.map.percent == [[100, 100, 100]] * 2 + [[0, 100, 100]] * 4
    told = {line.name: line.values for line in report.pages + report.lazy + report.fragmentation}
    assert told == {
        "in busy ranges": [2, 6, 0],
        "free": [8, 4, 6],
        "largest free range": [8, 4, 4],
        "lazy, pages": [0, 0, 4],
        "outside of the largest free range, %": [0, 0, 33.33],
    }


def test_a_range_in_the_place_of_another_is_told_apart_by_its_id():
    watch = Watch(PAGE, STATES)
    for second, id in ((0.0, 1), (1.0, 2), (2.0, 2), (3.0, 3)):
        watch.add(second, picture((0, 4, id, "busy", 3)), {3: 1234})
    lives = watch.lives()
    assert lives.born.tolist() == [0, 1, 3]
    assert lives.died.tolist() == [1, 3, NEVER]
    assert lives.measured.tolist() == [False, True, False]


def test_a_region_in_which_nothing_is_busy_has_no_map():
    watch = Watch(PAGE, STATES)
    watch.add(0.0, picture((0, 8, 0, "free", 0)), {})
    report = watch.report("frames")
    assert report.map is None
    assert report.sizes.labels == []
