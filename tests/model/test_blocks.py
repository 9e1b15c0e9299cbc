# SPDX-License-Identifier: MIT
"""vm_map_ram's blocks: pages are given out once, front to back."""

from __future__ import annotations

import pytest

from vmalloc.model import PAGE, PRESETS, Kernel
from vmalloc.model.blocks import BlockAllocator, block_pages


@pytest.fixture
def blocks() -> BlockAllocator:
    return BlockAllocator(Kernel(PRESETS["linux-6.9"], 4, (1 << 40, 2 << 40)), pages=128)


def test_a_request_is_rounded_up_to_a_power_of_two(blocks):
    first, second = blocks.map(3), blocks.map(1)
    assert second - first == 4 * PAGE


def test_dirty_pages_of_a_block_are_never_reused(blocks):
    first = blocks.map(1)
    blocks.unmap(first, 1)
    assert blocks.map(1) == first + PAGE


def test_a_block_whose_pages_are_all_dirty_goes_back(blocks):
    for start in [blocks.map(64), blocks.map(64)]:
        blocks.unmap(start, 64)
    assert blocks.blocks == {}
    assert blocks.kernel.lazy_pages == 128


def test_each_cpu_cuts_from_blocks_of_its_own(blocks):
    assert abs(blocks.map(1, cpu=0) - blocks.map(1, cpu=1)) >= 128 * PAGE


def test_a_request_above_64_pages_is_an_ordinary_area(blocks):
    start = blocks.map(65)
    assert blocks.kernel.busy.areas[start].pages == 65


def test_only_blocks_with_less_than_a_quarter_free_are_purged_without_force(blocks):
    blocks.unmap(blocks.map(64), 64)
    assert blocks.purge_fragmented(everything=False) == 0
    assert blocks.purge_fragmented(everything=True) == 1


@pytest.mark.parametrize(("cpus", "pages"), [(64, 1024), (2048, 1024), (8192, 256)])
def test_a_block_is_a_sixteenth_of_a_cpus_share_within_limits(cpus, pages):
    assert block_pages(cpus) == pages
