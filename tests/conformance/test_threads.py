# SPDX-License-Identifier: MIT
"""Eight threads at once."""

from __future__ import annotations

import random
import threading

from tests.conftest import PAGE

import vmalloc


def run(nr_threads, work):
    errors = []

    def guarded(i):
        try:
            work(i)
        except BaseException as e:  # reported by the main thread
            errors.append(e)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(nr_threads)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors


def test_eight_threads_never_share_a_page(region):
    def work(me):
        chance = random.Random(me)
        live = []
        for _ in range(300):
            if len(live) > 8 or (live and chance.random() < 0.5):
                block, stamp = live.pop(chance.randrange(len(live)))
                assert bytes(block) == bytes([stamp]) * block.nbytes
                block.release()
            else:
                size = chance.choice([1, 1, 2, 3, 16, 100, 300]) * PAGE
                block, stamp = region.alloc(size), chance.randrange(256)
                memoryview(block)[:] = bytes([stamp]) * size
                live.append((block, stamp))

    run(8, work)


def test_blocks_are_released_by_any_thread(region):
    blocks = [region.alloc(2 * PAGE) for _ in range(400)]
    run(8, lambda i: [b.release() for b in blocks[i::8]])
    assert region.stats().busy_pages == 0


def test_two_threads_release_a_block_once(region):
    for _ in range(100):
        block = region.alloc(PAGE)
        run(2, lambda _, block=block: block.release())
        assert block.released
    assert region.stats().busy_pages == 0


def test_purge_shrink_and_check_run_beside_requests(region):
    stop = threading.Event()

    def work(me):
        if me < 4:
            for n in range(1, 150):
                region.alloc(n * PAGE).release()
            stop.set()
        else:
            while not stop.is_set():
                (region.purge, region.shrink, region.check, region.ranges)[me - 4]()

    run(8, work)


def test_more_threads_than_slots_take_turns(design):
    region = vmalloc.Region("16M", max_threads=2, **design)
    barrier = threading.Barrier(6)

    def work(_):
        barrier.wait(60)
        for n in range(1, 60):
            region.alloc(n * PAGE).release()
        barrier.wait(60)

    run(6, work)
    region.check(at_rest=True)
    region.shrink()
    assert region.stats().free_pages == region.nr_pages
