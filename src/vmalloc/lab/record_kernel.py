# SPDX-License-Identifier: MIT
"""Recording the running kernel: its three vmalloc events, and /proc/vmallocinfo before and after.

    private instance -- trace_pipe --> reader thread --> trace.gz (or .xz, .zst, plain text, .parquet)
         |  marks SNAP_BEFORE, SNAP_BEFORE_END ... SNAP_AFTER, SNAP_AFTER_END around the two snapshots
         +-- before.vmallocinfo.gz, after.vmallocinfo.gz beside the trace

The kernel does not stop while /proc/vmallocinfo is read: events between a mark and its _END may or may not be
in the snapshot. The clock is CLOCK_MONOTONIC, the one our own allocator's events use.
Needs root. tracefs.py leaves tracing as it was found, whatever ends the recorder.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from vmalloc.lab.files import create_bytes, open_bytes
from vmalloc.lab.tracefs import Instance, RecordError, Tracefs
from vmalloc.lab.vmallocinfo import parse_vmallocinfo

__all__ = ["RecordError", "Recorded", "record_kernel"]

READ_SIZE = 1 << 16
POLL_MS = 50
COMPRESSED = (".gz", ".xz", ".zst")
COMMAND_PATIENCE_S = 5.0
PR_SET_PDEATHSIG = 1


@dataclass
class Recorded:
    """What a recording gave."""

    trace: Path
    before: Path | None = None
    after: Path | None = None
    seconds: float = 0.0
    nr_lines: int = 0
    nr_lost: int = 0
    addresses: str = ""  # of the snapshots: real, hashed or hidden
    interrupted: int = 0  # the signal that ended the recording early, or 0
    status: int = 0  # exit status of the command
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}


def record_kernel(
    trace: Path,
    *,
    seconds: float | None = None,
    command: Sequence[str] = (),
    buffer_kb: int = 8192,
    snapshots: bool = True,
    real_addresses: bool = False,
) -> Recorded:
    """Record until `command` ends, `seconds` have passed or SIGINT or SIGTERM comes, whichever is first.

    buffer_kb is the ring of each CPU: the reader keeps up with about 100,000 events a second, more than that
    for long needs a larger ring. Raises RecordError if this kernel cannot be recorded or the command cannot
    be started.
    """
    if os.geteuid() != 0:
        raise RecordError("recording the kernel needs root, because tracefs does: run it with sudo")
    is_parquet = trace.suffix == ".parquet"
    if is_parquet:
        import vmalloc.lab.columnar  # noqa: F401  (says now, not after the recording, that pyarrow is missing)
    text = trace.with_name(trace.name + ".part.gz") if is_parquet else trace
    done = Recorded(trace)
    tracefs = Tracefs()
    try:
        with _signals_noted() as signals:
            instance = Instance(tracefs, buffer_kb)
            try:
                _record(instance, text, done, signals, seconds, command, snapshots, real_addresses)
            finally:
                instance.remove()
    except PermissionError as error:
        raise RecordError(f"recording the kernel needs all of root's rights: {error}") from error
    finally:
        tracefs.close()
    if snapshots and done.before is not None:
        _judge_snapshot(done, real_addresses)
    if is_parquet:
        _to_parquet(text, done)
    return done


def _record(
    instance: Instance,
    text: Path,
    done: Recorded,
    signals: list[int],
    seconds: float | None,
    command: Sequence[str],
    snapshots: bool,
    real_addresses: bool,
) -> None:
    with create_bytes(text) as out:
        out.write(_header())
        with _Reader(instance, out) as reader:
            instance.start()
            started = time.monotonic()
            if snapshots:
                done.before = _snapshot(instance, "before", done.trace, real_addresses)
            _wait(done, lambda: bool(signals) or reader.failed, seconds, command)
            done.interrupted = signals[0] if signals else 0
            if snapshots:
                done.after = _snapshot(instance, "after", done.trace, real_addresses)
            instance.stop()
            done.seconds = round(time.monotonic() - started, 3)
        done.nr_lines = reader.nr_lines
        done.nr_lost = instance.nr_lost()
    if done.nr_lost:
        done.notes.append(f"{done.nr_lost:,} events were lost; take a larger --buffer-kb")


def _wait(done: Recorded, is_over: Callable[[], bool], seconds: float | None, command: Sequence[str]) -> None:
    """Until the command ends, the time is up or it is over for another reason."""
    end = None if seconds is None else time.monotonic() + seconds
    process = _start(command) if command else None
    try:
        while not is_over() and (end is None or time.monotonic() < end):
            if process is None:
                left = POLL_MS / 1000 if end is None else end - time.monotonic()
                time.sleep(max(min(POLL_MS / 1000, left), 0))
                continue
            try:
                done.status = process.wait(POLL_MS / 1000)
                break
            except subprocess.TimeoutExpired:
                continue
    finally:
        if process is not None and process.poll() is None:
            done.status = _end(process)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, preexec_fn=_end_with_parent(os.getpid()))
    except OSError as error:
        raise RecordError(f"cannot run {command[0]}: {error.strerror}") from error


def _end_with_parent(parent: int) -> Callable[[], None]:
    """What makes the child end when the recorder is killed; the C library is loaded before the fork."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def between_fork_and_exec() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was killed before
            os.kill(os.getpid(), signal.SIGKILL)

    return between_fork_and_exec


