# SPDX-License-Identifier: MIT
"""The same facts at the other end of every transport, as stock delivers them, under every start method."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
from multiprocessing.connection import Client, Listener

import numpy as np
import pytest
from tests.equivalence.sent import CLASSES, DTYPES, OBJECTS, as_stock, facts, filled
from tests.processes.workers import WAIT_S, child, join

import vmalloc

THRESHOLD = 64


@pytest.fixture(scope="module", params=("fork", "forkserver", "spawn"))
def context(request):
    return multiprocessing.get_context(request.param)


@pytest.fixture
def region():
    region = vmalloc.Region("64M", name="as stock")
    vmalloc.install(region, THRESHOLD)
    yield region
    vmalloc.uninstall()
    gc.collect()
    region.recover()
    assert (region.stats().busy_pages, region.stats().nr_leases) == (0, 0)


def messages(region):
    """An array of every dtype and class, in both orders, in the region and private; whether it is private."""
    for dtype in DTYPES.values():
        for make in (np, region):
            a = filled(make, (6, 50), dtype, "F", 1)
            yield [a, a.T, a[1::2, 3:], a[:0]], make is np
    for dtype in OBJECTS.values():
        yield filled(np, (5, 3), dtype, "F", 1), True
    for make in CLASSES.values():
        yield make(filled(region, (30, 4), np.dtype("f4"), "C", 1)), True


def echo(message):
    return facts(message, of_layout=False, of_order=False), message


def serve(receive, send):
    while (message := receive()) is not None:
        send(echo(message))
        del message


def serve_queues(there, back):
    serve(there.get, back.put)


def serve_connection(there):
    serve(there.recv, there.send)


def serve_address(address):
    with Client(address) as there:
        serve(there.recv, there.send)


def by_queues(kind):
    def way(context):
        there, back = getattr(context, kind)(), getattr(context, kind)()
        with child(context.get_start_method(), serve_queues, there, back) as process:
            yield lambda message: (there.put(message), back.get())[1]
            there.put(None)
            join(process)

    return way


def by_a_pipe(context):
    here, there = context.Pipe()
    with child(context.get_start_method(), serve_connection, there) as process:
        yield lambda message: (here.send(message), here.recv())[1]
        here.send(None)
        join(process)


def by_a_listener(family):
    def way(context):
        method = context.get_start_method()
        with Listener(family=family) as listener, child(method, serve_address, listener.address) as process:
            with listener.accept() as here:
                yield lambda message: (here.send(message), here.recv())[1]
                here.send(None)
            join(process)

    return way


def by_a_pool(context):
    with context.Pool(1) as pool:
        calls = [
            lambda m: pool.apply(echo, (m,)),
            lambda m: pool.map(echo, [m])[0],
            lambda m: pool.starmap(echo, [(m,)])[0],
            lambda m: next(pool.imap(echo, iter([m]))),
            lambda m: next(pool.imap_unordered(echo, [m])),
            lambda m: pool.apply_async(echo, (m,)).get(WAIT_S),
        ]
        turn = iter(range(1 << 30))
        yield lambda message: calls[next(turn) % len(calls)](message)
        pool.close()
        pool.join()


def by_an_executor(context):
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        yield lambda message: executor.submit(echo, message).result(WAIT_S)


def by_a_manager(context):
    with context.Manager() as manager:
        kept = manager.list([None])

        def there_and_back(message):
            kept[0] = message
            there = kept[0]
            kept[0] = None
            return echo(there)

        yield there_and_back


WAYS = {
    "Queue": by_queues("Queue"),
    "SimpleQueue": by_queues("SimpleQueue"),
    "JoinableQueue": by_queues("JoinableQueue"),
    "Pipe": by_a_pipe,
    "Listener, Unix": by_a_listener("AF_UNIX"),
    "Listener, TCP": by_a_listener("AF_INET"),
    "Pool": by_a_pool,
    "ProcessPoolExecutor": by_an_executor,
    "Manager": by_a_manager,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_arrives_and_what_comes_back_is_as_stock_delivers_it(context, way, region):
    ways = WAYS[way](context)
    there_and_back = next(ways)
    for message, is_private in messages(region):
        seen, back = there_and_back(message)
        assert seen == facts(as_stock(message), of_layout=False, of_order=False)
        # what lies in the region keeps its order of bytes
        expected = facts(as_stock(message), of_layout=False, of_order=is_private)
        assert facts(back, of_layout=False, of_order=is_private) == expected
        del message, seen, back
    assert next(ways, None) is None  # ended
