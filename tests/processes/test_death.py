# SPDX-License-Identifier: MIT
"""Processes that are killed, and one that is only stopped."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool

import pytest
from tests.conftest import PAGE, assert_at_rest
from tests.processes import workers
from tests.processes.workers import WAIT_S, child, died, python, wait_until

import vmalloc


@pytest.fixture
def region(design):
    region = vmalloc.Region("64M", lock_timeout_s=60, **design)
    yield region
    assert_at_rest(region)
    assert region.stats().busy_pages == 0
    assert region.stats().nr_processes == 1
    region.close()


def test_what_a_killed_process_held_comes_back(region):
    mine = region.alloc(100 * PAGE)
    memoryview(mine)[:] = b"\x77" * mine.nbytes
    ready = multiprocessing.get_context("fork").Event()
    with child("fork", workers.hold_blocks, region, ready) as process:
        assert ready.wait(WAIT_S)
        assert region.stats().busy_pages > 100
        died(process)
    assert region.recover() > 0
    assert region.stats().busy_pages == 100
    assert region.recover() == 0
    assert bytes(mine) == b"\x77" * mine.nbytes
    region.shrink()
    assert region.stats().free_pages == region.nr_pages - 100


def test_a_full_region_recovers_the_dead_by_itself(region):
    ready = multiprocessing.get_context("fork").Event()
    with child("fork", hoard, region, ready) as process:
        assert ready.wait(WAIT_S)
        died(process)
    assert region.alloc(region.nr_pages * PAGE).nbytes == 64 << 20


def hoard(region, ready):
    blocks = [region.alloc(1 << 20) for _ in range(60)]
    ready.set()
    time.sleep(WAIT_S)
    del blocks


def test_killed_at_any_moment_nothing_is_lost(region):
    mine = region.alloc(10 * PAGE)
    memoryview(mine)[:] = b"\x55" * mine.nbytes
    context = multiprocessing.get_context("fork")
    for delay_ms in range(12):
        ready = context.Event()
        with child("fork", workers.churn, region, ready) as process:
            assert ready.wait(WAIT_S)
            time.sleep(delay_ms / 1000)
            died(process)
        region.alloc(300 * PAGE).release()
    region.recover()
    region.check(at_rest=True)
    assert region.stats().busy_pages == 10
    assert bytes(mine) == b"\x55" * mine.nbytes


def test_what_the_dead_shared_lives_as_long_as_another_holds_it(region):
    context = multiprocessing.get_context("fork")
    answers, never = context.SimpleQueue(), context.Event()
    with child("fork", workers.make_and_send, region, answers, never) as process:
        a = answers.get()
        died(process)
    region.recover()
    assert region.expire_leases() == 1  # the dead one's Ref
    assert (a == 9).all()
    assert region.stats().busy_pages == 10


def test_a_worker_that_is_killed_loses_its_own_arrays_and_no_others(region):
    vmalloc.install(region, 1000)
    try:
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
            assert executor.submit(os.getpid).result(WAIT_S) > 0
            mine = region.full(10 * PAGE, 1, "u1")
            theirs = executor.submit(keep_and_return, mine).result(WAIT_S)
            with pytest.raises(BrokenProcessPool):
                executor.submit(kill_self, mine, theirs).result(WAIT_S)
    finally:
        vmalloc.uninstall()
    region.recover()
    region.expire_leases()  # arguments and results that were in the pipes
    assert region.stats().busy_pages == 20
    assert (mine == 1).all()
    assert (theirs == 2).all()


_kept = []


def keep_and_return(a):
    region = vmalloc.region_of(a)
    _kept.extend(region.full(PAGE, 3, "u1") for _ in range(20))
    _kept.append(region.full(10 * PAGE, 2, "u1"))
    return _kept[-1]


def kill_self(*arrays):
    _kept.extend(arrays)
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_while_they_fork_send_and_drop_they_lose_nothing(region):
    mine = region.full(10 * PAGE, 77, "u1")
    context = multiprocessing.get_context("fork")
    for delay_ms in range(0, 30, 3):
        ready = context.Event()
        with child("fork", workers_that_fork, region, ready) as process:
            assert ready.wait(WAIT_S)
            time.sleep(delay_ms / 1000)
            os.killpg(process.pid, signal.SIGKILL)  # its children too
            process.join(WAIT_S)
        wait_until(lambda: nr_processes(region) == 1, "all of the group are gone")
        region.expire_leases()
        assert region.stats().busy_pages == 10
    assert (mine == 77).all()
    region.check(at_rest=True)


def nr_processes(region):
    region.recover()
    return region.stats().nr_processes


def workers_that_fork(region, ready):
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    arrays = [region.full(n * PAGE, n, "u1") for n in range(1, 8)]
    ready.set()
    while True:
        refs = [vmalloc.ref(a) for a in arrays]
        if os.fork() == 0:
            try:
                loaded = [pickle.loads(pickle.dumps(r)) for r in refs]
                assert [int(a[0]) for a in loaded] == list(range(1, 8))
            except BaseException as e:
                region[f"wrong: {type(e).__name__}"] = arrays[0]  # outlives us, and the test counts it
            region.drop_inherited()
            os._exit(0)
        arrays = [region.full(n * PAGE, n, "u1") for n in range(1, 8)]


def test_the_creator_may_die_and_the_region_goes_on():
    code = """
