# SPDX-License-Identifier: MIT
"""The way of a request through our own allocator. Its numbers are those of vmalloc/facts.py."""

from __future__ import annotations

import pytest

from vmalloc.facts import (
    DECAY_PERCENT,
    LAZY_BYTES_PER_CPU_BIT,
    MAGAZINE_BUDGET_BYTES,
    MAGAZINE_BUDGET_BYTES_MAX,
    POOL_CAP_PAGES,
    POOL_CAP_RANGES_MIN,
    POOL_PAGES_MAX,
    PURGE_STEP_PAGES,
    PURGE_STEP_RANGES,
    WARM_MEMORY_SHARE,
    WARM_STEPS_LOG,
)
from vmalloc.model import PAGE, PRESETS, Area, CachingAllocator, CachingDesign
from vmalloc.model.warm import list_of

BASE = 1 << 40
WINDOW = (BASE, BASE + (1 << 30))  # a region of 1 GiB
DESIGN = PRESETS["vmalloc"]
GIB = 1 << 30


def ours(cpus: int = 4) -> CachingAllocator:
    return CachingAllocator(DESIGN, cpus, WINDOW)


def test_a_magazine_hands_back_the_range_freed_last():
    k = ours()
    first, second = k.alloc(4 * PAGE).start, k.alloc(4 * PAGE).start
    k.free(first)
    k.free(second)
    assert k.attempt(4 * PAGE) == (Area(second, 4 * PAGE), "magazine")


def test_a_magazine_doubles_when_it_overflows_and_then_gives_its_older_half_away():
    k = ours()
    starts = [k.alloc(PAGE).start for _ in range(31)]
    kept = []
    for start in starts:
        k.free(start)
        kept.append(len(k.magazines[0].sizes[1]))
    assert kept == [*range(1, 31), 16]  # the cap was 1, 2, 4, 8, 16, 30
    assert [a.start for a in k.nodes[0].pools[1].areas] == starts[:15]


def test_caps_grow_within_the_threads_budget():
    k = CachingAllocator(
        DESIGN, 4, (0, 32_000 * PAGE)
    )  # a sixteenth of what is free is less than 4,096 pages
    for pages in range(16, 26):  # each may grow by 29 times itself, all of them by 4,096
        for start in [k.alloc(pages * PAGE).start for _ in range(31)]:
            k.free(start)
    kept = k.magazines[0]
    assert [kept.cap(pages) for pages in (16, 17, 18, 1)] == [30, 30, 30, 1]
    assert kept.grown_pages <= kept.budget_pages < kept.grown_pages + 16 * 25
    assert kept.cap(25) < kept.cap_most(25)


def test_a_little_longer_range_will_do_while_space_is_short():
    k = CachingAllocator(DESIGN, 4, (0, 1000 * PAGE))
    held = [k.alloc(pages * PAGE).start for pages in (250, 250, 250, 250)]
    assert k.alloc(240 * PAGE) is None
    k.free(held[1])
    assert k.nodes[0].pools[250].areas
    assert k.alloc(240 * PAGE).pages == 250
    assert k.alloc(PAGE) is None


def test_a_large_range_is_reused_warm_as_a_whole_if_it_is_little_longer():
    k = ours()
    start = k.alloc(300 * PAGE).start
    k.free(start)
    assert k.attempt(267 * PAGE) == (Area(start, 300 * PAGE), "lazy")  # an eighth more than 267
    assert k.lazy_pages == 0


def test_of_a_much_longer_one_the_rest_stays_warm():
    k = ours()
    start = k.alloc(300 * PAGE).start
    k.free(start)
    assert k.attempt(266 * PAGE) == (Area(start, 266 * PAGE), "lazy")
    assert list(k.warm) == [Area(start + 266 * PAGE, 34 * PAGE)]


