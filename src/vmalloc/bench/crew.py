# SPDX-License-Identifier: MIT
"""One process per peer: start it, ask it, end it, and clear away whatever it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

from vmalloc.bench import processes
from vmalloc.bench.peers.peer import expected, seed_after

__all__ = ["Host", "PeerFailed", "Sample"]

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S, STOP_SILENT_TIMEOUT_S = 15.0, 1.0
POLL_S = 0.1
_SHM = Path("/dev/shm")


class PeerFailed(Exception):
    """A peer could not start, did not answer, or handed over something else."""


class Sample(NamedTuple):
    """One hand-over; of a burst the median time and the faults of each."""

    ns: float
    minor: float
    major: float


class Host:
    """A peer's process. A context manager: leaving it ends everything the peer started."""

    def __init__(self, title: str, place: str, start_method: str | None = None) -> None:
        """Begin to start; wait_ready() waits for it. `place` is "module:Class"."""
        self.title = title
        self._prefix = f"vmb{os.getpid()}-{secrets.token_hex(3)}_"
        self._scratch = Path(tempfile.mkdtemp(prefix=f"vmb{os.getpid()}-"))
        joblib_files = _SHM / f"{self._prefix}joblib"
        joblib_files.mkdir()
        self._errors = (self._scratch / "errors").open("w+b")
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-m", "vmalloc.bench.host", place, self._prefix, *filter(None, [start_method])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=self._scratch,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path if p),
                "TMPDIR": str(self._scratch),
                "JOBLIB_TEMP_FOLDER": str(joblib_files),
                "RAY_USAGE_STATS_ENABLED": "0",
            },
            start_new_session=True,  # Ctrl-C is ours to answer
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout
        os.set_blocking(self._answers.fileno(), False)
        self._pending = b""
        self._is_stopped = self._is_silent = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_ready(self) -> None:
        """Return when the peer can hand over; PeerFailed if it cannot."""
        self._answer(START_TIMEOUT_S)

    def measure(
        self, nbytes: int, seed: int, timeout_s: float, burst: int = 1, what: str = "timed"
    ) -> Sample:
        """Have `burst` hand-overs timed (or fetches: "timed_fetch"), and look at what arrived. PeerFailed."""
        found = self._ask("measure", [what, nbytes, seed, burst], timeout_s)
        for checksum in found["checksums"]:
            if checksum != expected(nbytes, seed):
                raise PeerFailed("what arrived is not what was sent")
            seed = seed_after(seed)
        return Sample(median(found["ns"]), found["minor"] / burst, found["major"] / burst)

    def call(self, method: str, *args: Any, timeout_s: float = 60.0) -> Any:
        """What a method of the peer returns there. PeerFailed if it raises."""
        return self._ask("call", [method, *args], timeout_s)["value"]

    def _ask(self, do: str, args: list[Any], timeout_s: float) -> dict[str, Any]:
        try:
            self._requests.write(json.dumps({"do": do, "args": args}).encode() + b"\n")
            self._requests.flush()
        except OSError:
            raise PeerFailed(self._last_words()) from None
        return self._answer(timeout_s)

    def stop(self) -> None:
        """End the peer and all its processes; remove its files. Safe to call twice."""
        if self._is_stopped:
            return
        self._is_stopped = True
        theirs = processes.tree(self._process.pid)
        with contextlib.suppress(OSError):
            self._requests.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SILENT_TIMEOUT_S if self._is_silent else STOP_TIMEOUT_S)
        _end(theirs)
        self._process.wait()
        self._answers.close()
        self._errors.close()
        for path in [self._scratch, *_SHM.glob(f"{self._prefix}*")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        line = self._line(timeout_s)
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise PeerFailed(found["error"])
        return found

    def _line(self, timeout_s: float) -> bytes:
        """The next whole line. The process is looked at too: its children may keep the pipe open."""
        until = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as ready:
            ready.register(self._answers, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if ready.select(POLL_S):
                    more = self._answers.read()
                    if more == b"":
                        raise PeerFailed(self._last_words())
                    self._pending += more or b""
                elif self._process.poll() is not None:
                    raise PeerFailed(self._last_words())
                elif time.monotonic() > until:
                    self._is_silent = True
                    raise PeerFailed(f"no answer within {timeout_s:.0f} s")
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        words = [line.strip() for line in lines if line.strip()]
        status = self._process.returncode
        how = f"killed by signal {-status}" if status is not None and status < 0 else f"exited with {status}"
        return f"{how}: {words[-1]}" if words else how


def _alive(theirs: dict[int, int]) -> Iterator[int]:
    for pid, start in theirs.items():
        if processes.start_of(pid) == start and not _is_tracker(pid):
            yield pid


def _is_tracker(pid: int) -> bool:
    """multiprocessing's resource tracker removes files when all others are gone, and then ends itself."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _end(theirs: dict[int, int]) -> None:
    """Ask what is left of a tree to end, wait 3 s, and kill the rest."""
    for number, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
        for pid in _alive(theirs):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        until = time.monotonic() + patience_s
        while any(True for _ in _alive(theirs)) and time.monotonic() < until:
            time.sleep(0.02)
