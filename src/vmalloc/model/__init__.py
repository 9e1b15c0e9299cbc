# SPDX-License-Identifier: MIT
"""The kernel's vmap-node design and ours in plain Python: only the decisions, no locks and no bytes.

Two policies stand over the same stations. Read in this order: allocator (what both stand on); kernel (the way
of a request through the kernel) and design (what differs between its versions), or caching (the way through
our own allocator); then the stations in flow order: node, pool, space, busy, lazy, purge, decay, shrink.
magazine and warm are ours alone; vmap_block and percpu sit on top of the kernel's. presets names them all.
"""

from vmalloc.model.allocator import Allocator, Level
from vmalloc.model.area import NO_NODE, PAGE, Area
from vmalloc.model.caching import CachingAllocator, CachingDesign
from vmalloc.model.design import Design, differences
from vmalloc.model.kernel import Kernel
from vmalloc.model.presets import KERNEL_PRESETS, PRESETS, allocator_of
from vmalloc.model.purge import Purge
from vmalloc.model.space import Space

__all__ = [
    "KERNEL_PRESETS",
    "NO_NODE",
    "PAGE",
    "PRESETS",
    "Allocator",
    "Area",
    "CachingAllocator",
    "CachingDesign",
    "Design",
    "Kernel",
    "Level",
    "Purge",
    "Space",
    "allocator_of",
    "differences",
]
