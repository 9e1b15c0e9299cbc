# SPDX-License-Identifier: MIT
"""Messages whose sender or receiver ended, or was killed at any moment: nothing is lost."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from tests.conftest import PAGE, assert_at_rest
from tests.processes.workers import WAIT_S, child, hold_and_tell, wait_until

import vmalloc

THRESHOLD = 1000


@pytest.fixture
def short():
    """A region whose leases end a moment after their maker's death."""
    region = vmalloc.Region("16M", lease_ttl_s=0.2)
    yield region
    gc.collect()
    region.recover()
    region.expire_leases()
    assert region.stats().busy_pages == 0
    assert_at_rest(region)


SENDER = """
import os, pickle, signal, sys
from multiprocessing.reduction import ForkingPickler
import vmalloc
region = vmalloc.Region.attach(int(sys.argv[1]))
vmalloc.install(region, 1000)
messages = [bytes(ForkingPickler.dumps(region.full(4096, i % 250, "u1"))) for i in range(int(sys.argv[2]))]
sys.stdout.buffer.write(pickle.dumps(messages))
sys.stdout.flush()
"""
WAYS_TO_END = {
    "normally": "",
    "by sys.exit": "sys.exit(0)",
    "by os._exit": "os._exit(0)",
    "by SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "by SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "by an exception": "sys.stderr = None; raise SystemError",
    "by exec": "os.execv('/bin/true', ['true'])",
}


def messages_of_the_dead(region, n=10, way="by SIGKILL"):
    fd = region.fileno()
    command = [sys.executable, "-c", SENDER + WAYS_TO_END[way], str(fd), str(n)]
    done = subprocess.run(command, capture_output=True, timeout=WAIT_S, pass_fds=[fd])
    assert done.stderr == b""
    return pickle.loads(done.stdout)


@pytest.mark.parametrize("way", WAYS_TO_END)
def test_messages_outlive_a_sender_that_ends(way):
    region = vmalloc.Region("16M")
    messages = messages_of_the_dead(region, way=way)
    region.recover()
    assert (region.stats().busy_pages, region.stats().nr_leases) == (10, 10)
    assert [set(pickle.loads(m).tolist()) for m in messages] == [{i} for i in range(10)]
    assert (region.stats().busy_pages, region.stats().nr_leases) == (0, 0)
    assert_at_rest(region)


def test_after_the_lease_ttl_a_message_of_the_dead_is_stale(short):
    messages = messages_of_the_dead(short)
    short.recover()
    assert pickle.loads(messages[0])[0] == 0 or short.stats().nr_leases < 9
    ended = 0

    def none_is_left():
        nonlocal ended
        ended += short.expire_leases(all=False)
        return short.stats().nr_leases == 0

    wait_until(none_is_left)
    assert ended == 9
    new = [short.full(PAGE, 200, "u1") for _ in range(100)]
    for message in messages:
        with pytest.raises(vmalloc.StaleReference, match=r"page \d+"):
            pickle.loads(message)
    assert all((a == 200).all() for a in new)
    assert short.stats().busy_pages == 100


@pytest.mark.filterwarnings("ignore:the region is full, so 2000 unread messages:RuntimeWarning")
def test_a_full_region_takes_what_dead_senders_left_by_itself(short):
    messages_of_the_dead(short, n=2000)
    short.recover()
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            assert short.alloc(short.nr_pages * PAGE).nbytes == 16 << 20
            break
        except vmalloc.OutOfPages:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert short.stats().nr_leases == 0


def test_a_request_for_more_than_the_region_has_ends_no_message_of_the_dead(short):
    messages_of_the_dead(short)
    short.recover()
    time.sleep(0.3)  # their leases may be ended now
    for ask in (short.alloc, lambda nbytes: short.alloc(nbytes, timeout=0.1)):
        with pytest.raises(vmalloc.OutOfPages):
            ask((short.nr_pages + 1) * PAGE)
    assert short.stats().nr_leases == 10


