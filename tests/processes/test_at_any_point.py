# SPDX-License-Identifier: MIT
"""Between any two steps of a send and of a receive a signal's handler or a finalizer may run.

Python runs handlers where a function begins and where one of C's returns, and profile functions, too; what
these raise comes from the same place. So each message here is sent again and again, with something done one
step later each time, until it is over before that step.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
from tests.conftest import PAGE
from tests.processes.workers import WAIT_S, exit_code_of, wait_until

import vmalloc
from vmalloc import _core, full
from vmalloc.reference import sending

STEPS_MAX = 2_000
THRESHOLD = 1000
FORK_EVERY = 5  # steps, for forks take long
SENDERS = (
    "vmalloc",
    "multiprocessing",
)  # whose steps count; numpy swallows what is raised in some of its own


@pytest.fixture
def region() -> Iterator[vmalloc.Region]:
    region = vmalloc.Region("16M")
    vmalloc.install(region, THRESHOLD)
    yield region
    vmalloc.uninstall()
    gc.collect()
    if not region.closed:
        wait_until(lambda: is_at_rest(region), "something is kept")
    region.close()


def is_at_rest(region: vmalloc.Region) -> bool:
    region.recover()
    return (region.stats().nr_leases, region.stats().busy_pages) == (0, 0)


def at_step(nth: int, action: Callable[[], object], call: Callable[[], object]) -> bool:
    """call(), and action() at its step `nth`. Whether there was one."""
    left = nth

    def profile(frame: Any, event: str, arg: Any) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_globals["__name__"].startswith(SENDERS):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                action()

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return left < 0


class Interrupted(BaseException):
    """As KeyboardInterrupt is, but nobody else's."""


def interrupt() -> None:
    raise Interrupted


def assert_nothing_under_way() -> None:
    """What this thread noted for the message is as it was before it."""
    assert _core.pickle_for(0) == 0
    assert _core.pickle_at(-1) == -1
    assert _core.note_loads(None) is None
    assert not sending.by_value
    under_way = _core.under_way
    assert (under_way.message, under_way.sent, under_way.received) == (None, None, None)


# ---- messages and their ways ----

MESSAGES: dict[str, Callable[[vmalloc.Region], Any]] = {
    "one of the region": lambda region: region.full(PAGE, 1, "u1"),
    "one copied in": lambda region: np.ones(PAGE, "u1"),
    "several": lambda region: [
        (a := region.full(PAGE, 1, "u1")),
        a[::2],
        np.ones((3, PAGE), "u1").T,
        np.ma.ones(PAGE, dtype="u1"),
    ],
}


class ByPipe:
    def __init__(self) -> None:
        self.reader, self.writer = multiprocessing.Pipe(duplex=False)
        self.receive, self.send = self.reader.recv, self.writer.send

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


class BySimpleQueue:
    def __init__(self) -> None:
        self.queue: Any = multiprocessing.SimpleQueue()
        self.receive, self.send = self.queue.get, self.queue.put

    def close(self) -> None:
        self.queue.close()


class ByQueue:
    """Its thread has written the message before anybody reads."""

    def __init__(self) -> None:
        self.queue: Any = multiprocessing.Queue()

    def send(self, x: Any) -> None:
        self.queue.put(x)
        wait_until(lambda: not self.queue.empty(), "not written")

    def receive(self) -> Any:
        return self.queue.get(timeout=WAIT_S)

    def close(self) -> None:
        self.queue.close()
        self.queue.join_thread()


def total(x: Any) -> int:
    return sum(total(y) for y in x) if type(x) is list else int(x.sum())


def hand_over(way: type[Any], x: Any) -> int:
    """What arrives, as a number."""
    there = way()
    try:
        there.send(x)
        return total(there.receive())
    finally:
        there.close()


# ---- what is raised ----


def interrupted_anywhere(region: vmalloc.Region, way: type[Any], is_receive: bool) -> None:
    """Messages of each kind, one after the other; the region is looked at when all are over."""
    for private in (False, True):
        vmalloc.install(region, THRESHOLD, private=private)
        for make in MESSAGES.values():
            nr_steps = next(
                nth for nth in range(STEPS_MAX) if not interrupted(nth, make(region), way(), is_receive)
            )
            assert nr_steps > 10


def interrupted(nth: int, x: Any, there: Any, is_receive: bool) -> bool:
    """Whether there was a step `nth`."""
    if is_receive:
        there.send(x)
    call = there.receive if is_receive else lambda: there.send(x)
    try:
        return at_step(nth, interrupt, call)
    except Interrupted:
        return True
    finally:
        assert_nothing_under_way()
        there.close()


@pytest.mark.parametrize("way", [ByPipe, BySimpleQueue])
def test_a_send_that_is_interrupted_anywhere_leaves_nothing(region: vmalloc.Region, way: type[Any]) -> None:
    interrupted_anywhere(region, way, is_receive=False)


