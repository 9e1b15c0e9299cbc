# SPDX-License-Identifier: MIT
"""Reading recordings: every format gives the same events, every trouble one line."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.lab.trace_samples import ALLOC, DATA, FREE, PURGE, SAMPLES, sample

from vmalloc.lab.trace import Event, Problem, TraceError, read_events


def read(tmp_path: Path, text: bytes, **options: object) -> tuple[list[Event], list[str]]:
    path = tmp_path / "trace"
    path.write_bytes(text)
    problems: list[Problem] = []
    return list(read_events(path, problems=problems, **options)), [str(problem) for problem in problems]


def test_an_alloc_line_becomes_an_event_with_all_its_fields(tmp_path):
    events, problems = read(tmp_path, ALLOC)
    assert events == [
        Event(
            time_ns=2579_210435_000,
            cpu=0,
            pid=2993,
            comm="bash",
            kind="alloc",
            addr=18446683600630235136,
            size=20480,
            align=16384,
            vstart=0xFFFFC90000000000,
            vend=0xFFFFE8FFFFFFFFFF,
            line=1,
        )
    ]
    assert problems == []


def test_a_free_and_a_purge_leave_the_fields_they_do_not_have_at_zero(tmp_path):
    (free, purge), _ = read(tmp_path, FREE + PURGE)
    assert free == Event(
        2579_248385_000,
        1,
        11,
        "kworker/0:1",
        "free",
        0xFFFFC9000392C000,
        nr_lazy=118,
        nr_lazy_max=16384,
        line=1,
    )
    start, end = 0xFFFFC9000004C000, 0xFFFFC90010605000
    assert purge == Event(
        2611_901152_000, 0, 11, "kworker/0:1", "purge", start, end - start, npurged=3411, line=2
    )


def test_a_purge_of_nothing_has_size_zero(tmp_path):
    line = PURGE.replace(b"0xffffc9000004c000", b"0xffffffffffffffff").replace(b"0xffffc90010605000", b"0x0")
    (purge,), _ = read(tmp_path, line)
    assert (purge.size, purge.addr) == (0, 2**64 - 1)


def test_the_three_text_formats_of_one_run_give_the_same_events(tmp_path):
    runs = []
    for name in ("live_admin.trace", "live_admin.report", "live_admin.perf"):
        events, problems = read(tmp_path, sample(name))
        assert problems in (
            [],
            ["line 412: the header counts 5,896 entries, the file has 400: its end is missing"],
        )
        runs.append([(e.kind, e.addr, e.size, e.cpu, e.pid) for e in events])
    ftrace, report, perf = runs
    common = [event for event in report if event in set(ftrace) & set(perf)]
    assert len(common) > 350
    assert [event for event in ftrace if event in set(common)][:300] == common[:300]
    assert [event for event in perf if event in set(common)][:300] == common[:300]


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("gz", gzip.compress), ("xz", lzma.compress), ("zst", None)],
    ids=["gz", "xz", "zst"],
)
def test_compression_is_transparent_whatever_the_name(tmp_path, suffix, compress):
    if compress is None:
        compress = pytest.importorskip("zstandard").compress
    path = tmp_path / "no-suffix"
    path.write_bytes(compress(ALLOC + FREE))
    assert [event.kind for event in read_events(path)] == ["alloc", "free"]


def test_markers_carry_their_text(tmp_path):
    events, _ = read(tmp_path, sample("guest_align_shift.trace"))
    assert [event.text for event in events if event.kind == "mark"][:2] == ["DUMP0_BEGIN", "STATE0"]


def test_failed_allocations_say_so_and_are_no_problem(tmp_path):
    _, problems = read(tmp_path, failed := ALLOC.replace(b"failed=0", b"failed=1"))
    assert problems == []
    assert read(tmp_path, failed)[0][0].failed == 1


# ------------------------------------------------------------------------------------------------- losses


def test_lost_events_of_a_pipe_are_events_with_a_count(tmp_path):
    events, problems = read(tmp_path, sample("live_lost.pipe"))
    lost = [event for event in events if event.kind == "lost"]
    assert [(event.cpu, event.lost) for event in lost] == [(0, 113), (0, 697), (1, 1459)]
    assert problems == ["line 84: events lost while recording (3 times)"]
    before = events[events.index(lost[0]) - 1]
    assert lost[0].time_ns == before.time_ns


def test_an_overwritten_ring_is_told_from_its_header_and_its_late_cpu(tmp_path):
    events, problems = read(tmp_path, sample("live_overwritten.trace"))
    lost = [event for event in events if event.kind == "lost"]
    assert [(event.cpu, event.lost) for event in lost] == [(-1, 13850), (1, 0)]
    assert (
        problems[0] == "line 3: the ring was overwritten: 13,850 of 19,520 events before the first are lost"
    )


def test_events_dropped_by_trace_cmd_and_by_perf_are_lost_events(tmp_path):
    text = b"cpus=2\n" + ALLOC + b"CPU:1 [12 EVENTS DROPPED]\n"
    events, _ = read(tmp_path, text, format="trace-cmd")
    assert (events[1].kind, events[1].cpu, events[1].lost) == ("lost", 1, 12)
    perf = sample("live_admin.perf").splitlines(keepends=True)[0]
    lost = b"              sh  2982 [001]  2579.200000: PERF_RECORD_LOST lost 7\n"
    assert read(tmp_path, perf + lost)[0][1].lost == 7


# ----------------------------------------------------------------------------------------------- bad input


def test_other_events_are_told_once_and_counted(tmp_path):
    other = ALLOC.replace(b"alloc_vmap_area: va_start", b"sched_switch: prev")
    events, problems = read(tmp_path, ALLOC + other * 3)
    assert len(events) == 1
    assert problems == ["line 2: event sched_switch is not a vmalloc event, skipped (3 times)"]


def test_a_trace_of_only_other_events_is_an_error_in_one_line(tmp_path):
    other = ALLOC.replace(b"alloc_vmap_area: va_start", b"sched_switch: prev")
    with pytest.raises(TraceError, match="line 1: event sched_switch is not a vmalloc event"):
        read(tmp_path, other)


@pytest.mark.parametrize("at", [20, 60, 100, 150])
def test_a_file_cut_in_the_middle_of_a_line_gives_the_whole_lines(tmp_path, at):
    events, problems = read(tmp_path, FREE + ALLOC[:at])
    assert [event.kind for event in events] == ["free"]
    assert problems == ["line 2: the file ends in the middle of a line (skipped)"]


def test_a_last_line_that_may_be_cut_inside_a_number_is_used_and_told(tmp_path):
    events, problems = read(tmp_path, ALLOC + FREE[:-3])
    assert events[1].nr_lazy_max == 163
    assert problems == [
        "line 2: the file ends in the middle of a line (used, but its last number may be short)"
    ]


def test_a_compressed_file_that_is_cut_off_gives_what_is_there(tmp_path):
    lines = sample("live_admin.trace")
    whole = gzip.compress(lines)
    events, problems = read(tmp_path, whole[: len(whole) // 2])
    assert len(events) > 100
    assert any("the compressed file is cut off" in problem for problem in problems)


@pytest.mark.parametrize("suffix", ["gz", "xz", "zst"])
def test_a_compressed_file_that_is_damaged_gives_what_comes_before(tmp_path, suffix):
    compress = {"gz": gzip.compress, "xz": lzma.compress}.get(suffix)
    compress = compress or pytest.importorskip("zstandard").compress
    text = b"".join(
        ALLOC.replace(b"2579.21", b"%d.21" % (2579 + n)).replace(b"20480", b"%d" % (n * 7919))
        for n in range(20000)
    )
    data = bytearray(compress(text))
    place = len(data) * 9 // 10
    data[place : place + 100] = bytes(100)
    events, problems = read(tmp_path, bytes(data))
    assert len(events) > 100
    assert any("the compressed file is damaged" in problem for problem in problems)


def test_shuffled_lines_are_told_and_kept_in_file_order(tmp_path):
    late = ALLOC.replace(b"2579.21", b"2580.21")
    events, problems = read(tmp_path, ALLOC + late + ALLOC)
    assert [event.line for event in events] == [1, 2, 3]
    assert problems == [
        "line 3: time runs backwards on CPU 0: lines are shuffled or files were joined; kept in file order"
    ]


def test_two_cpus_may_print_out_of_order(tmp_path):
    late = ALLOC.replace(b"2579.21", b"2580.21").replace(b"[000]", b"[001]")
    assert read(tmp_path, late + ALLOC)[1] == []


def test_a_32_bit_machine_is_told_and_used(tmp_path):
    line = ALLOC.replace(b"18446683600630235136", b"3500146688").replace(
        b"vstart=0xffffc90000000000 vend=0xffffe8ffffffffff", b"vstart=0xd0800000 vend=0xff800000"
    )
    events, problems = read(tmp_path, line * 2)
    assert events[0].addr == 3500146688
    assert problems == [
        "line 1: addresses of a 32-bit machine (vend=0xff800000); they are used as they are (2 times)"
    ]


def test_hashed_and_hidden_addresses_are_told(tmp_path):
    hashed = FREE.replace(b"0xffffc9000392c000", b"0x00000000a2356d4b")
    assert "addresses are hashed (0xa2356d4b" in read(tmp_path, FREE + hashed)[1][0]
    hidden = FREE.replace(b"0xffffc9000392c000", b"0x0000000000000000")
    assert "addresses are hidden" in read(tmp_path, FREE + hidden)[1][0]


def test_numbers_that_do_not_fit_are_damage_not_a_crash(tmp_path):
    line = ALLOC.replace(b"size=20480", b"size=" + b"9" * 20)
    assert "alloc_vmap_area with damaged fields" in read(tmp_path, FREE + line)[1][0]


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\x17\x08\x44tracing6\0\0\x08rest", "trace-cmd's binary file.*64-bit little-endian"),
        (b"\x17\x08\x44tracing6\0\1\x04rest", "trace-cmd's binary file.*32-bit big-endian"),
        (b"PERFILE2" + bytes(64), "perf's binary file; run `perf script"),
        (b"2ELIFREP" + bytes(64), "perf's binary file of a big-endian machine"),
        (b"\x7fELF\0\0\0", "binary data"),
        (bz2.compress(ALLOC * 100), "not a line of ftrace|binary data"),
        (b"a letter\nto the editor\n", "line 1: not a line of ftrace, trace-cmd or perf: 'a letter'"),
        (
            b"0xffffc90000000000-0xffffc90000005000   20480 x+0xca/0x100 vmap\n",
            "/proc/vmallocinfo, not a trace",
        ),
    ],
)
def test_what_is_no_trace_is_refused_with_what_to_do(tmp_path, start, message):
    with pytest.raises(TraceError, match=message):
        read(tmp_path, start)


def test_an_empty_recording_has_no_events_and_no_error(tmp_path):
    assert read(tmp_path, b"") == ([], [])
    assert read(tmp_path, b"# tracer: nop\n#\n") == ([], [])


def test_problems_are_logged_as_one_line_each_when_the_file_was_read(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "vmalloc.lab"):
        read(tmp_path, ALLOC + b"garbage\n" * 3)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'trace'}: line 2: not a trace line, skipped: 'garbage' (3 times)"
    ]


def test_reading_needs_neither_numpy_nor_pyarrow():
    script = f"""
