# SPDX-License-Identifier: MIT
"""Arrays through stock queues, pipes, pools and arguments, between processes of every start method."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from tests.conftest import PAGE, assert_at_rest
from tests.processes.kinds import KINDS, facts, filled, is_clear, told_and_cleared
from tests.processes.workers import WAIT_S, child, hold_and_tell, join, wait_until

import vmalloc

METHODS = ("fork", "forkserver", "spawn")
THRESHOLD = 1000


@pytest.fixture(scope="module", params=METHODS)
def context(request):
    return multiprocessing.get_context(request.param)


@pytest.fixture(scope="module")
def region(context):
    """One region for all that run under one start method; at rest when they are over."""
    region = vmalloc.Region("64M", name="messages")
    vmalloc.install(region, THRESHOLD)
    yield region
    vmalloc.uninstall()
    gc.collect()
    region.recover()
    assert (region.stats().busy_pages, region.stats().nr_leases) == (0, 0)
    assert_at_rest(region)


@pytest.fixture(scope="module")
def pool(context, region):
    with context.Pool(1) as pool:
        yield pool
        pool.close()
        pool.join()


@pytest.fixture(scope="module")
def executor(context, region):
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        executor.submit(os.getpid).result(WAIT_S)  # a worker that is forked later would inherit an array
        yield executor


# ---- every way, every kind, there and back ----


def serve(receive, send):
    while (a := receive()) is not None:
        send(told_and_cleared(a))
        del a  # not kept while it waits


def serve_queues(there, back):
    serve(there.get, back.put)


def serve_connection(there):
    serve(there.recv, there.send)


def take_argument(answers, a):
    answers.put(told_and_cleared(a))


def two_arguments(a, b):
    return told_and_cleared(a)


def way_of_queues(kind):
    def way(context, request):
        there, back = getattr(context, kind)(), getattr(context, kind)()
        with child(context.get_start_method(), serve_queues, there, back) as process:
            yield lambda a: (there.put(a), back.get())[1]
            there.put(None)
            join(process)

    return way


def way_of_a_pipe(context, request):
    here, there = context.Pipe()
    with child(context.get_start_method(), serve_connection, there) as process:
        yield lambda a: (here.send(a), here.recv())[1]
        here.send(None)
        join(process)


def way_of_arguments(context, request):
    answers = context.SimpleQueue()

    def there_and_back(a):
        with child(context.get_start_method(), take_argument, answers, a) as process:
            answer = answers.get()
            join(process)
        return answer

    yield there_and_back


def way_of_pool(call):
    def way(context, request):
        pool = request.getfixturevalue("pool")
        yield lambda a: call(pool, a)

    return way


def way_of_the_executor(context, request):
    executor = request.getfixturevalue("executor")
    yield lambda a: executor.submit(told_and_cleared, a).result(WAIT_S)


def way_of_the_executors_map(context, request):
    executor = request.getfixturevalue("executor")
    yield lambda a: next(executor.map(told_and_cleared, [a], chunksize=1))


WAYS = {
    "Queue": way_of_queues("Queue"),
    "SimpleQueue": way_of_queues("SimpleQueue"),
    "JoinableQueue": way_of_queues("JoinableQueue"),
    "Pipe": way_of_a_pipe,
    "Process args": way_of_arguments,
    "Pool.apply": way_of_pool(lambda pool, a: pool.apply(told_and_cleared, (a,))),
    "Pool.apply_async": way_of_pool(lambda pool, a: pool.apply_async(told_and_cleared, (a,)).get(WAIT_S)),
    "Pool.map": way_of_pool(lambda pool, a: pool.map(told_and_cleared, [a])[0]),
    "Pool.imap": way_of_pool(lambda pool, a: next(pool.imap(told_and_cleared, iter([a])))),
    "Pool.imap_unordered": way_of_pool(lambda pool, a: next(pool.imap_unordered(told_and_cleared, [a]))),
    "Pool.starmap": way_of_pool(lambda pool, a: pool.starmap(two_arguments, [(a, a)])[0]),
    "ProcessPoolExecutor.submit": way_of_the_executor,
    "ProcessPoolExecutor.map": way_of_the_executors_map,
}
FEW_KINDS = ("strided", "structured", "zero-size")  # where each costs a process


@pytest.fixture(scope="module", params=WAYS)
def way(request, context, region):
    """A function that sends an array to another process, which clears it, and returns what came back."""
    yield from WAYS[request.param](context, request)


def kinds_of(request, context):
    is_slow = "Process args" in request.node.name and context.get_start_method() != "fork"
    return FEW_KINDS if is_slow else KINDS


def test_arrays_of_the_region_go_and_come_back_as_the_same_memory(way, context, region, request):
    for kind in kinds_of(request, context):
        a = KINDS[kind](region)
        before = facts(a)
        seen, b = way(a)
        assert seen == before, kind
        assert vmalloc.region_of(b) is region, kind
        assert (b.shape, b.strides if b.size else 0) == (a.shape, a.strides if a.size else 0), kind
        assert not a.size or np.shares_memory(a, b), kind
        assert is_clear(a) or not a.flags.writeable, kind
    del a, b
    region.recover()  # a child that was given an argument by fork inherited it, and ended with it
    assert_empty(region)


def test_larger_private_arrays_are_copied_in_and_the_senders_stays(way, region):
    a = filled(None, (100, 70), "f4").T
    before = facts(a)
    seen, b = way(a)
    assert (seen[0], seen[1], seen[4]) == (before[0], before[1], before[4])
    assert facts(a) == before
    assert is_clear(b)
    assert vmalloc.region_of(b) is region
    del b
    region.recover()
    assert_empty(region)


def test_small_private_arrays_travel_as_before(way, region):
    a = filled(None, 10, "u4")
    seen, b = way(a)
    assert seen == facts(a)
    assert not vmalloc.is_shared(b)
    assert (a == np.arange(1, 11)).all()
    assert region.stats().busy_pages == 0


def assert_empty(region):
    """Nothing is held and no message under way; a worker may be late to drop what it sent."""
    gc.collect()
    wait_until(lambda: (region.stats().busy_pages, region.stats().nr_leases) == (0, 0), str(region.stats()))


def test_a_manager_keeps_a_reference(context, region):
    a = region.full(1000, 5)
    with context.Manager() as manager:
        kept = manager.dict(a=a)
        b = kept["a"]
        assert np.shares_memory(a, b)
        listed = manager.list([a[::2]])
        listed[0][:] = 6
        assert a[:4].tolist() == [6, 5, 6, 5]
        private = manager.dict(x=np.arange(1000))["x"]
        assert vmalloc.region_of(private) is region
    del a, b, private
    region.recover()
    assert_empty(region)


# ---- what a child makes, and child to child ----


def make(n, value):
    return vmalloc.default_region().full(n, value, "u1")


def make_private(n, value):
    return np.full(n, value, "u1")


def make_in(region, n, value):
    return region.full(n, value, "u1")


def test_what_a_child_makes_in_a_region_outlives_the_child(context, region):
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        made = [executor.submit(make_in, region, 3 * PAGE, i) for i in range(5)]
        private = executor.submit(make_private, 3 * PAGE, 9)
        arrays = [f.result(WAIT_S) for f in made]
        copied = private.result(WAIT_S)
    region.recover()
    assert [int(a[-1]) for a in arrays] == [0, 1, 2, 3, 4]
    assert all(vmalloc.region_of(a) is region for a in (*arrays, copied))
    assert (copied == 9).all()
    del arrays, copied, made, private
    assert_empty(region)


DEFAULT = """
import concurrent.futures, multiprocessing, sys
import numpy as np, vmalloc
from tests.processes import test_messages