@pytest.mark.parametrize("way", [ByPipe, BySimpleQueue, ByQueue])
def test_a_receive_that_is_interrupted_anywhere_leaves_nothing(
    region: vmalloc.Region, way: type[Any]
) -> None:
    interrupted_anywhere(region, way, is_receive=True)


class Told:
    pass


class ToldAdapter(vmalloc.adapters.Adapter):
    kind = "test.Told"


def test_types_that_an_interrupted_message_was_to_learn_are_learned_by_the_next(
    region: vmalloc.Region,
) -> None:
    has_more, nth = True, 0
    reducers: dict[type, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    while has_more:
        vmalloc.adapters.register(Told, ToldAdapter())
        try:
            has_more = at_step(nth, interrupt, partial(ForkingPickler.dumps, 1))
        except Interrupted:
            pass
        ForkingPickler.dumps(1)
        assert Told in reducers, f"step {nth}"
        vmalloc.adapters.unregister(Told)
        ForkingPickler.dumps(1)
        assert Told not in reducers, f"step {nth}"
        nth += 1
    assert nth > 3


# ---- what is done ----


def another_message(region: vmalloc.Region, kept: list[Any]) -> None:
    assert hand_over(ByPipe, [region.full(PAGE, 2, "u1"), np.ones(PAGE, "u1")]) == 3 * PAGE


def free(region: vmalloc.Region, kept: list[Any]) -> None:
    kept.clear()
    region.purge()


def fork(region: vmalloc.Region, kept: list[Any]) -> None:
    child = os.fork()
    if child == 0:
        try:
            another_message(region, kept)
            assert total(kept) == 5 * PAGE
            os._exit(0)
        finally:
            os._exit(1)
    assert exit_code_of(child) == 0


def install_anew(region: vmalloc.Region, kept: list[Any]) -> None:
    vmalloc.uninstall()
    vmalloc.install(region, THRESHOLD)


@pytest.mark.parametrize("action", [another_message, free, fork, install_anew])
@pytest.mark.parametrize("what", MESSAGES)
def test_a_message_arrives_whatever_is_done_while_it_is_sent_and_received(
    region: vmalloc.Region, what: str, action: Callable[[vmalloc.Region, list[Any]], None]
) -> None:
    expected, nr_steps = total(MESSAGES[what](region)), 0
    has_more = True
    while has_more:
        kept, arrived, x = [region.full(PAGE, 5, "u1")], list[int](), MESSAGES[what](region)
        act = partial(action, region, kept)
        has_more = at_step(nr_steps, act, partial(receive_into, arrived, x))
        assert arrived == [expected]
        assert_nothing_under_way()
        nr_steps += FORK_EVERY if action is fork else 1
    assert nr_steps > 10


def receive_into(arrived: list[int], x: Any) -> None:
    arrived.append(hand_over(ByPipe, x))


@pytest.mark.filterwarnings("ignore:arrays go by value:RuntimeWarning")
@pytest.mark.parametrize("what", MESSAGES)
def test_a_region_may_be_closed_at_any_step_of_a_message(what: str) -> None:
    """The message says so, where it was sent by reference before; else it arrives."""
    nr_steps, has_more = 0, True
    while has_more:
        region = vmalloc.Region("1M", nodes=1, helper=False)
        vmalloc.install(region, THRESHOLD)
        try:
            x, arrived = MESSAGES[what](region), list[int]()
            expected = total(x)
            with suppress(vmalloc.VmallocError):
                has_more = at_step(nr_steps, region.close, partial(receive_into, arrived, x))
            assert arrived in ([], [expected])
            assert_nothing_under_way()
        finally:
            vmalloc.uninstall()
            region.close()
        nr_steps += 1
    assert nr_steps > 10


def test_a_warning_may_be_asked_for_while_one_is_given(region: vmalloc.Region) -> None:
    """A handler sends, too, to a region that is full for both."""
    nr_steps, has_more = 0, True
    with warnings.catch_warnings(record=True):
        while has_more:
            full.forget_warnings()
            inner, outer = partial(full.warn_once, "inner", ""), partial(full.warn_once, "outer", "")
            has_more = at_step(nr_steps, inner, outer)
            nr_steps += 1
    assert nr_steps > 1


def test_bytes_that_a_program_pickles_belong_to_no_channel_also_after_an_interrupted_send(
    region: vmalloc.Region,
) -> None:
    """So they outlive the channel."""
    for nth in range(STEPS_MAX):
        there = ByPipe()
        was_interrupted = interrupted(nth, region.full(PAGE, 1, "u1"), there, is_receive=False)
        data = bytes(ForkingPickler.dumps([region.full(PAGE, 3, "u1")]))
        region.tick()
        assert total(pickle.loads(data)) == 3 * PAGE
        if not was_interrupted:
            return