import sys
sys.modules["numpy"] = sys.modules["pyarrow"] = None
from vmalloc.lab.trace import read_events
print(sum(1 for _ in read_events({str(SAMPLES / "live_admin.trace.xz")!r})))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "400\n"


# ---------------------------------------------------------------------------------------- whole recordings


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("live/l1_admin.trace.xz", {"alloc": 2947, "free": 2945, "purge": 4}),
        ("live/l1_admin.report.xz", {"alloc": 2949, "free": 2945, "purge": 4}),
        ("live/l1_admin.perf.xz", {"alloc": 2955, "free": 2952, "purge": 4}),
        ("live/l8_consist.trace.xz", {"alloc": 10342, "free": 9637, "purge": 8, "mark": 2}),
        ("live/l7_lost_pipe.txt.xz", {"alloc": 3857, "free": 3920, "lost": 5}),
        ("guest/mix_smp8.trace.xz", {"alloc": 21007, "free": 21006, "purge": 16, "mark": 5}),
    ],
)
def test_every_line_of_a_real_recording_is_an_event(name, kinds):
    assert Counter(event.kind for event in read_events(DATA / name)) == kinds


def test_line_ends_and_colours_of_terminals_change_nothing(tmp_path):
    plain = read(tmp_path, sample("live_admin.perf"))
    assert read(tmp_path, sample("live_admin.perf").replace(b"\n", b"\r\n")) == plain
    coloured = sample("live_admin.perf").replace(b"vmalloc:", b"\x1b[1;32mvmalloc\x1b[m:")
    assert read(tmp_path, coloured) == plain


