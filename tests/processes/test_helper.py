# SPDX-License-Identifier: MIT
"""The helper: one thread among all processes keeps a region in order, whatever becomes of its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.processes.workers import needs_root

import vmalloc

MIB = 1 << 20


def eventually(is_so: Callable[[], Any], what: str) -> None:
    """Wait for it, up to half a minute on a busy machine."""
    for _ in range(3000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError(f"never: {what}")


def run(code: str, *options: str) -> list[str]:
    """What a program printed, line by line."""
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.splitlines()


ATTACH = """
import os, sys, time, vmalloc
r = vmalloc.Region.attach(sys.argv[1], helper=sys.argv[2] == "True")
a = r.empty(1 << 20, "u1")
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def neighbour() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that attach a region, hold 1 MiB of it, and live until they are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(region: vmalloc.Region, *, helper: bool = True) -> subprocess.Popen[str]:
        path = f"/proc/{os.getpid()}/fd/{region.fileno()}"
        child = subprocess.Popen(
            [sys.executable, "-c", ATTACH, path, str(helper)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        assert child.stdout is not None
        assert int(child.stdout.readline()) == child.pid
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def threads_of(pid: int | str = "self") -> list[str]:
    names = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        names.append((task / "comm").read_text().strip())
    return names


# ---- what it does, without a call ----


def test_idle_memory_goes_back_without_a_call():
    with vmalloc.Region("1G") as region:
        arrays = [region.full(MIB, 1, "u1") for _ in range(100)] + [
            region.full(1 << 14, 1, "u1") for _ in range(500)
        ]
        assert region.stats().resident_bytes > 100 * MIB
        del arrays
        eventually(lambda: region.stats().resident_bytes < 8 * MIB, "given back")
        assert region.stats().nr_decayed_pages > 50 * MIB // 4096
        region.check()


def test_the_dead_and_their_pages_go_without_a_call(neighbour):
    with vmalloc.Region("64M") as region:
        child = neighbour(region)
        assert (region.stats().busy_pages, region.stats().nr_processes) == (256, 2)
        child.kill()
        child.wait()
        eventually(lambda: (region.stats().busy_pages, region.stats().nr_processes) == (0, 1), "recovered")


def test_work_that_comes_back_stays_warm():
    with vmalloc.Region("1G") as region:
        for _ in range(20):
            arrays = [region.full(MIB, 1, "u1") for _ in range(60)]
            del arrays
            time.sleep(0.2)
        assert region.stats().nr_decayed_pages < 60 * 256 // 10
        assert region.stats().nr_space_hit <= 80


# ---- who does it ----


def test_there_is_one_among_all(neighbour):
    with vmalloc.Region("64M") as region:
        eventually(lambda: region.stats().helper_pid == os.getpid(), "elected here")
        children = [neighbour(region) for _ in range(3)]
        for _ in range(20):
            assert region.stats().helper_pid == os.getpid()
            time.sleep(0.05)
        for child in children:
            assert "vmalloc-helper" in threads_of(child.pid)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_another_takes_the_place_of_one_that_ended_or_stopped(neighbour, ending):
    with vmalloc.Region("64M", helper=False) as region:
        first = neighbour(region)
        eventually(lambda: region.stats().helper_pid == first.pid, "the first is elected")
        second = neighbour(region)
        first.send_signal(ending)
        eventually(lambda: region.stats().helper_pid == second.pid, "the second took its place")
        first.send_signal(signal.SIGCONT)
        for _ in range(20):
            assert region.stats().helper_pid == second.pid
            time.sleep(0.05)


def test_without_one_tick_does_it(neighbour):
    with vmalloc.Region("64M", helper=False) as region:
        child = neighbour(region, helper=False)
        child.kill()
        child.wait()
        time.sleep(1)
        assert region.stats().helper_pid == 0
        assert region.stats().busy_pages == 256
        eventually(lambda: region.tick() or region.stats().busy_pages == 0, "recovered by tick()")


def test_it_is_started_and_stopped_at_will():
    with vmalloc.Region("1M", helper=False) as region:
        assert not region.helper
        region.helper = True
        eventually(lambda: region.stats().helper_pid == os.getpid(), "started")
        region.helper = False
        assert region.stats().helper_pid == 0
        assert not region.helper


def test_import_starts_none():
    assert run(
        """
        import os, vmalloc
        print(len(os.listdir("/proc/self/task")))
        """
    ) == ["1"]


def helpers_blocked_signals() -> Iterator[int]:
    """Of each helper thread of this process; threads of earlier tests may end meanwhile."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            lines = (task / "status").read_text().splitlines()
            status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if status["Name"] == "vmalloc-helper":
                yield int(status["SigBlk"], 16)


def test_it_takes_no_signals():
    with vmalloc.Region("1M"):
        blocked = list(helpers_blocked_signals())
        assert blocked
        for mask in blocked:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM, signal.SIGUSR1):
                assert mask >> (number - 1) & 1


# ---- forks ----

FORKED = """
import os, signal, sys, time, warnings
warnings.simplefilter("error")
import vmalloc
r = vmalloc.Region("64M")
a = r.full(1 << 20, 3, "u1")
seen = []

def helps():
    names = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm") as comm:
            names.append(comm.read().strip())
    return names.count("vmalloc-helper")

os.register_at_fork(after_in_parent=lambda: seen.append(helps()))

def eventually(is_so):
    for _ in range(3000):
        if is_so():
            return True
        time.sleep(0.01)
"""


def test_a_fork_sees_no_helper_and_the_parent_has_its_own_again():
    assert run(
        FORKED
        + """
pid = os.fork()
if pid == 0:
    os._exit(0)
print(seen)
os.waitpid(pid, 0)
print(eventually(helps), eventually(lambda: r.stats().helper_pid == os.getpid()))
"""
    ) == ["[0]", "True True"]


def test_a_child_has_one_of_its_own_once_it_works():
    assert run(
        FORKED
        + """
pid = os.fork()
if pid == 0:
    print(helps(), flush=True)
    b = [r.empty(1 << 20, "u1") for _ in range(3)]
    print(helps(), int(a[0]), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""
    ) == ["0", "1 3"]


def test_a_daemon_has_it_when_its_parent_is_gone():
    assert run(
        FORKED
        + """
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(3, writer)
        x = r.empty(1 << 20, "u1")
        ok = eventually(lambda: r.stats().helper_pid == os.getpid())
        os.write(writer, b"y" if ok and int(a[0]) == 3 else b"n")
    os._exit(0)
os.close(writer)
r.helper = False
print(os.read(reader, 1))
"""
    ) == ["b'y'"]


@needs_root
def test_prefork_workers_that_change_their_user_go_on():
    assert run(
        FORKED
        + """
vmalloc.install(r)
pids = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        x = r.empty(1 << 20, "u1")
        os.setgid(65534); os.setuid(65534)
        y = r.empty(1 << 20, "u1")
        y[:] = a
        os._exit(0 if int(y[-1]) == 3 and helps() == 1 else 1)
    pids.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
eventually(lambda: r.stats().nr_processes == 1)
print(r.stats().nr_processes, r.stats().busy_pages)
"""
    ) == ["[0, 0, 0]", "1 256"]


def test_exec_ends_it_and_another_takes_over(neighbour):
    with vmalloc.Region("64M", helper=False) as region:
        path = f"/proc/{os.getpid()}/fd/{region.fileno()}"
        program = f"""
import os, sys, time, vmalloc
r = vmalloc.Region.attach({path!r})
while r.stats().helper_pid != os.getpid():
    time.sleep(0.01)
print("elected", flush=True)
os.execv(sys.executable, [sys.executable, "-c", "import sys; print('anew', flush=True); sys.stdin.read()"])
"""
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "elected\n"
            second = neighbour(region)
            assert child.stdout.readline() == "anew\n"
            eventually(lambda: region.stats().helper_pid == second.pid, "another took over")
            eventually(lambda: region.stats().nr_processes == 2, "the one that is no more was recovered")
        finally:
            child.kill()
            child.communicate()


def test_many_forks_leave_nothing_behind():
    with vmalloc.Region("64M") as region:
        for i in range(50):
            if i == 1:  # the first look for the dead opens a descriptor to look by
                eventually(lambda: region.stats().nr_processes == 1, "the first recovered")
                before = len(os.listdir("/proc/self/fd"))
            pid = os.fork()
            if pid == 0:
                region.empty(1 << 16, "u1")
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        eventually(lambda: region.stats().nr_processes == 1, "all recovered")
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "descriptors closed")
        assert threads_of().count("vmalloc-helper") >= 1


def test_the_region_ends_while_its_helper_works():
    before = threads_of().count("vmalloc-helper")
    for _ in range(20):
        region = vmalloc.Region("256M")
        arrays = [region.full(MIB, 1, "u1") for _ in range(20)]
        del arrays, region
    assert threads_of().count("vmalloc-helper") == before


# ---- several things at once ----


def test_full_with_the_helper_dead_and_a_neighbour_stopped(neighbour):
    with vmalloc.Region("16M", helper=False, lock_timeout_s=2) as region:
        helper = neighbour(region)
        eventually(lambda: region.stats().helper_pid == helper.pid, "elected")
        stopped = neighbour(region)
        blocks = [region.alloc(MIB) for _ in range(14)]  # and each of the neighbours has one
        with pytest.raises(vmalloc.OutOfPages, match="no run") as full:
            region.alloc(MIB)
        assert full.value.cause == "space"
        stopped.send_signal(signal.SIGSTOP)
        helper.kill()
        helper.wait()
        blocks.append(region.alloc(MIB))  # of what the dead one held
        with pytest.raises(vmalloc.OutOfPages):
            region.alloc(MIB)
        stopped.send_signal(signal.SIGCONT)
        eventually(lambda: region.stats().helper_pid == stopped.pid, "the other took over")
        blocks.clear()
        region.check()
