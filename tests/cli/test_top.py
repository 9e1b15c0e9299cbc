# SPDX-License-Identifier: MIT
"""`vmalloc top`: a region at work, in a real terminal, without taking part in it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from click.testing import CliRunner
from tests.cli.terminal import Screen, Terminal
from tests.conftest import PAGE

import vmalloc
from vmalloc._core import Recorder, RecordingWatch
from vmalloc.cli import main
from vmalloc.cli.screen import HELP, SORTS, View, draw, edges
from vmalloc.cli.top import _watch as watch
from vmalloc.facts import EVENT_RING, MONITOR_SHARE, POOL_PAGES_MAX
from vmalloc.find import Found, find_regions
from vmalloc.monitor import Watcher

WORK = """
import sys, time, vmalloc
region = vmalloc.Region.attach(sys.argv[1], helper=False)
blocks = [region.alloc(n * 4096) for n in (1, 30, 300)]
print("ready", flush=True)
while True:
    for n in (1, 2, 40, 300):
        region.alloc(n * 4096).release()
    time.sleep(0.001)
"""
TOP = [sys.executable, "-m", "vmalloc.cli", "top"]
SIZES = [(80, 24), (200, 60)]

_numbers = itertools.count()


@pytest.fixture
def region() -> Iterator[vmalloc.Region]:
    region = vmalloc.Region("64M", name=f"top-{os.getpid()}-{next(_numbers)}", nodes=2, helper=False)
    yield region
    region.close()


@pytest.fixture
def worker(region: vmalloc.Region) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", WORK, region.name]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


class Clock:
    def __init__(self) -> None:
        self.now_s = self.cpu_s = 100.0

    def cpu(self) -> float:
        return self.cpu_s


@pytest.fixture
def watcher(region: vmalloc.Region) -> Iterator[tuple[Watcher, Clock]]:
    clock = Clock()
    with vmalloc.Region.attach(f"/proc/self/fd/{region.fileno()}", readonly=True) as watched:
        yield Watcher(watched, region.name, lambda: clock.now_s, clock.cpu), clock


# ---- what is looked at ----


def test_rates_are_of_the_time_between_two_looks(
    region: vmalloc.Region, watcher: tuple[Watcher, Clock]
) -> None:
    looks, clock = watcher
    assert looks.look().allocs == 0
    for _ in range(100):
        region.alloc(PAGE).release()
    clock.now_s += 2
    look = looks.look()
    assert look.allocs == 100 / 2
    assert sum(look.hits.values()) == pytest.approx(1)
    assert look.hits["magazine"] >= 0.98  # all but the first
    assert look.interval_s == 2


def test_while_somebody_records_events_are_told_by_their_kind(
    region: vmalloc.Region, watcher: tuple[Watcher, Clock]
) -> None:
    looks, clock = watcher
    assert not looks.look().is_recorded
    recorder = Recorder(region)
    clock.now_s += 1
    assert looks.look().is_recorded
    for _ in range(100):
        region.alloc(PAGE).release()
    clock.now_s += 2
    look = looks.look()
    assert (look.events["alloc"], look.events["free"], look.events_seen) == (100 / 2, 100 / 2, 1)
    assert "stamp" not in look.events
    (line,) = [line.plain for line in draw(look, View(), 80, 24) if line.plain.startswith("recorded")]
    assert "alloc 50" in line
    recorder.end()
    clock.now_s += 1
    assert not looks.look().is_recorded


def test_of_events_that_were_overwritten_the_rest_tells(
    region: vmalloc.Region, watcher: tuple[Watcher, Clock]
) -> None:
    looks, clock = watcher
    recorder = Recorder(region)
    looks.look()
    for _ in range(2 * EVENT_RING):
        region.alloc(PAGE).release()
    clock.now_s += 1
    look = looks.look()
    assert 0 < look.events_seen < 0.5
    assert look.events["alloc"] == pytest.approx(2 * EVENT_RING, rel=0.02)
    assert any(f"({look.events_seen:.0%} seen)" in line.plain for line in draw(look, View(), 200, 24))
    recorder.end()


def test_a_second_recording_is_followed_after_the_first(
    region: vmalloc.Region, watcher: tuple[Watcher, Clock]
) -> None:
    looks, clock = watcher
    for _ in range(2):
        recorder = Recorder(region)
        looks.look()
        region.alloc(PAGE).release()
        clock.now_s += 1
        assert looks.look().events["free"] == 1
        recorder.end()


def test_a_child_of_who_watches_a_recording_sees_none(
    region: vmalloc.Region, watcher: tuple[Watcher, Clock]
) -> None:
    recorder = Recorder(region)
    watch = RecordingWatch(watcher[0].region)
    assert watch.tally() is not None
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if watch.tally() == ([0] * 16, 0) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    recorder.end()


def test_a_slow_look_at_all_words_makes_the_next_one_late(
    region: vmalloc.Region, watcher: tuple[Watcher, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, clock = watcher
    times = iter([0.0, 0.5])  # one look at all words takes half a second of this thread
    monkeypatch.setattr(looks, "_cpu_s", lambda: next(times))
    clock.now_s += 1000
    assert looks.look().words_age_s == 0
    block = region.alloc(5 * PAGE)
    clock.now_s += 0.5 * MONITOR_SHARE - 1
    look = looks.look()  # would fail where it asked for the time once more
    assert look.words_age_s == 0.5 * MONITOR_SHARE - 1
    assert not look.largest
    monkeypatch.setattr(looks, "_cpu_s", clock.cpu)
    clock.now_s += 1
    assert [r.nbytes for r in looks.look().largest] == [5 * PAGE]
    block.release()


def test_the_columns_of_the_heat_map_cover_every_size_once() -> None:
    for nr_columns in (1, 2, 10, 68, 188, 255, 256, 1000):
        at = edges(nr_columns, POOL_PAGES_MAX)
        assert at[0] == 1
        assert at[-1] == POOL_PAGES_MAX + 1
        assert len(at) == min(nr_columns, POOL_PAGES_MAX) + 1
        assert all(a < b for a, b in itertools.pairwise(at))


@pytest.mark.parametrize(("width", "height"), [*SIZES, (20, 5), (1, 1), (140, 10)])
def test_what_is_drawn_fits(watcher: tuple[Watcher, Clock], width: int, height: int) -> None:
    look = watcher[0].look()
    look.name = look.holders[0].command = "\x1b[31m" + "宽" * 300
    for view in (View(), View(help=True), View(is_typing=True, filter="x" * 300), View(paused=True)):
        lines = draw(look, view, width, height)
        assert len(lines) == height
        assert all(line.cell_len <= width for line in lines)
        assert not any("\x1b" in line.plain for line in lines)


def test_the_help_is_whole_on_a_small_terminal() -> None:
    assert all(len(line) <= 80 for line in HELP.splitlines())
    assert len(HELP.splitlines()) <= 23


def test_processes_are_sorted_and_filtered(
    region: vmalloc.Region, worker: subprocess.Popen[str], watcher: tuple[Watcher, Clock]
) -> None:
    look = watcher[0].look()
    assert {h.pid for h in look.holders} == {os.getpid(), worker.pid}
    for sort in SORTS:
        shown = [line.plain for line in draw(look, View(sort=sort), 120, 40)]
        assert any(f"by {sort}" in line for line in shown)
    in_order = [
        int(line.plain.split()[0])
        for line in draw(look, View(sort="pid"), 120, 40)
        if line.plain.split() and line.plain.split()[0] in (str(os.getpid()), str(worker.pid))
    ]
    assert in_order == sorted(in_order)
    filtered = "\n".join(line.plain for line in draw(look, View(filter=str(worker.pid)), 120, 40))
    assert "(1, by bytes)" in filtered


# ---- in a terminal ----


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_fills_a_terminal_and_obeys_keys(
    region: vmalloc.Region, worker: subprocess.Popen[str], width: int, height: int
) -> None:
    before = region.processes()
    with Terminal([*TOP, region.name, "--interval", "0.1"], width, height) as terminal:
        lines = terminal.until(
            lambda s: "magazine" in s.lines()[3] and str(worker.pid) in "".join(s.lines()) and s.is_alternate
        )
        assert lines[0].startswith(region.name)
        assert "2 processes" in lines[0]
        assert lines[-1].strip().startswith("s sort")
        assert any("1.2M" in line and str(worker.pid) in line for line in lines)  # its largest range
        assert any(line.startswith("node 1") for line in lines)
        assert {p.pid for p in region.processes()} == {p.pid for p in before}
        terminal.press("s")
        terminal.until_text("by pid")
        terminal.press("?")
        terminal.until_text("Nothing is locked")
        terminal.press("?")
        terminal.press("/no-such\r")
        terminal.until_text("(0, by pid)")
        terminal.press("\x1b")
        terminal.until_text("(2, by pid)")
        terminal.press("p")
        terminal.until_text("PAUSED")
        terminal.press("pq")
        assert terminal.until_end() == 0
        assert not terminal.screen.is_alternate
        assert terminal.screen.is_cursor_shown
        assert termios.tcgetattr(terminal.fd)[3] == terminal.settings[3]  # keys are shown again


def test_while_somebody_records_it_shows_events(
    region: vmalloc.Region, worker: subprocess.Popen[str]
) -> None:
    recorder = Recorder(region)
    with Terminal([*TOP, region.name, "--interval", "0.1"], 80, 24) as terminal:
        terminal.until(lambda s: any(line.startswith("recorded") and "alloc" in line for line in s.lines()))
        recorder.end()
        terminal.until(lambda s: not any(line.startswith("recorded") for line in s.lines()))


def test_a_new_size_is_filled(region: vmalloc.Region) -> None:
    with Terminal([*TOP, region.name, "--interval", "60"], 80, 24) as terminal:
        terminal.until_text("q quit")
        terminal.resize(120, 30)
        lines = terminal.until(lambda s: "q quit" in s.lines()[-1])
        assert len(lines) == 30
        terminal.press("q")
        assert terminal.until_end() == 0


def test_ctrl_c_leaves_the_terminal_as_it_was(region: vmalloc.Region) -> None:
    with Terminal([*TOP, region.name], 80, 24) as terminal:
        terminal.until_text("q quit")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.until_end() == 130
        assert not terminal.screen.is_alternate
        assert termios.tcgetattr(terminal.fd)[3] == terminal.settings[3]


def test_a_stopped_process_is_told_and_not_waited_for(
    region: vmalloc.Region, worker: subprocess.Popen[str]
) -> None:
    worker.send_signal(signal.SIGSTOP)
    os.waitpid(worker.pid, os.WUNTRACED)
    with Terminal([*TOP, region.name, "--interval", "0.1"], 80, 24) as terminal:
        terminal.until_text("stopped")


def test_n_goes_to_every_region_once_and_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        same = [stack.enter_context(vmalloc.Region("1M", name=f"top-{os.getpid()}-same")) for _ in range(3)]
        own = {os.fstat(r.fileno()).st_ino for r in same}
        found = [f for f in find_regions() if f.inode in own]
        sizes = itertools.cycle([[3, 1, 2], [1, 2, 3], [2, 3, 1]])  # they change from look to look

        def look() -> list[Found]:
            for f, nbytes in zip(found, next(sizes), strict=True):
                f.resident_bytes = nbytes
            return list(found)

        monkeypatch.setattr("vmalloc.find.find_regions", look)
        seen, watcher = [], None
        for _ in range(6):
            watcher = watch(None, after=watcher)
            stack.enter_context(watcher.region)
            seen.append(os.fstat(watcher.region.fileno()).st_ino)
        assert set(seen[:3]) == own
        assert seen[3:] == seen[:3]


def test_n_is_the_key_for_the_next_region(region: vmalloc.Region) -> None:
    name = f"{region.name}-b"
    with vmalloc.Region("1M", name=name), Terminal([*TOP, region.name], 80, 24) as terminal:

        def is_there(screen: Screen) -> bool:
            if screen.lines()[0].startswith(f"{name} "):
                return True
            terminal.press("n")  # others' may be there, too, and end meanwhile
            return False

        terminal.until_text(region.name)
        terminal.until(is_there)
        terminal.press("q")
        assert terminal.until_end() == 0


# ---- once ----


def test_once_prints_one_screen(region: vmalloc.Region, worker: subprocess.Popen[str]) -> None:
    done = CliRunner().invoke(main, ["top", "--once", "--interval", "0.2", region.name])
    assert done.output.splitlines()[-1].strip()  # it ends where there is nothing more to say
    assert done.exit_code == 0, done.output
    assert done.output.startswith(region.name)
    assert str(worker.pid) in done.output
    assert "\x1b" not in done.output


def test_once_as_json_tells_all(region: vmalloc.Region, worker: subprocess.Popen[str]) -> None:
    output = CliRunner().invoke(main, ["top", "--once", "--json", "--interval", "0.2", region.name]).output
    told = json.loads(output)
    assert told["name"] == region.name
    assert told["nbytes"] == 64 << 20
    assert told["allocs"] > 0
    assert sum(told["hits"].values()) == pytest.approx(1)
    assert worker.pid in {h["pid"] for h in told["holders"]}
    assert told["largest"][0]["nbytes"] == 300 * PAGE
    assert set(told["pools"]) == {"magazines", "node 0", "node 1"}


@pytest.mark.parametrize(
    ("words", "text"),
    [(["no-such-region", "--once"], "no-such-region"), ([], "--once prints"), (["--json"], "--once --json")],
)
def test_what_it_cannot_do_is_one_line(words: list[str], text: str) -> None:
    done = CliRunner().invoke(main, ["top", *words])
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert text in done.output