def test_lines_with_carriage_returns_are_taken_many_at_a_time(tmp_path, monkeypatch):
    chunks = pytest.importorskip("vmalloc.lab.chunks")
    slow: list[bytes] = []
    monkeypatch.setattr(chunks, "parse_line", lambda line, *_, **__: slow.append(line))
    path = tmp_path / "trace"
    path.write_bytes(b"# tracer: nop\r\n" + ALLOC.replace(b"\n", b"\r\n") * 100)
    assert len(list(read_events(path))) == 100
    assert len(slow) == 1  # the comment


def test_perf_without_comm_gives_the_same_events_without_names(tmp_path):
    text = sample("live_admin.perf")
    bare = b"".join(re.sub(rb"^ *.*? +(\d+ \[)", rb"\1", line) for line in text.splitlines(keepends=True))
    path = tmp_path / "bare"
    path.write_bytes(bare)
    whole = tmp_path / "whole"
    whole.write_bytes(text)
    named = [event._replace(comm="") for event in read_events(whole)]
    assert list(read_events(path)) == named


@pytest.mark.parametrize(
    "raw", [b"addr=18446683600630235136 size=20480", b"addr=0xffffc90003970000 size=0x5000"]
)
def test_bodies_of_raw_fields_are_read(tmp_path, raw):
    path = tmp_path / "trace"
    path.write_bytes(ALLOC.replace(b"va_start: 18446683600630235136 size=20480", raw))
    (event,) = read_events(path)
    assert event.size == 20480
    assert event.addr % 4096 == 0


