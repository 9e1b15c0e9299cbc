# SPDX-License-Identifier: MIT
"""Decay: at every purge each pool gives a part of its entries back to the global space.

It runs before the purge adds this round's areas, so these survive until the next purge. A full purge takes
everything. An ordinary one takes a quarter in the kernel, DECAY_PERCENT of vmalloc/facts.py in ours; what a
quarter of 1, 2 or 3 is differs by version:

* 6.9 to 6.15: the pool is emptied (a quota of zero is taken for no limit);
* 6.16 and later: nothing (such a pool never decays in an ordinary purge);
* ours: one entry (rounded up), so small pools drain smoothly.

The kernel takes the hottest entries (the head, added last); ours takes the coldest. All entries of a node go
back to the global space in one step, so an allocator sees them gone before it can get them from there.

After: Linux mm/vmalloc.c, decay_va_pool_node().
"""

from __future__ import annotations

from collections.abc import Callable

from vmalloc.model.area import Area
from vmalloc.model.node import Node


def cut_pools(node: Node, quota: Callable[[int], int] | None, hot: bool) -> list[Area]:
    """Cut every pool of the node; returns the areas that belong to the global space now.

    `quota` says how many of so many entries go; without it all do.
    """
    cut: list[Area] = []
    for pool in node.pools.values():
        length = len(pool.areas)
        if length:
            cut += pool.cut(length if quota is None else quota(length), hot)
    return cut
