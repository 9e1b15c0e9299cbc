# SPDX-License-Identifier: MIT
"""The kernel's vmap-node design in plain Python: only the decisions, no locks and no bytes.

Read in this order: design (what differs between versions), kernel (the way of a request), then the stations
in flow order: node, pool, space, busy, lazy, purge, decay, shrink; blocks and percpu sit on top, magazine is
ours alone.
"""

from vmalloc.model.area import NO_NODE, PAGE, Area
from vmalloc.model.design import KERNEL_PRESETS, PRESETS, Design, differences
from vmalloc.model.kernel import Kernel, Level
from vmalloc.model.purge import Purge
from vmalloc.model.space import Space

__all__ = [
    "KERNEL_PRESETS",
    "NO_NODE",
    "PAGE",
    "PRESETS",
    "Area",
    "Design",
    "Kernel",
    "Level",
    "Purge",
    "Space",
    "differences",
]
