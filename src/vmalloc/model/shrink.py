# SPDX-License-Identifier: MIT
"""Shrink: under memory pressure every pool goes back to the global space.

The kernel walks the nodes in index order and ignores how much was asked for; ours starts at a rotating node,
so that low-numbered nodes are not always hit first, and takes the lazy ranges too: it is a full purge. There
is no trace event for it. Like decay it must exclude purges, since only then nobody refills a pool that is
being emptied.

After: Linux mm/vmalloc.c, vmap_node_shrink_count() and vmap_node_shrink_scan().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmalloc.model.decay import decay_pools

if TYPE_CHECKING:
    from vmalloc.model.kernel import Kernel


def shrink_count(kernel: Kernel) -> int:
    """Areas that a shrink would give back."""
    return sum(node.pooled for node in kernel.nodes)


def shrink_scan(kernel: Kernel) -> int:
    """Empty all pools of all nodes into the global space; returns the areas moved."""
    moved = shrink_count(kernel)
    if kernel.design.shrink_purges:
        return moved + kernel.purge(full=True).nr_purged
    first = kernel.shrink_next if kernel.design.shrink_rotates else 0
    for offset in range(kernel.nr_nodes):
        node = kernel.nodes[(first + offset) % kernel.nr_nodes]
        kernel.reclaim(decay_pools(node, kernel.design, full=True))
    kernel.shrink_next = (first + 1) % kernel.nr_nodes
    return moved
