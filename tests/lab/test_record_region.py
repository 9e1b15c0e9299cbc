# SPDX-License-Identifier: MIT
"""A recording of our own allocator: what is in the file, and the model that serves it again."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import random
import signal
import weakref
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

import vmalloc
from vmalloc._core import Recorder, RecordingWatch

pytest.importorskip("numpy", reason="recordings of a region are columns: pip install vmalloc[lab]")
pytest.importorskip("pyarrow", reason="recordings of a region are columns: pip install vmalloc[lab]")
pytest.importorskip("sortedcontainers", reason="the model needs it: pip install vmalloc[lab]")

import numpy as np

from vmalloc.cli import record as record_command
from vmalloc.cli.replay import command as replay_command
from vmalloc.cli.report import command as report_command
from vmalloc.facts import EVENT_BATCH, EVENT_RING, EVENT_TICKS_BITS, EVENTS
from vmalloc.lab import replay, replay_on_core
from vmalloc.lab.columnar import read_metadata
from vmalloc.lab.events import ALLOC, FREE, LOST, Event
from vmalloc.lab.report import add_replay, report_of_recording
from vmalloc.lab.rings import Decoder
from vmalloc.lab.trace import read_events
from vmalloc.model import PAGE, PRESETS

OURS = PRESETS["vmalloc"]
SNAPSHOT = Path(__file__).parent.parent / "data" / "traces" / "vmallocinfo.real.xz"


@pytest.fixture(autouse=True)
def one_cpu():
    """The model of one thread on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def work(space: vmalloc.AddressSpace, nr: int, seed: int) -> list[int]:
    """Requests and frees by chance; what is still allocated."""
    chance, live = random.Random(seed), list[int]()
    for _ in range(nr):
        if live and chance.random() < 0.45:
            space.free(live.pop(chance.randrange(len(live))))
        else:
            live.append(space.alloc(PAGE * chance.choice([1, 2, 3, 4, 16, 300])))
    return live


def addresses() -> vmalloc.AddressSpace:
    return vmalloc.AddressSpace(0, 1 << 30, granule=PAGE)


@pytest.mark.parametrize("exact", [False, True])
def test_the_model_serves_what_one_thread_did_at_the_same_addresses(tmp_path: Path, exact: bool) -> None:
    space, path = addresses(), tmp_path / "run.parquet"
    with space.record(path, exact=exact) as recorder:
        work(space, 3000, seed=19)
    assert (recorder.done.nr_lost, recorder.done.nr_damaged) == (0, 0)
    course = replay.run_on_model(replay.load(path), OURS)
    stats = space.stats()
    assert course.compared == course.exact == sum(stats.served.values())
    assert {level: course.served[level] for level in stats.served} == stats.served


