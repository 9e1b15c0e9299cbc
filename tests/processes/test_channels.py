# SPDX-License-Identifier: MIT
"""Messages end when nobody can load them any more, and not before: looked at through their channels."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import pickle
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Client, Listener

import numpy as np
import pytest
from tests.conftest import PAGE, assert_at_rest
from tests.processes.workers import WAIT_S, child, wait_until

import vmalloc
from vmalloc._core import under_way
from vmalloc.facts import CHANNEL_GRACE_MS

THRESHOLD = 1000
LONG_S = CHANNEL_GRACE_MS / 1000 + 2  # whatever can be lost is lost by then
SOON_S = 15  # 5, where the machine has nothing else to do


@pytest.fixture
def region():
    region = vmalloc.Region("64M")
    vmalloc.install(region, THRESHOLD)
    yield region
    vmalloc.uninstall()
    gc.collect()
    region.recover()
    assert region.stats().nr_leases == 0
    assert region.stats().busy_pages == 0
    assert_at_rest(region)


def array(value=1):
    return np.full(10 * PAGE, value, "u1")


def all_end_soon(region):
    gc.collect()
    started = time.monotonic()
    wait_until(lambda: region.stats().nr_leases == 0)
    assert time.monotonic() - started < SOON_S
    region.recover()
    assert region.stats().busy_pages == 0


class TellsHowManyAreKept:
    def __reduce__(self):
        return nr_kept, ()


def nr_kept():
    return len(under_way.received)


def test_only_messages_with_references_are_kept_while_they_are_loaded(region):
    """Of the others a load that fails has nothing to end."""
    queue = multiprocessing.Queue()
    for x, nr in ((b"x" * 10 * PAGE, 0), (array(), 1)):
        queue.put((x, TellsHowManyAreKept()))
        assert queue.get(timeout=WAIT_S)[1] == nr
    queue.close()


# ---- nobody can load them ----


def leave_queues_full():
    """A queue, a simple queue, two kinds of pipes, with messages in them; all dropped."""
    queue, simple = multiprocessing.Queue(), multiprocessing.SimpleQueue()
    for i in range(20):
        queue.put(array(i))
        simple.put(array(i))
    assert queue.get()[0] == 0
    queue.cancel_join_thread()
    queue.close()
    ends = [multiprocessing.Pipe(duplex) for duplex in (False, True)]
    for reader, writer in ends:
        writer.send([array(), array()])
        reader.close()


def test_of_channels_that_were_dropped_nothing_is_kept(region):
    leave_queues_full()
    assert region.stats().nr_leases > 20
    all_end_soon(region)


def use_one(x):
    return x


def slow(x):
    time.sleep(WAIT_S)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_of_pools_whose_results_nobody_fetches_nothing_is_kept(region, method):
    context = multiprocessing.get_context(method)
    frame = array()
    for _ in range(3):
        with context.Pool(2) as pool:
            for x in pool.imap(use_one, (frame for _ in range(40))):
                del x
                break
    del pool, frame
    all_end_soon(region)


def test_of_a_terminated_pool_whose_object_lives_on_no_task_is_kept(region):
    pool = multiprocessing.get_context("fork").Pool(1)
    pool.map_async(slow, [array() for _ in range(10)], chunksize=1)
    wait_until(lambda: region.stats().nr_leases > 5)
    pool.terminate()
    pool.join()
    all_end_soon(region)
    assert pool._pool is not None


def test_of_a_terminated_pool_and_a_broken_executor_nothing_is_kept(region):
    context = multiprocessing.get_context("fork")
    pool = context.Pool(2)
    for _ in range(10):
        pool.apply_async(slow, (array(),))
    executor = concurrent.futures.ProcessPoolExecutor(2, context)
    futures = [executor.submit(slow, array()) for _ in range(10)]
    wait_until(lambda: region.stats().nr_leases > 5)
    pool.terminate()
    pool.join()
    os.kill(next(iter(executor._processes)), signal.SIGKILL)
    with pytest.raises(BrokenProcessPool):
        futures[-1].result(WAIT_S)
    executor.shutdown()
    del futures, executor, pool
    all_end_soon(region)


def serve_batches(requests, batches):
    for i in iter(requests.get, None):
        batches.put((i, array(i)))


def test_of_a_loader_whose_worker_is_killed_nothing_is_kept(region):
    context = multiprocessing.get_context("fork")
    requests, batches = context.SimpleQueue(), context.SimpleQueue()
    with child("fork", serve_batches, requests, batches) as worker:
        for i in range(5):
            requests.put(i)
        assert batches.get()[1].sum() == 0
        wait_until(requests.empty)
        os.kill(worker.pid, signal.SIGSTOP)
        for _ in range(5):
            requests.put(array())
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(WAIT_S)
    while batches._reader.poll():
        batches._reader.recv()
    del requests  # the worker may have read half a message: stock gives up this queue, too
    all_end_soon(region)


class StopsWhenLoaded:
    def __reduce__(self):
        return os.kill, (_OwnPid(), signal.SIGSTOP)


class _OwnPid:
    def __reduce__(self):
        return os.getpid, ()


def receive_all(queue):
    while True:
        queue.get()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_of_a_receiver_killed_while_it_loads_nothing_is_kept_though_its_queue_lives(region, method):
    queue = multiprocessing.get_context(method).SimpleQueue()
    with child(method, receive_all, queue) as receiver:
        queue.put([array(), StopsWhenLoaded(), array(2)])
        wait_until(lambda: _state(receiver.pid) == "T")
        assert region.stats().nr_leases == 1
        time.sleep(LONG_S)
        assert region.stats().nr_leases == 1  # it may go on
        os.kill(receiver.pid, signal.SIGKILL)
        receiver.join(WAIT_S)
    all_end_soon(region)


def _state(pid):
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rpartition(")")[2].split()[0]


class Explodes:
    def __reduce__(self):
        return divmod, (1, 0)


def queue_like(kind):
    """What puts there, what gets there; the channel lives as long as they do."""
    if kind == "pipe":
        reader, writer = multiprocessing.Pipe(duplex=False)
        return writer.send, reader.recv
    queue = getattr(multiprocessing, kind)()
    return queue.put, queue.get


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "pipe"])
def test_of_a_message_that_could_not_be_loaded_nothing_is_kept(region, kind):
    put, get = queue_like(kind)
    for message in ([array(), Explodes(), array(2)], [Explodes(), array()]):
        put(message)
        with pytest.raises(ZeroDivisionError):
            get()
    assert region.stats().nr_leases == 0
    put(array(3))
    assert (get() == 3).all()


# ---- somebody can ----


class FailsOnce:
    left = 1

    def __reduce__(self):
        return fail_once, ()


def fail_once():
    FailsOnce.left -= 1
    return 1 // (FailsOnce.left < 0)


def test_bytes_that_could_not_be_loaded_may_be_loaded_again(region):
    reader, writer = multiprocessing.Pipe(duplex=False)
    writer.send([FailsOnce(), array(7)])
    message = reader.recv_bytes()
    with pytest.raises(ZeroDivisionError):
        pickle.loads(message)
    assert region.stats().nr_leases == 1
    assert (pickle.loads(message)[1] == 7).all()


def produce(queue):
    for i in range(10):
        queue.put(array(i))


def pass_on(reader, writer):
    writer.send_bytes(reader.recv_bytes())


def test_whoever_is_slow_loses_nothing(region):
    context = multiprocessing.get_context("fork")
    queue, simple = context.Queue(), context.SimpleQueue()
    for q in (queue, simple):
        with child("fork", produce, q) as producer:
            producer.join(WAIT_S)
    with Listener(family="AF_UNIX") as listener:
        client = Client(listener.address)
        server = listener.accept()
    near, far = context.Pipe()
    late, early = context.Pipe(duplex=False)
    (from_us, to_proxy), (from_proxy, to_us) = (context.Pipe(duplex=False) for _ in range(2))
    for connection in (client, far, early):
        connection.send(array(7))
    to_proxy.send(array(8))
    with child("fork", pass_on, from_us, to_us) as proxy:
        proxy.join(WAIT_S)
    early.send(array(9))
    early.close()
    assert late.recv()[0] == 7
    in_hands = late.recv_bytes()
    late.close()
    time.sleep(LONG_S)
    for q in (queue, simple):
        for i in range(10):
            assert (q.get() == i).all()
    for connection in (server, near):
        assert (connection.recv() == 7).all()
    assert (from_proxy.recv() == 8).all()
    assert (pickle.loads(in_hands) == 9).all()
    assert region.stats().nr_leases == 0


def test_a_look_changes_neither_when_a_reader_sees_the_end_nor_when_a_writer_is_told(region):
    reader, writer = multiprocessing.Pipe(duplex=False)
    reader_left, lonely = multiprocessing.Pipe(duplex=False)
    writer.send(array())
    reader_left.close()
    time.sleep(1.5)  # somebody looks meanwhile
    with pytest.raises(BrokenPipeError):
        lonely.send(1)
    writer.close()
    reader.recv()
    with pytest.raises(EOFError):
        reader.recv()


def read_without_us(fd, ready, go_on):
    vmalloc.uninstall()
    text = os.read(fd, 1 << 16)
    ready.send(1)
    go_on.recv()
    ready.send(int(pickle.loads(text[4:])[0]))


def test_what_a_reader_has_that_does_not_tell_is_kept_as_long_as_it_has_the_channel(region):
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    (told, ready), (going, go_on) = (context.Pipe(duplex=False) for _ in range(2))
    with child("fork", read_without_us, reader.fileno(), ready, going):
        writer.send(array(5))
        assert told.recv() == 1
        time.sleep(LONG_S)
        go_on.send(1)
        assert told.recv() == 5


def pass_on_within(reader, writer):
    """As a broker does that gives what it passes on a name."""
    writer.send(("named", reader.recv_bytes()))


def test_what_was_passed_on_within_another_message_outlives_who_passed_it_on(region):
    context = multiprocessing.get_context("fork")
    (from_us, to_proxy), (from_proxy, to_us) = (context.Pipe(duplex=False) for _ in range(2))
    to_proxy.send(array(8))
    with child("fork", pass_on_within, from_us, to_us) as proxy:
        proxy.join(WAIT_S)
    time.sleep(LONG_S)
    name, message = from_proxy.recv()
    assert name == "named"
    assert (pickle.loads(message) == 8).all()


def pass_on_what_came_past(fd, writer, large):
    """What nobody noted here that it came: not read by a connection's methods."""
    text = os.read(fd, 1 << 16)
    writer.send_bytes(large + text[4:])


def test_what_came_past_the_connection_is_found_when_it_is_passed_on(region):
    """A large message is looked into as long as anybody has a lease, whoever made it."""
    context = multiprocessing.get_context("fork")
    (from_us, to_proxy), (from_proxy, to_us) = (context.Pipe(duplex=False) for _ in range(2))
    large = bytes(40_000)
    to_us.send_bytes(large)  # nobody has one
    assert from_proxy.recv_bytes() == large
    to_proxy.send(array(8))
    with child("fork", pass_on_what_came_past, from_us.fileno(), to_us, large) as proxy:
        proxy.join(WAIT_S)
    from_us.close()
    time.sleep(LONG_S)
    assert (pickle.loads(from_proxy.recv_bytes()[len(large) :]) == 8).all()
