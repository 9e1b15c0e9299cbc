# SPDX-License-Identifier: MIT
"""Recording the running kernel: what is recorded, and that nothing is left behind."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.kernel_work import attach_filters

from vmalloc.cli.record import command as record
from vmalloc.lab import record_kernel as recorder
from vmalloc.lab import tracefs as module
from vmalloc.lab.record_kernel import RecordError, record_kernel, snapshot_path
from vmalloc.lab.trace import read_events, read_vmallocinfo
from vmalloc.lab.tracefs import KPTR_RESTRICT, PREFIX, Tracefs, remove_stale

RECORD = [sys.executable, "-c", "from vmalloc.cli.record import command; command()", "--kernel"]
PATIENCE_S = 10


@pytest.fixture
def tracefs() -> Iterator[Tracefs]:
    if os.geteuid() != 0:
        pytest.skip("recording the kernel needs root")
    try:
        opened = Tracefs()
    except RecordError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


def has_instance(tracefs: Tracefs, pid: int) -> bool:
    return (tracefs.path / "instances" / f"{PREFIX}{pid}").exists()


def switches(tracefs: Tracefs) -> list[str]:
    """The state of tracing that others use."""
    names = (
        "tracing_on",
        "set_event",
        "current_tracer",
        "trace_clock",
        "buffer_size_kb",
        "events/vmalloc/enable",
    )
    return [(tracefs.path / name).read_text() for name in names]


def wait_for(condition: object) -> bool:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def undisturbed_restriction() -> str:
    """While no recorder has changed it: other tests may record at the same time."""
    with KPTR_RESTRICT.open() as restriction:
        fcntl.flock(restriction, fcntl.LOCK_SH)
        return restriction.read()


@pytest.fixture
def restriction(tmp_path, monkeypatch) -> Path:
    """A file in place of kernel.kptr_restrict, which is 2."""
    path = tmp_path / "kptr_restrict"
    path.write_text("2")
    monkeypatch.setattr(module, "KPTR_RESTRICT", path)
    return path


@pytest.fixture
def watcher(tracefs, restriction, tmp_path) -> Iterator[module._Watcher]:
    watcher = module._Watcher(tracefs, tmp_path / "no-instance")
    yield watcher
    watcher.dismiss()


@pytest.fixture
def running(tracefs, tmp_path) -> Iterator[subprocess.Popen[bytes]]:
    """A recorder without a limit, that has started to record."""
    process = subprocess.Popen([*RECORD, "-o", str(tmp_path / "run.trace.gz")], stderr=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: snapshot_path(tmp_path / "run.trace.gz", "before").exists())
        assert has_instance(tracefs, process.pid)
        yield process
    finally:
        process.kill()
        process.wait()
        assert wait_for(lambda: not has_instance(tracefs, process.pid))


def test_a_command_is_recorded_between_two_snapshots(tracefs, tmp_path):
    others = switches(tracefs)
    done = record_kernel(
        tmp_path / "a.trace.gz", command=["sh", "-c", f"{shlex.join(attach_filters(60))}; exit 3"]
    )
    events = list(read_events(done.trace))
    assert done.status == 3
    assert [e.text for e in events if e.kind == "mark"] == [
        "SNAP_BEFORE",
        "SNAP_BEFORE_END",
        "SNAP_AFTER",
        "SNAP_AFTER_END",
    ]
    assert sum(event.kind == "alloc" for event in events) >= 30
    assert done.nr_lost == 0
    assert done.before is not None
    assert len(read_vmallocinfo(done.before)) > 100
    assert not has_instance(tracefs, os.getpid())
    assert switches(tracefs) == others


def test_real_addresses_are_shown_and_the_restriction_is_set_back(tracefs, tmp_path):
    restriction = undisturbed_restriction()
    done = record_kernel(tmp_path / "a.trace", seconds=0.05, real_addresses=True)
    assert done.addresses == "real"
    assert undisturbed_restriction() == restriction
    assert done.before is not None
    assert done.after is not None
    before, after = (
        {area.start for area in read_vmallocinfo(path).busy() if not area.caller.startswith("pcpu")}
        for path in (done.before, done.after)
    )
    touched = {event.addr for event in read_events(done.trace) if event.kind in ("alloc", "free")}
    assert before ^ after <= touched  # but for per-CPU areas, they come and go only with an event


def test_the_watcher_sets_the_restriction_back_when_the_recorder_dies_in_between(watcher, restriction):
    restriction.write_text("1")
    watcher.restore_kptr("2")
    watcher.dismiss()  # closes the pipe, as death does
    assert restriction.read_text() == "2\n"


def test_recorders_take_turns_at_the_restriction(tracefs, watcher, restriction, tmp_path):
    second = module._Watcher(tracefs, tmp_path / "no-instance-either")
    entered, may_look, seen = threading.Event(), threading.Event(), []

    def look() -> None:
        with second.addresses_shown():
            entered.set()
            may_look.wait(PATIENCE_S)
            seen.append(restriction.read_text())

    thread = threading.Thread(target=look)
    with watcher.addresses_shown():
        thread.start()
        entered.wait(0.2)  # it would be long enough to see 1 and go on
        assert restriction.read_text() == "1"
    assert entered.wait(PATIENCE_S)
    may_look.set()
    thread.join(PATIENCE_S)
    second.dismiss()
    assert seen == ["1"]
    assert restriction.read_text() == "2"


def test_a_dead_recorders_turn_lasts_until_its_watcher_has_set_the_restriction_back(watcher, restriction):
    watcher._lock_restriction()
    restriction.write_text("1")
    watcher.restore_kptr("2")
    os.close(watcher._restriction)  # as death does, and then the pipe
    watcher._restriction = -1
    with restriction.open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        watcher.dismiss()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert file.read() == "2\n"


def test_a_restriction_that_shows_addresses_is_not_written(watcher, restriction):
    restriction.write_text("1")
    written = restriction.stat().st_mtime_ns
    with watcher.addresses_shown():
        pass
    assert restriction.stat().st_mtime_ns == written


def test_who_keeps_the_restriction_changed_is_not_waited_for_for_ever(watcher, restriction, monkeypatch):
    monkeypatch.setattr(module, "RESTRICTION_PATIENCE_S", 0.0)
    with restriction.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RecordError, match="another recorder"), watcher.addresses_shown():
            pass
    assert restriction.read_text() == "2"


def test_a_recording_can_be_written_as_columns(tracefs, tmp_path):
    pytest.importorskip("pyarrow")
    from vmalloc.lab.columnar import read_metadata

    done = record_kernel(tmp_path / "a.parquet", seconds=0.05, snapshots=False)
    assert read_metadata(done.trace)["release"] == os.uname().release
    assert list(read_events(done.trace)) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_events_that_the_ring_cannot_keep_are_counted(tracefs, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder._Reader, "_run", lambda self: None)  # a reader that is too slow by far
    done = record_kernel(tmp_path / "a.trace", command=attach_filters(500), buffer_kb=4, snapshots=False)
    assert done.nr_lost > 0
    assert "take a larger --buffer-kb" in done.notes[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_recording_and_keeps_it(tracefs, running, tmp_path, number):
    running.send_signal(number)
    assert running.wait(PATIENCE_S) == 0
    assert not has_instance(tracefs, running.pid)
    marks = [event.text for event in read_events(tmp_path / "run.trace.gz") if event.kind == "mark"]
    assert marks[-1] == "SNAP_AFTER_END"


def test_a_recorder_that_is_killed_leaves_tracing_as_it_was(tracefs, running):
    others = switches(tracefs)
    running.kill()
    assert running.wait(PATIENCE_S) == -signal.SIGKILL
    assert wait_for(lambda: not has_instance(tracefs, running.pid))
    assert switches(tracefs) == others


def test_a_command_that_is_interrupted_is_ended_and_the_status_says_so(tracefs, tmp_path):
    process = subprocess.Popen(
        [
            *RECORD,
            "-o",
            str(tmp_path / "run.trace"),
            "--json",
            str(tmp_path / "run.json"),
            "--",
            "sleep",
            "60",
        ],
        stderr=subprocess.DEVNULL,
    )
    assert wait_for(lambda: snapshot_path(tmp_path / "run.trace", "before").exists())
    time.sleep(0.1)
    process.terminate()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "run.json").read_text())["interrupted"] == signal.SIGTERM


def test_instances_of_dead_recorders_are_removed_and_those_of_living_ones_stay(tracefs, running):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tracefs.path / "instances" / f"{PREFIX}{dead.pid}").mkdir()
    assert f"{PREFIX}{dead.pid}" in remove_stale(tracefs)
    assert not has_instance(tracefs, dead.pid)
    assert has_instance(tracefs, running.pid)


def test_two_recorders_do_not_disturb_each_other(tracefs, running, tmp_path):
    done = record_kernel(tmp_path / "second.trace", seconds=0.05, snapshots=False)
    assert done.trace.exists()
    assert has_instance(tracefs, running.pid)


def test_a_command_ends_with_a_recorder_that_is_killed(tmp_path):
    script = (
        "import os, time, vmalloc.lab.record_kernel as r;"
        "child = r._start(['sleep', '600']); print(child.pid, flush=True); time.sleep(600)"
    )
    killed = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert killed.stdout is not None
    child = int(killed.stdout.readline())
    killed.kill()
    killed.wait()
    killed.stdout.close()

    def is_gone() -> bool:
        stat = Path(f"/proc/{child}/stat")
        return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"

    assert wait_for(is_gone)


def test_a_command_that_is_not_there_is_one_line_and_leaves_nothing(tracefs, tmp_path):
    with pytest.raises(RecordError, match="cannot run /no/such/program: No such file"):
        record_kernel(tmp_path / "a.trace", command=["/no/such/program"])
    assert not has_instance(tracefs, os.getpid())


def test_a_full_disk_ends_the_recording_at_once_in_one_line(tracefs, tmp_path, monkeypatch):
    def full(self: object) -> int:
        raise OSError("No space left on device")

    monkeypatch.setattr(recorder._Reader, "_move", full)
    with pytest.raises(RecordError, match="cannot be written: No space left on device"):
        record_kernel(tmp_path / "a.trace", seconds=60)
    assert not has_instance(tracefs, os.getpid())


def test_without_root_one_line_says_what_is_needed(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(record, ["--kernel", "--seconds", "1"])
    assert done.exit_code == 1
    assert done.output == "Error: recording the kernel needs root, because tracefs does: run it with sudo\n"


def test_what_to_record_has_to_be_said():
    done = CliRunner().invoke(record, [])
    assert done.exit_code == 2
    assert "say what to record: --kernel" in done.output


def test_snapshots_are_named_after_the_trace():
    assert snapshot_path(Path("d/run.trace.gz"), "before") == Path("d/run.before.vmallocinfo.gz")
    assert snapshot_path(Path("run.parquet"), "after") == Path("run.after.vmallocinfo.gz")