@pytest.mark.parametrize("broken", [(b"va_start: ", b"va: "), (b"nr_lazy=", b"lazy=")])
def test_a_file_without_one_readable_allocation_or_free_is_refused_with_the_remedy(tmp_path, broken):
    path = tmp_path / "trace"
    path.write_bytes((ALLOC + FREE).replace(*broken))
    with pytest.raises(TraceError, match=r"can be read.*print the recording anew"):
        list(read_events(path))


def test_the_file_of_one_cpu_and_stack_traces_are_not_taken_for_cut(tmp_path):
    header = b"# tracer: nop\n# entries-in-buffer/entries-written: %d/%d   #P:%d\n"
    stack = ALLOC.split(b"alloc_vmap_area", 1)[0] + b"<stack trace>\n => alloc_vmap_area\n => vmalloc\n"
    for text in (header % (9, 9, 4) + ALLOC, header % (4, 4, 1) + (ALLOC + stack) * 2):
        problems: list[Problem] = []
        path = tmp_path / "trace"
        path.write_bytes(text)
        assert list(read_events(path, problems=problems))
        assert problems == []


@pytest.mark.parametrize("comm", ["my: odd [1] 1.5: sh", "x: alloc_vmap_area: addr=1", "a-b-7"])
def test_a_name_may_hold_spaces_colons_and_an_event(tmp_path, comm):
    (event,), problems = read(tmp_path, ALLOC.replace(b"bash-2993", comm.encode() + b"-2993"))
    assert (event.comm, event.pid, event.kind) == (comm, 2993, "alloc")
    assert problems == []


def test_a_header_that_is_cut_off_loses_no_event(tmp_path):
    whole = sample("live_admin.trace")
    events, _ = read(tmp_path, whole)
    cut, problems = read(tmp_path, whole[200:])
    assert [event._replace(line=0) for event in cut] == [event._replace(line=0) for event in events]
    assert next(text for text in problems if "not a trace line" in text).startswith("line 1: ")
