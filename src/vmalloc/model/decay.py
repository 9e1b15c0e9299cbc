# SPDX-License-Identifier: MIT
"""Decay: at every purge each pool gives a part of its entries back to the global space.

It runs before the purge adds this round's areas, so these survive until the next purge. An ordinary purge
takes a quarter, a full one everything. What a quarter of 1, 2 or 3 is differs by version:

* 6.9 to 6.15: the pool is emptied (a quota of zero is taken for no limit);
* 6.16 and later: nothing (such a pool never decays in an ordinary purge);
* ours: one entry (rounded up), so small pools drain smoothly.

The kernel takes the hottest entries (the head, added last); ours takes the coldest. All entries of a node go
back to the global space in one step, so an allocator sees them gone before it can get them from there.

After: Linux mm/vmalloc.c, decay_va_pool_node().
"""

from __future__ import annotations

from vmalloc.model.area import Area
from vmalloc.model.design import Design
from vmalloc.model.node import Node


def decay_pools(node: Node, design: Design, full: bool) -> list[Area]:
    """Cut every pool of the node; returns the areas that belong to the global space now."""
    decayed: list[Area] = []
    hot = design.decay_end == "hot"
    for pool in node.pools.values():
        length = len(pool.areas)
        if length:
            decayed += pool.cut(length if full else design.decay_quota(length), hot)
    return decayed
