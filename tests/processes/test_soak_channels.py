# SPDX-License-Identifier: MIT
"""Messages through every transport, in a region of a tenth of what is in flight, while workers are killed.

Who is killed between two messages is started again: then every message arrives, but for those that stock
loses, too. Or all are killed anywhere and their channel is dropped. Soon after the end nothing is kept.
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

import numpy as np
import pytest
from tests.conftest import PAGE, assert_at_rest
from tests.processes.workers import WAIT_S, wait_until

import vmalloc

CHANNELS = ("pipe", "duplex", "queue", "simple")
KINDS = (*CHANNELS, "pool", "executor")
REGION = "1M"  # 250 messages of the mean size are ten times that


def array(number):
    return np.full((1 + number % 20) * PAGE, number % 251, "u1")


def check(number, a):
    assert a.shape == ((1 + number % 20) * PAGE,)
    assert (a == number % 251).all()


# ---- channels ----


class Channel:
    """Both ends, what was written and read so far, and gates closed around each write and each read."""

    def __init__(self, context, kind):
        self.kind = kind
        self.written, self.read, self.is_over = (context.RawValue("i", 0) for _ in range(3))
        if kind in ("pipe", "duplex"):
            self.reader, self.writer = context.Pipe(duplex=kind == "duplex")
            self.write_gate, self.read_gate = context.Lock(), context.Lock()
            self.opened = [self.reader, self.writer]
            return
        queue = context.Queue() if kind == "queue" else context.SimpleQueue()
        self.reader = self.writer = queue
        # a queue is written to by its thread; what the dead had not written is lost with them, as with stock
        self.write_gate = queue._wlock if kind == "queue" else context.Lock()
        self.read_gate = context.Lock()
        self.opened = [queue]

    def send(self, x):
        if self.kind == "queue":
            self.writer.put(x)
            return
        (self.writer.put if self.kind == "simple" else self.writer.send)(x)

    def receive(self):
        return (self.reader.get if self.kind in ("queue", "simple") else self.reader.recv)()

    def has_message(self):
        return getattr(self.reader, "_reader", self.reader).poll(0.01)

    def close(self):
        for end in self.opened:
            end.close()


def produce(channel, nr):
    gate = contextlib.nullcontext() if channel.kind == "queue" else channel.write_gate
    while channel.written.value < nr:
        with gate:
            number = channel.written.value
            channel.send((number, array(number)))
            channel.written.value = number + 1
    with gate:
        channel.send(None)


def consume(channel, nr_lost_max, delay_s):
    while not channel.is_over.value:
        if not channel.has_message():
            continue
        with channel.read_gate:
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
    """A process that is killed between two messages and started again."""

    def __init__(self, context, gate, target, *args):
        self.context, self.gate, self.target, self.args = context, gate, target, args
        self.start()

    def start(self):
        self.process = self.context.Process(target=self.target, args=self.args, daemon=True)
        self.process.start()

    def kill(self):
        self.process.kill()
        self.process.join(WAIT_S)
        assert self.process.exitcode in (0, -signal.SIGKILL)

    def restart(self, pause_s):
        with self.gate:
            self.kill()
        time.sleep(pause_s)
        self.start()

    def finish(self):
        self.process.join(WAIT_S)
        assert self.process.exitcode == 0


def channel_round(context, chance, kind, nr):
    """Killed between messages, twice, or anywhere, once."""
    channel = Channel(context, kind)
    producer = Worker(context, channel.write_gate, produce, channel, nr)
    nr_lost_max = nr if kind == "queue" else 0
    delay_s = chance.choice((0, 0.001))
    consumer = Worker(context, channel.read_gate, consume, channel, nr_lost_max, delay_s)
    if chance.random() < 0.75:
        for _ in range(2):
            time.sleep(chance.random() * 0.1)
            chance.choice((producer, consumer)).restart(chance.random() * 0.1)
        producer.finish()
        consumer.finish()
        assert channel.read.value == nr or kind == "queue"
    else:
        time.sleep(chance.random() * 0.2)
        for worker in chance.choice(((producer, consumer), (consumer, producer))):
            worker.kill()
    channel.close()


# ---- pools ----


def work(number, a):
    check(number, a)
    return number, array(number)


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
        for _ in pool.imap(array, range(20)):
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
@pytest.mark.parametrize("seed", range(4))
def test_of_10_000_messages_through_each_transport_nothing_is_kept_and_no_other_is_lost(seed):
    """2,500 with each seed."""
    assert rounds(10, 250, seed, ("fork", "fork", "fork", "fork", "spawn")) < 6
