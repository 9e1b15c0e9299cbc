# SPDX-License-Identifier: MIT
"""Shrink: under memory pressure every pool goes back to the global space.

The kernel walks the nodes in index order and ignores how much was asked for. There is no trace event for it.
Like decay it must exclude purges, since only then nobody refills a pool that is being emptied. Ours takes the
lazy ranges too: it is a full purge (caching.py).

After: Linux mm/vmalloc.c, vmap_node_shrink_count() and vmap_node_shrink_scan().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmalloc.model.allocator import Allocator


def shrink_count(allocator: Allocator) -> int:
    """Areas that a shrink would give back."""
    return sum(node.pooled for node in allocator.nodes)


def shrink_scan(allocator: Allocator) -> int:
    """Empty all pools of all nodes into the global space; returns the areas moved."""
    moved = shrink_count(allocator)
    for node in allocator.nodes:
        allocator.reclaim(allocator.decay_pools(node, full=True))
    return moved
