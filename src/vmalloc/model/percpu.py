# SPDX-License-Identifier: MIT
"""Per-CPU areas: several areas at fixed distances from one base, found from the top of the window down.

The percpu allocator needs one area per group of CPUs, at offsets given once and for all. All of them must be
free at the same base; the highest such base wins. They come from the global space only, so ranges parked in
pools or lazy sets are out of reach until a full purge, which is done once if nothing fits. They carry no
stamp and, when freed, return to the global space. There is no trace event for their allocation.

After: Linux mm/vmalloc.c, pcpu_get_vm_areas().
"""

from __future__ import annotations

from collections.abc import Sequence

from vmalloc.model.area import Area
from vmalloc.model.kernel import Kernel


def get_areas(kernel: Kernel, offsets: Sequence[int], sizes: Sequence[int], align: int) -> list[Area] | None:
    """Allocate areas of `sizes` at `base + offsets` for the highest possible aligned base."""
    base = _highest_base(kernel, offsets, sizes, align)
    if base is None:
        kernel.purge(full=True)
        base = _highest_base(kernel, offsets, sizes, align)
    if base is None:
        return None
    areas = [Area(base + offset, size) for offset, size in zip(offsets, sizes, strict=True)]
    for area in areas:
        kernel.space.take(area.start, area.size)
        kernel.busy.insert(area)
        kernel.live_pages += area.pages
    return areas


def _highest_base(kernel: Kernel, offsets: Sequence[int], sizes: Sequence[int], align: int) -> int | None:
    """Lower the base until every area lies in a free range; each round moves it below one obstacle."""
    ranges = list(kernel.space)
    window_start, window_end = kernel.window[0], kernel.window[1] & -align
    last_end = max(offset + size for offset, size in zip(offsets, sizes, strict=True))
    base = window_end - last_end
    while base >= window_start:
        lowered = base
        for offset, size in zip(offsets, sizes, strict=True):
            lowered = min(lowered, _fit_below(ranges, lowered + offset, size, align) - offset)
        if lowered == base:
            return base
        base = lowered
    return None


def _fit_below(ranges: Sequence[tuple[int, int]], start: int, size: int, align: int) -> int:
    """The highest aligned start <= `start` at which `size` bytes are free; negative if there is none."""
    low, high = 0, len(ranges)
    while low < high:
        middle = (low + high) // 2
        if ranges[middle][0] <= start:
            low = middle + 1
        else:
            high = middle
    for free_start, free_end in reversed(ranges[:low]):
        fit = min(start, (free_end - size) & -align)
        if fit >= free_start:
            return fit
    return -1 << 64