def test_a_small_request_splits_what_is_twice_as_long_if_there_is_such_a_range():
    k = ours()
    starts = [k.alloc(pages * PAGE).start for pages in (290, 2, 300, 2)]
    k.free(starts[2])
    k.free(starts[0])
    assert k.copy().attempt(150 * PAGE) == (Area(starts[2], 150 * PAGE), "lazy")
    assert k.attempt(151 * PAGE) == (Area(starts[0], 151 * PAGE), "lazy")  # rather than a cold one


def test_without_pools_a_small_request_gets_nothing_warm():
    k = CachingAllocator(CachingDesign("off", "off"), 1, WINDOW)
    k.free(k.alloc(200 * PAGE).start)
    assert k.attempt(20 * PAGE)[1] == "space"


def test_neighbours_become_one_for_a_request_that_none_of_them_can_serve():
    k = ours()
    starts = [k.alloc(300 * PAGE).start for _ in range(3)]
    for start in starts:
        k.free(start)
    assert k.attempt(900 * PAGE) == (Area(starts[0], 900 * PAGE), "lazy")


def test_lists_are_exact_for_pooled_sizes_and_eight_to_a_doubling_above():
    assert [list_of(pages) for pages in (1, 2, POOL_PAGES_MAX)] == [0, 1, POOL_PAGES_MAX - 1]
    assert WARM_STEPS_LOG == 3
    for log in (8, 9, 20):
        starts = [(1 << log) + at * (1 << log - 3) for at in range(8)]
        lists = [list_of(max(start, POOL_PAGES_MAX + 1)) for start in starts]
        assert lists == list(range(lists[0], lists[0] + 8))
        assert list_of((2 << log) - 1) == lists[-1] == list_of(2 << log) - 1


def above_the_threshold() -> CachingAllocator:
    """1,000 pages may be lazy. Two ranges are: of 600 pages for 10 seconds, of 400 pages for 5."""
    k = CachingAllocator(DESIGN, 4, WINDOW, lazy_pages_fixed=1000)
    starts = [k.alloc(pages * PAGE).start for pages in (600, 300, 400, 300)]
    for seconds, at in ((0, 0), (5, 2)):
        k.now_s = seconds
        k.free(starts[at])
    k.now_s = 10
    return k


def test_a_free_above_the_threshold_gives_back_of_the_oldest_what_it_adds():
    k = above_the_threshold()
    used, most = k.used_pages, k.lazy_pages_max
    k.free(k.alloc(1000 * PAGE).start)
    given = 2000 - most
    assert PURGE_STEP_PAGES < given < 2 * 1000
    assert (k.lazy_pages, k.used_pages) == (most, used + 1000 - given)
    assert 1000 in {area.pages for area in k.warm}
    assert (k.nr_purges, k.nr_steps, k.purge_is_due) == (0, 1, False)


def test_a_step_takes_so_many_ranges_at_most():
    k = CachingAllocator(CachingDesign("off", "off"), 1, WINDOW, lazy_pages_fixed=PURGE_STEP_RANGES + 2)
    for start in [k.alloc(PAGE).start for _ in range(PURGE_STEP_RANGES + 3)]:
        k.free(start)
    assert k.lazy_pages == 3


def test_a_request_from_space_above_the_threshold_gives_back_twice_its_size_first():
    k = CachingAllocator(DESIGN, 1, WINDOW, lazy_pages_fixed=1000)
    k.alloc(PAGE)
    k.free(k.alloc(5000 * PAGE).start)
    assert k.lazy_pages == 1000
    k.lazy_pages_fixed = 900
    k.alloc(300 * PAGE, align=2 * PAGE)  # the warm one is not aligned
    assert k.lazy_pages == 1000 - 2 * 300


def test_a_warm_range_keeps_its_age_in_what_is_left_of_it():
    k = above_the_threshold()
    assert k.attempt(500 * PAGE)[1] == "lazy"
    assert {area.pages: k.warm.ages[area.start] for area in k.warm} == {100: 0, 400: 5}