def put_twenty(queue):
    for i in range(20):
        queue.put(np.full(50_000, i, "u1"))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_a_message_in_a_queue_outlives_its_producer_however_late_it_is_read(short, kind, method):
    vmalloc.install(short, THRESHOLD)
    try:
        queue = getattr(multiprocessing.get_context(method), kind)()
        with child(method, put_twenty, queue) as process:
            process.join(WAIT_S)
        for i in range(20):
            short.recover()
            short.purge()
            short.tick()
            time.sleep(0.02)  # twice lease_ttl_s in all
            a = queue.get()
            assert (a[0], a[-1], vmalloc.is_shared(a)) == (i, i, True)
    finally:
        vmalloc.uninstall()


def test_a_send_is_copied_rather_than_that_it_ends_what_may_still_be_read(short):
    vmalloc.install(short, THRESHOLD)
    try:
        messages = messages_of_the_dead(short, n=10)
        short.recover()
        time.sleep(0.4)
        held = short.alloc(short.stats().largest_free_pages * PAGE)
        with pytest.warns(RuntimeWarning, match="by value"):
            assert not vmalloc.is_shared(pickle.loads(ForkingPickler.dumps(np.ones(40 * PAGE, "u1"))))
        assert [int(pickle.loads(m)[0]) for m in messages] == list(range(10))
        del held
    finally:
        vmalloc.uninstall()


def test_a_lease_of_the_living_has_no_end(short):
    vmalloc.install(short, THRESHOLD)
    try:
        text = ForkingPickler.dumps(short.full(PAGE, 4, "u1"))
    finally:
        vmalloc.uninstall()
    time.sleep(0.4)  # twice lease_ttl_s
    short.recover()
    short.purge()
    assert short.expire_leases(all=False) == 0
    assert pickle.loads(text)[0] == 4


def test_a_claimed_array_of_the_dead_stays_while_the_other_messages_end(short):
    messages = messages_of_the_dead(short)
    a = pickle.loads(messages[3])
    wait_until(lambda: short.expire_leases(all=False) >= 0 and short.stats().nr_leases == 0)
    assert (a == 3).all()
    assert short.stats().busy_pages == 1
    assert (pickle.loads(messages[3]) == 3).all()  # as long as somebody holds it


def put_all(region, queue, ready):
    for i in range(30):
        queue.put(region.full(PAGE, i, "u1"))
    ready.put(30)


def test_a_queue_that_is_dropped_full_ends_with_its_leases(short):
    context = multiprocessing.get_context("fork")
    vmalloc.install(short, THRESHOLD)
    try:
        queue = context.Queue()
        for i in range(30):
            queue.put(short.full(PAGE, i, "u1"))
        assert queue.get()[0] == 0
        wait_until(lambda: short.stats().nr_leases == 29, "the queue's thread pickles")
        queue.cancel_join_thread()
        queue.close()
        del queue
        gc.collect()
    finally:
        vmalloc.uninstall()
    assert short.expire_leases() == 29  # nobody can tell that the pipe is gone
    assert short.stats().busy_pages == 0


def test_a_queue_whose_reader_and_writer_died_ends_after_a_while(short):
    context = multiprocessing.get_context("fork")
    vmalloc.install(short, THRESHOLD)
    try:
        queue, ready = context.SimpleQueue(), context.SimpleQueue()
        with child("fork", put_all, short, queue, ready) as process:
            assert ready.get() == 30
            os.kill(process.pid, signal.SIGKILL)
    finally:
        vmalloc.uninstall()
    short.recover()
    del queue
    wait_until(lambda: short.expire_leases(all=False) >= 0 and short.stats().nr_leases == 0)
    assert short.stats().busy_pages == 0


