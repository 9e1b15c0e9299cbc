# SPDX-License-Identifier: MIT
"""The collector may run wherever an object is made, and end a region, an array or a block of ours there.

Each call here runs again and again, with the collector one allocation later each time, until it comes to the
end of the call without running. What it finds is a cycle that ends a region, frees memory, or makes a region.
"""

from __future__ import annotations

import gc
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.conftest import PAGE

import vmalloc
from vmalloc._core import attached

CALLS_MAX = 3_000
NR_OTHERS = 25  # regions: tuples of 20 and more are allocated anew, smaller ones come from a free list


class Cycle:
    """Only the collector ends it, and what it has."""

    def __init__(self, has: Any) -> None:
        self.has, self.me = has, self


class MakesRegion(Cycle):
    def __del__(self) -> None:
        self.has.append(vmalloc.Region("1M", nodes=1, helper=False))


def exchange(region: vmalloc.Region) -> None:
    """An array of the region and one that is copied in, through a pipe."""
    vmalloc.install(region, threshold=1000)
    try:
        reader, writer = multiprocessing.Pipe(duplex=False)
        with reader, writer:
            writer.send([region.full(PAGE, 5, "u1"), np.ones(PAGE, "u1")])
            assert [int(x.sum()) for x in reader.recv()] == [5 * PAGE, PAGE]
    finally:
        vmalloc.uninstall()


class Exchanges(Cycle):
    """A finalizer sends and receives within the send or receive that it interrupts."""

    def __del__(self) -> None:
        region, made = self.has
        reader, writer = multiprocessing.Pipe(duplex=False)
        with reader, writer:
            writer.send(region.full(PAGE, 2, "u1"))
            made.append(int(reader.recv().sum()))


@pytest.fixture
def region() -> Iterator[vmalloc.Region]:
    others = [vmalloc.Region("1M", nodes=1, helper=False) for _ in range(NR_OTHERS)]
    region = vmalloc.Region("16M", nodes=1, helper=False)
    region["kept"] = region.full(PAGE, 7, "u1")
    yield region
    for one in (region, *others):
        one.close()


def make_region(region: vmalloc.Region) -> None:
    vmalloc.Region("1M", nodes=1, helper=False).close()


def attach(region: vmalloc.Region) -> None:
    vmalloc.Region.attach(region.fileno(), readonly=True, helper=False).close()


def make_array(region: vmalloc.Region) -> None:
    assert region.full(2 * PAGE, 3, "u1").sum() == 6 * PAGE


def make_block(region: vmalloc.Region) -> None:
    region.alloc(3 * PAGE).release()


def send(region: vmalloc.Region) -> None:
    array = region.full(PAGE, 5, "u1")
    assert pickle.loads(pickle.dumps(vmalloc.ref(array))).sum() == 5 * PAGE


def name(region: vmalloc.Region) -> None:
    region["named"] = np.arange(1000)
    assert region["named"][999] == 999
    del region["named"]


def look(region: vmalloc.Region) -> None:
    region.check()
    assert region.stats().nr_pages == region.nr_pages
    assert region.ranges()


def tidy(region: vmalloc.Region) -> None:
    region.tick()
    region.purge()
    region.shrink()


def garbage_region(region: vmalloc.Region, made: list[Any]) -> Cycle:
    return Cycle(vmalloc.Region("1M", nodes=1, helper=False))


def garbage_memory(region: vmalloc.Region, made: list[Any]) -> Cycle:
    return Cycle(
        (region.alloc(PAGE), region.empty(PAGE, "u1"), pickle.dumps(vmalloc.ref(region.full(9, 1, "u1"))))
    )


def garbage_that_makes(region: vmalloc.Region, made: list[Any]) -> Cycle:
    return MakesRegion(made)


def garbage_that_exchanges(region: vmalloc.Region, made: list[Any]) -> Cycle:
    return Exchanges((region, made))


def ran_in(call: Callable[[], None], allocations: int) -> bool:
    """Whether the collector ran before the call was over."""
    ran: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        ran.append(1)

    gc.callbacks.append(note)
    gc.set_threshold(allocations, 1, 1)
    gc.enable()
    try:
        call()
    finally:
        gc.disable()
        gc.callbacks.remove(note)
    return bool(ran)


@pytest.mark.parametrize(
    "garbage", [garbage_region, garbage_memory, garbage_that_makes, garbage_that_exchanges]
)
@pytest.mark.parametrize(
    "call", [make_region, attach, make_array, make_block, send, exchange, name, look, tidy]
)
def test_the_collector_may_run_at_any_allocation_of_a_call(
    region: vmalloc.Region,
    call: Callable[[vmalloc.Region], None],
    garbage: Callable[[vmalloc.Region, list[Any]], Cycle],
) -> None:
    before = gc.get_threshold(), gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        call(region)  # imports and caches
        gc.collect()
        busy = region.stats().busy_pages
        for allocations in range(1, CALLS_MAX):
            made: list[Any] = []
            garbage(region, made)
            if not ran_in(lambda: call(region), allocations):
                break
            for new in made:
                if isinstance(new, int):
                    assert new == 2 * PAGE
                    continue
                assert attached.get(bytes.fromhex(new.id)) is new
                assert pickle.loads(pickle.dumps(new)) is new
                new.close()
        else:
            pytest.fail(f"after {CALLS_MAX} allocations the call was not over")
        gc.collect()
        assert region.stats().busy_pages == busy
        region.check()
    finally:
        gc.set_threshold(*before[0])
        if before[1]:
            gc.enable()
