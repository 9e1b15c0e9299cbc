# SPDX-License-Identifier: MIT
"""A monitor sees what goes on in a region, and takes no part in it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from tests.conftest import PAGE

import vmalloc
from vmalloc._core import Monitor
from vmalloc.facts import LEVELS, POOL_PAGES_MAX, SURVEY_LARGEST_MAX
from vmalloc.stats import served_of

BLOCK = 1 << 16  # ids that a magazine takes at once: VM_ID_BLOCK
NOTHING = dict.fromkeys(LEVELS, 0)


@pytest.fixture
def region() -> Iterator[vmalloc.Region]:
    with vmalloc.Region("64M", nodes=2, helper=False) as region:
        yield region


@pytest.fixture
def watched(region: vmalloc.Region) -> Iterator[vmalloc.Region]:
    with vmalloc.Region.attach(f"/proc/self/fd/{region.fileno()}", readonly=True) as watched:
        yield watched


def hits(monitor: Monitor) -> int:
    return served_of(monitor.look()[0])["magazine"]


def pairs(region: vmalloc.Region, nr: int, nbytes: int = PAGE) -> None:
    for _ in range(nr):
        region.alloc(nbytes).release()


def test_each_look_tells_the_requests_so_far_by_level(
    region: vmalloc.Region, watched: vmalloc.Region
) -> None:
    pairs(region, 10)
    monitor = Monitor(watched)
    assert served_of(monitor.look()[0]) == NOTHING | {"magazine": 9, "space": 1}
    pairs(region, 100)
    pairs(region, 50, 7 * PAGE)
    assert served_of(monitor.look()[0]) == NOTHING | {"magazine": 9 + 100 + 49, "space": 2}
    assert served_of(monitor.look()[0]) == region.stats().served


def test_hits_are_counted_over_blocks_of_ids(region: vmalloc.Region, watched: vmalloc.Region) -> None:
    monitor = Monitor(watched)
    pairs(region, BLOCK // 2)
    assert hits(monitor) == BLOCK // 2 - 1
    pairs(region, 4 * BLOCK)
    assert hits(monitor) == BLOCK // 2 + 4 * BLOCK - 1  # who takes a new block is served by the magazine, too
    pairs(region, 4)
    assert hits(monitor) == BLOCK // 2 + 4 * BLOCK + 3


def test_hits_of_a_thread_that_ended_are_kept_when_another_has_its_slot(
    region: vmalloc.Region, watched: vmalloc.Region
) -> None:
    for nr in range(1, 4):
        thread = threading.Thread(target=pairs, args=(region, 100))
        thread.start()
        thread.join()
        assert sum(region.stats().served.values()) == 100 * nr
        assert hits(Monitor(watched)) == 99 * nr


def test_misses_are_no_hits(region: vmalloc.Region, watched: vmalloc.Region) -> None:
    monitor = Monitor(watched)
    pairs(region, 1000, (POOL_PAGES_MAX + 1) * PAGE)
    assert hits(monitor) == 0
    assert monitor.look()[0]["nr_alloc"] == 1000


def test_ready_ranges_are_told_by_size(region: vmalloc.Region, watched: vmalloc.Region) -> None:
    blocks = [region.alloc(3 * PAGE) for _ in range(200)]
    for block in blocks:
        block.release()
    monitor = Monitor(watched)
    in_magazines = monitor.look()[1]
    pools = [monitor.pools(node) for node in (0, 1)]
    stats = region.stats()
    assert sum(n * (i + 1) for i, n in enumerate(in_magazines)) == stats.cached_pages > 0
    assert sum(n * (i + 1) for pool in pools for i, n in enumerate(pool)) == stats.pooled_pages
    assert in_magazines[2] > 0
    assert monitor.pools(2) == [0] * POOL_PAGES_MAX


def test_a_survey_is_what_the_statistics_and_the_holders_are(
    region: vmalloc.Region, watched: vmalloc.Region
) -> None:
    blocks = [region.alloc(n * PAGE) for n in (1, 9, 300, 2, 40)]
    stats, holdings, largest, is_whole = Monitor(watched).survey()
    assert is_whole
    assert stats == region._stats()
    assert holdings == region._holdings(10, idle_too=True)
    assert [r.nr_pages for r in largest[:4]] == [300, 40, 9, 2]
    assert largest[0] in region.ranges()
    for block in blocks:
        block.release()


def test_a_survey_keeps_the_largest_of_many(region: vmalloc.Region, watched: vmalloc.Region) -> None:
    sizes = [1 + i * 37 % 101 for i in range(101)]
    blocks = [region.alloc(n * PAGE) for n in sizes]
    largest = Monitor(watched).survey()[2]
    assert [r.nr_pages for r in largest] == sorted(sizes, reverse=True)[:SURVEY_LARGEST_MAX]
    for block in blocks:
        block.release()


def test_a_monitor_takes_no_slot_and_changes_no_byte(region: vmalloc.Region, watched: vmalloc.Region) -> None:
    block = region.alloc(5 * PAGE)
    before, meta = region.processes(), os.pread(region.fileno(), 1 << 20, 0)
    monitor = Monitor(watched)
    monitor.look()
    monitor.survey()
    monitor.pools(0)
    assert region.processes() == before
    assert os.pread(region.fileno(), 1 << 20, 0) == meta
    block.release()


def test_a_closed_region_is_not_watched(region: vmalloc.Region, watched: vmalloc.Region) -> None:
    monitor = Monitor(watched)
    watched.close()
    for look in (monitor.look, monitor.survey, lambda: monitor.pools(0), lambda: Monitor(watched)):
        with pytest.raises(vmalloc.RegionClosed):
            look()
