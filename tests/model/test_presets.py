# SPDX-License-Identifier: MIT
"""What holds for every allocator of the model, the kernel's and ours."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vmalloc.model import KERNEL_PRESETS, PAGE, PRESETS, CachingAllocator, Kernel, allocator_of

WINDOW = (1 << 40, 2 << 40)
BASE = WINDOW[0]


def test_the_presets_are_five_of_the_kernel_and_ours():
    assert list(PRESETS) == [*KERNEL_PRESETS, "vmalloc"]
    assert list(KERNEL_PRESETS) == ["linux-6.8", "patch-v3", "linux-6.9", "linux-6.16", "llist"]


def test_a_design_makes_the_allocator_of_its_policy():
    assert isinstance(allocator_of(PRESETS["linux-6.16"]), Kernel)
    assert isinstance(allocator_of(PRESETS["vmalloc"]), CachingAllocator)


@pytest.mark.parametrize("name", PRESETS)
def test_a_copy_goes_its_own_way(name):
    k = allocator_of(PRESETS[name], 2, WINDOW)
    first = k.alloc(4 * PAGE)
    other = k.copy()
    other.free(first.start)
    other.shrink()
    other.purge(full=True)
    assert (k.live_pages, other.live_pages) == (4, 0)
    assert list(k.space) != list(other.space)


@pytest.mark.parametrize("name", PRESETS)
def test_every_page_is_in_exactly_one_place(name):
    k = allocator_of(PRESETS[name], 4, WINDOW, [(BASE, BASE + 4096 * PAGE)])
    live: list[int] = []
    for step in range(3000):
        if step % 5 < 3:
            area = k.alloc((step * 7 % 40 + 1) * PAGE, cpu=step % 4)
            if area is not None:
                live.append(area.start)
        elif live:
            k.free(live.pop(step * 13 % len(live)), cpu=step % 4)
        if step % 97 == 0:
            k.purge()
    areas = [(a.start, a.end) for a in k.busy.areas.values()] + list(k.space)
    for node in k.nodes:
        areas += [(a.start, a.end) for a in node.lazy.areas.values()]
        areas += [(a.start, a.end) for pool in node.pools.values() for a in pool.areas]
    if isinstance(k, CachingAllocator):
        areas += [(a.start, a.end) for a in k.warm]
        for kept in k.magazines.values():
            areas += [(a.start, a.end) for ranges in kept.sizes.values() for a in ranges]
    areas.sort()
    assert areas[0][0] == BASE
    assert areas[-1][1] == BASE + 4096 * PAGE
    assert all(left[1] == right[0] for left, right in pairwise(areas))
