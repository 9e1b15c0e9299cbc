# SPDX-License-Identifier: MIT
"""A recording as trace events, which ui.perfetto.dev shows."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.conftest import PAGE

import vmalloc
from vmalloc.cli import record as record_command
from vmalloc.lab import record_kernel
from vmalloc.lab.events import ALLOC, FREE, LOST, PURGE, Event
from vmalloc.lab.perfetto import COUNTER_NS, trace_events, write_perfetto
from vmalloc.lab.record_kernel import Recorded

DATA = Path(__file__).parent.parent / "data"

EVENTS = [
    Event(1_000, kind="attach", pid=7, comm="worker", slot=3),
    Event(1_500, kind=ALLOC, pid=7, comm="worker", slot=3, addr=0, size=2 * PAGE, text="space"),
    Event(2_000, kind=ALLOC, pid=7, comm="worker", slot=3, size=PAGE, failed=1),
    Event(3_000, kind=PURGE, pid=8, comm="other", slot=4, npurged=5),
    Event(1_500 + COUNTER_NS, kind=FREE, pid=8, comm="other", slot=4, addr=0, size=2 * PAGE, cpu=1),
    Event(2_500 + COUNTER_NS, kind=LOST, pid=8, comm="other", slot=4, lost=9),
]


def of_phase(shown: list[dict[str, Any]], phase: str) -> list[dict[str, Any]]:
    return [one for one in shown if one["ph"] == phase]


def test_each_event_is_on_the_track_of_its_thread_at_its_time() -> None:
    instants = of_phase(list(trace_events(EVENTS)), "i")
    assert [(one["name"], one["ts"], one["pid"], one["tid"]) for one in instants] == [
        ("attach", 0.0, 7, 4),
        (ALLOC, 0.5, 7, 4),
        (ALLOC, 1.0, 7, 4),
        (PURGE, 2.0, 8, 5),
        (FREE, 0.5 + COUNTER_NS / 1000, 8, 5),
        (LOST, 1.5 + COUNTER_NS / 1000, 8, 5),
    ]
    assert instants[1]["args"] == {"cpu": 0, "addr": "0x0", "bytes": 2 * PAGE, "by": "space"}
    assert instants[2]["args"]["failed"]
    assert instants[3]["args"]["ranges"] == 5
    assert instants[5]["args"] == {"events": 9}


def test_a_process_and_its_threads_have_names_before_their_first_event() -> None:
    shown = list(trace_events(EVENTS))
    names = [(one["name"], one["pid"], one["args"]["name"]) for one in of_phase(shown, "M")]
    assert names == [
        ("process_name", 7, "worker"),
        ("thread_name", 7, "slot 3"),
        ("process_name", 8, "other"),
        ("thread_name", 8, "slot 4"),
    ]
    assert [one["ph"] for one in shown[:2]] == ["M", "M"]


def test_the_counter_says_how_much_is_allocated_and_a_failure_counts_nothing() -> None:
    counts = of_phase(list(trace_events(EVENTS)), "C")
    assert [one["args"]["bytes"] for one in counts] == [2 * PAGE, 0]


def test_a_kernels_free_has_the_size_of_its_allocation() -> None:
    shown = trace_events(
        [
            Event(1_000, kind=ALLOC, pid=7, addr=4 * PAGE, size=2 * PAGE),
            Event(1_000 + COUNTER_NS, kind=FREE, pid=7, addr=4 * PAGE),
            Event(1_000 + 2 * COUNTER_NS, kind=FREE, pid=7, addr=9 * PAGE),  # its size is not known
        ]
    )
    assert [one["args"]["bytes"] for one in of_phase(list(shown), "C")] == [2 * PAGE, 0, 0]


def test_time_begins_with_the_first_event_that_has_one() -> None:
    shown = trace_events([Event(kind=LOST, lost=5), *EVENTS[:2], EVENTS[0]._replace(time_ns=900)])
    assert [one["ts"] for one in of_phase(list(shown), "i")] == [0.0, 0.0, 0.5, 0.0]


def test_a_kernels_recording_is_shown_by_task(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json.gz"
    recording = next(iter(sorted(DATA.rglob("*.trace.xz"))))
    nr = write_perfetto(recording, path)
    shown = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert len(shown) == nr
    assert {ALLOC, FREE} <= {one["name"] for one in of_phase(shown, "i")}


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    recording = next(iter(sorted(DATA.rglob("*.trace.xz"))))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OSError):
        write_perfetto(recording, tmp_path / "folder.json")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


@pytest.mark.parametrize(
    ("name", "text"), [("run.txt", ".json"), ("no/run.json", "no directory"), ("run.json", "itself")]
)
def test_a_name_that_does_not_do_is_refused_before_anything_is_recorded(
    tmp_path: Path, name: str, text: str
) -> None:
    words = ["no-such-region", "-o", str(tmp_path / "run.json"), "--perfetto", str(tmp_path / name)]
    done = CliRunner().invoke(record_command.command, words)
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert text in done.output


def test_record_writes_it_beside_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="recordings of a region are columns: pip install vmalloc[lab]")
    name = f"perfetto-{os.getpid()}"
    with vmalloc.Region("1M", name=name, helper=False) as region:
        monkeypatch.setattr(record_command, "_wait", lambda _seconds: region.alloc(PAGE).release())
        words = [name, "-o", str(tmp_path / "run.parquet"), "--perfetto", str(tmp_path / "run.json")]
        done = CliRunner().invoke(record_command.command, words)
    assert done.exit_code == 0, done.output
    assert "ui.perfetto.dev" in done.output
    shown = json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    assert {ALLOC, FREE, "attach"} <= {one["name"] for one in of_phase(shown, "i")}
    assert {one["pid"] for one in of_phase(shown, "i")} == {os.getpid()}


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A name for the trace at which a folder stands."""
    path = tmp_path / "folder.json"
    path.mkdir()
    return path


def test_a_trace_that_cannot_be_written_loses_neither_recording_nor_json(
    tmp_path: Path, unwritable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="recordings of a region are columns: pip install vmalloc[lab]")
    name = f"perfetto-unwritable-{os.getpid()}"
    with vmalloc.Region("1M", name=name, helper=False) as region:
        monkeypatch.setattr(record_command, "_wait", lambda _seconds: region.alloc(PAGE).release())
        words = [name, "-o", str(tmp_path / "run.parquet"), "--perfetto", str(unwritable), "--json"]
        done = CliRunner().invoke(record_command.command, words)
    assert done.exit_code == 1
    assert json.loads(done.stdout)["nr_lost"] == 0
    assert f"--perfetto {unwritable}" in done.stderr
    assert (tmp_path / "run.parquet").exists()


@pytest.mark.parametrize(("status", "told"), [(0, 1), (7, 7), (-15, 143)])
def test_a_trace_that_cannot_be_written_hides_no_status_of_what_was_recorded(
    unwritable: Path, monkeypatch: pytest.MonkeyPatch, status: int, told: int
) -> None:
    recording = next(iter(sorted(DATA.rglob("*.trace.xz"))))
    recorded = Recorded(recording, nr_lines=1, nr_lost=0, seconds=0.0, status=status)
    monkeypatch.setattr(record_kernel, "record_kernel", lambda *_args, **_more: recorded)
    words = ["--kernel", "--perfetto", str(unwritable), "--json", "--", "true"]
    done = CliRunner().invoke(record_command.command, words)
    assert done.exit_code == told
    assert json.loads(done.stdout)["status"] == status
