# SPDX-License-Identifier: MIT
"""No pool hangs or breaks through us: what cannot be loaded fails its task, and the next one is answered."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from tests.api.installed import installed_region
from tests.processes.workers import WAIT_S

import vmalloc
from vmalloc._core import load_reference, pack_reference
from vmalloc.attach import where_of
from vmalloc.description import Description, encode

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture
def region():
    with installed_region() as region:
        yield region


class Reference:
    """Sent as a reference that leads nowhere."""

    def __init__(self, packed):
        self.packed = packed

    def __reduce__(self):
        return load_reference, (self.packed,)


def unreachable():
    """To a region of nobody: RegionUnavailable, an OSError."""
    region = vmalloc.Region("1M")
    block = region.alloc(4096)
    where = (b"\1" * 16, *where_of(region)[1:])
    packed = pack_reference(block, 0, encode(Description("<f8", (2,))), where)
    return Reference(b"\1" * 16 + packed[16:])


def cut_off():
    return Reference(b"short")


KINDS = {"unreachable": (unreachable, vmalloc.NotLoaded), "cut off": (cut_off, vmalloc.StaleReference)}


class Frame:
    """Rebuilt by a function that uses what it is given."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        return frame_of, (self.array,)


def frame_of(array):
    array.sum()
    return Frame(array)


def total(x):
    return float(sum_of(x))


def sum_of(x):
    if type(x) is dict:
        return sum(sum_of(part) for part in x.values())
    return (x.array if type(x) is Frame else x).sum()


def made(kind, _=None):
    return KINDS[kind][0]()


IN = {"alone": lambda x: x, "in a dict": lambda x: {"a": np.ones(3), "b": x}, "in a frame": Frame}


@pytest.mark.parametrize("where", IN)
@pytest.mark.parametrize("kind", KINDS)
def test_a_task_that_cannot_be_loaded_fails_and_the_pool_lives(region, kind, where):
    make, error = KINDS[kind]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for _ in range(3):  # more than there are workers
            for call in (
                lambda: pool.apply_async(total, (IN[where](make()),)),
                lambda: pool.map_async(total, [np.ones(5000), IN[where](make())], chunksize=1),
                lambda: pool.starmap_async(total, [(IN[where](make()),)]),
            ):
                with pytest.raises(error):
                    call().get(WAIT_S)
            with pytest.raises(error):
                pool.imap(total, [IN[where](make())]).next(WAIT_S)
        assert pool.map_async(total, [np.ones(5000)] * 4).get(WAIT_S) == [5000.0] * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_result_that_cannot_be_loaded_raises_when_it_is_used_and_the_pool_lives(region, kind, method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        results = [pool.apply_async(made, (kind,)).get(WAIT_S) for _ in range(2)]
        results += pool.map_async(made, [kind] * 2).get(WAIT_S)
        for result in results:
            with pytest.raises(KINDS[kind][1]):
                result.sum()
        assert pool.apply_async(total, (np.ones(5000),)).get(WAIT_S) == 5000.0


@pytest.mark.parametrize("kind", KINDS)
def test_an_executor_outlives_tasks_and_results_that_cannot_be_loaded(region, kind):
    make, error = KINDS[kind]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        for _ in range(2):
            with pytest.raises(error):
                executor.submit(total, make()).result(WAIT_S)
            with pytest.raises(error):
                executor.submit(made, kind).result(WAIT_S).sum()
        done = executor.submit(total, np.ones(5000))
        concurrent.futures.wait([done], WAIT_S)
        assert done.result(0) == 5000.0


def test_a_worker_that_gives_back_what_it_cannot_load_gives_back_the_reference(region):
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(vmalloc.NotLoaded):
        pool.apply_async(same, (unreachable(),)).get(WAIT_S).sum()


def same(x):
    return x
