# SPDX-License-Identifier: MIT
"""The chunk reader gives the same events and problems as the line reader, which is the specification."""

from __future__ import annotations

import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lab.trace_samples import ALLOC, DATA, FREE, PURGE, sample

from vmalloc.lab.events import Event, Problems
from vmalloc.lab.lines import Reading, events_of_chunk
from vmalloc.lab.trace import DIALECTS, read_columns

pytest.importorskip("numpy")
chunks = pytest.importorskip("vmalloc.lab.chunks")

SAMPLES = {
    "live_admin.trace": "ftrace",
    "live_admin.report": "trace-cmd",
    "live_admin.perf": "perf",
    "live_lost.pipe": "ftrace",
    "live_overwritten.trace": "ftrace",
    "guest_align_shift.trace": "ftrace",
}


def by_line(pieces: list[bytes], dialect: str) -> tuple[list[Event], list[str]]:
    reading = Reading(DIALECTS[dialect], Problems())
    events = [event for piece in pieces for event in events_of_chunk(piece, reading)]
    reading.finish()
    return events, sorted(map(str, reading.problems))


def by_chunk(pieces: list[bytes], dialect: str, threads: int = 1) -> tuple[list[Event], list[str]]:
    reading = Reading(DIALECTS[dialect], Problems())
    tables = chunks.parse_chunks(iter(pieces), reading, threads)
    events = [event for table in tables for event in table.events()]
    reading.finish()
    return events, sorted(map(str, reading.problems))


def cut(text: bytes, lines_per_piece: int) -> list[bytes]:
    lines = text.splitlines(keepends=True)
    return [b"".join(lines[n : n + lines_per_piece]) for n in range(0, len(lines), lines_per_piece)]


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("lines_per_piece", [7, 1000])
def test_samples_read_the_same_in_blocks_of_any_size(name, lines_per_piece):
    pieces = cut(sample(name), lines_per_piece)
    assert by_chunk(pieces, SAMPLES[name]) == by_line(pieces, SAMPLES[name])


def test_threads_do_not_change_the_order():
    pieces = cut(sample("live_admin.trace"), 20)
    assert by_chunk(pieces, "ftrace", threads=3) == by_line(pieces, "ftrace")


@pytest.mark.parametrize("name", ["guest/align_shift_1t.trace.xz", "live/l7_lost_overwrite.trace.xz"])
def test_real_recordings_read_the_same(name):
    text = lzma.decompress((DATA / name).read_bytes())
    assert by_chunk([text], "ftrace") == by_line([text], "ftrace")


LINES = st.sampled_from(
    [
        *(ALLOC, FREE, PURGE),
        *sample("live_admin.trace").splitlines(keepends=True)[12:40],
        *sample("live_lost.pipe").splitlines(keepends=True)[75:90],
        *sample("guest_align_shift.trace").splitlines(keepends=True)[12:80],
    ]
)
DAMAGE = st.tuples(
    st.integers(0, 220),
    st.sampled_from([b"", b" ", b"=", b":", b"9", b"a", b"x", b"-", b"]", b"\n", b"\xff", b"0x", b"\r"]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(LINES, st.none() | DAMAGE), min_size=1, max_size=40), st.integers(0, 120))
def test_damaged_lines_read_the_same(lines, cut_at_end):
    text = b""
    for line, damage in lines:
        if damage is not None:
            place, byte = damage
            line = line[:place] + byte + line[place + 1 :]
        text += line
    text = text[: len(text) - cut_at_end] if cut_at_end else text
    assert by_chunk([text], "ftrace") == by_line([text], "ftrace")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**64 - 1),
            st.integers(0, 10**12),
            st.integers(0, 9999999),
            st.integers(0, 999),
            st.integers(0, 10**8),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_numbers_of_every_length_read_the_same_and_right(rows):
    text = b""
    for addr, size, pid, cpu, seconds in rows:
        text += f"{'a b':>16}-{pid:<7d} [{cpu:03d}] d..2. {seconds:5d}.000001: alloc_vmap_area: ".encode()
        text += f"va_start: {addr} size={size} align={size % 977} vstart=0x{addr:x} ".encode()
        text += f"vend=0x{addr:x} failed=0\n".encode()
        text += (
            f"{'x':>16}-{pid:<7d} [{cpu:03d}] d..2. {seconds:5d}.000002: free_vmap_area_noflush: ".encode()
        )
        text += f"va_start=0x{addr:x} nr_lazy={size} nr_lazy_max={seconds % 10}\n".encode()
    events, problems = by_chunk([text], "ftrace")
    assert (events, problems) == by_line([text], "ftrace")
    got = [(e.addr, e.size, e.pid, e.cpu, e.time_ns // 10**9) for e in events if e.kind == "alloc"]
    assert got == rows
    assert [(e.addr, e.nr_lazy) for e in events if e.kind == "free"] == [row[:2] for row in rows]


def test_nearly_every_line_of_a_recording_is_read_by_shape():
    text = sample("live_admin.trace") + sample("live_admin.trace") * 5
    reading_left = chunks._cut_up(text, DIALECTS["ftrace"]).left
    assert len(reading_left) < 100  # of 2,472: headers, and shapes met once


def test_other_events_between_do_not_slow_down_reading():
    other = ALLOC.replace(b"alloc_vmap_area: va_start:", b"sched_switch: a=1 b=2 c=3 d=4 e=5")
    text = b"".join(line + other for line in sample("live_admin.trace").splitlines(keepends=True))
    left = chunks._cut_up(text, DIALECTS["ftrace"]).left
    assert len(left) < 412 + 40  # the other events, and few of ours
    assert by_chunk([text], "ftrace") == by_line([text], "ftrace")


def test_columns_are_the_events_turned(tmp_path):
    path = tmp_path / "trace"
    path.write_bytes(ALLOC + FREE + PURGE)
    columns = read_columns(path)
    assert columns.strings("kind") == ["alloc", "free", "purge"]
    assert columns["size"].tolist() == [20480, 0, 0xFFFFC90010605000 - 0xFFFFC9000004C000]
    assert columns.strings("comm") == ["bash", "kworker/0:1", "kworker/0:1"]
    assert columns.nr_rows == 3


def test_shuffled_columns_can_be_put_in_order_of_time(tmp_path):
    path = tmp_path / "trace"
    path.write_bytes(PURGE + FREE + ALLOC)
    assert read_columns(path).by_time()["line"].tolist() == [3, 2, 1]
