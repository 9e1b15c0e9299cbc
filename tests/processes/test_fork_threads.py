# SPDX-License-Identifier: MIT
"""Fork while threads work, and by threads."""

from __future__ import annotations

import pickle
import threading

import pytest
from tests.conftest import PAGE
from tests.processes.forks import Forked, forked, region_for_children
from tests.processes.workers import WAIT_S

import vmalloc


@pytest.fixture
def region(design):
    with region_for_children(**design) as region:
        yield region
    region.close()


@pytest.fixture
def plain():
    with region_for_children() as region:
        yield region


class Churning:
    """Threads that allocate, free, share and load all the time, while the block lasts."""

    def __init__(self, region, nr=3):
        self.region, self.stop, self.wrong = region, threading.Event(), []
        self.threads = [threading.Thread(target=self.work, args=(i,)) for i in range(nr)]

    def work(self, number):
        try:
            i, kept = 0, []
            while not self.stop.is_set():
                i += 1
                a = self.region.full((i % 9 + 1 + 300 * (i % 50 == 0)) * PAGE, number, "u1")
                kept.append(a)
                if i % 5 == 0:
                    kept.append(pickle.loads(pickle.dumps(vmalloc.ref(a))))
                if len(kept) > 8:
                    del kept[: i % 8]
                if not all(x[0] == x[-1] == number for x in kept):
                    self.wrong.append((number, i))
        except Exception as e:
            self.wrong.append(e)

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for t in self.threads:
            t.join(WAIT_S)
        assert self.wrong == []
        assert not any(t.is_alive() for t in self.threads)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_threads_that_allocate_and_free_during_the_fork_do_no_harm(region):
    kept = region.full(20 * PAGE, 200, "u1")

    def work():
        assert (kept == 200).all()
        for i in range(50):
            a = region.full((i % 20 + 1) * PAGE, 100, "u1")
            assert (a == 100).all()
        region.check()

    with Churning(region):
        for _ in range(15):
            assert forked(work) == 0
    region.recover()
    assert region.stats().busy_pages == 20


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_threads_may_fork_at_once(plain):
    kept = [plain.full(PAGE, i, "u1") for i in range(10)]
    codes = []

    def work():
        mine = plain.full(30 * PAGE, 50, "u1")
        assert [int(a[0]) for a in kept] == list(range(10))
        assert (mine == 50).all()

    threads = [
        threading.Thread(target=lambda: codes.extend(forked(work) for _ in range(5))) for _ in range(3)
    ]
    with Churning(plain, 1):
        for t in threads:
            t.start()
        for t in threads:
            t.join(WAIT_S)
    assert codes == [0] * 15


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_the_thread_that_forks_is_the_childs_main_thread(plain):
    found = []

    def in_thread():
        mine = [plain.full(PAGE, 3, "u1")]  # this thread's magazines are warm

        def work(wait, say):
            wait()
            assert (mine[0] == 3).all()
            other = plain.full(PAGE, 4, "u1")
            t = threading.Thread(target=lambda: found.append(plain.full(PAGE, 5, "u1")))
            t.start()
            t.join(WAIT_S)
            assert (found[0] == 5).all()
            assert (other == 4).all()

        child = Forked(work)
        mine.clear()
        new = [plain.full(PAGE, 99, "u1") for _ in range(100)]
        child.go()
        found.append(child.end())
        del new

    t = threading.Thread(target=in_thread)
    t.start()
    t.join(WAIT_S)
    assert found == [0]
