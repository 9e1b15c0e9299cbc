# SPDX-License-Identifier: MIT
"""Our own file: what is written is read, by us and by others."""

from __future__ import annotations

import pytest
from tests.lab.trace_samples import sample

from vmalloc.lab.trace import Event, TraceError, read_columns, read_events

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
columnar = pytest.importorskip("vmalloc.lab.columnar")


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace"
    path.write_bytes(sample("live_lost.pipe") + sample("guest_align_shift.trace"))
    return path


def test_a_recording_comes_back_event_by_event(tmp_path, trace):
    columnar.write_columnar(tmp_path / "t.parquet", read_columns(trace), source="kernel", release="6.18.1")
    assert list(read_events(tmp_path / "t.parquet")) == list(read_events(trace))
    assert columnar.read_metadata(tmp_path / "t.parquet") == {
        "version": 1,
        "source": "kernel",
        "release": "6.18.1",
    }


def test_a_colon_in_a_files_name_makes_it_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("unix:region.sock.parquet", "s3:bucket.parquet"):
        columnar.write_columnar(name, [Event(kind="alloc", size=4096)])
        assert [event.size for event in read_events(name)] == [4096]


def test_a_path_that_leads_back_from_behind_a_link_is_the_systems(tmp_path):
    (tmp_path / "far" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/below")
    path = tmp_path / "link" / ".." / "t.parquet"
    columnar.write_columnar(path, [Event(kind="alloc", size=4096)])
    assert (tmp_path / "far" / "t.parquet").exists()
    assert [event.size for event in read_events(path)] == [4096]


def test_columns_come_back_the_same_from_text_and_from_parquet(tmp_path, trace):
    text = read_columns(trace)
    columnar.write_columnar(tmp_path / "t.parquet", text)
    parquet = read_columns(tmp_path / "t.parquet")
    assert all(parquet[name].dtype == text[name].dtype for name in text)
    assert list(parquet.events()) == list(text.events())


def test_events_of_our_own_allocator_use_the_same_columns(tmp_path):
    ours = [
        Event(1_000, cpu=3, pid=7, comm="worker", kind="pool_hit", addr=4096 * 12, size=8192),
        Event(2_000, cpu=3, pid=7, comm="worker", kind="free", addr=4096 * 12, nr_lazy=2, nr_lazy_max=64),
    ]
    columnar.write_columnar(tmp_path / "ours.parquet", ours, source="vmalloc", clock="mono")
    assert list(read_events(tmp_path / "ours.parquet")) == ours


def test_a_file_written_piece_by_piece_may_meet_new_names_in_each(tmp_path):
    with columnar.Writer(tmp_path / "t.parquet") as writer:
        writer.write_events([Event(comm="a", kind="alloc", addr=4096)])
        writer.write_events([Event(comm="b", kind="mark", text="half time")])
    assert [(e.comm, e.kind, e.text) for e in read_events(tmp_path / "t.parquet")] == [
        ("a", "alloc", ""),
        ("b", "mark", "half time"),
    ]


def test_any_parquet_reader_sees_plain_columns(tmp_path):
    columnar.write_columnar(tmp_path / "t.parquet", [Event(kind="alloc", comm="x", addr=2**64 - 4096)])
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.schema.names == list(Event._fields)
    assert table.column("addr").to_pylist() == [2**64 - 4096]
    assert table.column("kind").to_pylist() == ["alloc"]


def test_missing_columns_are_zero_and_unknown_ones_ignored(tmp_path):
    pq.write_table(pa.table({"kind": ["alloc"], "addr": [4096], "colour": ["red"]}), tmp_path / "t.parquet")
    assert list(read_events(tmp_path / "t.parquet")) == [Event(kind="alloc", addr=4096)]


def test_parquet_files_that_are_no_trace_are_refused(tmp_path):
    pq.write_table(pa.table({"colour": ["red"]}), tmp_path / "t.parquet")
    with pytest.raises(TraceError, match="no column `kind`"):
        list(read_events(tmp_path / "t.parquet"))
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:100])
    with pytest.raises(TraceError, match="not a readable Parquet file"):
        list(read_events(tmp_path / "cut.parquet"))


def test_a_newer_format_asks_for_an_update(tmp_path):
    columnar.write_columnar(tmp_path / "t.parquet", [Event(kind="alloc")], version=99)
    with pytest.raises(TraceError, match=r"trace format 99.*update"):
        list(read_events(tmp_path / "t.parquet"))


def test_an_empty_recording_can_be_kept(tmp_path):
    (tmp_path / "trace").write_bytes(b"# tracer: nop\n")
    columnar.write_columnar(tmp_path / "t.parquet", read_columns(tmp_path / "trace"))
    assert list(read_events(tmp_path / "t.parquet")) == []
    assert read_columns(tmp_path / "t.parquet").nr_rows == 0
