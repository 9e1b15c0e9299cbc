# SPDX-License-Identifier: MIT
"""What a message holds, until when, and what is left of it: full regions and threads, too."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import sys
import threading
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from tests.api.installed import THRESHOLD, Unpicklable, installed_region, sent
from tests.conftest import PAGE
from tests.processes.kinds import filled

import vmalloc


@pytest.fixture
def region():
    with installed_region() as region:
        yield region


byte_bounds = getattr(np.lib, "array_utils", np).byte_bounds  # moved in numpy 2


def test_a_message_holds_its_array_until_it_is_loaded(region):
    text = ForkingPickler.dumps(region.full(PAGE, 9, "u1"))
    assert (region.stats().nr_leases, region.stats().busy_pages) == (1, 1)
    a = pickle.loads(text)
    assert (region.stats().nr_leases, region.stats().busy_pages) == (0, 1)
    assert (a == 9).all()
    del a
    assert region.stats().busy_pages == 0


def test_a_message_may_be_loaded_twice_while_somebody_holds_the_array(region):
    text = ForkingPickler.dumps(region.full(PAGE, 9, "u1"))
    first, second = pickle.loads(text), pickle.loads(text)
    first[0] = 1
    assert second[0] == 1
    del first, second
    with pytest.raises(vmalloc.StaleReference, match="page"):
        pickle.loads(text)


def test_a_message_that_nobody_loads_is_ended_by_expire_leases(region):
    texts = [ForkingPickler.dumps(region.full(PAGE, i, "u1")) for i in range(5)]
    assert region.expire_leases(all=False) == 0
    assert (region.stats().nr_leases, region.stats().busy_pages) == (5, 5)
    assert region.expire_leases() == 5
    assert (region.stats().nr_leases, region.stats().busy_pages) == (0, 0)
    for text in texts:
        with pytest.raises(vmalloc.StaleReference):
            pickle.loads(text)


def test_a_stale_reference_shows_no_other_arrays_bytes(region):
    stale = []
    for value in range(50):
        a = region.full(PAGE, value, "u1")
        stale.append((a.ctypes.data, ForkingPickler.dumps(a)))
        region.expire_leases()
        del a
        new = region.full(PAGE, 200, "u1")
        for address, text in stale:
            assert address == new.ctypes.data  # hot reuse: the same page every time
            with pytest.raises(vmalloc.StaleReference):
                pickle.loads(text)
        assert (new == 200).all()
        del new


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickling_that_fails_half_way_leaves_no_lease(region, protocol):
    a = region.full(PAGE, 1, "u1")
    with pytest.raises(RuntimeError, match="cannot be sent"):
        ForkingPickler.dumps([a, a[3:], np.zeros(1000), Unpicklable()], protocol)
    assert (region.stats().nr_leases, region.stats().busy_pages) == (0, 1)


class Inner:
    """Pickles another message while it is pickled, as some wrappers do."""

    def __init__(self, text=None, array=None):
        self.text, self.array = text, array

    def __reduce__(self):
        return Inner, (bytes(ForkingPickler.dumps(self.array)),)


def test_a_message_within_a_failing_message_is_its_own(region):
    a = region.full(PAGE, 1, "u1")
    inner = sent([a, Inner(array=a)])[1]
    assert pickle.loads(inner.text)[0] == 1
    with pytest.raises(RuntimeError):
        ForkingPickler.dumps([Inner(array=a), a, Unpicklable()])
    assert region.stats().nr_leases == 1  # the inner message was complete, for all we know
    assert region.expire_leases() == 1


WHAT_IS_SENT = {
    "an array": lambda region: region.full(PAGE, 1, "u1"),
    "arrays": lambda region: [region.full(PAGE, 1, "u1"), np.zeros(1000)],
    "a message within one": lambda region: [Sends(region.full(PAGE, 1, "u1")), region.full(PAGE, 1, "u1")],
}


class Sends:
    """Sends to a closed peer while it is pickled."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        send_in_vain(self.array)
        return int, ()


def send_in_vain(x):
    reader, writer = multiprocessing.Pipe(duplex=False)
    reader.close()
    with pytest.raises(BrokenPipeError):
        writer.send(x)
    writer.close()
    with pytest.raises(OSError, match="closed"):
        writer.send(x)