def test_an_event_says_when_and_where_and_who(tmp_path: Path) -> None:
    space, path = addresses(), tmp_path / "run.parquet"
    with space.record(path):
        start = space.alloc(3 * PAGE)
        space.free(start)
        space.purge()
    events = list(read_events(path))
    first = next(event for event in events if event.kind == ALLOC)
    assert (first.addr, first.size, first.align, first.vend) == (start, 3 * PAGE, PAGE, 1 << 30)
    assert (first.pid, first.text, first.failed) == (os.getpid(), "space", 0)
    freed = next(event for event in events if event.kind == FREE)
    assert (freed.addr, freed.size, freed.slot) == (start, 3 * PAGE, first.slot)
    assert {"attach", "purge"} <= {event.kind for event in events}
    assert [event.time_ns for event in events] == sorted(event.time_ns for event in events)
    about = read_metadata(path)
    assert (about["source"], about["nr_pages"], about["pools"]) == ("vmalloc", (1 << 30) // PAGE, "magazine")


def test_a_request_that_fails_is_told_too(tmp_path: Path) -> None:
    space, path = vmalloc.AddressSpace(0, 64 * PAGE, granule=PAGE), tmp_path / "run.parquet"
    with space.record(path):
        space.alloc(60 * PAGE)
        with pytest.raises(vmalloc.OutOfPages):
            space.alloc(60 * PAGE)
    failed = [event for event in read_events(path) if event.failed]
    assert [(event.kind, event.size) for event in failed] == [(ALLOC, 60 * PAGE)]


def test_the_model_makes_room_for_what_failed_as_the_core_did(tmp_path: Path) -> None:
    space, path = vmalloc.AddressSpace(0, 300 * PAGE, granule=PAGE), tmp_path / "run.parquet"
    with space.record(path):
        kept = [space.alloc(PAGE * nr_pages) for nr_pages in (40, 40, 40, 40, 140)]
        for start in kept[:4]:
            space.free(start)
        with pytest.raises(vmalloc.OutOfPages):
            space.alloc(161 * PAGE)
        for nr_pages in (40, 40):  # from magazine and pool, had the failure not emptied them
            space.alloc(PAGE * nr_pages)
    course, stats = replay.run_on_model(replay.load(path), OURS), space.stats()
    assert (course.failed, stats.nr_failed) == (1, 1)
    assert {level: course.served[level] for level in stats.served} == stats.served
    assert stats.nr_space_hit == 7


def test_what_was_overwritten_before_it_was_read_is_counted(tmp_path: Path) -> None:
    space, nr = addresses(), EVENT_RING
    recorder = Recorder(space)
    for _ in range(nr):
        space.free(space.alloc(PAGE))
    ((slot, lost, data),) = recorder.read()
    assert len(data) // 16 == EVENT_RING - 1  # the oldest one's place is the next to be written
    assert lost >= 2 * nr + nr // EVENT_BATCH - EVENT_RING
    decoder = Decoder((1 << 30) // PAGE, PAGE, 0)
    columns = decoder.columns([(slot, lost, data)], 1 << 62)
    told = [event for event in columns.events() if event.kind == LOST]
    assert [(event.lost, event.slot) for event in told] == [(lost, slot)]
    recorder.end()


def test_whose_events_are_lost_is_told_although_it_began_with_those(tmp_path: Path) -> None:
    space = addresses()
    recorder = Recorder(space)
    for _ in range(EVENT_RING):
        space.free(space.alloc(PAGE))
    news = recorder.read()
    ((slot, lost, _),) = news
    assert lost > 0  # its `attach` among them
    decoder = Decoder((1 << 30) // PAGE, PAGE, 0, lambda pid: f"command {pid}", recorder.pid_of)
    told = list(decoder.columns(news, 1 << 62).events())
    assert told[0].kind == LOST
    assert {(event.pid, event.comm) for event in told} == {(os.getpid(), f"command {os.getpid()}")}
    assert recorder.pid_of(slot) == os.getpid()
    assert recorder.pid_of(slot + 1) == recorder.pid_of(1 << 20) == 0
    recorder.end()
    assert recorder.pid_of(slot) == 0


def test_a_loss_is_of_who_wrote_before_it_and_not_of_who_has_the_slot_now() -> None:
    decoder = Decoder(1000, PAGE, 0, pid_of=lambda slot: 7)
    attach, alloc = EVENTS.index("attach") + 1, EVENTS.index("alloc") + 1
    first = np.array([(attach | 42 << 34, 0), (alloc | 1 << 4, 0)], np.uint64)
    later = np.array([(alloc | 1 << 4, 0), (attach | 43 << 34, 0), (alloc | 1 << 4, 0)], np.uint64)
    decoder.columns([(0, 0, first.tobytes())], 1 << 40)
    columns = decoder.columns([(0, 5, later.tobytes())], 1 << 40)
    assert columns["pid"].tolist() == [42, 42, 43, 43]  # the loss, and what another thread wrote after it


def test_what_follows_a_loss_is_of_who_took_the_slot_over_meanwhile() -> None:
    decoder = Decoder(1000, PAGE, 0, pid_of=lambda slot: 43)
    attach, alloc = EVENTS.index("attach") + 1, EVENTS.index("alloc") + 1
    first = np.array([(attach | 42 << 34, 0), (alloc | 1 << 4, 0)], np.uint64)
    later = np.array([(alloc | 1 << 4, 0), (alloc | 2 << 4, 0)], np.uint64)  # its `attach` is lost
    decoder.columns([(0, 0, first.tobytes())], 1 << 40)
    columns = decoder.columns([(0, 5, later.tobytes())], 1 << 40)
    assert columns["pid"].tolist() == [42, 43, 43]
    decoder.pid_of = lambda slot: 0  # nobody has it now
    assert decoder.columns([(0, 5, later.tobytes())], 1 << 40)["pid"].tolist() == [43, 43, 43]


@pytest.mark.parametrize(
    ("written", "told"), [((1 << 31) - 1, (1 << 31) - 1), (1 << 31, 0), ((1 << 32) - 1, 0)]
)
def test_a_pid_that_a_neighbour_scribbled_ends_no_recording(written: int, told: int) -> None:
    decoder = Decoder(1000, PAGE, 0, pid_of=lambda slot: written)
    columns = decoder.columns([(0, 5, b"")], 1 << 40)
    assert columns["pid"].tolist() == [told]


def test_a_region_that_was_recorded_goes_with_its_last_name(tmp_path: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        region = vmalloc.Region(1 << 20, name=f"recorded-{os.getpid()}", helper=False)
        with region.record(tmp_path / "run.parquet"):
            region.alloc(PAGE).release()
        gone = weakref.ref(region)
        del region
        assert gone() is None
    finally:
        gc.enable()


def nr_mappings(inode: int) -> int:
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sum(int(line.split()[4]) == inode for line in maps)


def test_who_records_or_watches_in_a_reference_cycle_leaves_no_ring_mapped() -> None:
    region = vmalloc.Region(1 << 20, helper=False)
    inode = os.fstat(region.fileno()).st_ino
    recorder, watch = Recorder(region), RecordingWatch(region)
    region.alloc(PAGE).release()
    mapped = nr_mappings(inode)
    recorder.read()
    watch.tally()
    assert nr_mappings(inode) == mapped + 2
    cycle: list[object] = [region, recorder, watch]
    cycle.append(cycle)
    del region, recorder, watch, cycle
    gc.collect()
    assert nr_mappings(inode) == 0


def test_who_closes_the_region_ends_the_recording_and_has_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    region = vmalloc.Region(1 << 20, helper=False)
    other = vmalloc.Region.attach(f"/proc/self/fd/{region.fileno()}", readonly=True)
    watch = RecordingWatch(other)
    recorder = region.record(path)
    assert watch.tally() is not None
    region.alloc(PAGE).release()
    region.close()
    assert watch.tally() is None  # nobody records any more
    other.close()
    assert [event.kind for event in read_events(path)].count(FREE) == 1
    assert recorder.close() is recorder.done


def test_a_child_does_not_finish_its_parents_file(tmp_path: Path) -> None:
    space, path = addresses(), tmp_path / "run.parquet"
    recorder = space.record(path)
    space.alloc(PAGE)
    pid = os.fork()
    if pid == 0:
        try:
            recorder.close()
            space.close()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    space.alloc(2 * PAGE)
    recorder.close()
    assert [event.size for event in read_events(path) if event.kind == ALLOC] == [PAGE, 2 * PAGE]


def test_off_again_everything_is_as_before(tmp_path: Path) -> None:
    space = addresses()
    work(space, 100, seed=1)
    with space.record(tmp_path / "run.parquet"):
        work(space, 2000, seed=2)
    with pytest.raises(vmalloc.RegionBusy), space.record(tmp_path / "a.parquet"):
        space.record(tmp_path / "b.parquet")
    space.check()


def test_a_second_ctrl_c_leaves_a_file_that_can_be_read_and_nobody_recording(tmp_path: Path) -> None:
    space, path = addresses(), tmp_path / "run.parquet"
    recorder = space.record(path)
    join = recorder._reader.join

    def broken_off() -> None:
        recorder._reader.join = join
        raise KeyboardInterrupt

    recorder._reader.join = broken_off
    with pytest.raises(KeyboardInterrupt):
        recorder.close()
    assert read_metadata(path)["source"] == "vmalloc"
    space.record(tmp_path / "next.parquet").close()


WRITES = 1000
"""Of each process that is killed: all of them fit into one ring."""


def work_and_wait(region: vmalloc.Region, done: multiprocessing.SimpleQueue) -> None:
    for n in range(WRITES):
        region.alloc(PAGE * (1 + n % 3)).release()
    done.put(True)
    signal.pause()


def test_a_writer_that_is_killed_leaves_what_it_wrote_whole(tmp_path: Path) -> None:
    region, path = vmalloc.Region(1 << 26, helper=False), tmp_path / "run.parquet"
    context = multiprocessing.get_context("fork")
    with region.record(path) as recorder:
        for _ in range(3):
            done: multiprocessing.SimpleQueue[bool] = context.SimpleQueue()
            child = context.Process(target=work_and_wait, args=(region, done))
            child.start()
            done.get()
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            region.recover()
    assert (recorder.done.nr_damaged, recorder.done.nr_lost) == (0, 0)
    events = list(read_events(path))
    by_pid = Counter(event.pid for event in events if event.kind in (ALLOC, FREE))
    assert set(by_pid.values()) == {2 * WRITES}
    died = [event.pid for event in events if event.kind == "die"]
    assert sorted(died) == sorted(by_pid)
    region.check()


def test_whatever_a_neighbour_scribbles_a_reader_goes_on() -> None:
    noise = np.random.default_rng(19)
    decoder = Decoder(1000, PAGE, 10**9)
    for n in range(50):
        words = noise.integers(0, 1 << 64, size=(500, 2), dtype=np.uint64)
        if n % 2:  # nearly right ones
            words[:, 0] = (words[:, 0] & np.uint64(0xF)) | (words[:, 0] >> np.uint64(50) << np.uint64(34))
        columns = decoder.columns([(n % 3, n, words.tobytes())], 2 * 10**9)
        assert all(0 <= event.addr + event.size <= 1000 * PAGE for event in columns.events() if event.addr)
        assert ((columns["time_ns"] >= 0) & (columns["time_ns"] < 1 << 62)).all()
    assert decoder.nr_damaged > 0


def test_a_tick_between_stamps_is_as_long_as_the_clock_says() -> None:
    decoder = Decoder(1000, PAGE, 0, ns_per_tick=0.5)
    stamp, alloc = EVENTS.index("stamp") + 1, EVENTS.index("alloc") + 1
    words = np.array(
        [
            (stamp | 1_000_000 << 4, (1 << 32) - 100),
            (alloc | 1 << 4, (1 << 32) - 80),  # 20 ticks later
            (alloc | 1 << 4, 100),  # 200 ticks later, the low half gone round
            (stamp | 2_000_000 << 4, 7),
            (alloc | 1 << 4, 7),
        ],
        np.uint64,
    )
    columns = decoder.columns([(0, 0, words.tobytes())], 1 << 40)
    assert columns["time_ns"].tolist() == [1_000_010, 1_000_100, 2_000_000]


def test_an_event_whose_stamp_is_lost_is_told_from_the_stamp_before() -> None:
    decoder = Decoder(1000, PAGE, 0, ns_per_tick=0.5)
    stamp, alloc, bits = EVENTS.index("stamp") + 1, EVENTS.index("alloc") + 1, 1 << EVENT_TICKS_BITS
    first = np.array([(stamp | 1_000_000 << 4, bits - 100)], np.uint64)
    decoder.columns([(0, 0, first.tobytes())], 1 << 40)
    # of a stamp 90 ticks later that nobody read: 30 and 300 ticks after it
    rest = np.array([(alloc | 1 << 4, bits - 10 + 30), (alloc | 1 << 4, bits - 10 + 300)], np.uint64)
    columns = decoder.columns([(0, 7, rest.tobytes())], 1 << 40)
    assert columns["time_ns"].tolist() == [1_000_060, 1_000_060, 1_000_195]  # the first one says what is lost


def test_events_before_the_first_stamp_that_is_left_do_not_put_off_those_after_it() -> None:
    decoder = Decoder(1000, PAGE, 5_000)
    stamp, alloc = EVENTS.index("stamp") + 1, EVENTS.index("alloc") + 1
    words = [(alloc | 1 << 4, 900_000), (stamp | 6_000 << 4, 900_500), (alloc | 1 << 4, 900_510)]
    for data in (words[:1], words):  # looked at apart and together
        pieces = [(0, 7, np.array(data, np.uint64).tobytes())]
        columns = decoder.columns(pieces, 1 << 40)
    assert columns["time_ns"].tolist() == [5_000, 5_000, 6_010]  # the first one says what is lost


def test_the_core_serves_a_recording_of_its_own_by_threads(tmp_path: Path) -> None:
    space, path = addresses(), tmp_path / "run.parquet"
    with space.record(path):
        work(space, 500, seed=3)
    load = replay_on_core.load_of(replay.load(path))
    assert len(load.requests) == 1
    assert load.allocations == sum(space.stats().served.values())
    (result,) = replay_on_core.run_on_core(load, ["magazine"], repeats=1)
    assert result.runs[0].failed == 0


def test_a_report_counts_what_was_recorded_and_tells_no_backlog(tmp_path: Path) -> None:
    space, path = addresses(), tmp_path / "run.parquet"
    with space.record(path):
        live = work(space, 500, seed=4)
    report = report_of_recording(path)
    assert report.facts["areas"] == f"{sum(space.stats().served.values()):,}"
    lived = dict(zip(report.lifetimes.labels, report.lifetimes.values["areas"], strict=True))
    assert lived["still there"] == len(live)
    assert report.map is not None
    assert report.lazy == []
    add_replay(report, replay.load(path), OURS)
    assert report.facts["replay"].startswith("vmalloc: ")


def test_the_commands_record_a_region_and_replay_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, name = tmp_path / "run.parquet", f"recorded-{os.getpid()}"
    region = vmalloc.Region(1 << 26, name=name, helper=False)

    def work_meanwhile(seconds: float | None) -> None:
        assert seconds == 5
        for n in range(100):
            region.alloc(PAGE * (1 + n % 3)).release()

    monkeypatch.setattr(record_command, "_wait", work_meanwhile)
    done = CliRunner().invoke(record_command.command, [name, "--seconds", "5", "-o", str(path)])
    assert done.exit_code == 0, done.output
    assert " events in " in done.output
    done = CliRunner().invoke(replay_command, [str(path), "--on", "model"])
    assert done.exit_code == 0, done.output
    assert "addresses exact: 100.000% of 100 allocations" in done.output
    done = CliRunner().invoke(replay_command, [str(path), "--predict"])
    assert done.exit_code == 2
    assert "--on model" in done.output


def test_a_recording_that_does_not_say_what_it_is_of_is_refused(tmp_path: Path) -> None:
    from vmalloc.lab.columnar import write_columnar
    from vmalloc.lab.events import TraceError

    write_columnar(tmp_path / "x.parquet", [Event(kind=ALLOC, size=PAGE)], source="vmalloc")
    with pytest.raises(TraceError, match="page_size"):
        replay.load(tmp_path / "x.parquet")
    about = {"pools": "magazine", "nr_pages": 1, "nr_nodes": 1, "nr_cpus": 1, "memory_bytes": 0}
    for page_size in (0, None):
        write_columnar(tmp_path / "x.parquet", [Event()], source="vmalloc", page_size=page_size, **about)
        with pytest.raises(TraceError, match="a recording of our own allocator"):
            replay.load(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "say what to record"),
        (["a", "b"], "say what to record"),
        (["frames", "--no-snapshots"], "go with --kernel"),
        (["frames", "--buffer-kb", "64"], "go with --kernel"),
        (["-o", "x.gz", "frames"], "parquet"),
        (["--exact", "--kernel"], "--exact"),
        (["no-such-region-anywhere"], "no-such-region-anywhere"),
    ],
)
def test_what_cannot_be_recorded_is_said_in_a_line(tmp_path: Path, words: list[str], told: str) -> None:
    with contextlib.chdir(tmp_path):
        done = CliRunner().invoke(record_command.command, words)
    assert done.exit_code != 0
    assert told in done.output


def test_what_is_for_kernels_is_refused_for_a_recording_of_our_own(tmp_path: Path) -> None:
    space, path = addresses(), tmp_path / "run.parquet"
    with space.record(path):
        work(space, 50, seed=7)
    snapshot = str(SNAPSHOT)
    for words in (["--cpus", "2"], ["--vmallocinfo", snapshot], ["--state", snapshot]):
        done = CliRunner().invoke(replay_command, [str(path), "--on", "model", *words])
        assert done.exit_code == 1
        assert len(done.output.splitlines()) == 1
        assert "are for kernels" in done.output
    done = CliRunner().invoke(report_command, [str(path), "--vmallocinfo", snapshot, "--json"])
    assert (done.exit_code, len(done.output.splitlines())) == (1, 1)
    assert "are for kernels" in done.output


def test_a_report_of_a_recording_of_our_own_advises_nothing_that_is_for_kernels(tmp_path: Path) -> None:
    space, path = addresses(), tmp_path / "run.parquet"
    with space.record(path):
        work(space, 50, seed=7)
    notes = " ".join(report_of_recording(path).notes)
    assert "not of those before" in notes
    assert "--vmallocinfo" not in notes