import os, sys, vmalloc
region = vmalloc.Region("16M")
region["kept"] = region.full(1000, 6, "u1")
region["gone"] = region.zeros(5)
held = region.alloc(1 << 20)
print(region.fileno(), flush=True)
sys.stdin.read(1)
os.kill(os.getpid(), 9)
"""
    creator = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    region = vmalloc.Region.attach(f"/proc/{creator.pid}/fd/{int(creator.stdout.readline())}")
    creator.communicate(b"x", timeout=WAIT_S)
    del region["gone"]
    region.recover()
    assert region.stats().busy_pages == 1
    assert (region["kept"] == 6).all()
    del region["kept"]
    assert region.stats().busy_pages == 0
    assert_at_rest(region)


def test_when_all_are_killed_nothing_is_left():
    code = """
import multiprocessing, os, sys, time, vmalloc
region = vmalloc.Region("64M", name="leaves-nothing")
block = region.zeros(8 << 20, "u1"); block[:] = 1
for _ in range(3):
    if os.fork() == 0: break
os.write(1, b"ready\\n")
time.sleep(60)
"""
    shm = set(os.listdir("/dev/shm"))
    group = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, process_group=0)
    for _ in range(4):
        assert group.stdout.readline() == "ready\n"
    assert "vmalloc:leaves-nothing" in open_files()
    os.killpg(group.pid, signal.SIGKILL)
    group.communicate(timeout=WAIT_S)
    wait_until(lambda: "vmalloc:leaves-nothing" not in open_files(), "the memfd is gone")
    assert {f for f in os.listdir("/dev/shm") if "vmalloc" in f} <= shm


def open_files():
    """Names behind every descriptor and mapping this user can see."""
    seen = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            seen += [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
    return "\n".join(seen)


STOPPED = """
import sys, vmalloc
region = vmalloc.Region.attach(int(sys.argv[1]))
blocks = [region.alloc(300 * 4096) for _ in range(20)]
print("ready", flush=True)
sys.stdin.read(1)
while True:                      # in the space path, with its lock, nearly always
    region.stats()
"""


def test_a_stopped_process_is_never_robbed_and_the_waiter_learns_its_pid():
    region = vmalloc.Region("64M", pools="off", lock_timeout_s=0.2)
    mine = [region.alloc(PAGE) for _ in range(8000)]
    del mine[::2]  # many ranges: stats() holds the lock for long
    region.shrink()
    fd = region.fileno()
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(fd)], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        busy_pages = region.stats().busy_pages
        process.stdin.write(b"x")
        process.stdin.flush()
        caught = None
        for attempt in range(200):
            time.sleep(0.002 + attempt % 7 / 1000)
            os.kill(process.pid, signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            try:
                region.stats()
            except vmalloc.RegionBusy as e:
                caught = e
                break
            os.kill(process.pid, signal.SIGCONT)
        assert caught is not None, "never stopped while it held the lock"
        assert f"process {process.pid} holds a lock" in str(caught)
        assert "waited 0.2 s" in str(caught)
        with pytest.raises(vmalloc.RegionBusy):
            region.alloc(1000 * PAGE)
        os.kill(process.pid, signal.SIGCONT)
        wait_until(lambda: not is_busy(region), "the lock is free again")
        assert region.stats().busy_pages == busy_pages  # nothing was taken from it
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)
    region.recover()
    assert region.stats().busy_pages == 4000
    region.check(at_rest=True)


def is_busy(region):
    try:
        region.stats()
    except vmalloc.RegionBusy:
        return True
    return False


def test_a_waiting_request_can_be_interrupted():
    """Signals are looked at while a request waits for a lock: Ctrl-C works."""
    region = vmalloc.Region("64M", pools="off", lock_timeout_s=60)
    mine = [region.alloc(PAGE) for _ in range(8000)]
    del mine[::2]
    region.shrink()
    fd = region.fileno()
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(fd)], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    class Interrupted(Exception):
        pass

    def on_alarm(*_):
        raise Interrupted

    old = signal.signal(signal.SIGALRM, on_alarm)
    try:
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"x")
        process.stdin.flush()
        started = time.monotonic()
        interrupted = False
        for attempt in range(200):
            time.sleep(0.002 + attempt % 7 / 1000)
            os.kill(process.pid, signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            try:
                region.stats()
            except Interrupted:
                interrupted = True
                break
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                os.kill(process.pid, signal.SIGCONT)
        assert interrupted
        assert time.monotonic() - started < 50
    finally:
        signal.signal(signal.SIGALRM, old)
        process.kill()
        process.communicate(timeout=WAIT_S)
    region.recover()
    region.check(at_rest=True)


def test_a_process_that_exits_normally_leaves_nothing():
    region = vmalloc.Region("64M")
    code = """
import sys, vmalloc
region = vmalloc.Region.attach(int(sys.argv[1]))
blocks, array = region.alloc_bulk(4096, 100), region.zeros(9)
"""
    done = python(code, region.fileno(), pass_fds=[region.fileno()])
    assert (done.returncode, done.stderr) == (0, "")
    region.recover()
    assert region.stats().busy_pages == 0