def test_a_ref_of_the_dead_loads_as_often_as_one_likes_until_its_time_is_over(short):
    code = """
import pickle, sys, vmalloc
region = vmalloc.Region.attach(int(sys.argv[1]))
ref = vmalloc.ref(region.full(4096, 8, "u1"))
sys.stdout.buffer.write(pickle.dumps(ref))
sys.stdout.flush()
import os; os._exit(0)
"""
    fd = short.fileno()
    text = subprocess.run(
        [sys.executable, "-c", code, str(fd)], stdout=subprocess.PIPE, timeout=WAIT_S, pass_fds=[fd]
    ).stdout
    for _ in range(5):
        assert pickle.loads(text).sum() == 8 * PAGE
    wait_until(lambda: short.expire_leases(all=False) == 1)
    with pytest.raises(vmalloc.StaleReference):
        pickle.loads(text)


def test_a_ref_ends_with_its_object(short):
    ref = vmalloc.ref(short.full(PAGE, 8, "u1"))
    text = pickle.dumps(ref)
    assert short.stats().nr_leases == 1
    del ref
    assert (short.stats().nr_leases, short.stats().busy_pages) == (0, 0)
    with pytest.raises(vmalloc.StaleReference):
        pickle.loads(text)


def test_a_receiver_killed_before_and_after_it_claims_loses_nothing(short):
    context = multiprocessing.get_context("fork")
    vmalloc.install(short, THRESHOLD)
    try:
        there, answers = context.SimpleQueue(), context.SimpleQueue()
        with child("fork", hold_and_tell, there, answers) as process:
            for i in range(5):
                there.put(short.full(PAGE, i, "u1"))
                answers.get()
            os.kill(process.pid, signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            there.put(short.full(PAGE, 9, "u1"))  # in the pipe
            os.kill(process.pid, signal.SIGKILL)
    finally:
        vmalloc.uninstall()
    short.recover()
    assert (short.stats().busy_pages, short.stats().nr_leases) == (1, 1)
    assert short.expire_leases() == 1
    assert short.stats().busy_pages == 0


@pytest.mark.parametrize("moment_ms", [0, 1, 2, 5, 10, 20, 40])
def test_sender_and_receiver_killed_at_any_moment_lose_nothing(short, moment_ms):
    context = multiprocessing.get_context("fork")
    mine = short.full(PAGE, 123, "u1")
    vmalloc.install(short, THRESHOLD)
    try:
        queue, ready = context.SimpleQueue(), context.SimpleQueue()
        with (
            child("fork", send_for_ever, short, queue, ready) as sender,
            child("fork", receive_for_ever, queue, ready) as receiver,
        ):
            assert {ready.get(), ready.get()} == {"sends", "receives"}
            time.sleep(moment_ms / 1000)
            os.kill(sender.pid, signal.SIGKILL)
            time.sleep(moment_ms / 3000)
            os.kill(receiver.pid, signal.SIGKILL)
            sender.join(WAIT_S)
            receiver.join(WAIT_S)
    finally:
        vmalloc.uninstall()
    short.recover()
    short.expire_leases()
    short.recover()
    assert (mine == 123).all()
    assert (short.stats().busy_pages, short.stats().nr_leases) == (1, 0)
    short.check(at_rest=True)


def send_for_ever(region, queue, ready):
    ready.put("sends")
    i = 0
    while True:
        i += 1
        queue.put(region.full((i % 7 + 1) * PAGE, i % 250, "u1"))


def receive_for_ever(queue, ready):
    ready.put("receives")
    kept = []
    while True:
        a = queue.get()
        assert (a == a[0]).all()
        kept.append(a[::2])
        if len(kept) == 5:
            kept.clear()


def test_messages_take_nothing_of_dev_shm(short):
    """So a small /dev/shm, as containers have it (64 MiB), limits nothing."""
    vmalloc.install(short, THRESHOLD)
    try:
        before = os.listdir("/dev/shm"), os.statvfs("/dev/shm").f_files - os.statvfs("/dev/shm").f_ffree
        a = pickle.loads(ForkingPickler.dumps(np.zeros(8 << 20, "u1")))
        after = os.listdir("/dev/shm"), os.statvfs("/dev/shm").f_files - os.statvfs("/dev/shm").f_ffree
    finally:
        vmalloc.uninstall()
    assert [n for n in after[0] if n not in before[0] and "vmalloc" in n] == []
    assert vmalloc.region_of(a) is short
