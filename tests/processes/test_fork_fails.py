# SPDX-License-Identifier: MIT
"""Forks that fail, children that get no slot, and programs that are no fork."""

from __future__ import annotations

import os
import resource
import subprocess
import time

import pytest
from tests.conftest import PAGE, assert_at_rest
from tests.processes.forks import Forked, fill_anew, forked, nr_slots, region_for_children
from tests.processes.workers import needs_root, python

import vmalloc


@pytest.fixture
def plain():
    with region_for_children() as region:
        yield region


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run(["true"], check=True),
        lambda: subprocess.run(["true"], check=True, close_fds=False),
        lambda: subprocess.run(["true"], check=True, preexec_fn=int),
        lambda: subprocess.run(["true"], check=True, start_new_session=True),
        lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0),
        lambda: os.waitpid(os.spawnv(os.P_NOWAIT, "/bin/true", ["true"]), 0),
        lambda: os.system("true"),
        lambda: os.popen("true").close(),
        lambda: forked(lambda: os.execv("/bin/true", ["true"])),
        lambda: no_such_program(),
    ],
    ids=["subprocess", "with descriptors", "preexec_fn", "new session", "posix_spawn", "spawnv", "system",
         "popen", "exec", "failed exec"],
)  # fmt: skip
def test_other_programs_take_no_slot_and_hold_nothing(plain, start):
    a = [plain.full(PAGE, 3, "u1")]
    for _ in range(3):
        start()
    assert nr_slots(plain) == 1
    assert (a[0] == 3).all()
    a.clear()
    assert plain.stats().busy_pages == 0


def no_such_program():
    with pytest.raises(FileNotFoundError):
        subprocess.run(["/no/such/program"], check=False, preexec_fn=int)


def test_a_long_program_started_by_fork_and_exec_holds_nothing(plain):
    a = [plain.full(PAGE, 3, "u1")]
    process = subprocess.Popen(["sleep", "60"], preexec_fn=int)  # preexec_fn: a real fork
    try:
        until = time.monotonic() + 10
        while nr_slots(plain) > 1 and time.monotonic() < until:
            time.sleep(0.01)  # Popen returns a moment before the kernel has let go of the old program's files
        assert nr_slots(plain) == 1
        a.clear()
        assert plain.stats().busy_pages == 0
    finally:
        process.kill()
        process.wait()


def test_300_children_one_after_the_other_find_a_slot(plain):
    a = plain.full(PAGE, 3, "u1")
    for _ in range(300):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if (a == 3).all() and plain.full(1, 2)[0] == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert plain.stats().nr_processes <= 255


NO_MORE_PROCESSES = """
import ctypes, os, resource, numpy, vmalloc, vmalloc.attach, vmalloc.reference, vmalloc.region
os.setuid(64321)  # who may not be able to read the modules
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which setuid took: else /proc/self/fd is closed
region = vmalloc.Region("16M")
a = region.full(10_000, 3, "u1")
ref = vmalloc.ref(region.full(10_000, 4, "u1"))
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
for _ in range(300):  # more than there are slots
    try:
        if os.fork() == 0:
            os._exit(0)
    except BlockingIOError:
        continue
    raise SystemExit("it did not fail")
region.recover()
assert region.stats().nr_processes == 1, region.stats()
assert (a == 3).all() and (ref.get() == 4).all()
b = [region.full(4096, 5, "u1") for _ in range(100)]
del a, b, ref
assert (region.stats().busy_pages, region.stats().nr_leases) == (0, 0)
region.shrink()
region.check(at_rest=True)
print("fine")
"""


@needs_root
def test_a_fork_that_fails_is_undone():
    done = python(NO_MORE_PROCESSES, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    assert (done.stdout, done.stderr) == ("fine\n", "")


@pytest.fixture
def unslotted():
    """For children without a slot: what they inherit stays as long as the parent lives."""
    return vmalloc.Region("64M")


def assert_kept(region):
    """Nobody learns when such a child ends, so its page is kept; all else is free again."""
    region.recover()
    assert (region.stats().busy_pages, region.stats().nr_leases) == (1, 0)
    assert region.stats().nr_processes == 1
    assert_at_rest(region)


def test_a_fork_without_a_descriptor_left_gives_a_child_that_may_only_look(unslotted):
    """The child gets no slot; its inherited arrays are right while the parent lives."""
    a = [unslotted.full(PAGE, 3, "u1")]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def work(wait, say):
        wait()
        assert (a[0] == 3).all()
        for use in (lambda: unslotted.alloc(1), lambda: unslotted.zeros(3), lambda: vmalloc.ref(a[0])):
            with pytest.raises(vmalloc.RegionUnavailable, match="no descriptor was left"):
                use()
        a.clear()

    opened = []
    most = max(map(int, os.listdir("/proc/self/fd"))) + 8  # whatever else this process has open
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        with pytest.raises(OSError, match="Too many open files"):
            opened.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(most + 1))
        for fd in opened[-4:]:  # Forked takes four
            os.close(fd)
        del opened[-4:]
        child = Forked(work)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in opened:
            os.close(fd)
    a.clear()
    new = fill_anew(unslotted, 50)
    child.go()
    assert child.end() == 0
    del new
    assert_kept(unslotted)


def test_a_child_without_a_slot_says_so_and_its_arrays_are_right_while_the_parent_lives(unslotted):
    a = [unslotted.full(PAGE, 3, "u1")]
    holders = [Forked(lambda wait, say: (say(), wait())) for _ in range(254)]
    try:
        for holder in holders:
            holder.wait_for_answer()

        def work(wait, say):
            say()
            wait()
            assert (a[0] == 3).all()
            for use in (lambda: unslotted.alloc(1), lambda: vmalloc.ref(a[0]), lambda: unslotted["name"]):
                with pytest.raises(vmalloc.RegionUnavailable, match="all 255 process slots"):
                    use()
            a.clear()

        child = Forked(work)
        child.wait_for_answer()
        a.clear()
        new = [unslotted.full(PAGE, 0xEE, "u1") for _ in range(500)]
        child.go()
        assert child.end() == 0
        del new
    finally:
        for holder in holders:
            holder.go()
        codes = {holder.end() for holder in holders}
    assert codes == {0}
    assert_kept(unslotted)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="no fork system call there")
def test_a_raw_clone_is_noticed_and_may_only_abandon():
    code = """
import ctypes, os, vmalloc
region = vmalloc.Region("1M")
a = region.full(4096, 3, "u1")
pid = ctypes.CDLL(None).syscall(57)
if pid == 0:
    code = 1
    try:
        region.alloc(5)
    except vmalloc.RegionUnavailable as e:
        code = 0 if "raw clone" in str(e) and (a == 3).all() else 2
    finally:
        os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), region.stats().busy_pages, (a == 3).all())
"""
    done = python(code)
    assert (done.stdout, done.stderr) == ("0 1 True\n", "")
