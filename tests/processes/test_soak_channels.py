# SPDX-License-Identifier: MIT
"""Messages through every transport, in a region of a tenth of what is in flight, while workers are killed.

What was in a channel that lives arrives with the right bytes, and soon after the end nothing is kept.
"""

from __future__ import annotations

import gc
import multiprocessing
import random
import time

import numpy as np
import pytest
from tests.conftest import PAGE, assert_at_rest
from tests.processes.workers import WAIT_S, wait_until

import vmalloc

METHODS = ("fork", "spawn")


def produce(writer, nr, seed):
    for i in range(nr):
        value = (seed + i) % 251
        send = getattr(writer, "send", None) or writer.put
        send((value, np.full((1 + value % 8) * PAGE, value, "u1")))


def consume(reader, delay_s):
    receive = getattr(reader, "recv", None) or reader.get
    try:
        while True:
            value, a = receive()
            assert (a == value).all()
            time.sleep(delay_s)
    except (EOFError, OSError):
        pass


def open_transport(context, kind):
    """(reader, writer, what to close)."""
    if kind in ("pipe", "duplex"):
        reader, writer = context.Pipe(duplex=kind == "duplex")
        return reader, writer, [reader, writer]
    queue = context.Queue() if kind == "queue" else context.SimpleQueue()
    return queue, queue, [queue]


def one_round(chance, kind, method, nr):
    """A producer and a consumer; one of them, or nobody, is killed; what is left is read, or dropped."""
    context = multiprocessing.get_context(method)
    reader, writer, opened = open_transport(context, kind)
    seed = chance.randrange(251)
    producer = context.Process(target=produce, args=(writer, nr, seed), daemon=True)
    consumer = context.Process(target=consume, args=(reader, chance.choice((0, 0.001))), daemon=True)
    end = chance.choice(("producer", "consumer", "both", "nobody"))
    producer.start()
    if end == "nobody":
        receive = getattr(reader, "recv", None) or reader.get
        for i in range(nr):  # as slowly as the machine is
            value, a = receive()
            assert value == (seed + i) % 251
            assert (a == value).all()
        producer.join(WAIT_S)
        assert producer.exitcode == 0
    else:
        consumer.start()
        time.sleep(chance.random() * 0.2)
        for process in {"producer": [producer], "consumer": [consumer]}.get(end, [producer, consumer]):
            process.kill()
    for thing in opened:
        thing.close()
    for process in (producer, consumer):
        if process.pid is not None:
            process.kill()
            process.join(WAIT_S)


def rounds(nr, nr_messages, seed=0):
    chance = random.Random(seed)
    region = vmalloc.Region("1M")  # 20 to 200 messages
    vmalloc.install(region, 1000, timeout=0.2)
    try:
        for i in range(nr):
            kind = ("pipe", "duplex", "queue", "simple")[i % 4]
            one_round(chance, kind, METHODS[i // 4 % 8 == 7], nr_messages)
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
    assert rounds(8, 60) < 15  # 5 on a machine with nothing else to do


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_of_40_000_messages_nothing_is_kept_and_no_other_is_lost():
    for seed in range(4):
        assert rounds(40, 250, seed) < 6
