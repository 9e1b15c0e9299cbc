# SPDX-License-Identifier: MIT
"""The way of a request through the kernel, in each of its versions."""

from __future__ import annotations

import pytest

from vmalloc.model import KERNEL_PRESETS, PAGE, Area, Kernel, Purge
from vmalloc.model.busy import Busy
from vmalloc.model.percpu import get_areas
from vmalloc.model.purge import helpers

WINDOW = (1 << 40, 2 << 40)
BASE = WINDOW[0]


def kernel(name: str = "linux-6.9", cpus: int = 4) -> Kernel:
    return Kernel(KERNEL_PRESETS[name], cpus, WINDOW)


def fill_pool(k: Kernel, count: int, pages: int = 2, cpu: int = 0) -> list[int]:
    """Put `count` areas into a pool by demand: allocate, free, purge. Returns their starts, lowest first."""
    starts = [k.alloc(pages * PAGE, cpu=cpu).start for _ in range(count)]
    for start in starts:
        k.free(start)
    k.purge()
    return starts


def test_areas_come_from_the_lowest_free_address():
    k = kernel()
    assert [k.alloc(2 * PAGE).start for _ in range(3)] == [BASE, BASE + 2 * PAGE, BASE + 4 * PAGE]


def test_a_freed_area_is_unusable_until_a_purge():
    k = kernel()
    first = k.alloc(2 * PAGE).start
    k.free(first)
    assert k.alloc(2 * PAGE).start == BASE + 2 * PAGE
    assert k.lazy_pages == 2


def test_a_purge_brings_an_area_from_the_space_into_the_pool_of_the_cpu_that_allocated_it():
    k = kernel()
    fill_pool(k, 1, cpu=3)
    assert {node.id: node.pooled for node in k.nodes} == {0: 0, 1: 0, 2: 0, 3: 1}
    assert k.attempt(2 * PAGE, cpu=3) == (Area(BASE, 2 * PAGE, 3), "pool")


def test_a_pool_gives_out_first_what_the_purge_added_last():
    k = kernel()
    starts = fill_pool(k, 3)
    assert [k.alloc(2 * PAGE).start for _ in range(3)] == starts[::-1]


def test_a_pool_serves_only_its_exact_size():
    k = kernel()
    fill_pool(k, 1, pages=3)
    assert k.attempt(2 * PAGE)[1] == "space"


def test_an_area_above_256_pages_is_never_pooled():
    k = kernel()
    fill_pool(k, 1, pages=257)
    assert sum(node.pooled for node in k.nodes) == 0
    assert k.alloc(2 * PAGE).start == BASE


def test_a_misaligned_head_moves_to_the_tail_and_the_request_misses():
    k = kernel()
    starts = fill_pool(k, 4)  # BASE + 0, 2, 4 and 6 pages; the head is + 6
    area, level = k.attempt(2 * PAGE, align=4 * PAGE)
    assert (level, area.start) == ("space", BASE + 8 * PAGE)
    assert [a.start for a in reversed(k.nodes[0].pools[2].areas)] == [
        starts[2],
        starts[1],
        starts[0],
        starts[3],
    ]


def test_an_llist_taker_reverses_what_it_puts_back():
    k = kernel("llist")
    starts = fill_pool(k, 4)
    assert [k.alloc(2 * PAGE).start for _ in range(4)] == [starts[3], starts[0], starts[2], starts[1]]


@pytest.mark.parametrize(
    ("design", "length", "left"),
    [
        ("linux-6.9", 8, 6),
        ("linux-6.16", 8, 6),
        ("linux-6.9", 3, 0),
        ("linux-6.16", 3, 3),
        ("patch-v3", 1, 0),
        ("linux-6.16", 1, 1),
    ],
)
def test_a_quarter_decays_and_the_rounding_is_the_versions(design, length, left):
    assert length - KERNEL_PRESETS[design].decay_quota(length) == left


