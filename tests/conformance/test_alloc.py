# SPDX-License-Identifier: MIT
"""What a request gets, whichever design stands in front of space."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from tests.conftest import DESIGNS, PAGE, assert_at_rest

import vmalloc
from vmalloc.facts import POOL_PAGES_MAX, WARM_SLACK_SHIFT


def test_a_block_has_exactly_the_bytes_asked_for_on_whole_pages(region):
    for nbytes, pages in ((1, 1), (PAGE, 1), (PAGE + 1, 2), (1_000_000, -(-1_000_000 // PAGE))):
        block = region.alloc(nbytes)
        assert block.nbytes == len(block) == memoryview(block).nbytes == nbytes
        assert region.stats().busy_pages == pages
        block.release()


def test_pooled_sizes_are_served_exactly_and_larger_ones_with_at_most_an_eighth_more(region):
    for nr_pages in (*range(1, 258), 511, 512, 513, 4096):
        more = 0 if nr_pages <= POOL_PAGES_MAX else nr_pages >> WARM_SLACK_SHIFT
        with region.alloc(nr_pages * PAGE) as block:
            assert nr_pages <= region.stats().busy_pages <= nr_pages + more
            memoryview(block)[-1] = 1


#: Without pools small ranges wait for a purge.
WITH_POOLS = [design for design in DESIGNS if design.values[0]["pools"] != "off"]


@pytest.mark.parametrize("design", WITH_POOLS, indirect=True)
@pytest.mark.parametrize("nr_pages", [1, 4, 256])
def test_a_freed_range_of_the_same_size_is_reused_hot(region, nr_pages):
    first = region.alloc(nr_pages * PAGE)
    offset = first.offset
    first.release()
    assert region.alloc(nr_pages * PAGE).offset == offset


def test_a_freed_large_range_is_reused_warm(region):
    first = region.alloc(1000 * PAGE)
    offset = first.offset
    first.release()
    assert region.alloc(990 * PAGE).offset == offset  # at most an eighth is wasted


def test_fresh_ranges_are_the_lowest_free_addresses(region):
    blocks = [region.alloc(300 * PAGE) for _ in range(5)]
    assert [b.offset // PAGE for b in blocks] == [0, 300, 600, 900, 1200]
    blocks[1].release()
    blocks[3].release()
    region.shrink()
    assert region.alloc(260 * PAGE).offset == 300 * PAGE
    assert region.alloc(301 * PAGE).offset == 1500 * PAGE


def test_neighbours_freed_in_any_order_become_one_range(region):
    blocks = [region.alloc(7 * PAGE) for _ in range(9)]
    for i in (4, 0, 8, 2, 6, 1, 3, 7, 5):
        blocks[i].release()
    region.shrink()
    assert region.stats().nr_free_ranges == region.stats().nr_ranges == 1


@pytest.mark.parametrize("shift", range(12, 25))
def test_alignment_is_of_the_offset(region, shift):
    region.alloc(PAGE)
    taken = region.alloc(PAGE)
    for nr_pages in (1, 3, 300):
        assert region.alloc(nr_pages * PAGE, align=1 << shift).offset % (1 << shift) == 0
    taken.release()


def test_no_two_blocks_overlap_and_contents_stay(region):
    blocks = [region.alloc((1 + i % 40) * PAGE - i) for i in range(200)]
    for i, block in enumerate(blocks):
        memoryview(block)[:] = bytes([i]) * block.nbytes
    for i, block in enumerate(blocks):
        assert bytes(block) == bytes([i]) * block.nbytes


def test_bulk_gives_all_blocks(region):
    blocks = region.alloc_bulk(3 * PAGE, 100)
    starts = sorted(b.offset // PAGE for b in blocks)
    assert len(blocks) == 100
    assert all(b - a >= 3 for a, b in pairwise(starts))
    region.free_bulk(blocks)
    assert region.stats().busy_pages == 0
    assert region.alloc_bulk(PAGE, 0) == []


def test_bulk_gives_none_if_one_is_missing(region):
    keep = region.alloc(60 << 20)
    with pytest.raises(vmalloc.OutOfPages, match="1280 pages requested"):
        region.alloc_bulk(1 << 20, 5)
    assert region.stats().busy_bytes == keep.nbytes


def test_bulk_honours_alignment(region):
    assert all(b.offset % 65536 == 0 for b in region.alloc_bulk(PAGE, 20, align=65536))


def test_zeros_are_zeros_even_on_used_pages(region):
    for nbytes in (PAGE, 100 * PAGE, 1000 * PAGE):
        region.full(nbytes, 255, "u1")
        assert not region.zeros(nbytes, "u1").any()


def test_out_of_pages_tells_the_numbers_and_the_way_out(region):
    keep = region.alloc(32 << 20)
    with pytest.raises(vmalloc.OutOfPages) as caught:
        region.alloc(40 << 20)
    text = str(caught.value)
    assert text.startswith("10240 pages requested (40 MiB); 8192 of 16384 free, largest run 8192, 8192 busy")
    assert "make a larger region" in text
    assert region.stats().nr_failed == 1
    keep.release()
    assert region.alloc(40 << 20).nbytes == 40 << 20


def test_limit_bounds_what_is_handed_out_at_once(design):
    region = vmalloc.Region("64M", limit=8 * PAGE, **design)
    blocks = [region.alloc(PAGE) for _ in range(8)]
    with pytest.raises(vmalloc.OutOfPages):
        region.alloc(PAGE)
    blocks.pop().release()
    blocks.append(region.alloc(PAGE))
    blocks.clear()
    assert region.alloc(8 * PAGE).nbytes == 8 * PAGE  # the freed pages are given back for it
    assert_at_rest(region)


def test_a_region_can_be_filled_to_the_last_page_and_again(design):
    region = vmalloc.Region("1M", **design)
    for size in (1, 3, 256, 1):
        blocks = [region.alloc(size * PAGE) for _ in range(256 // size)]
        with pytest.raises(vmalloc.OutOfPages):
            region.alloc(2 * PAGE)
        blocks.clear()
        region.shrink()  # what lies between ranges of another size would not fit
    assert_at_rest(region)


def test_a_region_of_one_page_is_a_region(design):
    region = vmalloc.Region(1, **design)
    assert region.nr_pages == 1
    with region.alloc(PAGE) as block:
        memoryview(block)[:] = b"x" * PAGE
        with pytest.raises(vmalloc.OutOfPages, match=re.escape("0 of 1 free")):
            region.alloc(1)
    assert region.zeros(PAGE, "u1").sum() == 0
    assert_at_rest(region)


def test_fail_every_is_a_fault_of_your_choice(region):
    region.fail_every(3)
    outcomes = []
    for _ in range(9):
        try:
            region.alloc(PAGE)
            outcomes.append("ok")
        except vmalloc.OutOfPages:
            outcomes.append("fail")
    assert outcomes == ["ok", "ok", "fail"] * 3
    region.fail_every(0)
    assert region.alloc(PAGE).nbytes == PAGE
