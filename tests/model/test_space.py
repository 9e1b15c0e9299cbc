# SPDX-License-Identifier: MIT
"""The space is lowest-address first fit: equal to a linear scan, with any window and alignment."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmalloc.model.space as space_module
from vmalloc.model import PAGE, Space
from vmalloc.model.space import search_length

PAGES = 256


class Bitmap:
    """The oracle: one truth value a page."""

    def __init__(self) -> None:
        self.free = [True] * PAGES

    def find(self, pages: int, align_pages: int, first: int) -> int | None:
        for start in range(-(-first // align_pages) * align_pages, PAGES - pages + 1, align_pages):
            if all(self.free[start : start + pages]):
                return start
        return None

    def ranges(self) -> list[tuple[int, int]]:
        edges = [at for at in range(PAGES + 1) if self._is_free(at) != self._is_free(at - 1)]
        return [(a * PAGE, b * PAGE) for a, b in zip(edges[::2], edges[1::2], strict=True)]

    def _is_free(self, page: int) -> bool:
        return 0 <= page < PAGES and self.free[page]


requests = st.lists(
    st.tuples(
        st.booleans(), st.integers(1, 9), st.sampled_from([1, 2, 8]), st.integers(0, 200), st.integers(0, 999)
    ),
    max_size=120,
)


@pytest.mark.parametrize("leaf", [2, 4, 128])
@given(requests)
@settings(deadline=None, max_examples=60)
def test_first_fit_and_the_ranges_equal_a_linear_scan(leaf, steps):
    before = space_module.LEAF, space_module.FAN
    space_module.LEAF, space_module.FAN = leaf, 2  # small leaves: many levels at a small size
    try:
        space, oracle, live = Space([(0, PAGES * PAGE)]), Bitmap(), []
        for is_alloc, pages, align, first, pick in steps:
            if is_alloc:
                expected = oracle.find(pages, align, first)
                found = space.find(pages * PAGE, align * PAGE, first * PAGE)
                assert found == (None if expected is None else expected * PAGE)
                if expected is not None:
                    space.take(found, pages * PAGE)
                    oracle.free[expected : expected + pages] = [False] * pages
                    live.append((expected, pages))
            elif live:
                start, pages = live.pop(pick % len(live))
                space.add(start * PAGE, pages * PAGE)
                oracle.free[start : start + pages] = [True] * pages
            assert list(space) == oracle.ranges()
            assert space.longest == max((b - a for a, b in oracle.ranges()), default=0)
    finally:
        space_module.LEAF, space_module.FAN = before


def test_a_range_cannot_be_freed_twice():
    space = Space([(0, 8 * PAGE)])
    with pytest.raises(ValueError, match="free already"):
        space.add(4 * PAGE, PAGE)


def test_a_request_aligned_above_a_page_looks_for_size_plus_align_minus_one():
    assert search_length(2 * PAGE, 4 * PAGE, 0, 1 << 30) == 6 * PAGE - 1
    assert search_length(2 * PAGE, PAGE, 0, 1 << 30) == 2 * PAGE


def test_a_request_that_fills_its_own_window_looks_for_its_size_only():
    assert search_length(8 * PAGE, 8 * PAGE, 8 * PAGE, 16 * PAGE) == 8 * PAGE


def test_the_two_bounds_of_an_aligned_search_are_the_smallest_and_the_sure_fit():
    space = Space([(4 * PAGE, 6 * PAGE), (32 * PAGE, 64 * PAGE)])
    assert space.bounds(2 * PAGE, 4 * PAGE, 0, 1 << 40) == (4 * PAGE, 32 * PAGE)


def test_discard_removes_what_is_free_and_says_how_much():
    space = Space([(0, 4 * PAGE), (6 * PAGE, 8 * PAGE)])
    assert space.discard(2 * PAGE, 5 * PAGE) == 3 * PAGE
    assert list(space) == [(0, 2 * PAGE), (7 * PAGE, 8 * PAGE)]


def test_a_search_counts_the_lengths_it_looks_at():
    space = Space([(0, PAGE), (2 * PAGE, 3 * PAGE), (4 * PAGE, 8 * PAGE)])
    assert space.find(4 * PAGE) == 4 * PAGE
    assert (space.searches, space.steps, space.steps_max) == (1, 4, 4)  # the summary, then three ranges
    assert space.find(5 * PAGE) is None
    assert (space.searches, space.steps, space.steps_max) == (2, 5, 4)  # the summary alone says no


def test_a_search_skips_leaves_by_their_summary():
    # 64 ranges a leaf when new: three leaves of single pages, then one whose only range is long
    space = Space([(2 * PAGE * at, 2 * PAGE * at + PAGE) for at in range(192)] + [(1 << 30, 1 << 31)])
    assert space.find(2 * PAGE) == 1 << 30
    assert space.steps == 5  # four summary entries, one range


@pytest.mark.soak
def test_a_million_ranges_are_searched_in_microseconds():
    holes = 500_000
    space = Space([(3 * PAGE * at, 3 * PAGE * at + PAGE) for at in range(holes)] + [(1 << 42, 1 << 43)])
    began = time.process_time()
    for _ in range(10_000):
        assert space.find(2 * PAGE) == 1 << 42
    assert time.process_time() - began < 1.0  # 100 microseconds each, on a slow machine
