# SPDX-License-Identifier: MIT
"""A recording as a trace that https://ui.perfetto.dev and chrome://tracing show.

The format is the trace events of Chrome, as JSON, one event a line. Each process is a group, each thread slot
(of a kernel's recording each task) a track with its events, and a counter says how much is allocated. A name
that ends with .gz is compressed, which both viewers read.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

from vmalloc.lab.events import ALLOC, FREE, LOST, Event
from vmalloc.lab.files import StrPath
from vmalloc.lab.trace import read_events

__all__ = ["SUFFIXES", "trace_events", "write_perfetto"]

SUFFIXES = (".json", ".json.gz")
REGION = 0
"""Stands for the process of what belongs to none: the counter."""
COUNTER_NS = 100_000
"""The counter has a value at most so often."""


def write_perfetto(recording: StrPath, path: StrPath) -> int:
    """Write `path` whole, or not at all; returns how many entries it has."""
    part = Path(f"{os.fspath(path)}.part")
    nr = 0
    try:
        with _open(part, is_small=str(path).endswith(".gz")) as out:
            out.write('{"displayTimeUnit": "ns", "traceEvents": [\n')
            for shown in trace_events(read_events(recording)):
                out.write(f"{',' if nr else ' '}{json.dumps(shown)}\n")
                nr += 1
            out.write("]}\n")
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()
    return nr


def _open(path: Path, is_small: bool) -> IO[str]:
    return cast("IO[str]", gzip.open(path, "wt")) if is_small else path.open("w")


def trace_events(events: Iterable[Event]) -> Iterator[dict[str, Any]]:
    """One for each event, the names of processes and threads before their first, and the counter between."""
    processes: set[int] = set()
    tracks: set[tuple[int, int]] = set()
    began_ns = counted_ns = None
    nbytes = 0
    sizes: dict[int, int] = {}
    for event in events:
        if began_ns is None and event.kind != LOST:  # a loss before all events has no time
            began_ns = event.time_ns
        at_us = 0.0 if began_ns is None else max(event.time_ns - began_ns, 0) / 1000
        track = (event.pid, event.slot + 1 if event.slot else event.pid)
        if track not in tracks:
            yield from _names(event, track, is_first=event.pid not in processes)
            processes.add(event.pid)
            tracks.add(track)
        yield {
            "name": event.kind,
            "ph": "i",
            "s": "t",
            "ts": at_us,
            "pid": track[0],
            "tid": track[1],
            "args": _details(event),
        }
        nbytes += _growth(event, sizes)
        if event.kind in (ALLOC, FREE) and (counted_ns is None or event.time_ns >= counted_ns + COUNTER_NS):
            counted_ns = event.time_ns
            yield {
                "name": "allocated since the beginning",
                "ph": "C",
                "ts": at_us,
                "pid": REGION,
                "args": {"bytes": nbytes},
            }


def _names(event: Event, track: tuple[int, int], is_first: bool) -> Iterator[dict[str, Any]]:
    pid, tid = track
    if is_first:
        yield {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": event.comm or f"pid {pid}"}}
    name = f"slot {event.slot}" if event.slot else event.comm
    yield {"name": "thread_name", "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _growth(event: Event, sizes: dict[int, int]) -> int:
    """How many bytes more are allocated. A kernel's free has no size: it has that of its allocation."""
    if event.kind == ALLOC and not event.failed:
        sizes[event.addr] = event.size
        return event.size
    if event.kind == FREE:
        known = sizes.pop(event.addr, 0)
        return -(event.size or known)
    return 0


def _details(event: Event) -> dict[str, Any]:
    """What the event's kind has of these."""
    if event.kind == LOST:
        return {"events": event.lost}
    told: dict[str, Any] = {"cpu": event.cpu}
    if event.addr or event.kind in (ALLOC, FREE):
        told["addr"] = f"{event.addr:#x}"
    for name, value in (("bytes", event.size), ("ranges", event.npurged), ("by", event.text)):
        if value:
            told[name] = value
    if event.failed:
        told["failed"] = True
    return told
