# SPDX-License-Identifier: MIT
"""Messages through every transport, in a region of a tenth of what is in flight, while workers end or die.

Who ends or is killed between two messages is started again: then every message arrives, but for those that
stock loses, too. Or all are killed anywhere and their channel is dropped. Soon after the end nothing is kept.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import random
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Client, Listener

import numpy as np
import pytest
from tests.conftest import PAGE, assert_at_rest
from tests.processes.workers import WAIT_S, wait_until

import vmalloc

CONNECTIONS = ("pipe", "duplex", "unix", "tcp")
FED = ("queue", "joinable")  # a thread writes them
QUEUES = (*FED, "simple", "manager")
KINDS = (*CONNECTIONS, *QUEUES, "pool", "executor")
REGION = "1M"  # 250 messages of the mean size are ten times that


def array(number):
    return np.full((1 + number % 20) * PAGE, number % 251, "u1")


def check(number, a):
    assert a.shape == ((1 + number % 20) * PAGE,)
    assert (a == number % 251).all()


# ---- channels ----


def connect(context, kind):
    """Both ends, the reader's first."""
    if kind in ("pipe", "duplex"):
        return context.Pipe(duplex=kind == "duplex")
    with Listener(family="AF_UNIX" if kind == "unix" else "AF_INET") as listener:
        writer = Client(listener.address)
        return listener.accept(), writer


class Channel:
    """Both ends, what was written and read so far, and gates closed around each write and each read."""

    def __init__(self, context, kind):
        self.kind, self.manager = kind, None
        self.written, self.read, self.is_over, self.writer_leaves, self.reader_leaves = (
            context.RawValue("i", 0) for _ in range(5)
        )
        self.write_gates, self.read_gates = [context.Lock()], [context.Lock()]
        if kind in CONNECTIONS:
            self.reader, self.writer = connect(context, kind)
            self.opened = [self.reader, self.writer]
            return
        if kind == "manager":
            self.manager = context.Manager()
            queue = self.manager.Queue()
        else:
            makers = {
                "queue": context.Queue,
                "joinable": context.JoinableQueue,
                "simple": context.SimpleQueue,
            }
            queue = makers[kind]()
        self.reader = self.writer = queue
        if kind in FED:  # what its thread had not written is lost with the dead, as with stock
            self.write_gates.append(queue._wlock)
        self.opened = [] if self.manager else [queue]

    def __getstate__(self):
        return self.__dict__ | {"manager": None, "opened": []}

    def send(self, x):
        (self.writer.put if self.kind in QUEUES else self.writer.send)(x)

    def receive(self):
        message = (self.reader.get if self.kind in QUEUES else self.reader.recv)()
        if self.kind == "joinable":
            self.reader.task_done()
        return message

    def has_message(self):
        if self.kind == "manager":
            time.sleep(0.001)
            return not self.reader.empty()
        return getattr(self.reader, "_reader", self.reader).poll(0.01)

    def close(self):
        for end in self.opened:
            end.close()
        if self.manager:
            self.manager.shutdown()


def produce(channel, nr):
    while channel.written.value < nr and not channel.writer_leaves.value:
        with channel.write_gates[0]:
            number = channel.written.value
            channel.send((number, array(number)))
            channel.written.value = number + 1
    if channel.written.value >= nr:  # once more, if one who was killed said so: it may be lost with them
        with channel.write_gates[0]:
            channel.send(None)


def consume(channel, nr_lost_max, delay_s):
    while not channel.is_over.value and not channel.reader_leaves.value:
        if not channel.has_message():
            continue
        with channel.read_gates[0]:
            message = channel.receive()
            if message is None:
                channel.is_over.value = 1
                continue
            number, a = message
            assert 0 <= number - channel.read.value <= nr_lost_max
            channel.read.value = number + 1
            check(number, a)
        time.sleep(delay_s)


class Worker:
    """A process that ends, or is killed between two messages, and is started again."""

    def __init__(self, context, gates, leaves, target, *args):
        self.context, self.gates, self.leaves, self.target, self.args = context, gates, leaves, target, args
        self.start()

    def start(self):
        self.process = self.context.Process(target=self.target, args=self.args, daemon=True)
        self.process.start()

    def kill(self):
        self.process.kill()
        self.process.join(WAIT_S)
        assert self.process.exitcode in (0, -signal.SIGKILL)

    def kill_between_messages(self):
        with contextlib.ExitStack() as closed:
            for gate in self.gates:
                closed.enter_context(gate)
            self.kill()

    def end(self):
        self.leaves.value = 1
        self.finish()
        self.leaves.value = 0

    def finish(self):
        self.process.join(WAIT_S)
        assert self.process.exitcode == 0


