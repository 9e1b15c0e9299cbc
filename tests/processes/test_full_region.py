# SPDX-License-Identifier: MIT
"""No message is lost where a region is full: sends wait for readers, then go by value."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import threading
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from tests.conftest import PAGE, assert_at_rest
from tests.processes.workers import WAIT_S, child, join

import vmalloc
from vmalloc import full

NBYTES = 1 << 20
THRESHOLD = 1000


@pytest.fixture
def region():
    region = vmalloc.Region("8M")
    vmalloc.install(region, THRESHOLD, timeout=WAIT_S)
    yield region
    vmalloc.uninstall()
    gc.collect()
    assert region.stats().nr_leases == 0
    assert_at_rest(region)


def read_slowly(queue, answers, nr):
    seen = []
    for _ in range(nr):
        a = queue.get()
        seen.append((int(a[0]), int(a[-1]), vmalloc.is_shared(a)))
        del a
        time.sleep(0.005)
    answers.put(seen)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "JoinableQueue"])
def test_a_queue_holds_more_than_its_region_and_nothing_goes_by_value(region, kind, method):
    context = multiprocessing.get_context(method)
    queue, answers = getattr(context, kind)(), context.SimpleQueue()
    with child(method, read_slowly, queue, answers, 60) as reader:
        for i in range(60):
            queue.put(np.full(NBYTES, i, "u1"))
        assert answers.get() == [(i, i, True) for i in range(60)]
        join(reader)


def hold_all(region, ready, let_go):
    block = region.alloc(region.nr_pages * PAGE)
    ready.set()
    let_go.wait(WAIT_S)
    block.release()
    ready.clear()
    let_go.clear()
    while not let_go.is_set():
        time.sleep(0.01)


def test_after_a_wait_in_vain_messages_are_copied_at_once_until_there_is_room(region):
    vmalloc.install(region, THRESHOLD, timeout=0.2)
    context = multiprocessing.get_context("fork")
    ready, let_go = context.Event(), context.Event()
    reader, writer = context.Pipe(duplex=False)
    a = np.full(50_000, 7, "u1")  # fits into a pipe
    with child("fork", hold_all, region, ready, let_go) as process:
        assert ready.wait(WAIT_S)
        waits = count_waits(vmalloc.message.get_settings().room)
        with pytest.warns(RuntimeWarning, match="by value until there is room"):
            received = [sent(a, reader, writer) for _ in range(5)]
        assert not any(map(vmalloc.is_shared, received))
        assert waits == ["in vain"]
        let_go.set()
        while ready.is_set():
            time.sleep(0.01)
        assert vmalloc.is_shared(sent(a, reader, writer))
        let_go.set()
        join(process)


def sent(a, reader, writer):
    writer.send(a)
    return reader.recv()


def count_waits(room):
    waits, wait = [], room._wait

    def counted(*args):
        waits.append("in vain")
        result = wait(*args)
        waits[-1] = "found room"
        return result

    room._wait = counted
    return waits


def test_a_message_larger_than_the_region_is_copied_without_a_wait(region):
    with child("fork", time.sleep, WAIT_S):
        waits = count_waits(vmalloc.message.get_settings().room)
        reader, writer = multiprocessing.Pipe(duplex=False)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(reader.recv()))
        thread.start()
        with pytest.warns(RuntimeWarning, match="by value"):
            writer.send(np.ones(9 << 20, "u1"))
        thread.join(WAIT_S)
        assert not vmalloc.is_shared(answers[0])
        assert answers[0].sum() == 9 << 20
        assert waits == []


def test_a_queue_s_thread_drops_nothing_when_warnings_are_errors(region):
    import warnings

    vmalloc.install(region, THRESHOLD, on_full="copy")
    block = region.alloc(region.nr_pages * PAGE)
    queue = multiprocessing.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        queue.put(np.full(NBYTES, 5, "u1"))
        assert (queue.get(timeout=WAIT_S) == 5).all()
    block.release()
    queue.close()
    queue.join_thread()


# ---- what a wait looks at ----


def test_a_glance_is_what_the_statistics_count(region):
    a, blocks = region.zeros(NBYTES, "u1"), [region.alloc(n * PAGE) for n in (1, 3, 20, 70, 300)]
    message = ForkingPickler.dumps(a)
    for _ in range(2):
        seen, stats = region._glance(), region._stats()
        assert seen == {name: stats[name] for name in seen}
        assert seen["nr_leases"] == 1
        while blocks:
            blocks.pop().release()
    assert (pickle.loads(message) == 0).all()


class OnlyGlances:
    """A region that cannot be walked."""

    def _glance(self):
        return {"free_pages": 0}


def test_a_wait_walks_nothing(region):
    def attempt():
        raise vmalloc.OutOfPages("full")

    with pytest.raises(vmalloc.OutOfPages):
        full.Room("wait", 0.05)._wait(attempt, OnlyGlances(), NBYTES)


def hold_some(region, nbytes, ready, let_go):
    block = region.alloc(nbytes) if nbytes else None
    region.tick()
    ready.set()
    let_go.wait(WAIT_S)
    if block is not None:
        block.release()


@pytest.mark.parametrize(("nbytes", "may_free"), [(0, False), (PAGE, True)])
def test_only_a_process_that_holds_something_may_free(region, nbytes, may_free):
    context = multiprocessing.get_context("fork")
    ready, let_go = context.Event(), context.Event()
    with child("fork", hold_some, region, nbytes, ready, let_go) as process:
        assert ready.wait(WAIT_S)
        assert region._glance()["nr_processes"] == 2
        own = region.alloc(2 * PAGE)
        assert full._others_may_free(region) is may_free
        let_go.set()
        join(process)
    own.release()


def test_a_warning_may_come_in_the_midst_of_another(monkeypatch):
    """A signal's handler that sends, and finds no room, runs wherever its thread is."""

    class Interrupted(set):
        def add(self, what):
            super().add(what)
            if what == "first":
                full.warn_once("handler's", "handler's")

    monkeypatch.setattr(full, "_warned", Interrupted())
    with pytest.warns(RuntimeWarning) as told:
        full.warn_once("first", "first")
    assert [str(w.message) for w in told] == ["handler's", "first"]


@pytest.mark.parametrize("inner", full.ON_FULL)
def test_a_send_within_a_send_leaves_the_outer_one_a_send(region, inner):
    """Where it has another way it ends no message of the dead; a handler may have sent meanwhile."""

    def attempt():
        full.Room(inner, 0).find(lambda: None, region, 0, True)
        return full.is_sending()

    assert full.Room("copy", 0).find(attempt, region, 0, True)
    assert not full.is_sending()
