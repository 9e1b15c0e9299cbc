# SPDX-License-Identifier: MIT
"""Fork: a child keeps what it inherited, and what it does is its own."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from tests.conftest import PAGE
from tests.processes.forks import Forked, assert_left, fill_anew, forked, nr_slots, region_for_children
from tests.processes.workers import WAIT_S, python, wait_until

import vmalloc
from vmalloc.facts import POOLS, POOLS_DEFAULT


@pytest.fixture
def region(design):
    with region_for_children(**design) as region:
        yield region
    region.close()


@pytest.fixture
def plain():
    with region_for_children() as region:
        yield region


# ---- what is inherited ----


def test_inherited_arrays_stay_though_the_parent_frees_and_allocates_again(region):
    sizes = [1, 1, 2, 5, 17, 256, 257, 600]
    arrays = [region.full(n * PAGE, i + 1, "u1") for i, n in enumerate(sizes)]
    block = region.alloc(3 * PAGE)
    memoryview(block)[:] = b"b" * (3 * PAGE)
    views = [a[:: i + 1] for i, a in enumerate(arrays)]

    def work(wait, say):
        wait()
        for i, (a, view) in enumerate(zip(arrays, views, strict=True)):
            assert (a == i + 1).all()
            assert (view == i + 1).all()
        assert bytes(block) == b"b" * (3 * PAGE)

    child = Forked(work)
    arrays.clear()
    views.clear()
    block.release()
    region.purge()
    new = fill_anew(region, 100)
    child.go()
    assert child.end() == 0
    del new
    assert region.recover() > 0


def test_what_parent_and_child_write_both_see(plain):
    a = plain.zeros(PAGE, "u1")

    def work(wait, say):
        a[0] = 7
        say()
        wait()
        assert a[1] == 8

    child = Forked(work)
    child.wait_for_answer()
    assert a[0] == 7
    a[1] = 8
    child.go()
    assert child.end() == 0


def test_a_range_is_free_when_parent_and_child_let_go_in_either_order(region):
    for child_first in (True, False):
        a = [region.full(300 * PAGE, 4, "u1")]

        def work(wait, say, a=a):
            wait()
            a.clear()
            say()
            wait()

        child = Forked(work)
        if not child_first:
            a.clear()
            assert region.stats().busy_pages == 300
        child.go()
        child.wait_for_answer()
        if child_first:
            assert region.stats().busy_pages == 300
            assert (a[0] == 4).all()
            a.clear()
        assert region.stats().busy_pages == 0
        child.go()
        assert child.end() == 0


def test_many_references_of_the_parent_are_one_process_in_the_child(plain):
    a = plain.full(PAGE, 4, "u1")
    loaded = [pickle.loads(ForkingPickler.dumps(vmalloc.ref(a))) for _ in range(10)]

    def work(wait, say):
        nonlocal a
        wait()
        del a
        assert all((x == 4).all() for x in loaded)
        while loaded:
            assert plain.stats().busy_pages == 1
            loaded.pop()
        assert plain.stats().busy_pages == 0

    child = Forked(work)
    loaded.clear()
    del a
    assert plain.stats().busy_pages == 1
    child.go()
    assert child.end() == 0


def test_a_child_that_dies_gives_back_what_it_inherited(plain):
    a = [plain.full(PAGE, 4, "u1")]
    child = Forked(lambda wait, say: (say(), wait()))
    child.wait_for_answer()
    a.clear()
    plain.recover()
    assert plain.stats().busy_pages == 1
    os.kill(child.pid, signal.SIGKILL)
    assert child.end() == -signal.SIGKILL
    assert plain.recover() == PAGE


def test_a_parent_that_dies_leaves_its_child_everything():
    code = """
import os, sys, time, vmalloc
region = vmalloc.Region("16M")
arrays = [region.full(4096 * n, n, "u1") for n in range(1, 50)]
if os.fork():
    os.kill(os.getpid(), 9)
while os.getppid() != int(sys.argv[1]) and region.stats().nr_processes > 1:
    region.recover()
    time.sleep(0.01)