def test_the_hot_end_decays():
    k = kernel("linux-6.16")
    for at in range(4):
        k.space.take(BASE + at * PAGE, PAGE)
        k.nodes[0].pool(1).push(Area(BASE + at * PAGE, PAGE, 0))
    k.purge()
    assert [(a.start - BASE) // PAGE for a in k.nodes[0].pools[1].areas] == [0, 1, 2]


def test_a_full_purge_empties_all_pools_and_fills_none():
    k = kernel()
    fill_pool(k, 8)
    held = k.alloc(5 * PAGE).start
    k.free(held)
    k.purge(full=True)
    assert sum(node.pooled for node in k.nodes) == 0
    assert list(k.space) == [(BASE, WINDOW[1])]


def test_a_failing_request_purges_everything_and_tries_the_space_once_more():
    k = Kernel(KERNEL_PRESETS["linux-6.9"], 4, WINDOW, [(BASE, BASE + 4 * PAGE)])
    k.free(k.alloc(4 * PAGE).start)
    assert k.alloc(3 * PAGE).start == BASE
    assert k.alloc(2 * PAGE) is None


def test_a_window_of_its_own_bypasses_the_pools_and_gets_no_stamp():
    k = kernel()
    fill_pool(k, 1)
    area, level = k.attempt(2 * PAGE, vstart=BASE + 64 * PAGE, vend=WINDOW[1])
    assert (level, area.node, area.start) == ("space", -1, BASE + 64 * PAGE)


def test_one_cpu_has_one_space_and_no_pools():
    k = kernel(cpus=1)
    fill_pool(k, 4)
    assert k.attempt(2 * PAGE)[1] == "space"


def test_before_6_9_lazy_neighbours_merge_and_count_as_one():
    k = kernel("linux-6.8")
    for start in [k.alloc(2 * PAGE).start for _ in range(3)]:
        k.free(start)
    assert k.purge().nr_purged == 1


@pytest.mark.parametrize(
    ("cpus", "pages"), [(1, 8192), (2, 16384), (3, 16384), (4, 24576), (8, 32768), (64, 57344), (128, 65536)]
)
def test_the_threshold_is_32_mib_for_each_bit_of_the_cpu_count(cpus, pages):
    assert KERNEL_PRESETS["linux-6.9"].lazy_pages_max(cpus) == pages


def test_helpers_start_at_twice_the_threshold():
    assert [helpers(lazy, 100, 8) for lazy in (50, 199, 200, 399, 5000)] == [0, 0, 1, 2, 7]


@pytest.mark.parametrize("nr_settled", [0, 1, 3])
def test_a_purge_taken_step_by_step_or_part_by_part_ends_where_a_whole_one_does(nr_settled):
    a, b, c = kernel(), kernel(), kernel()
    for k in (a, b, c):
        fill_pool(k, 7)
        fill_pool(k, 9, pages=300)
        for start in [k.alloc(pages * PAGE, cpu=pages % 4).start for pages in range(1, 40)]:
            k.free(start)
    steps = Purge(a, full=False)
    while not steps.done:
        steps.advance(a)
    b.purge()
    parts = Purge(c, full=False)
    parts.collect(c)
    for _ in range(nr_settled):
        parts.settle_next(c, 0)
    parts.run(c)
    pools = [[{p: list(pool.areas) for p, pool in n.pools.items()} for n in k.nodes] for k in (a, b, c)]
    assert pools[0] == pools[1] == pools[2]
    assert list(a.space) == list(b.space) == list(c.space)
    assert a.lazy_pages == b.lazy_pages == c.lazy_pages == 0


def test_shrinking_gives_every_pool_back():
    k = kernel()
    fill_pool(k, 5, cpu=1)
    assert k.shrink() == 5
    assert list(k.space) == [(BASE, WINDOW[1])]


@pytest.mark.parametrize(("descending", "asked"), [(False, 4), (True, 2)])
def test_an_inner_address_is_found_by_walking_the_nodes(descending, asked):
    busy = Busy(4, 16 * PAGE, descending)
    busy.insert(Area(0, 20 * PAGE))  # starts in node 0's zone, reaches into node 1's
    assert busy.find(17 * PAGE) == (Area(0, 20 * PAGE), asked)
    assert busy.find(21 * PAGE) == (None, 4)


def test_per_cpu_areas_take_the_highest_common_base():
    k = Kernel(KERNEL_PRESETS["linux-6.9"], 4, WINDOW, [(BASE, BASE + 64 * PAGE)])
    k.window = (BASE, BASE + 64 * PAGE)
    areas = get_areas(k, [0, 32 * PAGE], [8 * PAGE, 8 * PAGE], 8 * PAGE)
    assert [a.start - BASE for a in areas] == [24 * PAGE, 56 * PAGE]
    again = get_areas(k, [0, 32 * PAGE], [8 * PAGE, 8 * PAGE], 8 * PAGE)
    assert [a.start - BASE for a in again] == [16 * PAGE, 48 * PAGE]
