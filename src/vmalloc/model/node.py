# SPDX-License-Identifier: MIT
"""Node: one shard. Owns a pool per exact size and the ranges lazily freed by the CPUs it serves.

Two different keys choose a node, and mixing them up is the classic mistake:

* pools and lazy: the node of the CPU that *allocated* (stamped on the area), `cpu mod nodes`;
* busy: the node of the area's *address*, `(start / zone) mod nodes`; see busy.py.

An area without a stamp (allocated outside the window, a per-CPU area, a one-node kernel) is lazily freed to
its address's node and goes back to the global space when purged.

After: Linux mm/vmalloc.c, struct vmap_node, addr_to_node_id() and encode_vn_id().
"""

from __future__ import annotations

from vmalloc.model.lazy import Lazy
from vmalloc.model.pool import Pool


class Node:
    """Pools by page count, and lazily freed areas."""

    __slots__ = ("id", "lazy", "pools")

    def __init__(self, node_id: int, lazy_merges: bool) -> None:
        self.id = node_id
        self.pools: dict[int, Pool] = {}
        self.lazy = Lazy(lazy_merges)

    def copy(self) -> Node:
        other = Node.__new__(Node)
        other.id = self.id
        other.pools = {pages: pool.copy() for pages, pool in self.pools.items() if pool.areas}
        other.lazy = self.lazy.copy()
        return other

    def pool(self, pages: int) -> Pool:
        """The pool of one size, made when first asked for."""
        pool = self.pools.get(pages)
        if pool is None:
            pool = self.pools[pages] = Pool()
        return pool

    @property
    def pooled(self) -> int:
        """Areas in all pools: what the shrinker counts."""
        return sum(map(len, self.pools.values()))