others = [region.full(4096, 99, "u1") for _ in range(500)]
assert all((a == a.nbytes // 4096).all() for a in arrays)
del arrays, others
region.recover()
assert region.stats().busy_pages == 0, region.stats()
region.check(at_rest=True)
print("fine")
"""
    done = python(code, os.getpid())
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_a_child_passes_on_what_it_inherited(region):
    shared, private = region.full(PAGE, 4, "u1"), region.full(PAGE, 5, "u1")
    ref = vmalloc.ref(shared)
    text = pickle.dumps(ref)
    read, write = os.pipe()

    def work():
        refs = [vmalloc.ref(shared), vmalloc.ref(private), ref]
        messages = pickle.dumps([pickle.dumps(r) for r in refs])
        os.write(write, messages)
        region["private"] = private
        os.close(write)
        os._exit(0)

    assert forked(work) == 0
    os.close(write)
    with open(read, "rb") as pipe:
        messages = pickle.load(pipe)
    region.recover()
    shared = private = ref = None
    assert [pickle.loads(m)[0] for m in messages] == [4, 5, 4]
    assert region["private"][0] == 5
    del region["private"]
    region.expire_leases()
    with pytest.raises(vmalloc.StaleReference):
        pickle.loads(text)


def test_a_ref_of_the_parent_is_not_ended_by_its_childs_copy(plain):
    ref = vmalloc.ref(plain.full(PAGE, 4, "u1"))
    text = pickle.dumps(ref)

    def work():
        nonlocal ref
        del ref
        gc.collect()

    assert forked(work) == 0
    plain.recover()
    assert plain.stats().nr_leases == 1
    assert pickle.loads(text)[0] == 4


def test_a_message_of_the_parent_is_loaded_in_the_child(plain):
    vmalloc.install(plain, 10)
    try:
        text = ForkingPickler.dumps(plain.full(PAGE, 4, "u1"))
        assert forked(lambda: pickle.loads(text)[0] == 4 or os._exit(9)) == 0
    finally:
        vmalloc.uninstall()
    plain.recover()
    assert plain.stats().nr_leases == 0


# ---- whose is what ----


def test_the_childs_magazines_are_not_its_parents(region):
    """Both are warm with the same ranges before; what each takes then is never the other's."""
    for n in (1, 2, 3, 8):
        held = [region.alloc(n * PAGE) for _ in range(30)]
        region.free_bulk(held)
    read, write = os.pipe()

    def take(value):
        taken = [region.full(n * PAGE, value, "u1") for _ in range(20) for n in (1, 2, 3, 8)]
        return taken, {a.base.offset for a in taken}

    def work(wait, say):
        taken, offsets = take(1)
        os.write(write, np.array(sorted(offsets), "u8").tobytes())
        wait()
        assert all((a == 1).all() for a in taken)

    child = Forked(work)
    taken, mine = take(2)
    theirs = set(np.frombuffer(os.read(read, 1 << 16), "u8").tolist())
    assert len(mine) == len(theirs) == 80
    assert not mine & theirs
    assert all((a == 2).all() for a in taken)
    child.go()
    assert child.end() == 0
    os.close(read)
    os.close(write)


def test_parent_and_child_allocate_and_free_at_once(region):
    kept = [region.full(n * PAGE, n, "u1") for n in range(1, 30)]

    def churn():
        for i in range(400):
            a = region.full((i * 7 % 40 + 1) * PAGE, i % 250, "u1")
            assert a[0] == a[-1] == i % 250
            if i % 100 == 0:
                region.purge()
        assert all((a == a.nbytes // PAGE).all() for a in kept)

    children = [Forked(lambda wait, say: churn()) for _ in range(3)]
    churn()
    assert [child.end() for child in children] == [0, 0, 0]
    region.recover()
    assert region.stats().busy_pages == sum(range(1, 30))


def test_nested_forks_each_keep_everything(plain):
    a, block = [plain.full(300 * PAGE, 9, "u1")], plain.alloc(PAGE)
    memoryview(block)[:] = b"n" * PAGE

    def generation(left):
        mine = plain.full(PAGE, left, "u1")
        if left:
            assert forked(lambda: generation(left - 1)) == 0
            plain.recover()
        assert (mine == left).all()
        assert (a[0] == 9).all()
        assert bytes(block) == b"n" * PAGE
        plain.check()

    generation(5)
    plain.recover()
    assert plain.stats().busy_pages == 301


def test_grandchildren_keep_what_all_before_them_freed(plain):
    a = [plain.full(50 * PAGE, 9, "u1")]

    def grandchild(wait, say):
        wait()
        taken = fill_anew(plain, 50)
        assert (a[0] == 9).all()
        del taken

    def child(wait, say):
        inner = Forked(grandchild)
        a.clear()
        say()
        wait()
        inner.go()
        assert inner.end() == 0

    outer = Forked(child)
    outer.wait_for_answer()
    a.clear()
    assert plain.stats().busy_pages == 50
    outer.go()
    assert outer.end() == 0


def test_several_regions_are_inherited_at_once(plain):
    others = [vmalloc.Region("1M", pools=p) for p in POOLS if p != POOLS_DEFAULT]
    arrays = [[r.full(PAGE, i, "u1")] for i, r in enumerate([plain, *others])]
    space = vmalloc.AddressSpace(0, 1 << 30)
    number = space.alloc(PAGE)

    def work(wait, say):
        wait()
        assert [int(a[0][5]) for a in arrays] == list(range(len(POOLS)))
        assert space.size_of(number) == PAGE
        space.free(space.alloc(10))

    child = Forked(work)
    for a in arrays:
        a.clear()
    new = [r.full(PAGE, 77, "u1") for r in [plain, *others]]
    child.go()
    assert child.end() == 0
    del new
    for region in others:
        assert_left(region)
    space.free(number)


# ---- drop_inherited ----


def test_drop_inherited_lets_go_of_what_came_with_the_fork(region):
    arrays = [region.full(3 * PAGE, 3, "u1") for _ in range(10)]
    block = region.alloc(PAGE)
    ref = vmalloc.ref(arrays[0])

    def work(wait, say):
        nonlocal arrays, block, ref
        mine = region.full(PAGE, 5, "u1")
        assert region.drop_inherited() == 11
        assert region.drop_inherited() == 0
        say()
        wait()
        del arrays, ref  # no error, and nothing is freed twice
        block.release()
        gc.collect()
        assert (mine == 5).all()
        assert region.stats().busy_pages == 1 + 200
        region.check()

    child = Forked(work)
    child.wait_for_answer()
    region.recover()
    assert region.stats().busy_pages == 32  # 31 of ours and one of the child's
    arrays.clear()
    block.release()
    del ref
    assert region.stats().busy_pages == 1
    new = [region.full(PAGE, 6, "u1") for _ in range(200)]
    child.go()
    assert child.end() == 0
    assert all((a == 6).all() for a in new)


def test_what_was_dropped_is_stale_and_not_another_array(plain):
    a = [plain.full(PAGE, 3, "u1")]

    def work(wait, say):
        plain.drop_inherited()
        say()
        wait()
        with pytest.raises(vmalloc.StaleReference):
            vmalloc.ref(a[0])

    child = Forked(work)
    child.wait_for_answer()
    a.clear()
    new = plain.full(PAGE, 4, "u1")
    child.go()
    assert child.end() == 0
    assert (new == 4).all()


def test_drop_inherited_in_a_process_that_inherited_nothing_does_nothing(plain):
    a = plain.full(PAGE, 3, "u1")
    assert plain.drop_inherited() == 0
    assert (a == 3).all()


def test_what_a_child_loads_makes_and_passes_on_is_its_own(plain):
    loaded, passed_on, left = (plain.full(PAGE, i, "u1") for i in range(3))
    text = pickle.dumps(ref := vmalloc.ref(loaded))

    def work():
        again, mine, own = pickle.loads(text), plain.full(PAGE, 5, "u1"), vmalloc.ref(passed_on)
        plain.drop_inherited()
        taken = fill_anew(plain, 1)
        assert [int(a[0]) for a in (again, mine, own.get(), passed_on)] == [0, 5, 1, 1]
        assert len(taken) == plain.nr_pages - 3

    child = Forked(lambda wait, say: (wait(), work()))
    assert left[0] == 2
    loaded = passed_on = left = None
    child.go()
    assert child.end() == 0
    del ref


def test_python_warns_of_nothing_at_fork():
    code = """
import os, sys, vmalloc
region = vmalloc.Region("1M")
a = region.zeros(5)
pid = os.fork()
if pid == 0:
    region.drop_inherited()
    b = region.zeros(9)
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        capture_output=True, text=True, timeout=WAIT_S, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_stats_are_told_while_children_come_and_go(plain):
    children = [Forked(lambda wait, say: (say(), wait())) for _ in range(20)]
    for child in children:
        child.wait_for_answer()
    assert plain.stats().nr_processes == 21
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
        child.end()
    wait_until(lambda: nr_slots(plain) == 1)


def test_a_process_with_hundreds_of_regions_forks():
    regions = [vmalloc.Region("1M", helper=False) for _ in range(300)]
    arrays = [region.full(10, i) for i, region in enumerate(regions)]

    def work():
        assert [float(a.sum()) for a in arrays] == [10.0 * i for i in range(300)]

    assert forked(work) == 0
