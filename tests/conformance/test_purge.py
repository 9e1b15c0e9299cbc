# SPDX-License-Identifier: MIT
"""Purge, decay, shrink: how pages come back."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise

import pytest
from tests.conftest import PAGE, assert_at_rest

import vmalloc
from vmalloc.facts import DECAY_PERCENT, POOL_DESIGNS, PURGE_STEP_PAGES


def filled(region, nr_pages):
    block = region.alloc(nr_pages * PAGE)
    memoryview(block)[:] = b"\xff" * block.nbytes
    return block


def test_purge_gives_lazy_pages_back_to_the_system(region):
    before = region.stats().resident_bytes
    block = filled(region, 1000)
    assert region.stats().resident_bytes >= before + 1000 * PAGE
    block.release()
    assert region.stats().lazy_pages == 1000
    assert region.purge() == 1000 * PAGE
    assert region.stats().lazy_pages == 0
    assert region.stats().resident_bytes <= before + 16 * PAGE  # metadata only


def test_shrink_gives_everything_back(region):
    blocks = [filled(region, n) for n in (1, 2, 30, 256, 257, 1000)]
    kept = filled(region, 3)
    total = sum(b.nbytes for b in blocks)
    for b in blocks:
        b.release()
    region.shrink()
    s = region.stats()
    assert (s.busy_pages, s.free_pages) == (3, s.nr_pages - 3)
    assert s.resident_bytes < 3 * PAGE + 512 * 1024 < total
    assert bytes(kept) == b"\xff" * kept.nbytes


@pytest.mark.parametrize("pools", [row.name for row in POOL_DESIGNS if row.pools and not row.magazines])
def test_every_purge_decays_a_pool_by_its_share_rounded_up(pools):
    region = vmalloc.Region("64M", pools=pools, nodes=1)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})  # one CPU, one slab
    region.free_bulk(region.alloc_bulk(2 * PAGE, 10))
    os.sched_setaffinity(0, before)
    left = [region.stats().pooled_pages // 2]
    assert left == [10]
    while left[-1]:
        region.purge()
        left.append(region.stats().pooled_pages // 2)
        assert left[-1] == left[-2] - -(-left[-2] * DECAY_PERCENT // 100)
    assert_at_rest(region)


def test_over_the_threshold_a_free_gives_back_one_step(design):
    region = vmalloc.Region("64M", lazy_max=1000 * PAGE, helper=False, **design)
    blocks = [region.alloc(300 * PAGE) for _ in range(4)]
    for block in blocks[:3]:
        block.release()
    assert (region.stats().lazy_pages, region.stats().nr_purges) == (900, 0)
    blocks[3].release()
    assert (region.stats().lazy_pages, region.stats().nr_purges) == (1200 - PURGE_STEP_PAGES, 0)
    assert_at_rest(region)


def test_another_threads_magazines_are_drained_before_out_of_pages(design):
    region = vmalloc.Region("1M", **design)
    released, done = threading.Event(), threading.Event()

    def hoard():
        region.free_bulk(region.alloc_bulk(PAGE, 200))
        released.set()
        done.wait(60)

    thread = threading.Thread(target=hoard)
    thread.start()
    assert released.wait(60)
    try:
        assert region.stats().free_pages < 256
        assert region.alloc(256 * PAGE).nbytes == 256 * PAGE
    finally:
        done.set()
        thread.join()
    assert_at_rest(region)


def test_a_thread_that_ends_leaves_nothing_behind(region):
    def work():
        region.free_bulk(region.alloc_bulk(PAGE, 50))

    for _ in range(10):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    ends = time.monotonic() + 30
    while (left := region.stats()).cached_pages or left.nr_thread_slots > 2:
        assert time.monotonic() < ends, left
        time.sleep(0.01)  # join() returns a moment before the thread is gone
    region.shrink()
    assert region.stats().free_pages == region.nr_pages


def test_a_discarded_page_reads_as_zeros(region):
    filled(region, 500).release()
    region.shrink()
    assert bytes(region.alloc(500 * PAGE)) == bytes(500 * PAGE)


def test_stats_of_all_states_sum_to_the_region(region):
    keep = [region.alloc(n * PAGE) for n in range(1, 60)]
    del keep[::2]
    s = region.stats()
    parts = (s.free_pages, s.busy_pages, s.cached_pages, s.pooled_pages, s.lazy_pages, s.moving_pages)
    assert sum(parts) == s.nr_pages == 16384
    assert s.busy_pages == sum(b.nbytes for b in keep) // PAGE
    assert s.nr_busy == len(keep)
    assert s.as_dict()["busy_pages"] == s.busy_pages
    assert s.free_bytes + s.busy_bytes == 64 << 20


def test_ranges_tile_the_region(region):
    keep = [region.alloc(n * PAGE) for n in range(1, 60)]
    del keep[::2]
    ranges = region.ranges()
    assert ranges[0].start == 0
    assert ranges[-1].end == region.nr_pages
    assert all(a.end == b.start for a, b in pairwise(ranges))
    busy = {r.start * PAGE: r for r in ranges if r.state == "busy"}
    assert set(busy) == {b.offset for b in keep}
    assert len({r.id for r in busy.values()}) == len(keep)
    assert all(busy[b.offset].nr_pages * PAGE == b.nbytes for b in keep)
