# SPDX-License-Identifier: MIT
"""Ctrl-C while a request waits for a lock whose owner is stopped: whatever can wait can be interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from tests.conftest import PAGE, assert_at_rest
from tests.processes.workers import WAIT_S

import vmalloc

NR_RANGES = 8000
NR_LEASES = 20000
NR_NAMES = 900
MOMENT_S = 0.2
ATTEMPTS = 300

ATTACHED = """
import sys, time, vmalloc
region = vmalloc.Region.attach(int(sys.argv[1]))
print("ready", flush=True)
"""
SLEEP = "time.sleep(1000)"
#: What keeps a process in a lock nearly always.
HOLD = {
    "space": "while True: region.stats()",
    "leases": "while True: region.expire_leases(1e8)",
    "names": """
while True:
    try:
        region._name_delete("missing")
    except KeyError:
        pass
""",
}


@dataclass
class Stage:
    """A region with a lock that a stopped process holds, and things to do something with."""

    region: vmalloc.Region
    blocks: list[Any]
    lease: tuple[int, int, int] = (0, 0, 0)

    def block(self) -> Any:
        return self.blocks[0]


def is_interrupted(call: Callable[[], Any]) -> bool:
    """Press Ctrl-C after a moment. Was the call still waiting then?"""
    has_ended = False
    ctrl_c = threading.Timer(MOMENT_S, os.kill, (os.getpid(), signal.SIGINT))
    try:
        ctrl_c.start()
        call()
        has_ended = True
        ctrl_c.cancel()
        ctrl_c.join()
    except KeyboardInterrupt:
        return not has_ended
    return False


@contextmanager
def attached(region: vmalloc.Region, code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that attached the region and does `code` until it is killed."""
    fd = region.fileno()
    command = [sys.executable, "-c", ATTACHED + code, str(fd)]
    process = subprocess.Popen(command, pass_fds=[fd], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


@contextmanager
def stopped_owner(region: vmalloc.Region, lock: str, probe: Callable[[], Any]) -> Iterator[None]:
    """A process is stopped while it holds the lock, so that `probe` has to wait."""
    with attached(region, HOLD[lock]) as process:
        for attempt in range(ATTEMPTS):
            time.sleep(0.002 + attempt % 7 / 1000)
            os.kill(process.pid, signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            if is_interrupted(probe) and is_interrupted(probe):  # one alone might be slow and not waiting
                break
            os.kill(process.pid, signal.SIGCONT)
        else:
            pytest.fail("never stopped while it held the lock")
        yield


@pytest.fixture(scope="module", autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    old = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    yield
    signal.signal(signal.SIGINT, old)


def new_region(**options: Any) -> vmalloc.Region:
    return vmalloc.Region("64M", pools="off", lock_timeout_s=600, **options)


def end(stage: Stage) -> None:
    """Nothing of what was interrupted is left."""
    stage.blocks.clear()
    stage.region.recover()
    stage.region.expire_leases()
    for name in stage.region:
        del stage.region[name]
    assert_at_rest(stage.region)
    assert stage.region.stats().busy_pages == 0
    stage.region.close()


@pytest.fixture(scope="module")
def space_locked() -> Iterator[Stage]:
    region = new_region(lazy_max=PAGE)
    region.empty(1)  # imports numpy, which would take the Ctrl-C
    blocks = [region.alloc(PAGE) for _ in range(NR_RANGES)]
    blocks[::2] = [region.alloc(PAGE) for _ in blocks[::2]]  # many ranges: a walk over them takes long
    stage = Stage(region, blocks)
    with attached(region, SLEEP) as dying, stopped_owner(region, "space", region.stats):
        dying.kill()  # recover() has something to do
        dying.wait(WAIT_S)
        yield stage
    end(stage)


@pytest.fixture(scope="module")
def leases_locked() -> Iterator[Stage]:
    region = new_region()
    stage = Stage(region, [region.alloc(PAGE)])
    for _ in range(NR_LEASES):
        stage.lease = region._lease(stage.block())
    with stopped_owner(region, "leases", lambda: region.expire_leases(1e8)):
        yield stage
    end(stage)


@pytest.fixture(scope="module")
def names_locked() -> Iterator[Stage]:
    region = new_region()
    stage = Stage(region, [region.alloc(PAGE)])
    for i in range(NR_NAMES):
        region[f"n{i}"] = stage.block()
    with stopped_owner(region, "names", lambda: region["n0"]):
        yield stage
    end(stage)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda s: s.region.alloc(PAGE), id="alloc"),
        pytest.param(lambda s: s.region.alloc(1000 * PAGE), id="alloc a large one"),
        pytest.param(lambda s: s.region.alloc_bulk(PAGE, 10), id="alloc_bulk"),
        pytest.param(lambda s: s.region.empty(10), id="empty"),
        pytest.param(lambda s: s.region.zeros(10), id="zeros"),
        pytest.param(lambda s: s.region._alloc_pages(1, 1), id="alloc of an address space"),
        pytest.param(lambda s: s.region._alloc_pages_bulk(1, 1, 10), id="alloc_bulk of an address space"),
        pytest.param(lambda s: s.region.stats(), id="stats"),
        pytest.param(lambda s: s.region.ranges(), id="ranges"),
        pytest.param(lambda s: s.region.check(), id="check"),
        pytest.param(lambda s: s.region.check(at_rest=True), id="check at rest"),
        pytest.param(lambda s: s.region.check(repair=True), id="repair"),
        pytest.param(lambda s: s.region.purge(), id="purge"),
        pytest.param(lambda s: s.region.shrink(), id="shrink"),
        pytest.param(lambda s: s.region.recover(), id="recover"),
        pytest.param(lambda s: s.region.expire_leases(), id="expire_leases"),
    ],
)
def test_what_waits_for_space_is_interrupted(space_locked: Stage, call: Callable[[Stage], Any]) -> None:
    assert is_interrupted(lambda: call(space_locked))


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda s: s.region._lease(s.block()), id="lease"),
        pytest.param(lambda s: vmalloc.ref(s.block()), id="ref"),
        pytest.param(lambda s: s.region._adopt(*s.lease[:2], PAGE, s.lease[2]), id="claim"),
        pytest.param(lambda s: s.region.expire_leases(1e8), id="expire_leases"),
        pytest.param(lambda s: s.region.check(), id="check"),
    ],
)
def test_what_waits_for_leases_is_interrupted(leases_locked: Stage, call: Callable[[Stage], Any]) -> None:
    assert is_interrupted(lambda: call(leases_locked))


