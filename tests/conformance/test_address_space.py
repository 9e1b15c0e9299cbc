# SPDX-License-Identifier: MIT
"""AddressSpace: the same designs, without memory."""

from __future__ import annotations

import pytest
from tests.conftest import assert_at_rest

import vmalloc


@pytest.fixture
def space(design):
    space = vmalloc.AddressSpace(1 << 32, 1 << 40, granule=4096, **design)
    yield space
    assert_at_rest(space)
    space.close()


def test_ranges_are_numbers_of_the_space(space):
    starts = [space.alloc(10_000) for _ in range(10)]
    lowest = [(1 << 32) + i * 3 * 4096 for i in range(10)]
    if space.pools == "magazine":  # it takes some in stock, and hands those out in another order
        assert all((start - lowest[0]) % (3 * 4096) == 0 for start in starts)
        assert len(set(starts)) == 10
    else:
        assert starts == lowest
    assert [space.size_of(s) for s in starts] == [12288] * 10
    space.free_bulk(starts)


def test_it_costs_no_memory_however_large(space):
    start = space.alloc(1 << 39)
    assert space.stats().busy_bytes == 1 << 39
    assert space.stats().resident_bytes < (1 << 39) // 10_000  # the free index alone
    space.free(start)


def test_alignment_counts_from_the_start(space):
    space.alloc(1)
    assert (space.alloc(1, align=1 << 20) - space.start) % (1 << 20) == 0


def test_bulk_is_all_or_nothing(space):
    starts = space.alloc_bulk(4096, 1000)
    assert len(set(starts)) == 1000
    with pytest.raises(vmalloc.OutOfPages):
        space.alloc_bulk(1 << 38, 5)
    assert space.stats().busy_pages == 1000
    space.free_bulk(starts)


def test_only_starts_of_live_ranges_can_be_freed(space):
    start = space.alloc(3 * 4096)
    for wrong in (start + 4096, start + 1, start - 4096, 0, -1, 1 << 70, space.stop):
        with pytest.raises(vmalloc.NotAllocated, match=r"\d"):
            space.free(wrong)
        with pytest.raises(vmalloc.NotAllocated, match=r"\d"):
            space.size_of(wrong)
    space.free(start)
    with pytest.raises(vmalloc.NotAllocated):
        space.free(start)


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_must_be_positive(space, size):
    with pytest.raises(ValueError, match=str(size)):
        space.alloc(size)


@pytest.mark.parametrize("size", [2**40, 2**62, 2**70])
def test_huge_sizes_are_out_of_pages(space, size):
    with pytest.raises(vmalloc.OutOfPages, match=str(size)):
        space.alloc(size)
    with pytest.raises(vmalloc.OutOfPages, match=str(size)):
        space.alloc(1, align=1 << 70 if size == 2**70 else size)
    with pytest.raises(vmalloc.OutOfPages, match=str(size)):
        space.alloc_bulk(4096, size)


@pytest.mark.parametrize("wrong", [1.5, "4096", None, 4096.0])
def test_only_integers_are_numbers(space, wrong):
    for call in (space.alloc, space.free, space.size_of):
        with pytest.raises(TypeError):
            call(wrong)


def test_there_are_no_pages_to_look_at(space):
    for call in (lambda: space.empty(10), lambda: space.zeros(10), lambda: space._adopt(0, 1, 1)):
        with pytest.raises(TypeError, match="no memory"):
            call()
