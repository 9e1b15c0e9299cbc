# SPDX-License-Identifier: MIT
"""Ways into a region, and ranges that change hands."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
from tests.conftest import PAGE, assert_at_rest
from tests.processes import workers
from tests.processes.workers import NOBODY, WAIT_S, child, forked, join, needs_root, python

import vmalloc
from vmalloc._core import attached
from vmalloc.find import find_regions

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture
def region(design):
    region = vmalloc.Region("64M", **design)
    yield region
    for name in region:
        del region[name]
    assert_at_rest(region)
    assert region.stats().busy_pages == 0
    assert region.stats().nr_processes == 1
    region.close()


@pytest.fixture
def plain():
    region = vmalloc.Region("64M")
    yield region
    for name in region:
        del region[name]
    assert_at_rest(region)
    assert region.stats().busy_pages == 0
    region.close()


@pytest.mark.parametrize("method", METHODS)
def test_a_child_attaches_the_region_it_is_given(plain, method):
    plain["a"] = plain.full(1000, 3, "u1")
    with child(method, workers.write_seven, plain) as process:
        join(process)
    assert (plain["a"] == 7).all()
    assert plain["b"].shape == (100, 100)
    assert (plain["b"] == 5).all()


BY_DESCRIPTOR = """
import sys, vmalloc
region = vmalloc.Region.attach(int(sys.argv[1]), expected_id=sys.argv[2])
a = region["a"]
print(a.sum(), region.stats().nr_processes)
a[0] = 40
region["b"] = region.array([1, 2, 3])
"""


def test_an_unrelated_process_attaches_an_inherited_descriptor(plain):
    plain["a"] = plain.full(1000, 3, "u1")
    done = python(BY_DESCRIPTOR, plain.fileno(), plain.id, pass_fds=[plain.fileno()])
    assert (done.stdout, done.stderr) == ("3000 2\n", "")
    assert plain["a"][0] == 40
    assert plain["b"].tolist() == [1, 2, 3]


BY_PATH = """
import sys, vmalloc
region = vmalloc.Region.attach(sys.argv[1])
assert vmalloc.Region.attach(sys.argv[1]) is region
print(region.id, region["a"].sum())
"""


def test_an_unrelated_process_attaches_through_proc(plain):
    plain["a"] = plain.full(1000, 3, "u1")
    done = python(BY_PATH, f"/proc/{os.getpid()}/fd/{plain.fileno()}")
    assert (done.stdout, done.stderr) == (f"{plain.id} 3000\n", "")


def test_attaching_what_this_process_has_gives_the_same_region(plain):
    assert vmalloc.Region.attach(plain.fileno()) is plain
    assert vmalloc.Region.attach(f"/proc/self/fd/{plain.fileno()}") is plain
    assert pickle.loads(pickle.dumps(plain)) is plain


def test_another_region_than_expected_is_refused(plain):
    with pytest.raises(vmalloc.RegionUnavailable, match=f"is region {plain.id}, not {'0' * 32}"):
        vmalloc.Region.attach(plain.fileno(), expected_id="0" * 32)


def test_a_reference_that_names_another_region_is_stale(plain):
    ref = vmalloc.ref(plain.zeros(10))
    other = vmalloc.Region("1M")
    load, (packed,) = ref.__reduce__()
    forged = bytes.fromhex(other.id) + packed[16:]
    assert load(packed).size == 10
    with pytest.raises(vmalloc.StaleReference):
        load(forged)


@pytest.mark.parametrize("method", METHODS)
def test_a_reference_loads_in_a_child_and_its_drop_keeps_ours(plain, method):
    a = plain.full((50, 100), 2, "u1")
    answers = multiprocessing.get_context(method).SimpleQueue()
    with child(method, workers.take_and_drop, vmalloc.ref(a), answers) as process:
        assert answers.get() == 10_000
        join(process)
    plain.recover()
    assert (a == 2).all()
    assert plain.stats().busy_pages == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_range_made_in_a_child_outlives_it_here(plain, method):
    context = multiprocessing.get_context(method)
    answers, let_go = context.SimpleQueue(), context.Event()
    with child(method, workers.make_and_send, plain, answers, let_go) as process:
        a = answers.get()
        let_go.set()
        join(process)
    plain.recover()
    assert (a == 9).all()
    assert plain.stats().busy_pages == 10
    del a
    assert plain.stats().busy_pages == 0


def test_the_last_reference_frees_in_whatever_order(plain):
    a = plain.full(PAGE, 1, "u1")
    ref = vmalloc.ref(a)
    loaded = [pickle.loads(pickle.dumps(ref)) for _ in range(5)]
    del a, ref
    assert plain.stats().busy_pages == 1
    assert all(x.sum() == PAGE for x in loaded)
    del loaded
    assert plain.stats().busy_pages == 0


def test_a_reference_to_what_was_freed_is_stale(plain):
    message = pickle.dumps(vmalloc.ref(plain.zeros(10)))
    gc.collect()
    with pytest.raises(vmalloc.StaleReference, match=r"page \d+, id \d+"):
        pickle.loads(message)
    again = [plain.zeros(10) for _ in range(50)]  # the same page, other ids
    with pytest.raises(vmalloc.StaleReference, match=r"page \d+, id \d+"):
        pickle.loads(message)
    assert all((x == 0).all() for x in again)


def test_a_reference_from_a_region_that_ended_is_unavailable():
    region = vmalloc.Region("1M")
    code = "import sys, pickle; pickle.loads(bytes.fromhex(sys.argv[1]))"
    message = pickle.dumps(vmalloc.ref(region.zeros(10))).hex()
    region_id = region.id
    del region
    gc.collect()
    done = python(code, message)
    assert "vmalloc.errors.RegionUnavailable" in done.stderr
    assert bytes.fromhex(region_id) not in attached


def test_a_forked_child_dropping_what_it_inherited_frees_nothing(region):
    a = region.full(300 * PAGE, 4, "u1")
    block = region.alloc(PAGE)
    pid = os.fork()
    if pid == 0:
        ok = (a == 4).all()
        del a
        block.release()
        mine = region.full(3 * PAGE, 5, "u1")
        ok = ok and mine.sum() == 15 * PAGE
        del mine
        region.check()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    region.recover()
    assert region.stats().busy_pages == 301
    assert (a == 4).all()
    assert not block.released


def test_a_forked_child_can_pass_on_what_it_inherited(plain):
    shared, private = plain.full(PAGE, 4, "u1"), plain.full(PAGE, 4, "u1")
    ref = vmalloc.ref(shared)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            loaded = [pickle.loads(pickle.dumps(vmalloc.ref(a))).sum() for a in (shared, private)]
            code = 0 if loaded == [4 * PAGE, 4 * PAGE] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    plain.recover()
    assert ref.get() is shared
    assert plain.stats().busy_pages == 2


def test_the_256th_process_is_told_that_slots_are_taken():
    region = vmalloc.Region("16M")
    go, stop = os.pipe(), os.pipe()
    pids, failed = [], 0
    try:
        for _ in range(300):
            pid = os.fork()
            if pid == 0:
                code = 9
                try:
                    region.alloc(PAGE).release()
                    code = 0
                except vmalloc.RegionUnavailable as e:
                    code = 1 if "all 255 process slots" in str(e) else 8
                finally:
                    os.write(go[1], bytes([code]))
                    os.close(stop[1])
                    os.read(stop[0], 1)
                    os._exit(0)
            pids.append(pid)
        codes = b""
        while len(codes) < 300:
            codes += os.read(go[0], 300)
        assert set(codes) == {0, 1}
        failed = codes.count(1)
        assert failed == 300 - 254
        fd = region.fileno()
        done = python("import sys, vmalloc; vmalloc.Region.attach(int(sys.argv[1]))", fd, pass_fds=[fd])
        assert f"descriptor {fd} has all 255 process slots taken" in done.stderr
        done = python(BY_PATH, f"/proc/{os.getpid()}/fd/{fd}")
        assert "has all 255 process slots taken" in done.stderr
        region.alloc(PAGE).release()  # those inside go on
        for pid in pids[:10]:  # a slot that an exit frees is taken again
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        del pids[:10]
        code = "import sys, vmalloc; vmalloc.Region.attach(int(sys.argv[1])).alloc(1)"
        done = python(code, fd, pass_fds=[fd])
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        os.close(stop[1])
        for pid in pids:
            os.waitpid(pid, 0)
        for fd in (*go, stop[0]):
            os.close(fd)
    region.recover()
    assert region.stats().nr_processes == 1
    assert_at_rest(region)


def test_an_address_space_is_attached_by_its_own_class():
    space = vmalloc.AddressSpace(0, 1 << 40)
    start = space.alloc(5000)
    code = """
