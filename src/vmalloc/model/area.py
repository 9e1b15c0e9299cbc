# SPDX-License-Identifier: MIT
"""Area: one range of kernel address space, and the constants every station shares.

An area is a plain immutable record, so a copy of the whole model may share its areas. Sizes are bytes and
include the guard page: they are what the kernel's `alloc_vmap_area` event prints.
"""

from __future__ import annotations

from typing import NamedTuple

PAGE = 4096
NO_NODE = -1
"""The stamp of an area that belongs to no node (outside the window, per-CPU areas, one-node kernels)."""

RAM = 0x1
"""Flag: made by vm_map_ram."""
BLOCK = 0x2
"""Flag: a per-CPU block of the vm_map_ram allocator; only together with RAM."""


class Area(NamedTuple):
    """`[start, start + size)` in bytes, the node it is stamped with, and its flags."""

    start: int
    size: int
    node: int = NO_NODE
    flags: int = 0

    @property
    def end(self) -> int:
        return self.start + self.size

    @property
    def pages(self) -> int:
        return self.size // PAGE


def encode_flags(area: Area) -> int:
    """The area's flags word as the kernel keeps it: flags in the low bits, node id plus one from bit 8."""
    return area.flags | ((area.node + 1) << 8)


def decode_flags(word: int) -> tuple[int, int]:
    """The (node, flags) of a kernel flags word; no node decodes as NO_NODE."""
    return (word >> 8) - 1, word & 0x3