def test_a_pool_keeps_32_mib_of_a_size_but_16_ranges_in_any_case():
    assert [DESIGN.pool_capacity(pages) for pages in (1, 64, 256)] == [8192, 128, 32]
    assert DESIGN.pool_capacity(POOL_CAP_PAGES) == POOL_CAP_RANGES_MIN == 16


def test_a_quarter_of_a_pool_decays_rounded_up():
    assert DECAY_PERCENT == 25
    assert [DESIGN.decay_quota(length) for length in (0, 1, 3, 4, 5, 8)] == [0, 1, 1, 1, 2, 2]


def test_the_cold_end_decays():
    k = CachingAllocator(CachingDesign("locked", "locked"), 1, WINDOW)
    for at in range(4):
        k.space.take(BASE + at * PAGE, PAGE)
        k.nodes[0].pool(1).push(Area(BASE + at * PAGE, PAGE))
    k.purge()
    left = [(a.start - BASE) // PAGE for a in k.nodes[0].pools[1].areas]
    assert left == [0, 1, 2, 3][DESIGN.decay_quota(4) :]


def test_the_threshold_without_use_is_the_kernels():
    assert [DESIGN.lazy_pages_max(cpus) for cpus in (1, 2, 3, 4, 128)] == [
        bits * LAZY_BYTES_PER_CPU_BIT // PAGE for bits in (1, 2, 2, 3, 8)
    ]


def test_what_is_lazy_and_what_is_used_may_be_the_peak_and_a_sixteenth():
    mib = (1 << 20) // PAGE
    assert DESIGN.lazy_pages_max(2, 1600 * mib) == 1700 * mib
    assert DESIGN.lazy_pages_max(2, 1600 * mib, live_pages=1000 * mib) == 700 * mib
    assert DESIGN.lazy_pages_max(2, 1600 * mib, live_pages=1690 * mib) == 64 * mib  # the kernel's


def test_what_stays_warm_is_a_part_of_the_machines_memory():
    peak = 4 * GIB // PAGE
    assert DESIGN.lazy_pages_max(1, peak, memory_bytes=4 * GIB) == 4 * GIB // WARM_MEMORY_SHARE // PAGE


def test_an_address_space_keeps_nothing_warm():
    assert DESIGN.lazy_pages_max(2, 153_600, memory_bytes=0) == 38_400


def test_the_peak_sinks_towards_use_at_each_purge():
    k = CachingAllocator(DESIGN, 1, WINDOW)
    k.free(k.alloc(1000 * PAGE).start)
    assert (k.used_pages, k.used_peak_pages) == (1000, 1000)
    k.purge()
    assert (k.used_pages, k.used_peak_pages) == (0, 750)
    k.purge()
    assert k.used_peak_pages == 563  # the quarter is rounded down


@pytest.mark.parametrize(
    ("pools", "level"),
    [("off", "space"), ("locked", "pool"), ("llist", "pool"), ("magazine", "magazine")],
)
def test_a_freed_range_is_ready_where_the_pool_design_keeps_it(pools, level):
    k = CachingAllocator(CachingDesign(pools, pools), 1, WINDOW)
    k.free(k.alloc(4 * PAGE).start)
    assert k.attempt(4 * PAGE)[1] == level


def test_a_budget_is_a_share_of_what_is_free_between_two_bounds():
    budgets = [DESIGN.magazine_budget_pages(free, is_alone=False) for free in (0, 1 << 20, 1 << 30)]
    assert budgets == [MAGAZINE_BUDGET_BYTES // PAGE, 1 << 16, MAGAZINE_BUDGET_BYTES_MAX // PAGE]


def test_a_thread_that_is_alone_has_twice_the_share_and_twice_the_upper_bound():
    budgets = [DESIGN.magazine_budget_pages(free, is_alone=True) for free in (0, 1 << 20, 1 << 30)]
    assert budgets == [MAGAZINE_BUDGET_BYTES // PAGE, 2 << 16, 2 * MAGAZINE_BUDGET_BYTES_MAX // PAGE]