@pytest.mark.parametrize("what", WHAT_IS_SENT)
def test_a_send_that_fails_leaves_no_lease(region, what):
    x = WHAT_IS_SENT[what](region)
    for _ in range(10):
        send_in_vain(x)
    assert region.stats().nr_leases == 0
    assert pickle.loads(ForkingPickler.dumps(region.full(PAGE, 4, "u1")))[0] == 4


def test_a_send_that_cannot_write_all_leaves_no_lease(region):
    """Half of a message is nothing that its reader could load."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    os.set_blocking(writer.fileno(), False)
    with pytest.raises(BlockingIOError):
        writer.send([region.full(PAGE, 1, "u1"), bytes(1 << 20)])
    assert region.stats().nr_leases == 0
    reader.close()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("error", [Interrupted, TimeoutError])
def test_what_a_signal_handler_raises_after_the_write_ends_no_message(region, error, monkeypatch):
    reader, writer = multiprocessing.Pipe(duplex=False)
    stock = type(writer)._send_bytes

    def interrupted(self, data):
        stock(self, data)
        raise error("too late")

    monkeypatch.setattr(type(writer), "_send_bytes", interrupted)
    with pytest.raises(error):
        writer.send(region.full(PAGE, 6, "u1"))
    assert (reader.recv() == 6).all()


@pytest.mark.parametrize("what", ["strided", "private"])
def test_an_error_at_any_line_that_takes_a_lease_leaves_none(region, what):
    """Of a plain array it is no line of Python that takes it."""
    a = region.full(PAGE, 1, "u1")
    x = {"strided": [a[::2]], "private": [np.zeros(1000)]}[what]
    takers = {vmalloc.message._send.__code__}
    for nth in range(1000):
        try:
            with error_at_line(takers, nth):
                ForkingPickler.dumps(x)
        except Interrupted:
            assert region.stats().nr_leases == 0, f"line {nth}"
        else:
            break
    assert nth > 3
    assert region.expire_leases() == 1


@contextmanager
def error_at_line(codes, nth):
    """Interrupted is raised before the nth line that is run of `codes`."""
    left, before = [nth], sys.gettrace()

    def trace(frame, event, arg):
        if frame.f_code not in codes:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == -1:
                raise Interrupted
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_message_that_fails_to_load_half_way_leaves_what_it_did_not_reach(region):
    text = ForkingPickler.dumps([region.zeros(3), Explodes(), region.zeros(3)])
    with pytest.raises(ZeroDivisionError):
        pickle.loads(text)
    gc.collect()
    assert (region.stats().nr_leases, region.stats().busy_pages) == (1, 1)
    assert region.expire_leases() == 1


class Explodes:
    def __reduce__(self):
        return divmod, (1, 0)


def test_a_lease_is_claimed_by_the_first_load_only_in_whatever_order(region):
    a = region.full(PAGE, 2, "u1")
    texts = [ForkingPickler.dumps(a) for _ in range(100)]
    del a
    for text in texts[::-1]:
        assert pickle.loads(text)[0] == 2
    assert (region.stats().nr_leases, region.stats().busy_pages) == (0, 0)
    for text in texts:
        with pytest.raises(vmalloc.StaleReference):
            pickle.loads(text)


def test_a_replayed_lease_ends_no_other(region):
    a = region.full(PAGE, 2, "u1")
    old = ForkingPickler.dumps(a)
    pickle.loads(old)
    new = ForkingPickler.dumps(a)  # its entry in the table is the one that the old message had
    pickle.loads(old)
    del a
    assert region.stats().nr_leases == 1
    assert pickle.loads(new)[0] == 2


@pytest.mark.parametrize("end", [1, 10, 50, 100, -30, -2, -1])
def test_a_truncated_message_is_an_error_of_pickle(region, end):
    text = bytes(ForkingPickler.dumps([region.full(PAGE, 1, "u1")]))
    with pytest.raises((pickle.UnpicklingError, EOFError)):
        pickle.loads(text[:end])
    region.expire_leases()


def test_every_byte_of_a_message_may_be_wrong(region):
    """Whatever a damaged message loads as, it loads within its range, or it is an error."""
    a = region.full(PAGE, 1, "u1")
    guard = region.full(PAGE, 77, "u1")
    text = bytes(ForkingPickler.dumps(a[10:20]))
    pickle.loads(text)
    pages = a.ctypes.data, a.ctypes.data + PAGE
    for place in range(2, len(text)):
        for flip in (1, 16, 128):
            damaged = bytearray(text)
            damaged[place] ^= flip
            try:
                b = pickle.loads(damaged)
            except Exception:
                continue
            if isinstance(b, np.ndarray) and vmalloc.is_shared(b) and b.size:
                low, high = byte_bounds(b)
                assert pages[0] <= low < high <= pages[1]
    assert (guard == 77).all()
    region.check()
    region.expire_leases()


# ---- a full region ----


def test_a_full_region_raises_where_the_message_is_pickled_if_one_wants_that(region):
    vmalloc.install(region, THRESHOLD, on_full="raise")
    held = region.alloc(region.nr_pages * PAGE)
    with pytest.raises(vmalloc.OutOfPages, match="100 pages requested"):
        sent([np.zeros(100 * PAGE, "u1")])
    assert sent(np.zeros(10)).shape == (10,)
    held.release()


@pytest.mark.parametrize("on_full", ["wait", "copy"])
def test_a_full_region_sends_copies_and_says_so_once(region, on_full):
    vmalloc.install(region, THRESHOLD, on_full=on_full, timeout=1e6)  # nobody else is there: no wait
    held = region.alloc(region.nr_pages * PAGE)
    a = filled(None, (100, 100), "f4")
    with pytest.warns(RuntimeWarning, match="by value until there is room again") as told:
        b, _ = sent(a), sent(a)
    assert len(told) == 1
    assert (a == b).all()
    assert not vmalloc.is_shared(b)
    held.release()
    assert vmalloc.is_shared(sent(a))


def test_65536_messages_may_be_under_way_and_the_next_is_told(region):
    a = region.zeros(10)
    vmalloc.install(region, THRESHOLD, on_full="raise")
    texts = [ForkingPickler.dumps(a) for _ in range(1 << 16)]
    with pytest.raises(vmalloc.OutOfPages, match="65536 leases of the region are taken"):
        ForkingPickler.dumps(a)
    pickle.loads(texts[1000])
    assert pickle.loads(ForkingPickler.dumps(a)) is not None
    vmalloc.install(region, THRESHOLD, on_full="copy")
    kept = ForkingPickler.dumps(a)
    with pytest.warns(RuntimeWarning, match="65536 leases"):
        assert not vmalloc.is_shared(sent(a))
    assert region.expire_leases() == 1 << 16
    del a
    with pytest.raises(vmalloc.StaleReference):
        pickle.loads(kept)


# ---- threads ----


def test_threads_send_and_receive_at_once(region):
    wrong = []

    def work(number):
        try:
            for i in range(150):
                a = region.full(1 + i % 40 * 100, number, "u1")
                b = sent([a, np.full(2000, number), a[::2]])
                if not all((x == number).all() for x in b):
                    wrong.append((number, i))
                if i % 10 == 0:
                    try:
                        ForkingPickler.dumps([a, Unpicklable()])
                    except RuntimeError:
                        pass
        except Exception as e:
            wrong.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
    assert (region.stats().nr_leases, region.stats().busy_pages) == (0, 0)


def test_settings_and_leases_of_a_failing_message_belong_to_its_thread(region):
    """One thread's failure drops no lease of another's message."""
    a = region.full(PAGE, 3, "u1")
    inside, go_on, texts = threading.Event(), threading.Event(), []

    class Waits:
        def __reduce__(self):
            inside.set()
            go_on.wait(60)
            return int, ()

    other = threading.Thread(target=lambda: texts.append(ForkingPickler.dumps([a, Waits()])))
    other.start()
    assert inside.wait(60)
    with pytest.raises(RuntimeError):
        ForkingPickler.dumps([a, Unpicklable()])
    assert region.stats().nr_leases == 1
    go_on.set()
    other.join()
    a = None
    assert (pickle.loads(texts[0])[0] == 3).all()