def set_name(s: Stage) -> None:
    s.region["new"] = s.block()


def delete_name(s: Stage) -> None:
    del s.region["n1"]


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(set_name, id="set"),
        pytest.param(lambda s: s.region["n1"], id="get"),
        pytest.param(delete_name, id="delete"),
        pytest.param(lambda s: s.region.check(), id="check"),
    ],
)
def test_what_waits_for_names_is_interrupted(names_locked: Stage, call: Callable[[Stage], Any]) -> None:
    assert is_interrupted(lambda: call(names_locked))


def adopt(s: Stage) -> None:
    page, id = s.region._share(s.block())
    s.blocks.insert(1, s.region._adopt(page, id, PAGE))  # kept: a finalizer that purges does wait


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda s: s.blocks.pop().release(), id="release"),
        pytest.param(lambda s: s.region.free_bulk([s.blocks.pop(), s.blocks.pop()]), id="free_bulk"),
        pytest.param(lambda s: s.region._share(s.block()), id="share"),
        pytest.param(adopt, id="adopt"),
        pytest.param(lambda s: s.region._lease(s.block()), id="lease"),
        pytest.param(lambda s: s.region.drop_inherited(), id="drop_inherited"),
        pytest.param(lambda s: s.region.names(), id="names"),
        pytest.param(lambda s: s.region.tick(), id="tick"),
    ],
)
def test_what_does_not_need_space_does_not_wait_for_it(
    space_locked: Stage, call: Callable[[Stage], Any]
) -> None:
    """A release over the purge threshold too: it leaves the purge to a later one."""
    assert not is_interrupted(lambda: call(space_locked))


def test_an_interrupted_request_is_served_when_it_is_made_again() -> None:
    region = new_region()
    blocks = [region.alloc(PAGE) for _ in range(NR_RANGES)]
    del blocks[::2]
    region.shrink()
    with stopped_owner(region, "space", region.stats):
        assert is_interrupted(lambda: region.alloc(PAGE))
    region.recover()
    assert region.alloc(PAGE).nbytes == PAGE
    assert region.stats().busy_pages == NR_RANGES // 2
    end(Stage(region, blocks))