def disturb(chance, producer, consumer):
    """Each of the two may end or be killed, and is started again. Whether the producer was killed."""
    is_killed = False
    for _ in range(2):
        time.sleep(chance.random() * 0.1)
        worker = chance.choice((producer, consumer))
        if chance.random() < 0.5:
            worker.end()
        else:
            worker.kill_between_messages()
            is_killed = is_killed or worker is producer
        time.sleep(chance.random() * 0.1)
        worker.start()
    return is_killed


def channel_round(context, chance, kind, nr):
    """Ended or killed between messages, twice, or killed anywhere, once."""
    channel = Channel(context, kind)
    producer = Worker(context, channel.write_gates, channel.writer_leaves, produce, channel, nr)
    nr_lost_max, delay_s = nr if kind in FED else 0, chance.choice((0, 0.001))
    consumer = Worker(
        context, channel.read_gates, channel.reader_leaves, consume, channel, nr_lost_max, delay_s
    )
    if chance.random() < 0.75:
        is_killed = disturb(chance, producer, consumer)
        producer.finish()
        consumer.finish()
        assert channel.read.value == nr or (is_killed and kind in FED)
    else:
        time.sleep(chance.random() * 0.2)
        for worker in chance.choice(((producer, consumer), (consumer, producer))):
            worker.kill()
    channel.close()


# ---- pools ----


def work(number, a):
    check(number, a)
    return number, array(number)


def work_on(numbered):
    return work(*numbered)


def die(a):
    os.kill(os.getpid(), signal.SIGKILL)


def check_result(number, result):
    assert result[0] == number
    check(*result)


def pool_round(context, chance, nr):
    """A task that kills its worker is lost, with stock, too; no other is."""
    with context.Pool(2, maxtasksperchild=chance.choice((None, 20))) as pool:
        deaths = set(chance.sample(range(nr), 2))
        results = []
        for number in range(nr):
            if number in deaths:
                pool.apply_async(die, (array(number),))
            results.append(pool.apply_async(work, (number, array(number))))
        for number, result in enumerate(results):
            check_result(number, result.get(WAIT_S))
        numbers = range(20)
        for call in (pool.map, pool.imap, pool.imap_unordered):
            for number, a in call(work_on, ((number, array(number)) for number in numbers)):
                check(number, a)
        for number, result in enumerate(pool.starmap(work, ((n, array(n)) for n in numbers))):
            check_result(number, result)
        for call in (pool.imap, pool.imap_unordered):
            for _ in call(array, numbers):
                break  # nobody fetches the others


def executor_round(context, chance, nr):
    """A death breaks it; what came before is right, and so is all that its successor does."""
    for death in (chance.randrange(nr), None):
        with concurrent.futures.ProcessPoolExecutor(2, context) as executor:
            futures = []
            with contextlib.suppress(BrokenProcessPool):
                for number in range(nr // 2):
                    futures.append(executor.submit(work, number, array(number)))
                    if number == death:
                        executor.submit(die, array(number))
            for number, future in enumerate(futures):
                error = future.exception(WAIT_S)
                assert error is None or (death is not None and isinstance(error, BrokenProcessPool))
                if error is None:
                    check_result(number, future.result())


def one_round(context, chance, kind, nr):
    if kind == "pool":
        pool_round(context, chance, nr)
    elif kind == "executor":
        executor_round(context, chance, nr)
    else:
        channel_round(context, chance, kind, nr)


def rounds(nr, nr_messages, seed, methods):
    """So many for each kind, then the seconds until nothing is kept."""
    chance = random.Random(seed)
    region = vmalloc.Region(REGION)
    vmalloc.install(region, 1000, timeout=0.2)
    try:
        for i in range(nr):
            for kind in KINDS:
                one_round(multiprocessing.get_context(methods[i % len(methods)]), chance, kind, nr_messages)
        gc.collect()
        started = time.monotonic()
        wait_until(lambda: region.stats().nr_leases == 0, "something is kept")
        took = time.monotonic() - started
        region.recover()
        assert region.stats().busy_pages == 0
        assert_at_rest(region)
        return took
    finally:
        vmalloc.uninstall()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_of_messages_of_the_killed_nothing_is_kept_and_no_other_is_lost():
    assert rounds(1, 100, 0, ("fork",)) < 15  # 5 on a machine with nothing else to do


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("seed", range(8))
def test_of_10_000_messages_through_each_transport_nothing_is_kept_and_no_other_is_lost(seed):
    """1,250 with each seed."""
    took = rounds(5, 250, seed, ("fork", "fork", "fork", "fork", "spawn"))
    print(f"nothing was kept after {took:.1f} s")
    assert took < 5