def _end(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    try:
        return process.wait(COMMAND_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """SIGINT, SIGTERM and SIGHUP end the recording, not the recorder (in the main thread only)."""
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {
        number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Reader:
    """A thread that moves trace_pipe to a file; leaving the context empties the ring (stop tracing first)."""

    def __init__(self, instance: Instance, out: BinaryIO) -> None:
        self._out = out
        self._pipe = os.open(instance.path / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="vmalloc-record", daemon=True)
        self.nr_lines = 0

    @property
    def failed(self) -> bool:
        return self._error is not None

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        os.close(self._pipe)
        if self._error is not None:
            raise RecordError(f"the recording cannot be written: {self._error}") from self._error

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        try:
            while True:
                stopping = self._stopping.is_set()
                if self._move() == 0:
                    if stopping:
                        return
                    poll.poll(POLL_MS)
        except Exception as error:  # raised again by __exit__, in the caller's thread
            self._error = error

    def _move(self) -> int:
        """Move what is there; the number of bytes."""
        moved = 0
        while True:
            try:
                data = os.read(self._pipe, READ_SIZE)
            except BlockingIOError:
                return moved
            if not data:
                return moved
            self._out.write(data)
            self.nr_lines += data.count(b"\n")
            moved += len(data)


def _header() -> bytes:
    name = os.uname()
    page_size = os.sysconf("SC_PAGE_SIZE")
    about = f"kernel {name.release} {name.machine}, page size {page_size}, clock mono, {os.cpu_count()} CPUs"
    return f"# tracer: nop\n#\n# recorded by vmalloc record --kernel\n# {about}\n#\n".encode()


def _snapshot(instance: Instance, which: str, trace: Path, real_addresses: bool) -> Path:
    instance.mark(f"SNAP_{which.upper()}")
    text = instance.snapshot(real_addresses=real_addresses)
    instance.mark(f"SNAP_{which.upper()}_END")
    path = snapshot_path(trace, which)
    with create_bytes(path) as out:
        out.write(text)
    return path


def snapshot_path(trace: Path, which: str) -> Path:
    """run.trace.gz -> run.before.vmallocinfo.gz"""
    name = trace.name
    for suffix in (*COMPRESSED, ".parquet", ".trace", ".txt"):
        name = name.removesuffix(suffix)
    return trace.with_name(f"{name}.{which}.vmallocinfo.gz")


def _judge_snapshot(done: Recorded, real_addresses: bool) -> None:
    assert done.before is not None
    with open_bytes(done.before) as stream:
        done.addresses = parse_vmallocinfo(stream.read()).addresses
    if done.addresses != "real" and not real_addresses:
        what = f"addresses in the snapshots are {done.addresses}; --real-addresses shows them"
        done.notes.append(f"{what} (sets kernel.kptr_restrict to 1 while they are read)")


def _to_parquet(text: Path, done: Recorded) -> None:
    from vmalloc.lab.columnar import write_columnar
    from vmalloc.lab.trace import read_columns

    columns = read_columns(text)
    name = os.uname()
    write_columnar(
        done.trace,
        columns,
        source="kernel",
        release=name.release,
        machine=name.machine,
        clock="mono",
        page_size=os.sysconf("SC_PAGE_SIZE"),
        nr_cpus=os.cpu_count(),
        nr_lost=done.nr_lost,
    )
    text.unlink()
