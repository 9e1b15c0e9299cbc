# SPDX-License-Identifier: MIT
"""What the children of these tests do, and how the tests wait for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PAGE

import vmalloc
from vmalloc._core import attached

WAIT_S = 60
NOBODY = 65534


def _is_mapped(ids: str) -> bool:
    """Whether this user namespace has such a user or group. Nothing is tried: workers import this, too."""
    path = Path(f"/proc/self/{ids}_map")
    if not path.exists():
        return True  # a kernel without user namespaces
    rows = [[int(n) for n in line.split()] for line in path.read_text().splitlines()]
    return any(first <= NOBODY < first + nr for first, _, nr in rows)


CAN_BE_NOBODY = os.geteuid() == 0 and _is_mapped("uid") and _is_mapped("gid")
needs_root = pytest.mark.skipif(not CAN_BE_NOBODY, reason="needs root, and a user 65534, to be two users")


def wait_until(is_so: Callable[[], bool], what: str = "") -> None:
    ends = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < ends, f"waited {WAIT_S} s: {what}"
        time.sleep(0.005)


def exit_code_of(pid: int) -> int:
    """Of a child made by os.fork(); one that hangs is killed, and a failure."""
    ends = time.monotonic() + WAIT_S
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > ends:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"child {pid} did not end in {WAIT_S} s")
        time.sleep(0.001)


def join(process: Any) -> None:
    process.join(WAIT_S)
    assert process.exitcode == 0


@contextmanager
def child(method: str, target: Callable[..., None], *args: Any) -> Iterator[Any]:
    """A child that is killed, if it still runs, when the test leaves."""
    process = multiprocessing.get_context(method).Process(target=target, args=args, daemon=True)
    process.start()
    try:
        yield process
    finally:
        if process.is_alive():
            os.kill(process.pid, signal.SIGCONT)
            process.kill()
        process.join(WAIT_S)


def python(code: str, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """An unrelated interpreter."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, **options)


@contextmanager
def forked(work: Callable[[], object], uid: int | None = None) -> Iterator[int]:
    """A forked child that did `work`, as user `uid`, and keeps the result until we leave; its pid."""
    done, leave = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(leave[1])
            if uid is not None:
                os.setresuid(uid, uid, uid)
            kept = work()
            os.write(done[1], b"+")
            os.read(leave[0], 1)
            del kept
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(done[1])
    try:
        assert os.read(done[0], 1) == b"+"
        yield pid
    finally:
        for fd in (done[0], *leave):
            os.close(fd)
        os.waitpid(pid, 0)


def told_by_nobody(work: Callable[[], str]) -> str:
    """What a forked child that is another user says; it does not find the regions it was born with."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            attached.clear()
            text = work()
        except BaseException as e:
            text = f"{type(e).__name__}: {e}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


def died(process: Any) -> None:
    """Kill it and wait until the kernel has closed its files."""
    os.kill(process.pid, signal.SIGKILL)
    process.join(WAIT_S)


# ---- targets ----


def write_seven(region: vmalloc.Region) -> None:
    a = region["a"]
    assert a.sum() == 3 * a.size
    a[:] = 7
    region["b"] = region.full((100, 100), 5, "u2")


def take_and_drop(ref: Any, answers: Any) -> None:
    array = ref.get() if isinstance(ref, vmalloc.Ref) else ref
    answers.put(int(array.sum()))


def make_and_send(region: vmalloc.Region, answers: Any, let_go: Any) -> None:
    ref = vmalloc.ref(region.full(10 * PAGE, 9, "u1"))
    answers.put(ref)
    let_go.wait(WAIT_S)


def hold_blocks(region: vmalloc.Region, ready: Any, nr: int = 50) -> None:
    blocks = [region.alloc((1 + i % 40) * PAGE) for i in range(nr)]
    for block in blocks:
        memoryview(block)[:] = b"\x66" * block.nbytes
    region.free_bulk(blocks[::3])
    del blocks[::3]
    ready.set()
    time.sleep(WAIT_S)


def churn(region: vmalloc.Region, ready: Any) -> None:
    """Busy inside the core most of the time, until killed."""
    ready.set()
    while True:
        blocks = [region.alloc(n * PAGE) for n in (300, 1, 5, 400, 17)]
        del blocks
        region.purge()


def hold_and_tell(there: Any, answers: Any) -> None:
    kept: list[Any] = []
    while (a := there.get()) is not None:
        kept.append(a)
        answers.put(len(kept))
    answers.put([int(a[0]) for a in kept])