if __name__ == "__main__":
    vmalloc.install()
    region = vmalloc.default_region()
    context = multiprocessing.get_context(sys.argv[1])
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        a = executor.submit(test_messages.make, 10, 7).result()
        assert vmalloc.region_of(a) is region, "the child's default region is its parent's"
        b = executor.submit(test_messages.make_private, 65537, 7).result()
        assert vmalloc.region_of(b) is region
        assert not vmalloc.is_shared(executor.submit(test_messages.make_private, 65536, 7).result())
"""


@pytest.mark.parametrize("method", METHODS)
def test_children_have_their_parents_settings_and_default_region(method, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DEFAULT)
    command = [sys.executable, "-X", "dev", "-W", "error", str(script), method]
    path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, env=env)
    assert (done.returncode, done.stderr) == (0, "")


def produce(region, queue, n):
    for i in range(n):
        queue.put(region.full(PAGE, i, "u1"))


def consume(queue, answers, n):
    for _ in range(n):
        a = queue.get()
        answers.put((int(a[0]), bool((a == a[0]).all()), vmalloc.is_shared(a)))


def test_from_child_to_child_while_the_sender_is_gone_already(context, region):
    queue, answers = context.Queue(), context.SimpleQueue()
    method = context.get_start_method()
    with child(method, produce, region, queue, 50) as sender:
        join(sender)
    with child(method, consume, queue, answers, 50) as receiver:
        assert [answers.get() for _ in range(50)] == [(i, True, True) for i in range(50)]
        join(receiver)
    region.recover()
    assert_empty(region)


def relay(there, back):
    while (a := there.get()) is not None:
        back.put(a[1:])
        del a


def test_a_chain_of_children_passes_one_memory_along(context, region):
    method = context.get_start_method()
    first, second, third = (context.SimpleQueue() for _ in range(3))
    a = region.array(np.arange(1000))
    with child(method, relay, first, second) as one, child(method, relay, second, third) as two:
        first.put(a)
        b = third.get()
        first.put(None)
        second.put(None)
        join(one)
        join(two)
    assert np.shares_memory(a, b)
    assert (b == a[2:]).all()
    del a, b
    region.recover()
    assert_empty(region)


def test_a_receiver_keeps_what_the_sender_dropped(context, region):
    there, answers = context.SimpleQueue(), context.SimpleQueue()
    with child(context.get_start_method(), hold_and_tell, there, answers) as process:
        for i in range(20):
            there.put(region.full(PAGE, i, "u1"))
            assert answers.get() == i + 1
        assert (region.stats().busy_pages, region.stats().nr_leases) == (20, 0)
        kept = [region.full(PAGE, 99, "u1") for _ in range(20)]
        there.put(None)
        assert answers.get() == list(range(20))
        join(process)
    del kept
    region.recover()
    assert_empty(region)


def raise_with(a):
    raise ValueError("of the task", a)


def return_unpicklable(a):
    return a, lambda: None


def test_an_array_in_an_exception_is_a_reference_too(executor, region):
    a = region.full(1000, 3)
    with pytest.raises(ValueError, match="of the task") as caught:
        executor.submit(raise_with, a).result(WAIT_S)
    b = caught.value.args[1]
    assert np.shares_memory(a, b)
    with pytest.raises(ValueError, match="of the task"):  # a worker keeps its last exception
        executor.submit(raise_with, None).result(WAIT_S)
    del a, b, caught
    assert_empty(region)


def test_results_that_cannot_be_pickled_leave_nothing(executor, pool, region):
    a = region.full(1000, 3)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        executor.submit(return_unpicklable, a).result(WAIT_S)
    with pytest.raises(multiprocessing.pool.MaybeEncodingError):
        pool.apply(return_unpicklable, (a,))
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pool.apply(len, ([a, lambda: None],))
    with pytest.raises((AttributeError, pickle.PicklingError)):
        executor.submit(len, [a, lambda: None]).result(WAIT_S)
    assert region.stats().nr_leases == 0
    executor.submit(gc.collect).result(WAIT_S)  # stock workers and threads keep the last failure
    pool.apply(gc.collect)
    del a
    assert_empty(region)


def test_10000_live_arrays_take_as_many_descriptors_and_mappings_as_one(executor, region):
    a = executor.submit(make_in, region, 10, 1).result(WAIT_S)
    before, there = count([a]), executor.submit(count, [a]).result(WAIT_S)
    many = [region.full(1, i % 256, "u1") for i in range(10_000)]
    kept = executor.submit(keep_all, many).result(WAIT_S)
    assert np.shares_memory(many[77], kept[77])
    assert count([a]) == before
    assert executor.submit(count, many[:3]).result(WAIT_S) == there
    assert executor.submit(forget_all).result(WAIT_S) == 10_000
    del a, many, kept
    assert_empty(region)


_kept = []


def keep_all(arrays):
    _kept.extend(arrays)
    return arrays


def forget_all():
    n = len(_kept)
    _kept.clear()
    return n


def count(arrays):
    with open("/proc/self/maps") as maps:
        return len(os.listdir("/proc/self/fd")), sum("vmalloc:" in line for line in maps)


# ---- limits of the process and the machine ----


LIMITED = """
import concurrent.futures, multiprocessing, sys
import vmalloc
from tests.processes.test_messages import make_private

if __name__ == "__main__":
    region = vmalloc.Region("256M")
    vmalloc.install(region, 1000)
    context = multiprocessing.get_context(sys.argv[1])
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        for i in range(100):
            a = executor.submit(make_private, 100_000, i).result()
            assert (a == i).all() and vmalloc.region_of(a) is region
        many = list(executor.map(make_private, [10_000] * 500, [i % 256 for i in range(500)]))
    assert all(a[0] == i % 256 for i, a in enumerate(many))
    print(len(many))
"""


@pytest.mark.parametrize("method", METHODS)
def test_500_arrays_fit_into_32_descriptors(method, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(LIMITED)
    command = ["bash", "-c", 'ulimit -n 32; exec "$0" "$@"', sys.executable, str(script), method]
    path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "500\n", "")