import sys, vmalloc
fd, start = map(int, sys.argv[1:])
try:
    vmalloc.Region.attach(fd)
except vmalloc.RegionUnavailable as e:
    assert "is an address space" in str(e), e
space = vmalloc.AddressSpace.attach(fd)
assert (space.start, space.stop, space.size_of(start)) == (0, 1 << 40, 8192)
space.free(start)
print(space.alloc(1 << 30))
"""
    done = python(code, space.fileno(), start, pass_fds=[space.fileno()])
    assert done.stderr == ""
    kept = int(done.stdout)
    space.recover()
    assert space.size_of(kept) == 1 << 30  # on_death="keep"
    with pytest.raises(vmalloc.RegionUnavailable, match="its own class"):
        vmalloc.Region.attach(space.fileno())


def test_reclaimed_address_spaces_forget_the_dead():
    space = vmalloc.AddressSpace(0, 1 << 30, on_death="reclaim")
    code = """
import os, sys, vmalloc
space = vmalloc.AddressSpace.attach(int(sys.argv[1]))
space.alloc(1 << 20)
os._exit(0)
"""
    assert python(code, space.fileno(), pass_fds=[space.fileno()]).returncode == 0
    assert space.recover() == 1 << 20
    assert space.stats().busy_pages == 0


def test_a_region_that_is_sent_to_a_pool_serves_its_workers(plain):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        refs = pool.map(fill, [(plain, i) for i in range(6)])
    assert refs == [i * 1000 for i in range(6)]


def fill(task):
    region, i = task
    return int(np.sum(region.full(1000, i, "u4")))


# ---- by name ----

BY_NAME = """
import sys, vmalloc
region = vmalloc.Region.attach(sys.argv[1])
assert vmalloc.Region.attach(sys.argv[1]) is region
print(region.id)
"""


def test_an_unrelated_program_attaches_by_name():
    region = vmalloc.Region("1M", name="frames of the test")
    before = set(os.listdir("/dev/shm"))
    done = python(BY_NAME, "frames of the test")
    assert (done.stdout, done.stderr) == (f"{region.id}\n", "")
    assert vmalloc.Region.attach("frames of the test") is region
    assert set(os.listdir("/dev/shm")) <= before


def test_an_unrelated_program_attaches_by_pid():
    region = vmalloc.Region("1M", name="only")
    code = "import os, vmalloc; r = vmalloc.Region('1M'); print(os.getpid(), r.id, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        pid, id = other.stdout.readline().split()
        assert vmalloc.Region.attach(pid).id == id != region.id
        other.communicate("\n", timeout=WAIT_S)


def test_a_name_that_no_region_has_is_told_with_those_that_are_there():
    region = vmalloc.Region("1M", name="somewhere")
    with pytest.raises(vmalloc.RegionUnavailable, match=r"called 'nowhere'; there .*'somewhere'") as caught:
        vmalloc.Region.attach("nowhere")
    assert caught.value.errno == errno.ENOENT
    assert str(os.getpid()) in str(caught.value)
    with pytest.raises(vmalloc.RegionUnavailable, match="called ''"):
        vmalloc.Region.attach("")
    assert not region.closed


def test_two_regions_of_one_name_are_told_apart_by_their_pids():
    first, second = vmalloc.Region("1M", name="twins"), vmalloc.Region("1M", name="twins")
    with pytest.raises(vmalloc.RegionUnavailable, match=f"2 regions fit 'twins'.*{os.getpid()}"):
        vmalloc.Region.attach("twins")
    assert first.id != second.id


def test_text_with_a_slash_is_a_path_and_no_name():
    with pytest.raises(ValueError, match="no '/'"):
        vmalloc.Region("1M", name="a/b")
    region = vmalloc.Region("1M", name="file")
    with pytest.raises(vmalloc.RegionUnavailable, match=r"cannot open \./file"):
        vmalloc.Region.attach("./file")
    assert vmalloc.Region.attach("file") is region


def test_a_socket_that_is_gone_before_it_is_looked_at_cannot_be_opened_either(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENXIO, "No such device or address")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(vmalloc.RegionUnavailable, match="cannot open"):
        vmalloc.Region.attach(tmp_path / "gone")


@needs_root
def test_a_name_finds_the_regions_of_its_own_user_only():
    ours = vmalloc.Region("1M", name="whose")

    def as_another_user():
        with pytest.raises(vmalloc.RegionUnavailable, match="called 'whose'") as caught:
            vmalloc.Region.attach("whose")
        assert "'whose' (" not in str(caught.value)  # those it cannot look at are left out
        return vmalloc.Region("1M", name="theirs")

    with forked(as_another_user, uid=NOBODY):
        with pytest.raises(vmalloc.RegionUnavailable, match="called 'theirs'"):
            vmalloc.Region.attach("theirs")
        (theirs,) = (f for f in find_regions() if f.name == "theirs")  # which root may see
        assert theirs.uid == NOBODY
        assert vmalloc.Region.attach(theirs.path).nr_pages == ours.nr_pages  # and attach if it insists
